//! podman with CNI: the plugin without Kubernetes, as the README describes.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use kit::{
    binary,
    guest::can_run,
    netns::{LOWER, Node},
};
use serde_json::json;
use tempfile::TempDir;

const MAC: &str = "02:00:00:00:12:34";

/// Files of a podman of the test's own.
fn configure(version: &str, lower: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    for name in ["bin", "net.d", "rootfs/bin", "rootfs/hostdev", "rootfs/etc"] {
        fs::create_dir_all(path.join(name)).unwrap();
    }
    symlink(binary(), path.join("bin/macvtap")).unwrap();
    fs::copy("/bin/busybox", path.join("rootfs/bin/busybox")).unwrap();
    let plugin = json!({"type": "macvtap", "lowerDevice": lower});
    let conflist = json!({"cniVersion": version, "name": "mv", "plugins": [plugin]});
    fs::write(path.join("net.d/mv.conflist"), conflist.to_string()).unwrap();
    let display = path.display();
    let config = format!(
        "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{display}/bin\"]\n\
         network_config_dir = \"{display}/net.d\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
         tmp_dir = \"{display}/tmp\"\n"
    );
    fs::write(path.join("containers.conf"), config).unwrap();
    let storage = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{display}/root\"\nrunroot = \"{display}/run\"\n"
    );
    fs::write(path.join("storage.conf"), storage).unwrap();
    dir
}

fn run(node: &Node, dir: &Path, script: &str) -> Output {
    let devices = fs::read_to_string("/proc/devices").unwrap();
    let line = devices.lines().find(|line| line.ends_with(" macvtap"));
    let major = line.unwrap().split_whitespace().next().unwrap();
    let mut command = Command::new("podman");
    command.env("CONTAINERS_CONF", dir.join("containers.conf"));
    command.env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"));
    command.args([
        "--runtime",
        "runc",
        "run",
        "--rm",
        "--ulimit",
        "nofile=1024:1024",
    ]);
    command.args(["--ulimit", "nproc=4000:4000", "--volume", "/dev:/hostdev"]);
    command.args(["--device-cgroup-rule", &format!("c {major}:* rw")]);
    command.args(["--network", &format!("mv:mac={MAC},interface_name=net1")]);
    command.arg("--rootfs").arg(dir.join("rootfs"));
    command.args(["/bin/busybox", "sh", "-c", script]);
    node.host.output(&mut command)
}

#[test]
fn a_container_opens_its_tap() {
    if !can_run(&["podman", "runc"]) {
        return;
    }
    for version in ["0.4.0", "1.0.0"] {
        let (node, dir) = (Node::new(), configure(version, LOWER));
        let script = "cat /sys/class/net/net1/address
            exec 3<>/hostdev/tap$(cat /sys/class/net/net1/ifindex) && echo open";
        let output = run(&node, dir.path(), &script.replace("cat", "busybox cat"));
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(stdout, format!("{MAC}\nopen\n"), "{version}: {output:?}");
        assert_eq!(node.host.links(), [LOWER], "left behind");
    }
}

#[test]
fn the_error_reaches_the_user() {
    if !can_run(&["podman", "runc"]) {
        return;
    }
    let (node, dir) = (Node::new(), configure("1.0.0", "eth7"));
    let output = run(&node, dir.path(), "true");
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let expected = "lower device \"eth7\" does not exist on this node";
    assert!(stderr.replace("\\\"", "\"").contains(expected), "{stderr}");
}
