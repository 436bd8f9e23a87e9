//! Device IDs of kubevirt/macvtap-cni, and macvtaps that exist on the host: moved into the pod.

use kit::netns::{
    Cni, Host, IFNAME, LOWER, Node, device_id, mounted::Checkpoint, owner, tap, tap_exists,
    tap_number, taps::open,
};
use macvtap::types::device_id::original_link_name;
use serde_json::json;

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
