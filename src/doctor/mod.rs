//! `macvtap doctor`: what keeps macvtaps from working on this node, and the cure.

mod network;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::{Value, json};

use crate::{
    cli,
    deviceplugin::{grpc::kubelet, status},
    dispatch::NAME,
    host::tap::{self, Device, Node},
    macvtap::inventory::{Inventory, Macvtap},
    netlink::{Socket, errno},
    types::{
        device_id::{STANDALONE_TAPS, TAPS},
        status::{Status, Summary},
    },
};

/// What was found about one thing.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
    cure: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It may be as it should be.
    Note,
    Broken,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Broken => "BROKEN",
        }
    }
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            text: text.into(),
            cure: None,
        }
    }

    fn is_broken(&self) -> bool {
        self.verdict == Verdict::Broken
    }

    fn to_json(&self) -> Value {
        json!({
            "check": self.check,
            "verdict": self.verdict.name().to_lowercase(),
            "text": self.text,
            "cure": self.cure,
        })
    }

    fn note(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Note,
            ..Self::ok(check, text)
        }
    }

    fn broken(check: &'static str, text: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Broken,
            cure: Some(cure.into()),
            ..Self::ok(check, text)
        }
    }
}

/// Checks, prints, and fails if something is broken.
pub fn main(options: &cli::Doctor) -> Result<ExitCode> {
    let findings = check(options);
    let text = if options.json {
        let list: Vec<Value> = findings.iter().map(Finding::to_json).collect();
        format!("{:#}\n", Value::from(list))
    } else {
        for_people(&findings)
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let broken = findings.iter().any(Finding::is_broken);
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn for_people(findings: &[Finding]) -> String {
    let lines = findings.iter().map(|finding| {
        let (verdict, check) = (finding.verdict.name(), finding.check);
        let line = format!("  {verdict:6} {check:14} {}\n", finding.text);
        let cure = finding.cure.as_ref();
        let cure = cure.map(|cure| format!("{:24}cure: {cure}\n", ""));
        line + &cure.unwrap_or_default()
    });
    let lines: String = lines.collect();
    let end = match findings
        .iter()
        .filter(|finding| finding.is_broken())
        .count()
    {
        0 => "Nothing is broken.".to_owned(),
        1 => "1 thing is broken.".to_owned(),
        count => format!("{count} things are broken."),
    };
    format!("{lines}\n{end}\n")
}

fn check(options: &cli::Doctor) -> Vec<Finding> {
    let mut findings = vec![kernel(), kubelet_socket(&options.kubelet_dir)];
    findings.extend(device_plugin(&options.kubelet_dir));
    findings.push(plugin(&options.cni_dir));
    findings.push(configuration(&options.cni_conf_dir));
    match Inventory::new() {
        Ok(inventory) => {
            findings.extend(lower_devices(&inventory));
            findings.extend(macvtaps(&inventory));
        }
        Err(error) => findings.push(Finding::broken(
            "macvtaps",
            format!("they cannot be listed: {error:#}"),
            "run it as root",
        )),
    }
    if let (Some(address), Some(lower)) = (options.probe_network, &options.lower_device) {
        findings.push(match network::answers(lower, address) {
            Ok(true) => Finding::ok("network", format!("{address} answers a MAC of a moment")),
            Ok(false) => Finding::broken(
                "network",
                format!("{address} does not answer a MAC of a moment on {lower}"),
                "where the node is a VM itself, let its virtual switch take frames of other MACs \
                 (VMware: forged transmits and promiscuous mode); where a switch has port \
                 security, raise its number of MACs",
            ),
            Err(error) => Finding::broken("network", format!("{error:#}"), "see the message"),
        });
    }
    findings
}

/// Whether this runs in our image, where parts of the node are not seen.
fn in_image() -> bool {
    Path::new("/macvtap").exists() && !Path::new("/etc/os-release").exists()
}

fn unseen(check: &'static str, path: &Path) -> Finding {
    let text = format!(
        "{} is not seen from this container; the node's own doctor looks",
        path.display()
    );
    Finding::note(check, text)
}

fn kernel() -> Finding {
    let check = "kernel";
    match Socket::open().and_then(|mut socket| socket.probe_macvtap()) {
        Ok(()) => Finding::ok(check, "has macvtap, and lets us make one"),
        Err(error) => {
            let cure = match errno(&error) {
                Some(Errno::EPERM) => "run it as root, or with CAP_NET_ADMIN",
                _ => "modprobe macvtap; if there is none, a kernel with CONFIG_MACVTAP",
            };
            Finding::broken(check, format!("no macvtap can be made: {error:#}"), cure)
        }
    }
}

fn kubelet_socket(kubelet_dir: &Path) -> Finding {
    let socket = kubelet_dir.join(kubelet::SOCKET);
    let shown = socket.display();
    if socket.exists() {
        return Finding::ok("kubelet", format!("{shown} is there"));
    }
    Finding::broken(
        "kubelet",
        format!("{shown} is not there"),
        "start the kubelet, or say where its device plugins' directory is by --kubelet-dir",
    )
}

fn device_plugin(kubelet_dir: &Path) -> Vec<Finding> {
    let check = "device plugin";
    let status = match status::ask(kubelet_dir) {
        Ok(status) => status,
        Err(error) => {
            return vec![Finding::broken(
                check,
                format!("does not answer: {error:#}"),
                "kubectl -n macvtap logs ds/macvtap; it has to run in this network namespace",
            )];
        }
    };
    let Summary { ok, failures } = status.summary();
    let ok = ok.into_iter().map(|text| Finding::ok(check, text));
    let cure = "see the device plugin's log, and whether the kubelet runs";
    let failures = failures
        .into_iter()
        .map(|text| Finding::broken(check, text, cure));
    let mut findings: Vec<Finding> = ok.chain(failures).collect();
    for resource in &status.resources {
        if let Some(reason) = &resource.unhealthy_reason {
            findings.push(Finding::broken(
                "lower device",
                format!("{} is not healthy: {reason}", resource.name),
                "bring the lower device up, or name another one in the configuration",
            ));
        }
    }
    findings.extend(learning(&status));
    findings
}

/// Says that learning is off, or that it has stopped.
fn learning(status: &Status) -> Option<Finding> {
    let check = "learning";
    match &status.learning {
        None => {
            let text = "is off: VMs that migrate are out of reach of their neighbours for a time";
            Some(Finding::note(check, text))
        }
        Some(learning) if !learning.running => Some(Finding::broken(
            check,
            "has stopped: VMs that migrate are out of reach of their neighbours for a time",
            "see the device plugin's log, and restart it",
        )),
        Some(_) => None,
    }
}

fn plugin(dir: &Path) -> Finding {
    let (check, path) = ("CNI plugin", dir.join(NAME));
    let shown = path.display();
    let cure = "macvtap install, or the DaemonSet's init container";
    if !dir.exists() && in_image() {
        return unseen(check, dir);
    }
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) => return Finding::broken(check, format!("{shown}: {error}"), cure),
    };
    if metadata.permissions().mode() & 0o111 == 0 {
        return Finding::broken(check, format!("{shown} is not executable"), cure);
    }
    match version(&path) {
        Ok(version) if version == env!("CARGO_PKG_VERSION") => {
            Finding::ok(check, format!("{shown} is version {version}, as this is"))
        }
        Ok(version) => Finding::broken(
            check,
            format!(
                "{shown} is version {version}, this is {}",
                env!("CARGO_PKG_VERSION")
            ),
            cure,
        ),
        Err(error) => Finding::broken(check, format!("{error:#}"), cure),
    }
}

