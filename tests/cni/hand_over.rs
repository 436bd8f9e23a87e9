//! Device IDs of kubevirt/macvtap-cni, and macvtaps that exist on the host: moved into the pod.

use std::{
    fs::{Permissions, set_permissions},
    os::unix::fs::{PermissionsExt, chown},
};

use kit::netns::{
    Cni, Host, IFNAME, LOWER, Node, device_id, mounted::Checkpoint, owner, tap, tap_exists,
    tap_number, taps::open,
};
use macvtap::types::device_id::original_link_name;
use serde_json::json;

/// A text whose hash has the same low 48 bits as that of `dataplaneMvp0`.
const PREIMAGE: &str = "w{ik/iO[";

/// As the kernel hands them out: device IDs have higher ones.
fn low_number() -> u32 {
    (tap_number() - (1 << 24)) | 1 << 23
}

/// A node on which the macvtap `name` waits, as the original's device plugin makes it: up.
fn waiting(name: &str, number: u32) -> Node {
    let node = Node::new();
    node.host.ip(&format!(
        "link add {name} index {number} link {LOWER} type macvtap"
    ));
    node.host.ip(&format!("link set {name} up"));
    node
}

fn call<'a>(node: &'a Node, pod: &Host, id: &str) -> Cni<'a> {
    node.cni(pod, json!({"cniVersion": "0.4.0", "deviceID": id}))
}

#[test]
fn of_an_id_of_the_original() {
    let number = low_number();
    let node = waiting(&original_link_name("eth0Mvp3"), number);
    let pod = Host::new();
    let call = call(&node, &pod, "eth0Mvp3").with("mtu", 1400);
    let call = call.with("promiscMode", true);
    let call = call
        .env("CNI_ARGS", "IgnoreUnknown=1;MAC=02:00:00:00:00:10")
        .added();
    assert_eq!(node.host.links(), [LOWER]);
    let link = pod.link(IFNAME).unwrap();
    assert_eq!(link["ifindex"], number);
    assert_eq!(link["address"], "02:00:00:00:00:10");
    assert_eq!(link["mtu"], 1400);
    assert_eq!(link["promiscuity"], 1);
    assert_eq!(link["operstate"], "UP");
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    let addresses = pod.ip(&format!("-j -6 address show dev {IFNAME}"));
    assert!(!addresses.contains("fe80"), "{addresses}");
    assert_eq!(owner(&tap(number)), (107, 107, 0o600));
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(pod.links().is_empty() && !tap_exists(number));
}

#[test]
fn of_a_macvtap_by_its_name() {
    let number = low_number();
    let node = waiting("dev500", number);
    let pod = Host::new();
    let call = call(&node, &pod, "dev500").with("takeOverByName", true);
    // With a device ID the macvtap is as it is: vepa is the kernel's default.
    call.clone().with("mode", "bridge").add();
    assert_eq!(pod.link(IFNAME).unwrap()["ifindex"], number);
    assert_eq!(pod.mode(), "vepa");
    call.succeed("DEL");
    assert!(pod.links().is_empty());
}

/// It may be a virtual machine's that libvirt runs on the node.
#[test]
fn not_of_any_macvtap_of_the_host() {
    let number = low_number();
    let node = waiting("macvtap0", number);
    let pod = Host::new();
    let before = node.host.link("macvtap0");
    let (code, msg) = call(&node, &pod, "macvtap0").fail("ADD");
    assert_eq!(code, 7);
    assert!(msg.contains("takeOverByName"), "{msg}");
    call(&node, &pod, "macvtap0").succeed("DEL");
    assert_eq!(node.host.link("macvtap0"), before);
    // Versions of the original up to 0.13.1 named them by the device ID.
    let number = low_number();
    let node = waiting("eth0Mvp3", number);
    call(&node, &pod, "eth0Mvp3").add();
    assert_eq!(pod.link(IFNAME).unwrap()["ifindex"], number);
}

/// A process would receive the pod's frames, and keep on.
#[test]
fn not_of_one_that_a_process_has_open() {
    let number = low_number();
    let node = waiting("dev500", number);
    let (pod, file) = (Host::new(), open(number));
    let before = node.host.link("dev500");
    let call = call(&node, &pod, "dev500").with("takeOverByName", true);
    let (code, msg) = call.fail("ADD");
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    let process = format!("{} ({})", comm.trim_end(), std::process::id());
    let open = format!("/dev/tap{number} is still open in {process}");
    assert!(code == 11 && msg.contains(&open), "{msg}");
    assert_eq!(node.host.link("dev500"), before);
    // Its node went away and came back with a move.
    let (there, here) = (pid_in(&pod), pid_in(&node.host));
    node.host
        .ip(&format!("link set dev500 netns {}", there.id()));
    pod.ip(&format!("link set dev500 netns {}", here.id()));
    assert_eq!(call.fail("ADD").0, 11);
    drop(file);
    call.add();
}

#[test]
fn not_of_one_that_the_device_plugin_made() {
    let number = tap_number();
    let name = original_link_name(&device_id(number));
    let node = waiting(&name, number);
    let pod = Host::new();
    let call = call(&node, &pod, &name).with("takeOverByName", true);
    let (code, msg) = call.fail("ADD");
    assert!(code == 7 && msg.contains("uses the tap alone"), "{msg}");
}

