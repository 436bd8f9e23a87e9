//! The mission, in one test: from the kubelet to a guest's ping.

use std::path::Path;

use kit::{
    guest::{Shell, can_run, file, qemu, qemu_dir},
    kubelet::{Plugin, RESOURCE, connected},
    netns::{Node, wait_until},
    wire::{ADDRESS, Router},
};
use macvtap::selftest::kubelet::Kubelet;

use super::{
    containerd::{Containerd, has_containerd, launcher},
    cri::{Device, Mount},
};

#[expect(clippy::too_many_lines, reason = "it is read from top to bottom")]
#[test]
fn from_the_kubelet_to_a_guests_ping() {
    if !has_containerd() || !can_run(&["qemu-system-x86_64", "dnsmasq"]) {
        return;
    }
    let node = Node::new();
    let _router = Router::start(&node.wire);

    // The kubelet learns of the device plugin's devices, and allocates one to a pod.
    let kubelet_dir = tempfile::tempdir().unwrap();
    let kubelet = Kubelet::start(kubelet_dir.path()).unwrap();
    let _plugin = Plugin::start(&node.host, kubelet_dir.path());
    let device_id = connected(&kubelet).healthy()[0].clone();
    let answer = kubelet.allocate(RESOURCE, std::slice::from_ref(&device_id));
    let allocated = answer.unwrap().container_responses[0].devices[0].clone();
    let tap = allocated.container_path.clone();
    assert!(!Path::new(&tap).exists(), "ADD alone makes it");

    // The runtime makes the sandbox, for which it calls the CNI plugin, then the container
    // with the allocated device. There user 107 starts QEMU on the tap.
    let containerd = Containerd::start(&node);
    let config = containerd.pod("vm", &device_id);
    let device = Device {
        container_path: allocated.container_path,
        host_path: allocated.host_path,
        permissions: allocated.permissions,
    };
    let dir = qemu_dir();
    let command = qemu(dir.path(), "$mac").join("\" \"");
    let script = format!(
        "mac=$(cat /sys/class/net/eth1/address) && exec 3<>{tap} && exec \"{command}\" 2>{}/qemu.log",
        dir.path().display()
    );
    let guest = file("");
    let mounts = [
        ("/usr", true),
        (guest.to_str().unwrap(), true),
        (dir.path().to_str().unwrap(), false),
    ];
    let mounts = mounts.map(|(path, readonly)| Mount {
        container_path: path.into(),
        host_path: path.into(),
        readonly,
    });
    let container = launcher(vec![device], mounts.to_vec(), &["/bin/sh", "-c", &script]);
    let pod = containerd.run(&config, container).unwrap();

    // The guest is on the node's own network.
    let mut shell = Shell::connect(&dir.path().join("shell"));
    shell.wait();
    shell.run("ip link set eth0 up");
    let lease = shell.run("udhcpc -i eth0 -s /bin/lease -n -q -t 20 -T 1 2>&1");
    assert!(lease.contains("lease=10.11.0."), "{lease}");
    assert!(shell.reaches(ADDRESS));

    // When the pod goes, the tap goes.
    containerd.remove(&pod);
    wait_until("the tap is gone", || !Path::new(&tap).exists());
}