/// Runs a binary to hear its version. One that is not ours may say anything.
fn version(path: &Path) -> Result<String> {
    let mut command = Command::new(path);
    let command = command
        .arg("--version")
        .env_remove("CNI_COMMAND")
        .stdin(Stdio::null());
    let output = command.output();
    let output = output.with_context(|| format!("{} does not run", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .strip_prefix("macvtap ")
        .map(|rest| rest.trim().to_owned());
    version.with_context(|| format!("{} is another program", path.display()))
}

fn configuration(dir: &Path) -> Finding {
    let check = "CNI configs";
    if !dir.exists() && in_image() {
        return unseen(check, dir);
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension();
            extension.is_some_and(|end| end == "conf" || end == "conflist" || end == "json")
        })
        .collect();
    names.sort();
    let shown = dir.display();
    match names.first() {
        Some(first) => Finding::ok(check, format!("{shown} begins with {first}")),
        None => Finding::broken(
            check,
            format!("{shown} has none, so no pod gets a network"),
            "install the cluster's network and Multus, or say where they are by --cni-conf-dir",
        ),
    }
}

fn lower_devices(inventory: &Inventory) -> Vec<Finding> {
    let used = inventory
        .lower_devices
        .iter()
        .filter(|lower| lower.macvtaps > 0);
    used.map(|lower| {
        let name = &lower.link.name;
        let count = lower.macvtaps;
        match &lower.unfit {
            None => Finding::ok("lower device", format!("{name} has {count} macvtaps")),
            Some(why) => Finding::broken(
                "lower device",
                format!("{name} has {count} macvtaps, and is {why}"),
                format!("ip link set {name} up, or take it out of what it is a port of"),
            ),
        }
    })
    .collect()
}

fn macvtaps(inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for macvtap in &inventory.macvtaps {
        let number = macvtap.link.index;
        if is_ours(number) {
            let devices = inventory.taps.get(&number);
            findings.extend(node(macvtap, devices.map_or(&[], Vec::as_slice)));
            findings.extend(orphan(macvtap));
        }
    }
    findings.extend(same_mac(&inventory.macvtaps));
    findings.extend(stale_nodes());
    if findings
        .iter()
        .all(|finding| finding.verdict == Verdict::Ok)
    {
        let count = inventory.macvtaps.len();
        findings.push(Finding::ok(
            "macvtaps",
            format!("{count}, all as they should be"),
        ));
    }
    if !inventory.unseen.is_empty() {
        let count = inventory.unseen.len();
        let text = format!("{count} taps are in network namespaces that cannot be found from here");
        findings.push(Finding::note("macvtaps", text));
    }
    findings
}

/// Whether a promised tap's node is that of its macvtap, and QEMU may open it.
fn node(macvtap: &Macvtap, devices: &[Device]) -> Option<Finding> {
    let number = macvtap.link.index;
    let path = tap::path(number);
    let path = path.display();
    let again = "delete the pod: its next one gets a new tap";
    let broken = |text: String, cure: String| Some(Finding::broken("tap", text, cure));
    match (macvtap.node?, devices) {
        (Node::Device(found, owner, mode), [device]) if found == *device => {
            if owner.user != 0 && mode & 0o600 == 0o600 {
                return None;
            }
            let (user, group) = (owner.user, owner.group);
            broken(
                format!("{path} belongs to {user}:{group}, mode {mode:04o}"),
                format!("chown 107:107 {path} && chmod 660 {path} for KubeVirt"),
            )
        }
        (Node::Device(found, ..), [device]) => broken(
            format!(
                "{path} is device {found}, the macvtap's is {device}: a VM would be on a foreign link"
            ),
            format!("rm {path}, then {again}"),
        ),
        (Node::Foreign, _) => broken(
            format!("{path} is no device"),
            format!("rm -r {path}, then {again}"),
        ),
        (Node::Missing, [_]) if in_image() => None,
        (Node::Missing, [_]) => broken(format!("{path} is missing"), again.to_owned()),
        (_, several) => broken(
            format!("{} macvtaps are called tap {number}", several.len()),
            again.to_owned(),
        ),
    }
}

/// A macvtap that a pod should have, in our own namespace.
fn orphan(macvtap: &Macvtap) -> Option<Finding> {
    let Macvtap { link, netns, .. } = macvtap;
    netns.is_empty().then(|| {
        Finding::note(
            "macvtap",
            format!(
                "{} is outside of any pod: the device plugin made it for a pod that wants the tap alone",
                link.name
            ),
        )
    })
}

fn is_ours(number: u32) -> bool {
    TAPS.contains(&number) || STANDALONE_TAPS.contains(&number)
}

/// The kernel allows a MAC once on a lower device that is up; a second one is down, or about
/// to fail.
fn same_mac(macvtaps: &[Macvtap]) -> Vec<Finding> {
    let mut by_mac: BTreeMap<_, Vec<&Macvtap>> = BTreeMap::new();
    for macvtap in macvtaps {
        by_mac
            .entry((&macvtap.lower, macvtap.link.mac))
            .or_default()
            .push(macvtap);
    }
    let twice = by_mac
        .into_iter()
        .filter(|((lower, mac), list)| lower.is_some() && mac.is_some() && list.len() > 1);
    twice
        .map(|((lower, mac), list)| {
            let taps: Vec<String> = list
                .iter()
                .map(|each| each.link.index.to_string())
                .collect();
            let lower = lower.clone().unwrap_or_default();
            let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
            Finding::broken(
                "MAC",
                format!("taps {} on {lower} have one MAC, {mac}", taps.join(" and ")),
                "give one of the VMs another MAC",
            )
        })
        .collect()
}

/// Nodes that would open whatever tap gets the device number next. The taps are listed after
/// the nodes: those of one that is just made are not stale.
fn stale_nodes() -> Vec<Finding> {
    let (Ok(nodes), Ok(numbers)) = (tap::nodes(), tap::numbers()) else {
        return Vec::new();
    };
    let stale = nodes
        .into_iter()
        .filter(|number| is_ours(*number) && !numbers.contains(number));
    stale
        .map(|number| {
            let path = tap::path(number);
            let path = path.display();
            Finding::broken(
                "tap",
                format!("{path} is left of a macvtap that is gone"),
                format!("rm -r {path}"),
            )
        })
        .collect()
}
