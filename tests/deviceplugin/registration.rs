//! Registered at once, and again whenever it is needed.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Command,
    time::{Duration, Instant},
};

use kit::{
    binary,
    kubelet::{Plugin, RESOURCE, SOCKET, WAIT_TIMEOUT, command, configuration, connected},
    netns::{Node, wait_until},
};
use macvtap::{deviceplugin::status, selftest::kubelet::Kubelet};
use tempfile::tempdir;

#[test]
fn the_first_list_comes_at_once() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    let resource = kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| resource.lists > 0)
        .unwrap();
    assert_eq!(resource.endpoint, SOCKET);
    assert_eq!(resource.healthy().len(), 100);
    assert_eq!(resource.registrations, 1);
    assert!(resource.options.pre_start_required);
    assert!(resource.options.get_preferred_allocation_available);
    let mode = fs::metadata(dir.path().join(SOCKET)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    plugin.wait_for_log("msg=registered resource=dataplane devices=100");
}

#[test]
fn a_killed_plugin_comes_back_with_the_same_devices() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut lists = Vec::new();
    for round in 0..3 {
        let plugin = Plugin::start(&node.host, dir.path());
        let registered = |resource: &macvtap::selftest::kubelet::Resource| {
            resource.connected && resource.registrations == round + 1
        };
        let resource = kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, registered)
            .unwrap();
        lists.push(resource.healthy());
        drop(plugin); // SIGKILL: its socket stays
        assert!(dir.path().join(SOCKET).exists());
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| !resource.connected)
            .unwrap();
    }
    assert!(
        lists
            .iter()
            .all(|list| *list == lists[0] && list.len() == 100)
    );
}

#[test]
fn fifty_restarts_of_the_kubelet() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    let mut descriptors = Vec::new();
    for _ in 0..50 {
        let kubelet = Kubelet::start(dir.path()).unwrap();
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| {
                resource.healthy().len() == 100
            })
            .unwrap();
        descriptors.push(plugin.descriptors());
        drop(kubelet);
    }
    // The call to the kubelet may still be open when the list arrives.
    wait_until("no descriptor is left open", || {
        plugin.descriptors() <= descriptors[0]
    });
}

#[test]
fn the_kubelet_may_come_later() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("kubelet.sock");
    std::thread::sleep(Duration::from_millis(1500)); // into the back-off
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let start = Instant::now();
    connected(&kubelet);
    let took = start.elapsed();
    assert!(took < Duration::from_millis(900), "it waited: {took:?}");
    // Said once, not at each attempt.
    assert_eq!(
        plugin.log().matches("not registered; retrying").count(),
        1,
        "{}",
        plugin.log()
    );
}

#[test]
fn only_another_socket_is_a_restart_of_the_kubelet() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("kubelet.sock");
    let restarts = || status::query(dir.path()).unwrap().kubelet_restarts;
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
    assert_eq!(restarts(), 0, "it is the first: {}", plugin.log());
    let socket = dir.path().join("kubelet.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o640)).unwrap();
    // A change of the directory has the device plugin look.
    fs::write(dir.path().join("something"), "").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(restarts(), 0, "{}", plugin.log());
    assert_eq!(kubelet.resource(RESOURCE).unwrap().registrations, 1);
    drop(kubelet);
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
    assert_eq!(restarts(), 1);
}

#[test]
fn a_removed_socket_is_made_again() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let _plugin = Plugin::start(&node.host, dir.path());
    for round in 1..4 {
        let registered = |resource: &macvtap::selftest::kubelet::Resource| {
            resource.connected && resource.registrations == round
        };
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, registered)
            .unwrap();
        fs::remove_file(dir.path().join(SOCKET)).unwrap();
    }
    wait_until("the socket is there again", || {
        dir.path().join(SOCKET).exists()
    });
}

