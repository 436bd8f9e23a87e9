//! `doctor`: each problem is caused, found, and fixed.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
};

use kit::{
    binary,
    kubelet::{Plugin, RESOURCE, connected},
    netns::{FAR_END, Host, IFNAME, LOWER, Node, tap, tap_number, wait_until},
};
use macvtap::selftest::kubelet::Kubelet;
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::Value;
use tempfile::TempDir;

use super::{Resident, alone, run, succeed};

/// A node without problems.
struct Healthy {
    node: Node,
    dir: TempDir,
    kubelet: Option<Kubelet>,
    plugin: Option<Plugin>,
    pod: Host,
    number: u32,
    _resident: Resident,
}

impl Healthy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["kubelet", "bin", "net.d", "pod-resources"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("pod-resources/kubelet.sock"), "").unwrap();
        fs::write(dir.path().join("net.d/00-multus.conf"), "{}").unwrap();
        fs::copy(binary(), dir.path().join("bin/macvtap")).unwrap();
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        node.allocated(&pod, number).add();
        let resident = Resident::new(&pod);
        let kubelet = Kubelet::start(&dir.path().join("kubelet")).unwrap();
        let plugin = Plugin::start(&node.host, &dir.path().join("kubelet"));
        connected(&kubelet);
        Self {
            node,
            dir,
            kubelet: Some(kubelet),
            plugin: Some(plugin),
            pod,
            number,
            _resident: resident,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn words(&self) -> Vec<String> {
        let option =
            |name: &str, dir: &str| [name.to_owned(), self.path(dir).display().to_string()];
        let options = [
            option("--kubelet-dir", "kubelet"),
            option("--cni-dir", "bin"),
            option("--cni-conf-dir", "net.d"),
        ];
        ["doctor".to_owned()]
            .into_iter()
            .chain(options.into_iter().flatten())
            .collect()
    }

    /// The problems that doctor finds: checks and texts.
    fn problems(&self, more: &[&str]) -> Vec<(String, String)> {
        let words = self.words();
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["--json"]).collect();
        let output = run(&self.node.host, &[&words[..], more].concat());
        let list: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let list = list.as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let problems: Vec<_> = list
            .filter(|finding| finding["verdict"] == "fail")
            .inspect(|finding| assert!(finding["fix"].is_string(), "{finding}"))
            .map(|finding| (text(&finding["check"]), text(&finding["text"])))
            .collect();
        assert_eq!(output.status.success(), problems.is_empty(), "{problems:?}");
        problems
    }

    fn finds(&self, check: &str, text: &str) {
        let problems = self.problems(&[]);
        let found = problems
            .iter()
            .any(|(name, found)| name == check && found.contains(text));
        assert!(found, "{check}: {text} is not in {problems:?}");
    }

    fn finds_nothing(&self) {
        assert_eq!(self.problems(&[]), []);
    }
}

#[test]
fn a_healthy_node_has_no_problems() {
    let _alone = alone();
    let healthy = Healthy::new();
    healthy.finds_nothing();
    let words = healthy.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = succeed(&healthy.node.host, &words);
    assert!(text.ends_with("\nNo problems found.\n"), "{text}");
    let expected = |line: &str| {
        // Other tests have macvtaps, too.
        let notes = ["macvtaps", "requests", "runtime"];
        let note = notes
            .iter()
            .any(|check| line.starts_with(&format!("  note {check} ")));
        line.is_empty() || line.starts_with("  ok ") || line.starts_with('N') || note
    };
    assert!(text.lines().all(expected), "{text}");
    // Elsewhere, with another --root-dir.
    fs::remove_file(healthy.path("pod-resources/kubelet.sock")).unwrap();
    let output = run(&healthy.node.host, &words);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("pod-resources/kubelet.sock is not found"),
        "{text}"
    );
}

