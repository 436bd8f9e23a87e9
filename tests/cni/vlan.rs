//! Networks in a VLAN of their lower device, without a device plugin.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use kit::{
    kernel,
    netns::{
        Case, FAR_END, Host, IFNAME, LOWER, Node,
        taps::{arrives, far_tap, open, send},
        wait_until,
    },
};
use macvtap::{
    macvtap::sub_interface::{self, Maker, SubInterface},
    netlink::{Link, Socket, UpperKind},
};
use serde_json::json;

const GUEST: &str = "02:00:00:00:00:aa";
const LONG: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(300);

/// That kernel, 6.1, also answers something else where an interface index is taken.
#[test]
fn all_of_these_under_debians_kernel() {
    kernel::run_tests(&["vlan::", "an_interface_index_that_is_taken"]);
}

#[test]
fn a_kernel_without_vlans_is_named() {
    if kernel::has("vlan") {
        return;
    }
    let case = Case::new();
    let call = json!({"lowerDevice": LOWER, "vlan": 100});
    let call = case.node.cni(&case.pod, call);
    let parts = ["VLAN 100 of eth0", "modprobe 8021q", "EOPNOTSUPP"];
    case.refuses(&call, 999, &parts);
    let (code, msg) = call.fail("STATUS");
    assert_eq!(code, 50);
    assert!(msg.contains("modprobe 8021q"), "{msg}");
    call.succeed("DEL");
}

#[test]
fn the_first_pod_makes_the_vlan_and_the_last_removes_it() {
    if !kernel::has("vlan") {
        return;
    }
    let node = Node::new();
    let vlan = "eth0.100";
    let pods = [Host::new(), Host::new()];
    let calls = pods.each_ref().map(|pod| {
        let call = json!({"lowerDevice": LOWER, "vlan": 100});
        node.cni(pod, call)
            .env("CNI_CONTAINERID", &pod.path().replace('/', "x"))
    });
    calls[0].succeed("STATUS");
    let first = calls[0].clone().with("mac", GUEST).added();
    first.succeed("CHECK");
    let second = calls[1].clone().added();
    wait_until("frames pass", || node.host.is_up(vlan));
    // A frame of the guest has the tag on the wire.
    let number = pods[0].link(IFNAME).unwrap()["ifindex"].as_u64().unwrap();
    let (near, far) = (open(u32::try_from(number).unwrap()), far_tap(&node));
    let mac = |text: &str| text.parse::<macvtap::types::mac::MacAddr>().unwrap().0;
    let addresses = [mac("02:00:00:00:00:ff"), mac(GUEST)].concat();
    let payload = [&[0x88, 0xb5][..], &[0x5a; 100]].concat();
    let untagged = [&addresses[..], &payload].concat();
    let tagged = [&addresses[..], &[0x81, 0, 0, 100], &payload].concat();
    send(&near, &untagged);
    assert!(arrives(&far, &tagged, LONG), "{FAR_END}");
    drop(near);
    first.succeed("DEL");
    assert!(node.host.link(vlan).is_some(), "another pod is on it");
    second.succeed("DEL");
    assert!(node.host.link(vlan).is_none(), "left behind");
    // One that was there before is used, and stays.
    node.host
        .ip("link add link eth0 name storage type vlan id 100");
    node.host.ip("link set storage up");
    calls[0].clone().added().succeed("CHECK");
    assert!(node.host.link(vlan).is_none());
    calls[0].succeed("DEL");
    assert!(node.host.link("storage").is_some());
}

/// No macvtap can be made on the port of a bridge itself.
#[test]
fn a_vlan_of_a_bridge_port_that_exists_is_used() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
    let add = format!("link add link {LOWER} name storage type vlan id 100");
    node.host.ip(&add);
    node.host.ip("link set storage up");
    node.host.ip("link add bridge0 type bridge");
    node.host.ip(&format!("link set {LOWER} master bridge0"));
    call.succeed("STATUS");
    let attached = call.added();
    attached.succeed("CHECK");
    attached.succeed("DEL");
    assert!(node.host.link("storage").is_some());
}

/// The DEL of the last pod is at work while another pod is attached.
#[test]
fn an_add_that_loses_its_vlan_makes_it_again() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let mut host = node.host.0.socket().unwrap();
    let vlan = SubInterface::vlan(LOWER.parse().unwrap(), 100);
    let (_, former) = vlan.ensure(&mut host, Maker::Cni).unwrap();
    assert!(vlan.stays(&mut host, former).unwrap());
    assert!(!vlan.stays(&mut host, former + 1).unwrap());
    sub_interface::hold(&mut host, former).unwrap().unwrap();
    assert!(!vlan.stays(&mut host, former).unwrap());
    let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| call.clone().added());
        std::thread::sleep(SHORT);
        assert!(!adding.is_finished());
        assert!(host.delete(former).unwrap());
        let call = adding.join().unwrap();
        call.succeed("CHECK");
        call.succeed("DEL");
    });
    assert_eq!(node.host.links(), [LOWER]);
}

