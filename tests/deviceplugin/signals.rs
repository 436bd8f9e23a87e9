//! SIGTERM, SIGINT, SIGQUIT, and a second one.

use std::time::Duration;

use kit::{
    kubelet::{Plugin, RESOURCE, SOCKET, WAIT_TIMEOUT, connected},
    netns::Node,
};
use macvtap::selftest::kubelet::Kubelet;
use tempfile::tempdir;

#[test]
fn each_ends_it_cleanly_within_a_second() {
    for signal in ["TERM", "INT", "QUIT"] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let mut plugin = Plugin::start(&node.host, dir.path());
        connected(&kubelet);
        plugin.signal(signal);
        let (status, took) = plugin.end();
        assert_eq!(status, Some(0), "{signal}: {}", plugin.log());
        assert!(took < Duration::from_secs(1), "{signal}: {took:?}");
        assert!(!dir.path().join(SOCKET).exists(), "{signal}");
        kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, |resource| !resource.connected)
            .unwrap();
    }
}

#[test]
fn it_ends_in_time_when_the_kubelet_hangs_and_at_once_at_a_second_signal() {
    for twice in [false, true] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let mut plugin = Plugin::start(&node.host, dir.path());
        connected(&kubelet);
        kubelet.freeze(Duration::from_secs(2));
        plugin.signal("TERM");
        if twice {
            std::thread::sleep(Duration::from_millis(50));
            plugin.signal("TERM");
        }
        let (status, took) = plugin.end();
        // Without the second signal it waits for the kubelet, half a second.
        let limit = if twice { 450 } else { 1000 };
        assert!(
            took < Duration::from_millis(limit),
            "twice {twice}: {took:?}"
        );
        assert_eq!(status, Some(i32::from(twice)), "{}", plugin.log());
        if !twice {
            assert!(!dir.path().join(SOCKET).exists());
        }
    }
}

#[test]
fn hangup_does_not_end_it() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut plugin = Plugin::start(&node.host, dir.path());
    connected(&kubelet);
    plugin.signal("HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert!(plugin.is_alive());
    let resource = kubelet.resource(RESOURCE).unwrap();
    assert_eq!((resource.registrations, resource.lists), (1, 1));
}