#[test]
fn finds_problems_of_the_plugins() {
    let _alone = alone();
    let mut healthy = Healthy::new();
    let program = healthy.path("bin/macvtap");
    fs::set_permissions(&program, Permissions::from_mode(0o644)).unwrap();
    healthy.finds("CNI plugin", "is not executable");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    healthy.finds_nothing();
    let script = |text: &str| {
        fs::remove_file(&program).unwrap();
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    };
    script("#!/bin/sh\necho macvtap 0.0.1\n");
    healthy.finds("CNI plugin", "is version 0.0.1, this program is ");
    script("#!/bin/sh\nexec sleep 60\n");
    healthy.finds("CNI plugin", "did not end within 5s and was killed");
    script("#!/bin/sh\necho hello\n");
    healthy.finds("CNI plugin", "is another program");
    fs::remove_file(&program).unwrap();
    healthy.finds("CNI plugin", "No such file");
    // The fix.
    let dir = healthy.path("bin");
    succeed(
        &healthy.node.host,
        &["install", "--dir", dir.to_str().unwrap()],
    );
    healthy.finds_nothing();
    fs::remove_file(healthy.path("net.d/00-multus.conf")).unwrap();
    healthy.finds("CNI configs", "has none");
    fs::write(healthy.path("net.d/00-multus.conf"), "{}").unwrap();
    healthy.finds_nothing();
    healthy.plugin = None;
    healthy.finds("device plugin", "no answer");
    healthy.plugin = Some(Plugin::start(&healthy.node.host, &healthy.path("kubelet")));
    connected(healthy.kubelet.as_ref().unwrap());
    healthy.finds_nothing();
    healthy.kubelet = None;
    fs::remove_file(healthy.path("kubelet/kubelet.sock")).ok();
    healthy.finds("kubelet", "does not exist");
    healthy.finds("device plugin", "is not registered");
    let kubelet = Kubelet::start(&healthy.path("kubelet")).unwrap();
    connected(&kubelet);
    healthy.finds_nothing();
}

#[test]
fn finds_problems_of_links_and_taps() {
    let _alone = alone();
    let healthy = Healthy::new();
    let host = &healthy.node.host;
    let path = tap(healthy.number);
    host.ip(&format!("link set {LOWER} down"));
    wait_until("the device plugin sees it", || {
        let problems = healthy.problems(&[]);
        problems
            .iter()
            .any(|(check, text)| check == "device plugin" && text.contains("is down"))
    });
    host.ip(&format!("link set {LOWER} name other"));
    wait_until("the device plugin sees it", || {
        healthy.problems(&[]).len() > 1
    });
    healthy.finds(
        "device plugin",
        "is unhealthy: lower device \"eth0\" does not exist",
    );
    host.ip(&format!("link set other name {LOWER}"));
    host.ip(&format!("link set {LOWER} up"));
    wait_until("the device plugin sees it", || {
        healthy.problems(&[]).is_empty()
    });
    chown(&path, Some(0), Some(0)).unwrap();
    // As the configuration may say: QEMU runs as root.
    healthy.finds_nothing();
    chown(&path, Some(107), Some(107)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o060)).unwrap();
    healthy.finds("tap", "user 107 cannot open");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    healthy.finds_nothing();
    // A node that is another macvtap's.
    let (other, other_number) = (Host::new(), tap_number());
    healthy.node.allocated(&other, other_number).add();
    let _resident = Resident::new(&other);
    healthy.finds_nothing();
    let rdev = |path: &Path| std::os::unix::fs::MetadataExt::rdev(&fs::metadata(path).unwrap());
    let (own, foreign) = (rdev(&path), rdev(&tap(other_number)));
    let make = |rdev| {
        fs::remove_file(&path).unwrap();
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o660), rdev).unwrap();
        chown(&path, Some(107), Some(107)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
    };
    make(foreign);
    healthy.finds("tap", "a VM would use another macvtap");
    make(own);
    healthy.finds_nothing();
    // A MAC twice: the kernel takes it while the second one is down.
    let mac = healthy.pod.link(IFNAME).unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let words = [
        "link",
        "add",
        "twin",
        "--lower-device",
        LOWER,
        "--mac",
        &mac,
    ];
    succeed(host, &words);
    healthy.finds("MAC", &mac);
    succeed(host, &["link", "delete", "twin"]);
    healthy.finds_nothing();
    // A node without its macvtap.
    let stale = tap(tap_number());
    mknod(&stale, SFlag::S_IFCHR, Mode::S_IRUSR, own).unwrap();
    healthy.finds("tap", "is a stale node");
    fs::remove_file(stale).unwrap();
    healthy.finds_nothing();
    fs::remove_file(&path).unwrap();
    healthy.finds("tap", "is missing");
}