/// It was killed between holding the VLAN and deleting it.
#[test]
fn a_del_that_was_killed_holds_no_vlan_against_the_next_pod() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let mut host = node.host.0.socket().unwrap();
    let vlan = SubInterface::vlan(LOWER.parse().unwrap(), 100);
    let (_, former) = vlan.ensure(&mut host, Maker::Cni).unwrap();
    sub_interface::hold(&mut host, former).unwrap().unwrap();
    let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
    let call = call.added();
    call.succeed("CHECK");
    call.succeed("DEL");
    assert_eq!(node.host.links(), [LOWER]);
}

/// Only another than a DEL removes it then. The addresses are given back, once.
#[test]
fn a_vlan_that_is_lost_while_ipam_runs_fails_the_add() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let dir = tempfile::tempdir().unwrap();
    let (calls, plugin) = (dir.path().join("calls"), dir.path().join("lease"));
    let script = format!(
        "#!/bin/busybox sh\necho $CNI_COMMAND >>{}\n\
         [ $CNI_COMMAND = ADD ] || exit 0\nip link delete eth0.100\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.0.5/24\"}}]}}'\n",
        calls.display()
    );
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, Permissions::from_mode(0o755)).unwrap();
    let config = json!({"lowerDevice": LOWER, "vlan": 100, "ipam": {"type": "lease"}});
    let call = node.cni(&pod, config);
    let call = call.env("CNI_PATH", &dir.path().display().to_string());
    call.fail("ADD");
    assert_eq!(fs::read_to_string(&calls).unwrap(), "ADD\nDEL\n");
    assert_eq!(node.host.links(), [LOWER]);
    assert!(pod.link(IFNAME).is_none());
}

#[test]
fn pods_that_come_and_go_on_one_vlan_do_not_fail_each_other() {
    if !kernel::has("vlan") {
        return;
    }
    let node = Node::new();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let node = &node;
            scope.spawn(move || {
                let pod = Host::new();
                let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
                let call = call.env(
                    "CNI_CONTAINERID",
                    &format!("c{number}x{}", std::process::id()),
                );
                for _ in 0..8 {
                    call.clone().added().succeed("DEL");
                }
            });
        }
    });
    assert_eq!(node.host.links(), [LOWER]);
}

/// Its DEL knows nothing of what was made.
#[test]
fn a_killed_add_leaves_no_vlan() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let mut host = node.host.0.socket().unwrap();
    let vlan = SubInterface::vlan(LOWER.parse().unwrap(), 100);
    vlan.ensure(&mut host, Maker::Cni).unwrap();
    let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
    call.succeed("DEL");
    assert_eq!(node.host.links(), [LOWER]);
    // Nor does a pod whose netns is gone.
    let attached = call.added();
    drop(pod);
    attached.succeed("DEL");
    assert_eq!(node.host.links(), [LOWER]);
}

/// The macvtaps go with it, and the next ADD makes it again.
#[test]
fn a_vlan_goes_with_its_lower_device_and_is_made_again() {
    if !kernel::has("vlan") {
        return;
    }
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({"lowerDevice": LOWER, "vlan": 100}));
    let attached = call.clone().added();
    node.host.ip(&format!("link delete {LOWER}"));
    let (_, msg) = attached.fail("CHECK");
    assert!(msg.contains(IFNAME), "{msg}");
    attached.succeed("DEL");
    let (_, msg) = call.fail("ADD");
    assert!(msg.contains("does not exist on this node"), "{msg}");
    node.host
        .ip(&format!("link add {LOWER} type veth peer name other"));
    let (code, msg) = call.fail("ADD");
    assert_eq!(code, 11, "{msg}");
    assert!(msg.contains("is down"), "{msg}");
    node.host.ip(&format!("link set {LOWER} up"));
    call.clone().added().succeed("DEL");
}