/// A network that names a device ID gets none of another pod's.
#[test]
fn not_of_a_device_that_another_pod_has() {
    let number = low_number();
    let node = waiting(&original_link_name("eth0Mvp3"), number);
    let pod = Host::new();
    let checkpoint = Checkpoint::new(&[("8a-b", "eth0Mvp3")]);
    let call = checkpoint.enter(&call(&node, &pod, "eth0Mvp3"));
    let args = |uid: &str| format!("IgnoreUnknown=1;K8S_POD_UID={uid}");
    let (code, msg) = call.clone().env("CNI_ARGS", &args("8a-c")).fail("ADD");
    assert!(code == 7 && msg.contains("UID 8a-b"), "{msg}");
    assert!(pod.links().is_empty());
    call.env("CNI_ARGS", &args("8a-b")).add();
}

/// What processes have open takes long to look at: there are tens of thousands of descriptors on a node.
#[test]
fn of_the_pods_own_device_looks_at_no_process() {
    let number = low_number();
    let node = waiting(&original_link_name("eth0Mvp3"), number);
    let pod = Host::new();
    let checkpoint = Checkpoint::new(&[("8a-b", "eth0Mvp3")]);
    let log = tempfile::NamedTempFile::new().unwrap();
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    let call = call(&node, &pod, "eth0Mvp3").by(&[&checkpoint.words()[..], &strace].concat());
    let looks = || {
        let log = std::fs::read_to_string(log.path()).unwrap();
        log.contains("\"/proc\", O_RDONLY")
    };
    let open = open(number);
    // Whose it is cannot be told.
    assert_eq!(call.fail("ADD").0, 11);
    assert!(looks());
    drop(open);
    call.env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_UID=8a-b")
        .add();
    assert!(!looks());
}

/// The name on the host is a short hash, of which anyone can find further texts.
#[test]
fn not_of_a_device_that_another_pod_has_by_another_id() {
    let (number, name) = (low_number(), original_link_name("dataplaneMvp0"));
    let node = waiting(&name, number);
    let pod = Host::new();
    let checkpoint = Checkpoint::new(&[("8a-b", "dataplaneMvp0")]);
    let args = "IgnoreUnknown=1;K8S_POD_UID=8a-c";
    assert_eq!(original_link_name(PREIMAGE), name);
    for id in [PREIMAGE, &name] {
        let call = call(&node, &pod, id).with("takeOverByName", true);
        let (code, msg) = checkpoint.enter(&call).env("CNI_ARGS", args).fail("ADD");
        assert!(code == 7 && msg.contains("UID 8a-b"), "{msg}");
        assert!(pod.links().is_empty());
    }
}

#[test]
fn the_hashed_name_comes_before_the_plain_one() {
    let (hashed, plain) = (low_number(), low_number());
    let node = waiting(&original_link_name("dev5Mvp1"), hashed);
    node.host.ip(&format!(
        "link add dev5Mvp1 index {plain} link {LOWER} type macvtap"
    ));
    let pod = Host::new();
    call(&node, &pod, "dev5Mvp1").add();
    assert_eq!(pod.link(IFNAME).unwrap()["ifindex"], hashed);
}

#[test]
fn never_of_anything_but_a_macvtap() {
    let (node, pod) = (Node::new(), Host::new());
    let (code, msg) = call(&node, &pod, LOWER).fail("ADD");
    assert_eq!(code, 7);
    assert!(msg.contains("no macvtap"), "{msg}");
    assert_eq!(node.host.links(), [LOWER]);
    let name = original_link_name("x");
    node.host
        .ip(&format!("link add {name} link {LOWER} type macvlan"));
    assert_eq!(call(&node, &pod, "x").fail("ADD").0, 7);
    assert!(node.host.link(&name).is_some());
}

#[test]
fn what_fails_puts_it_back() {
    let number = low_number();
    let node = waiting("dev5Mvp0", number);
    let before = node.host.link("dev5Mvp0").unwrap();
    let pod = Host::new();
    let sibling = Host::new();
    let mac = "02:00:00:00:00:11";
    node.allocated(&sibling, tap_number())
        .with("mac", mac)
        .add();
    for (key, value) in [
        ("mtu", json!(9000)),
        ("mac", json!(mac)),
        ("mtu", json!(40)),
    ] {
        call(&node, &pod, "dev5Mvp0").with(key, value).fail("ADD");
        assert!(pod.links().is_empty(), "{key}: left in the pod");
        let after = node.host.link("dev5Mvp0").expect("it is lost");
        assert_eq!(after["address"], before["address"], "{key}");
        assert_eq!(after["mtu"], before["mtu"], "{key}");
        assert_eq!(after["ifindex"], number, "{key}");
    }
    // And then it works.
    call(&node, &pod, "dev5Mvp0").add();
    assert_eq!(pod.links(), [IFNAME]);
}

