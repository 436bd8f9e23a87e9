//! What surrounds macvtaps on a node: kernel, kubelet, device plugin, CNI plugin.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::finding::Finding;
use crate::{
    deviceplugin::{grpc::pod_resources, names::KUBELET_SOCKET, status},
    dispatch::NAME,
    host::{
        container,
        program::{self, Bounds},
    },
    learning::query,
    macvtap::{
        port_security::{self, Mechanism},
        security::Security,
        shaping,
        sub_interface::Maker,
    },
    netlink::{Link, Socket},
    types::{
        prefix::Prefix,
        status::{Problem, Status, Summary},
    },
};

pub fn kernel() -> Finding {
    let check = "kernel";
    match Socket::open().and_then(|mut socket| socket.probe_macvtap()) {
        Ok(()) => Finding::ok(check, "macvtaps can be created"),
        Err(error) => {
            let fix = match error.errno() {
                Some(Errno::EPERM) => "run doctor as root, or with CAP_NET_ADMIN",
                _ => "modprobe macvtap; without that module, use a kernel with CONFIG_MACVTAP",
            };
            Finding::fail(check, format!("macvtaps cannot be created: {error:#}"), fix)
        }
    }
}

pub fn security() -> Finding {
    let check = "security";
    let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let strict = Security::strict(any.map(Prefix::host).to_vec());
    match port_security::probe(&strict) {
        Ok(Mechanism::Nftables) => Finding::ok(check, "nf_tables can enforce it"),
        Ok(Mechanism::ClassicBpf) => Finding::note(
            check,
            "classic BPF can enforce it, without counters by reason; nf_tables has no egress hook",
        ),
        Err(error) => Finding::note(check, format!("{error:#}")),
    }
}

pub fn bandwidth() -> Finding {
    let check = "bandwidth";
    match shaping::probe() {
        Ok(()) => Finding::ok(check, "rates can be limited both ways"),
        Err(error) => Finding::note(check, format!("{error:#}")),
    }
}

pub fn kubelet_socket(kubelet_dir: &Path) -> Finding {
    let socket = kubelet_dir.join(KUBELET_SOCKET);
    let shown = socket.display();
    if socket.exists() {
        return Finding::ok("kubelet", format!("{shown} exists"));
    }
    Finding::fail(
        "kubelet",
        format!("{shown} does not exist"),
        "start the kubelet, or give the directory of its device plugin socket with --kubelet-dir",
    )
}

/// Says that the kubelet's socket for pod resources is not found. It is in the kubelet's
/// `--root-dir`, other than that for device plugins.
pub fn pod_resources(kubelet_dir: &Path) -> Option<Finding> {
    let found = pod_resources::socket(kubelet_dir).is_some();
    (!found && kubelet_dir.join(KUBELET_SOCKET).exists()).then(|| {
        Finding::note(
            "kubelet",
            "its pod-resources/kubelet.sock is not found, so the macvtap of a pod without a \
             network is deleted only when another pod gets one; mount pod-resources of the \
             kubelet's --root-dir",
        )
    })
}

/// The findings about the device plugin, and the lower devices that they already name.
pub fn device_plugin(kubelet_dir: &Path) -> (Vec<Finding>, Vec<String>) {
    let check = "device plugin";
    let status = match status::query(kubelet_dir) {
        Ok(status) => status,
        Err(error) => {
            let finding = Finding::fail(
                check,
                format!("no answer: {error:#}"),
                "start it, or run doctor in its network namespace; see the log of its pod: \
                 kubectl logs -n NAMESPACE -l app.kubernetes.io/name=macvtap",
            );
            return ([vec![finding], left_behind()].concat(), Vec::new());
        }
    };
    let mut findings = findings(check, status.summary());
    findings.extend(learner_is_hidden(&status));
    let unhealthy = status.resources.into_iter();
    let unhealthy = unhealthy.filter(|resource| resource.unhealthy_reason.is_some());
    let named = unhealthy.map(|resource| resource.lower_device);
    (findings, named.collect())
}

