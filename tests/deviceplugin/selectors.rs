//! How lower devices are chosen: patterns, objects, nodes, discovery.

use std::{path::Path, process::Command};

use kit::{
    binary,
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{Host, IFNAME, LOWER, Node, skipped, tap_of, wait_until},
};
use macvtap::{deviceplugin::status, host::netns::Netns, selftest::kubelet::Kubelet};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::held::checkpoint;

/// A device plugin on a node whose configuration is in a file.
pub struct Case {
    pub node: Node,
    pub kubelet: Kubelet,
    pub plugin: Plugin,
    pub dir: TempDir,
    config: TempDir,
}

impl Case {
    pub fn new(configuration: &Value) -> Self {
        let node = Node::new();
        let (dir, config) = (tempdir().unwrap(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let file = config.path().join("macvtap.json");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let plugin = start(&node, dir.path(), &file);
        Self {
            node,
            kubelet,
            plugin,
            dir,
            config,
        }
    }

    /// Kills the device plugin and starts another one, with another configuration.
    pub fn restart(&mut self, configuration: &Value) {
        self.plugin.signal("KILL");
        self.plugin.end();
        self.configure(configuration);
        let file = self.config.path().join("macvtap.json");
        self.plugin = start(&self.node, self.dir.path(), &file);
    }

    pub fn configure(&self, configuration: &Value) {
        let file = self.config.path().join("macvtap.json");
        std::fs::write(file, configuration.to_string()).unwrap();
    }

    /// Waits until all healthy devices of a resource, and some, are on `lower`.
    pub fn on(&self, name: &str, lower: &str) -> Vec<String> {
        on(&self.kubelet, name, lower)
    }

    pub fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new(binary());
        command
            .args(words)
            .arg("--kubelet-dir")
            .arg(self.dir.path());
        let output = self.node.host.output(&mut command);
        String::from_utf8(output.stdout).unwrap()
    }
}

fn start(node: &Node, dir: &Path, file: &Path) -> Plugin {
    let mut command = kit::kubelet::command(&[], dir);
    command.arg("--config").arg(file);
    // The numbers of taps derive from it, and tests run side by side.
    let unique = dir.file_name().unwrap().to_str().unwrap();
    command.args(["--node-name", &format!("worker-{unique}")]);
    command.env_remove("DP_MACVTAP_CONF");
    Plugin::spawn(&node.host, command)
}

fn on(kubelet: &Kubelet, name: &str, lower: &str) -> Vec<String> {
    let name = format!("macvtap.network.kubevirt.io/{name}");
    let part = format!("@{lower}:");
    let resource = kubelet.wait_for(&name, WAIT_TIMEOUT, |resource| {
        let ids = resource.healthy();
        resource.connected && !ids.is_empty() && ids.iter().all(|id| id.contains(&part))
    });
    resource.unwrap().healthy()
}

pub fn one(lower: &Value) -> Value {
    json!([{"name": "a", "lowerDevice": lower, "capacity": 3}])
}

#[test]
fn a_lower_device_is_chosen_by_what_it_is_like() {
    let case = Case::new(&json!([]));
    let host = &case.node.host;
    host.ip("link add lan0 type veth peer name lan1");
    host.ip("link set lan0 up");
    host.ip(&format!("link property add dev {LOWER} altname uplink0"));
    host.ip("address add 198.51.100.7/24 dev lan0");
    let mac = host.link(LOWER).unwrap()["address"].clone();
    for (lower, expected) in [
        (json!("et*"), LOWER),
        (json!("uplink?"), LOWER),
        (json!(["ens*", "eth?"]), LOWER),
        (json!({ "mac": mac }), LOWER),
        (json!({"altName": "up*", "kind": "veth"}), LOWER),
        (json!({"address": "198.51.100.0/24"}), "lan0"),
    ] {
        case.configure(&one(&lower));
        case.on("a", expected);
    }
    case.plugin
        .wait_for_log(r#"lower=lan0 selector="{\"address\":\"198.51.100.0/24\"}""#);
    let doctor = case.run(&["doctor"]);
    assert!(
        doctor.contains("resource a is on lan0, chosen by {\"address\""),
        "{doctor}"
    );
    let list = case.run(&["link", "list"]);
    let row = list.lines().find(|line| line.starts_with("lan0 "));
    assert!(row.unwrap().contains(" a "), "{list}");
}

/// The default route appears, and moves to another interface: these are no changes of links.
#[test]
fn the_default_route_is_followed_where_it_goes() {
    let case = Case::new(&one(&json!({"defaultRoute": true})));
    case.plugin
        .wait_for_log("matches no interface of this node");
    let host = &case.node.host;
    host.ip("link add lan0 type veth peer name lan1");
    host.ip("link set lan0 up");
    host.ip(&format!("route add default dev {LOWER} metric 100"));
    case.on("a", LOWER);
    host.ip("route add default dev lan0 metric 50");
    case.on("a", "lan0");
    host.ip("route delete default dev lan0");
    case.on("a", LOWER);
}

#[test]
fn what_is_ambiguous_or_a_port_is_left_out_and_reported() {
    let case = Case::new(&json!([]));
    let host = &case.node.host;
    host.ip("link add lan0 type veth peer name lan1");
    host.ip("link add br0 type bridge");
    let left_out = |lower: Value, parts: &[&str]| {
        case.configure(&one(&lower));
        for part in parts {
            case.plugin.wait_for_log(part);
        }
        for applet in ["probe", "doctor"] {
            let text = case.run(&[applet]);
            assert!(text.contains(parts[0]), "{text}");
        }
    };
    left_out(json!("ens*"), &["matches no interface of this node"]);
    left_out(
        json!("lan?"),
        &["matches lan0 and lan1; make it match one", "it is left out"],
    );
    assert!(case.kubelet.resources().is_empty());
    case.configure(&one(&json!("lan?")));
    host.ip("link set lan1 up");
    host.ip("link set lan0 master br0");
    case.on("a", "lan1");
    left_out(json!(["lan0"]), &["lan0 is a port of"]);
}

#[test]
fn a_resource_in_doubt_stays_when_another_entry_changes() {
    let entry = |name: &str, lower: &str, capacity: u32| json!({"name": name, "lowerDevice": lower, "capacity": capacity});
    let case = Case::new(&json!([entry("a", "lan?", 3)]));
    let host = &case.node.host;
    host.ip("link add lan0 type veth peer name wire0");
    host.ip("link set lan0 up");
    case.on("a", "lan0");
    host.ip("link add lan1 type veth peer name wire1");
    case.plugin.wait_for_log("it stays on");
    case.configure(&json!([entry("a", "lan?", 3), entry("b", LOWER, 1)]));
    case.on("b", LOWER);
    let log = case.plugin.log();
    assert!(!log.contains("not offered any more"), "{log}");
    case.on("a", "lan0");
    case.configure(&json!([entry("a", "lan?", 4), entry("b", LOWER, 1)]));
    case.plugin.wait_for_log("not offered any more");
}

#[test]
fn attached_pods_keep_their_lower_device_when_the_answer_changes() {
    let case = Case::new(&one(&json!(["lan*", "eth*"])));
    let first = case.on("a", LOWER).remove(0);
    let pod = Host::new();
    let call = case.node.cni(&pod, json!({"deviceID": first}));
    let attached = call.clone().added();
    let host = &case.node.host;
    host.ip("link add lan0 type veth peer name wire1");
    host.ip("link set lan0 up");
    let name = "macvtap.network.kubevirt.io/a";
    let resource = case.kubelet.wait_for(name, WAIT_TIMEOUT, |resource| {
        resource.healthy().iter().any(|id| id.contains("@lan0:"))
    });
    let healthy = resource.unwrap().healthy();
    assert!(healthy.contains(&first), "{healthy:?}");
    attached.succeed("CHECK");
    // Its sandbox is made again.
    attached.succeed("DEL");
    call.added().succeed("CHECK");
    assert_eq!(pod.link(IFNAME).unwrap()["ifindex"], tap_of(&first));
}

#[test]
fn an_entry_is_for_the_nodes_that_it_names() {
    let entry = |name: &str, nodes: Value| json!({"name": name, "lowerDevice": LOWER, "nodes": nodes, "capacity": 1});
    let entries = [
        entry("a", json!("worker-*")),
        entry("a", json!(["infra", "storage-?"])),
        entry("b", json!("infra")),
    ];
    let case = Case::new(&json!(entries));
    case.on("a", LOWER);
    assert_eq!(case.kubelet.resources(), ["macvtap.network.kubevirt.io/a"]);
    case.configure(&json!([entries[2]]));
    let name = "macvtap.network.kubevirt.io/a";
    let gone = case
        .kubelet
        .wait_for(name, WAIT_TIMEOUT, |resource| !resource.connected);
    gone.unwrap();
    let probe = case.run(&["probe"]);
    assert!(
        probe.contains("entries of the configuration are for other"),
        "{probe}"
    );
    assert!(!probe.contains("FAIL"), "{probe}");
}

#[test]
fn discovery_has_allow_and_deny_patterns_and_kinds() {
    let discover = json!({"allow": ["e*", "lan?"], "deny": "lan1", "kinds": "veth"});
    let case = Case::new(&json!([{"discover": discover, "mode": "vepa", "capacity": 2}]));
    case.on("eth0", "eth0");
    case.node.host.ip("link add lan0 type veth peer name lan1");
    case.node.host.ip("link set lan0 up");
    let ids = case.on("lan0", "lan0");
    assert_eq!(ids.len(), 2);
    assert!(ids[0].contains(":vepa:"), "{ids:?}");
    let found = case.kubelet.resources();
    assert_eq!(found.len(), 2, "{found:?}");
}

/// The machine's own interfaces are the only ones with hardware. Nothing is changed there.
#[test]
fn a_lower_device_is_chosen_by_its_hardware() {
    let host = Host::of(Netns::current().unwrap());
    let sys = |path: &str| {
        let path = std::fs::canonicalize(format!("/sys/class/net/eth0/device{path}")).ok()?;
        Some(path.file_name()?.to_str()?.to_owned())
    };
    let Some(driver) = sys("/driver").filter(|_| host.link("eth0").is_some()) else {
        skipped("this machine has no interface eth0 with a driver");
        return;
    };
    let choose = |lower: Value| {
        let dir = tempdir().unwrap();
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let text = one(&lower).to_string();
        let _plugin = Plugin::configured(&host, dir.path(), &text);
        on(&kubelet, "a", "eth0");
    };
    choose(json!({"driver": driver, "kind": "physical"}));
    let device = std::fs::canonicalize("/sys/class/net/eth0/device").unwrap();
    let pci = device.ancestors().find(|path| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        path.join("vendor").exists() && name.len() == 12 && name.ends_with(".0")
    });
    if let Some(pci) = pci {
        let vendor = std::fs::read_to_string(pci.join("vendor")).unwrap();
        let address = pci.file_name().unwrap().to_str().unwrap();
        choose(json!({"vendor": vendor.trim(), "driver": driver}));
        choose(json!({ "pciAddress": address }));
    }
}

/// udev renames an interface a moment after it appears; the kernel moves one into a pod.
#[test]
fn a_link_that_is_gone_is_forgotten_unless_pods_hold_devices_of_it() {
    let case = Case::new(&json!([{"discover": {"kinds": "veth"}, "capacity": 2}]));
    case.on(LOWER, LOWER);
    let host = &case.node.host;
    host.ip(&format!("link set {LOWER} down"));
    host.ip(&format!("link set {LOWER} name ens9"));
    let resource = |name: &str| {
        let resources = status::query(case.dir.path()).unwrap().resources;
        resources.into_iter().find(|resource| resource.name == name)
    };
    wait_until("the new name is known alone", || {
        resource("ens9").is_some() && resource(LOWER).is_none()
    });
    assert!(!resource("ens9").unwrap().lower_required, "an unused NIC");
    host.ip("link set ens9 up");
    let id = case.on("ens9", "ens9").remove(0);
    let name = "macvtap.network.kubevirt.io/ens9";
    checkpoint(case.dir.path(), (name, &id), tap_of(&id));
    wait_until("it is held", || resource("ens9").unwrap().lower_required);
    host.ip("link delete ens9");
    wait_until("the one that is held is left", || {
        let found = resource("ens9").unwrap();
        (found.devices, found.healthy, found.lower_required) == (1, 0, true)
    });
}