/// A network whose IPAM plugin fails, after the macvtap was moved.
fn without_addresses<'a>(call: &Cni<'a>, plugin: &str) -> Cni<'a> {
    let call = call
        .clone()
        .with("ipamMode", "report")
        .with("takeOverByName", true);
    call.with("ipam", json!({"type": plugin}))
}

#[test]
fn what_fails_makes_it_what_it_was() {
    for state in ["up", "down"] {
        let number = low_number();
        let node = waiting("dev500", number);
        let pod = Host::new();
        for words in [state, "promisc on", "mtu 1400", "addrgenmode none"] {
            node.host.ip(&format!("link set dev500 {words}"));
        }
        chown(tap(number), Some(1), Some(2)).unwrap();
        set_permissions(tap(number), Permissions::from_mode(0o640)).unwrap();
        let before = node.host.link("dev500").unwrap();
        let call = without_addresses(&call(&node, &pod, "dev500"), "nonexistent");
        let (_, msg) = call.clone().with("mac", "02:00:00:00:00:12").fail("ADD");
        assert!(!msg.contains("could not be undone"), "{msg}");
        let after = node.host.link("dev500").expect("it is lost");
        let keys = [
            "ifindex",
            "flags",
            "address",
            "mtu",
            "inet6_addr_gen_mode",
            "promiscuity",
        ];
        for key in keys {
            assert_eq!(after[key], before[key], "{state}: {key}");
        }
        assert_eq!(owner(&tap(number)), (1, 2, 0o640), "{state}");
        // The kernel takes these with the move.
        node.host.ip("address add 192.0.2.7/24 dev dev500");
        let (_, msg) = call.fail("ADD");
        assert!(msg.contains("without its addresses 192.0.2.7"), "{msg}");
        assert!(pod.links().is_empty());
    }
}

/// What is seen before the move costs the host's interface nothing.
#[test]
fn a_mac_in_use_is_seen_before_the_move() {
    let node = waiting("dev500", low_number());
    let (pod, sibling) = (Host::new(), Host::new());
    let mac = "02:00:00:00:00:13";
    node.allocated(&sibling, tap_number())
        .with("mac", mac)
        .add();
    node.host.ip("address add 192.0.2.7/24 dev dev500");
    let addresses = node.host.ip("-4 address show dev dev500");
    let call = call(&node, &pod, "dev500").with("takeOverByName", true);
    let (code, msg) = call.with("mac", mac).fail("ADD");
    assert!(
        code == 11 && msg.contains("is in use on the lower device"),
        "{msg}"
    );
    assert_eq!(node.host.ip("-4 address show dev dev500"), addresses);
}

/// Neither made by this program.
#[test]
fn what_fails_deletes_no_macvtap() {
    let node = waiting("dev500", low_number());
    let pod = Host::new();
    pod.ip("link add inner type veth peer name other");
    pod.ip("link add dev500 link inner type macvtap");
    let call = call(&node, &pod, "dev500");
    without_addresses(&call, "nonexistent").fail("ADD");
    assert!(node.host.link("dev500").is_some());
    assert!(pod.link("dev500").is_some() && pod.link(IFNAME).is_none());
    pod.ip("link delete dev500");
    // Its name is taken on the host before it comes back.
    let plugins = tempfile::tempdir().unwrap();
    let script = plugins.path().join("taking");
    std::fs::write(
        &script,
        "#!/bin/sh\nip link add dev500 type bridge\nexit 1\n",
    )
    .unwrap();
    set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let call = call.env("CNI_PATH", plugins.path().to_str().unwrap());
    let (_, msg) = without_addresses(&call, "taking").fail("ADD");
    let left = "macvtap \"dev500\" is on the host now, as \"net1\"";
    assert!(msg.contains(left), "{msg}");
    assert!(node.host.link(IFNAME).is_some());
}

#[test]
fn an_allocated_tap_would_change_its_name() {
    let number = low_number();
    let name = original_link_name("eth0Mvp4");
    let node = waiting(&name, number);
    let pod = Host::new();
    pod.ip(&format!("link add other index {number} type bridge"));
    let (_, msg) = call(&node, &pod, "eth0Mvp4").fail("ADD");
    assert!(msg.contains("is taken in the pod by \"other\""), "{msg}");
    assert!(node.host.link(&name).is_some());
}

#[test]
fn a_half_done_one_is_removed_by_del() {
    let number = low_number();
    let name = original_link_name("eth0Mvp5");
    let node = waiting(&name, number);
    let pod = Host::new();
    // As ADD leaves it if it is killed between the move and the new name.
    let process = pid_in(&pod);
    node.host
        .ip(&format!("link set {name} netns {}", process.id()));
    assert_eq!(pod.links(), [name.as_str()]);
    call(&node, &pod, "eth0Mvp5").succeed("DEL");
    assert!(pod.links().is_empty());
}

/// A process in the pod: `ip` knows namespaces by processes and mounted names only.
fn pid_in(pod: &Host) -> Killed {
    let mut command = std::process::Command::new("sleep");
    let child = pod.0.run(|| Ok(command.arg("60").spawn()?)).unwrap();
    Killed(child)
}

struct Killed(std::process::Child);

impl Killed {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
