//! Pods with a user namespace of their own: `owner` and `group` are the pod's numbers.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio, id},
};

use kit::netns::{Cni, LOWER, Node, device_id, owner, tap, tap_number, wait_until};
use serde_json::json;
use tempfile::NamedTempFile;

/// A process, ended with the test.
struct Process(Child);

impl Process {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod whose user namespace has these maps.
struct Pod {
    _users: Process,
    netns: Process,
}

impl Pod {
    fn new(users: &str, groups: &str) -> Self {
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        let outside = Process::start(&["unshare", "-U", "sleep", "60"]);
        let link = |id: &str, name: &str| fs::read_link(format!("/proc/{id}/ns/{name}"));
        let id = outside.id();
        wait_until("the user namespace", || {
            link(&id, "user").is_ok_and(|found| found != own)
        });
        fs::write(format!("/proc/{id}/uid_map"), users).unwrap();
        fs::write(format!("/proc/{id}/gid_map"), groups).unwrap();
        let enter = ["nsenter", "-t", &id, "-U", "-S", "0", "-G", "0"];
        let netns = Process::start(&[&enter[..], &["unshare", "-n", "sleep", "60"]].concat());
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        wait_until("the network namespace", || {
            link(&netns.id(), "net").is_ok_and(|found| found != own)
        });
        Self {
            _users: outside,
            netns,
        }
    }

    fn call<'a>(&self, node: &'a Node, number: u32) -> Cni<'a> {
        let call = node.cni(&node.wire, json!({"deviceID": device_id(number)}));
        call.env("CNI_NETNS", &format!("/proc/{}/ns/net", self.netns.id()))
    }
}

#[test]
fn the_guest_may_open_its_tap() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Pod::new("0 200000 65536", "0 300000 65536");
    let call = pod.call(&node, number).added();
    assert_eq!(owner(&tap(number)), (200_107, 300_107, 0o600));
    call.succeed("CHECK");
    let path = tap(number);
    let script = format!("exec 3<>{}", path.display());
    let guest = [
        "--reuid",
        "107",
        "--regid",
        "107",
        "--clear-groups",
        "sh",
        "-c",
        &script,
    ];
    let mut command = Command::new("nsenter");
    command.args(["-t", &pod.netns.id(), "-U", "-n", "setpriv"]);
    assert!(command.args(guest).status().unwrap().success());
    call.succeed("DEL");
}

#[test]
fn ranges_that_are_not_in_a_row() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Pod::new("0 1000 1\n1 100000 65535", "0 1000 1\n1 100000 65535");
    let call = pod.call(&node, number).with("owner", 0).added();
    assert_eq!(owner(&tap(number)), (1000, 100_106, 0o600));
    call.succeed("CHECK");
    call.succeed("DEL");
    let call = pod.call(&node, number).with("group", 36).added();
    assert_eq!(owner(&tap(number)), (100_106, 100_035, 0o660));
    call.succeed("CHECK");
    call.succeed("DEL");
}

/// As by a runtime: the netns has a name, and no process is in it yet.
#[test]
fn a_netns_without_processes_has_the_range_of_the_kubelet() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Pod::new("0 3000000000 65536", "0 3000000000 65536");
    let call = pod.call(&node, number);
    let netns = File::open(format!("/proc/{}/ns/net", pod.netns.id())).unwrap();
    drop(pod);
    let path = format!("/proc/{}/fd/{}", id(), netns.as_raw_fd());
    let call = call.env("CNI_NETNS", &path).added();
    assert_eq!(owner(&tap(number)), (3_000_000_107, 3_000_000_107, 0o600));
    call.succeed("CHECK");
    let (_, msg) = call.clone().with("owner", 65_536).fail("CHECK");
    assert!(msg.contains("65536 is not mapped"), "{msg}");
    call.succeed("DEL");
    let (_, msg) = call.with("group", 65_536).fail("ADD");
    assert!(msg.contains("group: 65536 is not mapped"), "{msg}");
    assert!(!tap(number).exists(), "a tap is left");
}

#[test]
fn a_number_that_is_not_mapped_is_named() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Pod::new("0 200000 100", "0 200000 100");
    let (_, msg) = pod.call(&node, number).fail("ADD");
    assert!(
        msg.contains("107 is not mapped in the pod's user namespace"),
        "{msg}"
    );
    assert!(!tap(number).exists(), "a tap is left");
}

/// The plugin itself runs in a user namespace.
#[test]
fn without_root_the_text_names_the_user_namespace() {
    let id = device_id(tap_number());
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "macvtap", "deviceID": id});
    let script = format!(
        "ip link add {LOWER} type veth peer name far && ip link set {LOWER} up && \
         {{ unshare -n sleep 20 & }} && sleep 0.5 && \
         echo '{config}' | CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=net1 CNI_PATH=/x \
         CNI_NETNS=/proc/$!/ns/net {} ; kill $!",
        kit::binary().display()
    );
    let mut command = Command::new("unshare");
    let output = command
        .args(["-Urmn", "sh", "-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("not mapped in the user namespace"),
        "{output:?}"
    );
}

/// A network namespace that no process is named for: all are looked at.
#[test]
fn processes_that_share_a_user_namespace_are_looked_at_once() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Pod::new("0 200000 65536", "0 300000 65536");
    let netns = File::open(format!("/proc/{}/ns/net", pod.netns.id())).unwrap();
    let path = format!("/proc/{}/fd/{}", id(), netns.as_raw_fd());
    let sleep = ["setpriv", "--pdeathsig", "KILL", "sleep", "60"];
    let others: Vec<Process> = (0..100).map(|_| Process::start(&sleep)).collect();
    let call = pod.call(&node, number).env("CNI_NETNS", &path);
    let log = NamedTempFile::new().unwrap();
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    call.clone().by(&strace).add();
    assert_eq!(owner(&tap(number)), (200_107, 300_107, 0o600));
    let log = fs::read_to_string(log.path()).unwrap();
    let reads = |file: &str| log.lines().filter(|line| line.contains(file)).count();
    assert!(reads("uid_map") < others.len(), "{log}");
    // Each process once, and each reading of a link is one line.
    let namespaces = log.lines().filter(|line| line.contains("/ns/user"));
    let processes = fs::read_dir("/proc").unwrap().count();
    assert!(namespaces.count() < 2 * processes, "{log}");
    call.succeed("DEL");
}