#[test]
fn the_directory_may_be_missing_and_be_replaced() {
    let (node, outer) = (Node::new(), tempdir().unwrap());
    let dir = outer.path().join("device-plugins");
    let mut plugin = Plugin::start(&node.host, &dir);
    plugin.wait_for_log("device-plugins");
    for round in 0..3 {
        fs::create_dir(&dir).unwrap();
        let kubelet = Kubelet::start(&dir).unwrap();
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| {
                resource.healthy().len() == 100
            })
            .unwrap();
        drop(kubelet);
        if round % 2 == 0 {
            fs::rename(&dir, outer.path().join(format!("old{round}"))).unwrap();
        } else {
            // The device plugin may put a file there meanwhile.
            wait_until("it is removed", || fs::remove_dir_all(&dir).is_ok());
        }
    }
    assert!(plugin.is_alive());
}

#[test]
fn without_inotify_it_polls() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    // The machine's limit is everybody's; so only this process sees it reached.
    let trace = [
        "strace",
        "-D",
        "-f",
        "-o",
        "/dev/null",
        "-e",
        "trace=inotify_init1",
    ];
    let words = [&trace[..], &["-e", "inject=inotify_init1:error=EMFILE"]].concat();
    let command = command(&words, dir.path());
    let plugin = Plugin::spawn(&node.host, command);
    plugin.wait_for_log("cannot be watched; polling");
    for _ in 0..3 {
        let kubelet = Kubelet::start(dir.path()).unwrap();
        connected(&kubelet);
    }
}

#[test]
fn existing_manifests_call_it_with_glogs_flags() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let link = dir.path().join("macvtap-deviceplugin");
    std::os::unix::fs::symlink(binary(), &link).unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut command = Command::new(link);
    command.args(["-v", "3", "-logtostderr", "--kubelet-dir"]);
    command
        .arg(dir.path())
        .env("DP_MACVTAP_CONF", configuration());
    let _plugin = Plugin::spawn(&node.host, command);
    connected(&kubelet);
}

#[test]
fn net_admin_is_all_the_power_it_needs() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let rights = [
        "--bounding-set=-all,+net_admin",
        "--inh-caps=-all",
        "--no-new-privs",
    ];
    let command = command(&[&["setpriv"], &rights[..]].concat(), dir.path());
    let _plugin = Plugin::spawn(&node.host, command);
    let resource = connected(&kubelet);
    let id = &resource.healthy()[..1];
    kubelet.allocate(RESOURCE, id).unwrap();
    kubelet.pre_start(RESOURCE, id).unwrap();
}

#[test]
fn a_name_that_is_too_long_for_a_socket_is_hashed() {
    let (node, outer) = (Node::new(), tempdir().unwrap());
    let dir = outer.path().join("d".repeat(30));
    fs::create_dir(&dir).unwrap();
    let kubelet = Kubelet::start(&dir).unwrap();
    let name = "n".repeat(63);
    let text = configuration().replace("dataplane", &name);
    let _plugin = Plugin::configured(&node.host, &dir, &text);
    let resource = format!("macvtap.network.kubevirt.io/{name}");
    let resource = kubelet.wait_for(&resource, WAIT_TIMEOUT, |resource| resource.connected);
    let endpoint = resource.unwrap().endpoint;
    assert!(
        endpoint.starts_with("macvtap.network.kubevirt.io_"),
        "{endpoint}"
    );
    assert!(endpoint.len() < 45, "{endpoint}");
}

/// A device plugin that was killed leaves its sockets. Those of other resources, and what is
/// served, is not its business, nor what is no socket.
#[test]
fn stale_sockets_are_removed() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let path = |name: &str| dir.path().join(name);
    let stale = path("macvtap.network.kubevirt.io_gone");
    drop(UnixListener::bind(&stale).unwrap());
    let served = path("macvtap.network.kubevirt.io_other");
    let _other = UnixListener::bind(&served).unwrap();
    let foreign = path("example.com_gone");
    drop(UnixListener::bind(&foreign).unwrap());
    let file = path("macvtap.network.kubevirt.io_file");
    fs::write(&file, "").unwrap();
    let _plugin = Plugin::start(&node.host, dir.path());
    wait_until("the stale socket is gone", || !stale.exists());
    wait_until("its own is there", || path(SOCKET).exists());
    assert!(served.exists() && foreign.exists() && file.exists());
}