/// The macvtap of a pod that uses the tap alone is in the node's network namespace.
#[test]
fn finds_a_mac_that_security_does_not_know() {
    let _alone = alone();
    let healthy = Healthy::new();
    let (pod, number) = (Host::new(), tap_number());
    let _resident = Resident::new(&pod);
    let call = healthy.node.allocated(&pod, number);
    let call = call.with("mac", "02:00:00:00:00:aa");
    call.with("security", "mac").add();
    healthy.finds_nothing();
    pod.ip(&format!("link set {IFNAME} address 02:00:00:00:00:bb"));
    healthy.finds("security", "has MAC 02:00:00:00:00:bb");
    healthy.finds("security", "mac for 02:00:00:00:00:aa");
    pod.ip(&format!("link set {IFNAME} address 02:00:00:00:00:aa"));
    healthy.finds_nothing();
}

#[test]
fn knows_the_macvtap_of_a_pod_that_uses_the_tap_alone() {
    let _alone = alone();
    let healthy = Healthy::new();
    let kubelet = healthy.kubelet.as_ref().unwrap();
    let resource = kubelet.resource(RESOURCE).unwrap();
    let id = resource.healthy().into_iter().nth(7).unwrap();
    kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    let tap = id.rsplit(':').next().unwrap();
    healthy.finds_nothing();
    let list = succeed(&healthy.node.host, &["link", "list", tap]);
    assert!(
        list.contains("(tap only)") && list.contains("mvt"),
        "{list}"
    );
    let words = healthy.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = succeed(&healthy.node.host, &words);
    assert!(text.contains("its pod uses the tap alone"), "{text}");
    kubelet.allocate(RESOURCE, &[id]).unwrap();
}

#[test]
fn a_lower_device_that_is_down_is_one_problem() {
    let _alone = alone();
    let healthy = Healthy::new();
    healthy.node.host.ip(&format!("link set {LOWER} down"));
    let problems = || healthy.problems(&[]);
    wait_until("the device plugin sees it", || {
        problems().iter().any(|(check, _)| check == "device plugin")
    });
    let problems = problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].1.contains("is down"), "{problems:?}");
}

#[test]
fn a_cable_that_is_pulled_is_noted() {
    let _alone = alone();
    let healthy = Healthy::new();
    healthy.node.wire.ip(&format!("link set {FAR_END} down"));
    healthy.finds_nothing();
    let words = healthy.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = succeed(&healthy.node.host, &words);
    assert!(text.contains("1 macvtap and no carrier"), "{text}");
}

#[test]
fn a_node_without_resources_has_a_problem() {
    let _alone = alone();
    let mut healthy = Healthy::new();
    healthy.plugin = None;
    let empty = Host::new();
    let words = healthy.words();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    healthy.plugin = Some(Plugin::configured(&empty, &healthy.path("kubelet"), "[]"));
    wait_until("it finds no resource", || {
        let output = run(&empty, &words);
        String::from_utf8_lossy(&output.stdout).contains("no resource is offered")
    });
}

#[test]
fn probes_the_network() {
    let _alone = alone();
    let healthy = Healthy::new();
    let address = ["--lower-device", LOWER, "--probe-network", "10.14.0.1"];
    let problems = healthy.problems(&address);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].1.contains("answers neither"), "{problems:?}");
    // A switch that lets the MAC of the lower device pass alone.
    let mac = healthy.node.host.link(LOWER).unwrap()["address"].to_string();
    let gateway = Host::new();
    healthy.node.wire.ip(&format!(
        "link add gw link {FAR_END} netns {} type macvlan mode source",
        gateway.path()
    ));
    let mac = mac.trim_matches('"');
    gateway.ip(&format!("link set gw type macvlan macaddr add {mac}"));
    gateway.ip("link set gw up");
    gateway.ip("addr add 10.14.0.1/24 dev gw");
    let problems = healthy.problems(&address);
    assert!(problems[0].1.contains("but no new MAC"), "{problems:?}");
    drop(gateway);
    healthy
        .node
        .wire
        .ip(&format!("addr add 10.14.0.1/24 dev {FAR_END}"));
    assert_eq!(healthy.problems(&address), []);
}

