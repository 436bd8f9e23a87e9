//! `macvtap probe`.

use std::{path::Path, process::Command};

use kit::{
    binary,
    kubelet::{Plugin, RESOURCE, WAIT_TIMEOUT, connected},
    netns::{Host, LOWER, Node, wait_until},
};
use macvtap::selftest::kubelet::Kubelet;
use tempfile::tempdir;

fn probe(host: &Host, dir: &Path) -> (bool, String) {
    let mut command = Command::new(binary());
    command.arg("probe").arg("--kubelet-dir").arg(dir);
    let output = host.output(&mut command);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn is_content_while_registered_and_says_what_is_not_well() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let (well, text) = probe(&node.host, dir.path());
    assert!(!well && text.contains("does not answer"), "{text}");
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("not registered; retrying");
    let (well, text) = probe(&node.host, dir.path());
    assert!(
        !well && text.contains("dataplane is not registered"),
        "{text}"
    );
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
    wait_until("it is well", || probe(&node.host, dir.path()).0);
    let (_, text) = probe(&node.host, dir.path());
    assert!(text.contains("netlink answers"), "{text}");
    assert!(
        text.contains("dataplane is registered with 100 devices"),
        "{text}"
    );
    node.host.ip(&format!("link delete {LOWER}"));
    let gone = |resource: &macvtap::selftest::kubelet::Resource| resource.healthy().is_empty();
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, gone).unwrap();
    let (well, text) = probe(&node.host, dir.path());
    assert!(well && text.contains("does not exist"), "{text}");
    drop(kubelet);
    wait_until("it is not well", || !probe(&node.host, dir.path()).0);
}

/// A restart of the device plugin does not help against a kubelet that is away.
#[test]
fn the_liveness_probe_fails_for_nothing_else_than_the_device_plugin() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let live = || {
        let mut command = Command::new(binary());
        command
            .args(["probe", "--live", "--kubelet-dir"])
            .arg(dir.path());
        let output = node.host.output(&mut command);
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert!(!live().0, "there is no device plugin");
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("not registered; retrying");
    assert!(!probe(&node.host, dir.path()).0);
    let (ok, text) = live();
    assert!(
        ok && text.contains("not ready: resource dataplane is not registered"),
        "{text}"
    );
}

#[test]
fn only_root_may_ask() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("not registered; retrying");
    let bin = tempdir().unwrap();
    let copy = bin.path().join("macvtap");
    std::fs::copy(binary(), &copy).unwrap();
    for path in [bin.path(), &copy, dir.path()] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }
    for _ in 0..20 {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--clear-groups"]).arg(&copy);
        command.arg("probe").arg("--kubelet-dir").arg(dir.path());
        let output = node.host.output(&mut command);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("Permission denied"), "{text}");
    }
    let (_, text) = probe(&node.host, dir.path());
    assert!(text.contains("dataplane is not registered"), "{text}");
}

#[test]
fn answers_the_shell_probe_of_existing_manifests() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let links = tempdir().unwrap();
    let shell = links.path().join("sh");
    std::os::unix::fs::symlink(binary(), &shell).unwrap();
    let sockets = format!("{}/macvtap.network.kubevirt.io*", dir.path().display());
    let script = format!("ls {sockets} >/dev/null 2>&1");
    let test = links.path().join("test");
    std::os::unix::fs::symlink(binary(), &test).unwrap();
    let succeeds = |program: &Path, words: &[&str]| {
        let output = node.host.output(Command::new(program).args(words));
        output.status.success()
    };
    let probe = || succeeds(&shell, &["-c", &script]);
    assert!(!probe());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let _plugin = Plugin::start(&node.host, dir.path());
    connected(&kubelet);
    wait_until("it is well", probe);
    // That of kubevirt/macvtap-cni v0.13.0.
    assert!(succeeds(&shell, &["-c", &format!("test -S {sockets}")]));
    assert!(succeeds(&test, &["-S", &sockets]));
    let mut command = Command::new(&shell);
    let output = command.args(["-c", "echo hello"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}