/// The same owner makes macvlans, which every kernel with macvtaps has.
#[test]
fn a_sub_interface_is_made_once_and_known_by_its_group() {
    let node = Node::new();
    let sub = SubInterface {
        lower: LOWER.parse().unwrap(),
        kind: UpperKind::Macvlan,
    };
    let mut host = node.host.0.socket().unwrap();
    let foreign = format!("link add foreign0 link {LOWER} type macvlan mode bridge");
    node.host.ip(&foreign);
    let (name, index) = sub.ensure(&mut host, Maker::DevicePlugin).unwrap();
    assert_eq!(&*name, "mvh-eth0");
    let link = host.link_by_name(&name).unwrap().unwrap();
    assert!(link.up && Maker::DevicePlugin.made(&link) && !Maker::Cni.made(&link));
    let again = sub.ensure(&mut host, Maker::DevicePlugin).unwrap();
    assert_eq!(again, (name.clone(), index));
    let addresses = node.host.ip(&format!("address show dev {name}"));
    assert!(!addresses.contains("inet"), "{addresses}");
    // It is set up again; another one of its name is not taken for it.
    node.host.ip(&format!("link set {name} down"));
    sub.ensure(&mut host, Maker::DevicePlugin).unwrap();
    assert!(host.link_by_name(&name).unwrap().unwrap().up);
    node.host.ip(&format!("link set {name} group 0"));
    let error = sub.ensure(&mut host, Maker::DevicePlugin).unwrap_err();
    assert!(error.to_string().contains("rename or delete it"), "{error}");
    let link = host.link_by_name(&name).unwrap().unwrap();
    assert!(!sub_interface::delete_unused(&mut host, &link, Maker::DevicePlugin).unwrap());
    assert!(node.host.link(&name).is_some());
    // Its lower device goes, and comes back with another index.
    node.host.ip(&format!("link delete {LOWER}"));
    let error = sub.ensure(&mut host, Maker::DevicePlugin).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    node.host
        .ip(&format!("link add {LOWER} type veth peer name other"));
    let error = sub.ensure(&mut host, Maker::DevicePlugin).unwrap_err();
    assert!(error.to_string().contains("is down"), "{error}");
    node.host.ip(&format!("link set {LOWER} up"));
    sub.ensure(&mut host, Maker::DevicePlugin).unwrap();
}

/// What says whether a VLAN may be removed: a macvtap in a pod's netns is not visible from here.
#[test]
fn an_interface_is_held_only_while_no_macvtap_is_on_it() {
    let case = Case::new();
    let mut host = case.node.host.0.socket().unwrap();
    let lower = host.link_by_name(LOWER).unwrap().unwrap().index;
    let before = case.node.host.links();
    case.call().add();
    assert_eq!(sub_interface::hold(&mut host, lower).unwrap(), None);
    assert_eq!(case.node.host.links(), before);
    case.call().succeed("DEL");
    let hold = sub_interface::hold(&mut host, lower).unwrap().unwrap();
    assert!(case.call().fail("ADD").1.contains("passthru"));
    assert!(host.delete(hold).unwrap());
    case.call().add();
    drop(case.pod);
    wait_until("the pod is gone", || {
        sub_interface::hold(&mut host, lower).unwrap().is_some()
    });
}

/// A call was killed between what it does to remove an interface.
#[test]
fn a_killed_call_holds_no_interface_for_ever() {
    let node = Node::new();
    let mut host = node.host.0.socket().unwrap();
    let lower = host.link_by_name(LOWER).unwrap().unwrap().index;
    let hold = sub_interface::hold(&mut host, lower).unwrap();
    assert!(hold.is_some());
    assert_eq!(sub_interface::hold(&mut host, lower).unwrap(), hold);
    let name = format!("mvu{lower:x}");
    node.host.ip(&format!("link delete {name}"));
    // Another interface of that name holds nothing.
    node.host.ip(&format!("link add {name} type bridge"));
    assert_eq!(sub_interface::hold(&mut host, lower).unwrap(), None);

    let Some((node, mut host, link)) = vlan() else {
        return;
    };
    sub_interface::hold(&mut host, link.index).unwrap().unwrap();
    assert!(sub_interface::delete_unused(&mut host, &link, Maker::DevicePlugin).unwrap());
    assert_eq!(node.host.links(), [LOWER]);
    // Another call was faster.
    assert!(sub_interface::delete_unused(&mut host, &link, Maker::DevicePlugin).unwrap());
}

/// What the node's administrator put on it would go with it.
#[test]
fn an_interface_that_the_node_uses_stays() {
    let Some((node, mut host, link)) = vlan() else {
        return;
    };
    let name = &link.name;
    node.host.ip("link add bridge0 type bridge");
    for (begin, end) in [
        ("address add 192.0.2.7/24 dev DEV", "address flush dev DEV"),
        (
            "address add 2001:db8::7/64 nodad dev DEV",
            "address flush dev DEV",
        ),
        (
            "link add link DEV name other0 type vlan id 7",
            "link delete other0",
        ),
        (
            "link set master bridge0 dev DEV",
            "link set nomaster dev DEV",
        ),
    ] {
        node.host.ip(&begin.replace("DEV", name));
        let before = node.host.links();
        let deleted = sub_interface::delete_unused(&mut host, &link, Maker::DevicePlugin);
        assert!(!deleted.unwrap(), "{begin}");
        assert_eq!(node.host.links(), before, "{begin}");
        node.host.ip(&end.replace("DEV", name));
    }
    assert!(sub_interface::delete_unused(&mut host, &link, Maker::DevicePlugin).unwrap());
}

/// A VLAN interface of this program, where the kernel has them.
fn vlan() -> Option<(Node, Socket, Link)> {
    if !kernel::has("vlan") {
        return None;
    }
    let node = Node::new();
    let sub = SubInterface::vlan(LOWER.parse().unwrap(), 100);
    let mut host = node.host.0.socket().unwrap();
    let (name, _) = sub.ensure(&mut host, Maker::DevicePlugin).unwrap();
    let link = host.link_by_name(&name).unwrap().unwrap();
    Some((node, host, link))
}
