//! A node whose /dev is a tmpfs, as in `KinD`: only ADD makes the taps' nodes.

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use kit::{
    binary,
    netns::{Host, Node, dev::Dev, owner, tap_exists, tap_number, wait_until},
};
use macvtap::host::tap;
use serde_json::json;

#[test]
fn add_makes_the_node_and_del_removes_it() {
    let (node, pod, number, dev) = (Node::new(), Host::new(), tap_number(), Dev::new());
    let call = dev.enter(&node.allocated(&pod, number)).added();
    let path = dev.path(&format!("tap{number}"));
    assert_eq!(owner(&path), (107, 107, 0o600));
    let real = fs::metadata(format!("/dev/tap{number}")).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().rdev(), real.rdev());
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(dev.names().is_empty(), "{:?}", dev.names());
    assert!(!tap_exists(number));
}

#[test]
fn a_node_of_a_pod_that_died_is_replaced_by_add() {
    let (node, number, dev) = (Node::new(), tap_number(), Dev::new());
    let pod = Host::new();
    dev.enter(&node.allocated(&pod, number)).add();
    let name = format!("tap{number}");
    drop(pod);
    wait_until("the tap is gone", || !tap_exists(number));
    assert_eq!(dev.names(), [name.as_str()], "the stale node");
    // Another pod gets the device number that the stale node has.
    let (other, pod) = (Host::new(), Host::new());
    dev.enter(&node.allocated(&other, tap_number())).add();
    let call = dev.enter(&node.allocated(&pod, number)).added();
    call.succeed("CHECK");
    let real = fs::metadata(format!("/dev/tap{number}")).unwrap();
    assert_eq!(fs::metadata(dev.path(&name)).unwrap().rdev(), real.rdev());
}

/// The runtime deletes a dead pod while another one gets its tap: the ADD must not lose its node.
#[test]
fn a_del_of_a_dead_pod_takes_no_node_from_an_add() {
    let (node, number, dev) = (Node::new(), tap_number(), Dev::new());
    for _ in 0..40 {
        let dead = Host::new();
        let del = dev.enter(&node.allocated(&dead, number)).added();
        drop(dead);
        wait_until("the tap is gone", || !tap_exists(number));
        let del = del.env("CNI_NETNS", "/run/netns/gone");
        let pod = Host::new();
        let add = dev.enter(&node.allocated(&pod, number));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| del.succeed("DEL"));
            }
            add.add();
        });
        let real = fs::metadata(format!("/dev/tap{number}")).unwrap();
        let path = dev.path(&format!("tap{number}"));
        assert_eq!(fs::metadata(path).unwrap().rdev(), real.rdev());
        add.succeed("DEL");
        assert!(dev.names().is_empty(), "{:?}", dev.names());
    }
}

#[test]
fn del_and_gc_remove_the_stale_nodes_of_dead_pods() {
    for verb in ["DEL", "GC"] {
        let (node, number, dev) = (Node::new(), tap_number(), Dev::new());
        let (alive, pod) = (Host::new(), Host::new());
        let living = tap_number();
        dev.enter(&node.allocated(&alive, living)).add();
        let call = dev.enter(&node.allocated(&pod, number)).added();
        drop(pod);
        wait_until("the tap is gone", || !tap_exists(number));
        let call = call.env("CNI_NETNS", "/run/netns/gone");
        let call = call.with("cni.dev/valid-attachments", json!([]));
        call.succeed(verb);
        assert_eq!(dev.names(), [format!("tap{living}")], "{verb}");
    }
}

/// Nothing else of the attachment can be there.
#[test]
fn del_removes_the_stale_node_whatever_is_at_the_path_of_the_netns() {
    let (node, number, dev) = (Node::new(), tap_number(), Dev::new());
    let long = format!("/run/{}", "x".repeat(5000));
    for path in [
        "",
        "/etc/passwd",
        "/run",
        "/dev/null",
        "/proc/self/ns/uts",
        "/proc/self/ns/net",
        &long,
    ] {
        let pod = Host::new();
        let call = dev.enter(&node.allocated(&pod, number)).added();
        drop(pod);
        wait_until("the tap is gone", || !tap_exists(number));
        call.env("CNI_NETNS", path).succeed("DEL");
        assert!(dev.names().is_empty(), "{path}: {:?}", dev.names());
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let (node, pod, dev) = (Node::new(), Host::new(), Dev::new());
    let number = tap_number();
    for name in ["tapestry", "tap", "tap12x"] {
        fs::write(dev.path(name), "").unwrap();
    }
    fs::write(dev.path("tap1"), "").unwrap();
    let call = dev.enter(&node.allocated(&pod, number)).added();
    call.clone()
        .with("cni.dev/valid-attachments", json!([]))
        .succeed("GC");
    call.succeed("DEL");
    assert_eq!(dev.names(), ["tap", "tap1", "tap12x", "tapestry"]);
}

/// Whose a node is does not show where the kernel has no macvtap, and other drivers name theirs
/// alike.
#[test]
fn nodes_of_other_devices_are_left_alone() {
    let (node, pod, dev, number) = (Node::new(), Host::new(), Dev::new(), tap_number());
    let macvtap = tap::major().unwrap().unwrap();
    // Somebody's own name for the node of a tap that is alive.
    let (other, living) = (Host::new(), tap_number());
    node.allocated(&other, living).add();
    let mut copy = Command::new("cp");
    copy.args(["-a", &format!("/dev/tap{living}")]);
    assert!(copy.arg(dev.path("tap9")).status().unwrap().success());
    let foreign = [(7, 36), (8, 250), (number, 250)];
    for (number, major) in foreign {
        let mut mknod = Command::new("mknod");
        let path = dev.path(&format!("tap{number}"));
        mknod.arg(path).args(["c", &major.to_string(), "123456"]);
        assert!(mknod.status().unwrap().success());
    }
    let expected = dev.names();
    let call = node.allocated(&pod, number);
    let call = call.with("cni.dev/valid-attachments", json!([]));
    let [nsenter, mount] = dev.words();
    let unload = "mount -t tmpfs tmpfs /mnt && echo 'Character devices:' >/mnt/devices \
        && mount --bind /mnt/devices /proc/devices && exec \"$@\"";
    let unloaded = [
        &nsenter, &mount, "unshare", "--mount", "sh", "-c", unload, "sh",
    ];
    for verb in ["GC", "DEL"] {
        dev.enter(&call).succeed(verb);
        assert_eq!(dev.names(), expected, "{verb}");
        call.clone().by(&unloaded).succeed(verb);
        assert_eq!(dev.names(), expected, "{verb}");
    }
    // Those of macvtaps that are gone, one of which was handed over with the number that it had.
    for number in [number + 1, 57] {
        let mut mknod = Command::new("mknod");
        mknod.arg(dev.path(&format!("tap{number}")));
        mknod.args(["c", &macvtap.to_string(), "123456"]);
        assert!(mknod.status().unwrap().success());
    }
    call.clone().by(&unloaded).succeed("GC");
    assert_eq!(dev.names().len(), expected.len() + 2);
    dev.enter(&call).succeed("GC");
    assert_eq!(dev.names(), expected);
}

#[test]
fn the_selftest_passes_there() {
    let dev = Dev::new();
    let [nsenter, mount] = dev.words();
    let mut command = Command::new(nsenter);
    command.arg(mount).arg(binary()).arg("selftest");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(dev.names().is_empty(), "{:?}", dev.names());
}