/// The interfaces that a device plugin made, which it would use again. None goes by itself.
fn left_behind() -> Vec<Finding> {
    let links = Socket::open().and_then(|mut host| host.links());
    let made = links.into_iter().flatten();
    let made = made.filter(|link| Maker::DevicePlugin.made(link));
    let finding = |link: Link| {
        let name = link.name;
        let text = format!(
            "{name} is of a device plugin; if there is none any more: ip link delete {name}"
        );
        Finding::note("interface", text)
    };
    made.map(finding).collect()
}

fn findings(check: &str, summary: Summary) -> Vec<Finding> {
    let ok = summary.ok.into_iter().map(|text| Finding::ok(check, text));
    let notes = summary.notes.into_iter();
    let notes = notes.map(|text| Finding::note(check, text));
    let problems = summary.failures.into_iter().chain(summary.warnings);
    let problems = problems.map(|Problem { text, fix }| Finding::fail(check, text, fix));
    ok.chain(notes).chain(problems).collect()
}

/// A directory of the node that this container does not mount.
fn not_visible(check: &str, path: &Path) -> Finding {
    let path = path.display();
    let text = format!("{path} is not visible in this container; run doctor on the node");
    Finding::note(check, text)
}

/// Says that ADD cannot ask the learner, which the device plugin cannot know.
fn learner_is_hidden(status: &Status) -> Option<Finding> {
    let hidden = status.running_learning().is_some() && query::find().is_none();
    hidden.then(|| {
        Finding::fail(
            "learning",
            "ADD does not find the device plugin's socket: VMs are unreachable from VMs on the \
             same node during migration",
            "mount the node's /run/macvtap in the device plugin's container",
        )
    })
}

pub fn cni_plugin(dir: &Path) -> Finding {
    let (check, path) = ("CNI plugin", dir.join(NAME));
    let shown = path.display();
    let fix = "run macvtap install, or restart the DaemonSet's pod: its init container installs it";
    if !dir.exists() && container::is_ours() {
        return not_visible(check, dir);
    }
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) => return Finding::fail(check, format!("{shown}: {error}"), fix),
    };
    if metadata.permissions().mode() & 0o111 == 0 {
        return Finding::fail(check, format!("{shown} is not executable"), fix);
    }
    let ours = env!("CARGO_PKG_VERSION");
    match version(&path) {
        Ok(version) if version == ours => {
            Finding::ok(check, format!("{shown} is version {version}"))
        }
        Ok(version) => Finding::fail(
            check,
            format!("{shown} is version {version}, this program is version {ours}"),
            fix,
        ),
        Err(error) => Finding::fail(check, format!("{error:#}"), fix),
    }
}

/// The version that a binary prints, which may be another program.
fn version(path: &Path) -> Result<String> {
    let mut command = Command::new(path);
    command.arg("--version").env_remove("CNI_COMMAND");
    let output = program::run(&mut command, b"", Bounds::SHORT);
    let output = output.with_context(|| format!("executing {}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .strip_prefix("macvtap ")
        .map(|rest| rest.trim().to_owned());
    version.with_context(|| format!("{} is another program", path.display()))
}

pub fn cni_configuration(dir: &Path) -> Finding {
    let check = "CNI configs";
    if !dir.exists() && container::is_ours() {
        return not_visible(check, dir);
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension();
            extension.is_some_and(|end| end == "conf" || end == "conflist" || end == "json")
        });
    let shown = dir.display();
    match names.min() {
        Some(first) if first.contains("multus") => {
            Finding::ok(check, format!("the first one in {shown} is {first}"))
        }
        Some(first) => Finding::note(
            check,
            format!(
                "the first one in {shown} is {first}; if that does not lead to Multus, pods get no \
                 other networks"
            ),
        ),
        None => Finding::fail(
            check,
            format!("{shown} has none, so no pod gets a network"),
            "install the cluster's network and Multus, or give the directory with --cni-conf-dir",
        ),
    }
}
