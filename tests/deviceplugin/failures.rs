//! Kubelets that do not behave, directories that cannot be used, a second device plugin.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use kit::{
    kubelet::{Fault, Faulty, Plugin, RESOURCE, SOCKET, WAIT_TIMEOUT, command, connected},
    netns::{LOWER, Node, wait_until},
};
use macvtap::selftest::kubelet::Kubelet;
use serde_json::{Value, json};
use tempfile::tempdir;

/// systemd gives services 1024 descriptors of the many that they may have.
#[test]
fn it_uses_as_many_descriptors_as_it_may() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let names: Vec<String> = (0..40).map(|number| format!("r{number}")).collect();
    let entries = names
        .iter()
        .map(|name| json!({"name": name, "lowerDevice": LOWER, "capacity": 1}));
    let configuration = entries.collect::<Value>().to_string();
    let mut command = command(&["prlimit", "--nofile=50:1000"], dir.path());
    command.env("DP_MACVTAP_CONF", configuration);
    let plugin = Plugin::spawn(&node.host, command);
    for name in names {
        let name = format!("macvtap.network.kubevirt.io/{name}");
        let connected = kubelet.wait_for(&name, WAIT_TIMEOUT, |resource| resource.connected);
        assert!(connected.is_ok(), "{name}: {}", plugin.log());
    }
}

#[test]
fn a_kubelet_that_refuses_or_hangs_is_outlived() {
    for (fault, error) in [(Fault::Refuse, Some("not today")), (Fault::Hang, None)] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let faulty = Faulty::start(dir.path(), fault);
        let plugin = Plugin::start(&node.host, dir.path());
        match error {
            Some(error) => plugin.wait_for_log(error),
            None => std::thread::sleep(Duration::from_millis(300)),
        }
        let descriptors = plugin.descriptors();
        drop(faulty);
        let kubelet = Kubelet::start(dir.path()).unwrap();
        connected(&kubelet);
        assert!(plugin.descriptors() <= descriptors + 2, "{fault:?}");
    }
}

#[test]
fn a_kubelet_that_dies_in_the_middle_of_a_registration_is_outlived() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let listener = UnixListener::bind(dir.path().join("kubelet.sock")).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    // It takes the call, and is gone.
    for _ in 0..2 {
        drop(listener.accept().unwrap());
    }
    drop(listener);
    plugin.wait_for_log("not registered; retrying");
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
}

#[test]
fn a_kubelet_that_answers_nonsense_is_outlived() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let listener = UnixListener::bind(dir.path().join("kubelet.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    wait_until("it warns", || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
        plugin.log().contains("not registered; retrying")
    });
    drop(listener);
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
}

#[test]
fn a_socket_without_a_listener_is_reported_and_retried() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    drop(UnixListener::bind(dir.path().join("kubelet.sock")).unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("Connection refused");
    let kubelet = Kubelet::start(dir.path()).unwrap();
    connected(&kubelet);
}

#[test]
fn a_kubelet_that_drops_every_stream_does_not_make_it_spin() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    connected(&kubelet);
    for _ in 0..20 {
        kubelet.drop_streams();
        std::thread::sleep(Duration::from_millis(100));
    }
    let resource = kubelet.resource(RESOURCE).unwrap();
    assert!(resource.registrations <= 4, "{}", resource.registrations);
    connected(&kubelet);
    assert!(plugin.processor_time() < Duration::from_millis(500));
}

#[test]
fn a_full_directory_is_reported_and_retried() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    // A mount namespace of its own, in which the directory is full; then it is not.
    let script = format!(
        "mount -t tmpfs -o size=64k,nr_inodes=9 full {0} && cd {0} && touch 1 2 3 4 5 6 7 8",
        dir.path().display()
    );
    let plugin = Plugin::mounted(&node.host, dir.path(), &script);
    plugin.wait_for_log("No space left on device");
    let inside = format!("/proc/{}/root{}", plugin.id(), dir.path().display());
    for number in 1..=8 {
        fs::remove_file(format!("{inside}/{number}")).unwrap();
    }
    let socket = format!("{inside}/{SOCKET}");
    wait_until("there is room, so it serves", || {
        fs::exists(&socket).unwrap()
    });
}

#[test]
fn a_read_only_directory_is_reported_and_retried() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let path = dir.path().display();
    let script = format!("mount --bind {path} {path} && mount -o remount,bind,ro {path}");
    let mut plugin = Plugin::mounted(&node.host, dir.path(), &script);
    plugin.wait_for_log("cannot serve probe and doctor");
    plugin.wait_for_log("not registered; retrying");
    assert!(plugin.log().contains("Read-only file system"));
    assert!(plugin.is_alive());
    assert_eq!(plugin.log().matches("not registered; retrying").count(), 1);
}

#[test]
fn a_second_device_plugin_leaves_the_first_alone_and_takes_over_from_it() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut first = Plugin::start(&node.host, dir.path());
    connected(&kubelet);
    let mut second = Plugin::start(&node.host, dir.path());
    second.wait_for_log("another device plugin serves");
    std::thread::sleep(Duration::from_millis(1500));
    let resource = kubelet.resource(RESOURCE).unwrap();
    assert!(resource.connected);
    assert_eq!(resource.registrations, 1);
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));
    kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| {
            resource.connected && resource.registrations == 2
        })
        .unwrap();
    assert!(second.is_alive());
}

/// Until it is registered the kubelet has no devices to allocate, as at an upgrade from
/// kubevirt/macvtap-cni. Without a hold on the other's socket the next attempt would be five
/// seconds later.
#[test]
fn it_takes_over_as_soon_as_the_other_device_plugin_ends() {
    for signal in ["TERM", "KILL"] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let mut first = Plugin::start(&node.host, dir.path());
        connected(&kubelet);
        let second = Plugin::start(&node.host, dir.path());
        second.wait_for_log("another device plugin serves");
        // The third attempt was the last for five seconds.
        std::thread::sleep(Duration::from_millis(3500));
        first.signal(signal);
        first.end();
        let ended = Instant::now();
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| {
                resource.connected && resource.registrations == 2
            })
            .unwrap();
        let gap = ended.elapsed();
        println!("{signal}: registered {gap:?} after the end");
        assert!(gap < Duration::from_secs(2), "{signal}: {gap:?}");
    }
}

#[test]
fn an_orphaned_mount_ends_it() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let real = dir.path().join("real");
    let seen = dir.path().join("seen");
    fs::create_dir(&real).unwrap();
    fs::create_dir(&seen).unwrap();
    let script = format!("mount --bind {} {}", real.display(), seen.display());
    let mut plugin = Plugin::mounted(&node.host, &seen, &script);
    plugin.wait_for_log("not registered; retrying");
    fs::remove_dir_all(&real).unwrap();
    fs::create_dir(&real).unwrap();
    let (status, _) = plugin.end();
    assert_eq!(status, Some(1));
    assert!(plugin.log().contains("was deleted"), "{}", plugin.log());
}