/// The kernel numbers interfaces in each network namespace, and names a tap by that number.
#[test]
fn finds_taps_that_have_one_name() {
    let _alone = alone();
    let healthy = Healthy::new();
    let number = 900_000 + std::process::id() % 90_000;
    let pods = [Host::new(), Host::new()];
    for (name, pod) in ["one", "two"].iter().zip(&pods) {
        healthy.node.host.ip(&format!(
            "link add {name} link {LOWER} index {number} netns {} type macvtap mode bridge",
            pod.path()
        ));
    }
    let _residents = pods.each_ref().map(Resident::new);
    healthy.finds(
        "tap",
        &format!("have the name /dev/tap{number}, which opens one of them"),
    );
    let _open = fs::File::open(tap(number)).unwrap();
    let list = succeed(&healthy.node.host, &["link", "list", "--json"]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let macvtaps = list["macvtaps"].as_array().unwrap().iter();
    let same = macvtaps.filter(|macvtap| macvtap["tap"] == number);
    let holders = same.map(|macvtap| macvtap["holders"].as_array().unwrap().len());
    assert_eq!(holders.sum::<usize>(), 1, "{list}");
}

/// Runs doctor with these programs alone in PATH: the texts of two checks.
fn runtime_and_requests(
    healthy: &Healthy,
    programs: &[(&str, &str)],
    more: &[&str],
) -> [String; 2] {
    let bin = tempfile::tempdir().unwrap();
    for (name, version) in programs {
        let file = bin.path().join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(binary());
    command.args(healthy.words()).arg("--json").args(more);
    let output = healthy.node.host.output(command.env("PATH", bin.path()));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = list.as_array().unwrap();
    ["runtime", "requests"].map(|check| {
        let mut found = list.iter().filter(|finding| finding["check"] == check);
        let text = found
            .next()
            .map(|finding| finding["text"].as_str().unwrap());
        text.unwrap_or_default().to_owned()
    })
}

#[test]
fn says_which_way_to_a_tap_this_node_has() {
    let _alone = alone();
    let healthy = Healthy::new();
    let etc = tempfile::tempdir().unwrap();
    fs::create_dir(etc.path().join("containerd")).unwrap();
    let socket = etc.path().join("nri.sock");
    let options = ["--nri-socket", socket.to_str().unwrap()];
    let options = [
        &options[..],
        &["--runtime-conf-dir", etc.path().to_str().unwrap()],
    ]
    .concat();
    let old = (
        "containerd",
        "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24",
    );
    let kubelet = ("kubelet", "Kubernetes v1.36.1");
    let [runtime, requests] = runtime_and_requests(&healthy, &[old, kubelet], &options);
    assert!(
        runtime.starts_with("containerd 1.7 has NRI disabled"),
        "{runtime}"
    );
    assert!(requests.contains("one of: manifests/injection; the component nri, after"));
    let config = "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false\n";
    fs::write(etc.path().join("containerd/config.toml"), config).unwrap();
    let [runtime, _] = runtime_and_requests(&healthy, &[old], &options);
    assert!(
        runtime.contains("has NRI enabled, but no socket"),
        "{runtime}"
    );
    fs::write(&socket, "").unwrap();
    let [runtime, requests] = runtime_and_requests(&healthy, &[old], &options);
    assert_eq!(runtime, "containerd 1.7 has NRI enabled");
    assert!(
        requests.contains("Kubernetes 1.36 or later; the component nri; "),
        "{requests}"
    );
    let [runtime, _] = runtime_and_requests(&healthy, &[("crio", "crio version 1.30.0")], &options);
    assert_eq!(runtime, "CRI-O 1.30 has NRI enabled");
}
