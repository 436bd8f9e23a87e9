//! The netlink layer against the kernel, with `ip` as the second opinion.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use kit::netns::{FAR_END, Host, LOWER, Node, tap_number};
use macvtap::{
    netlink::{Change, Create, Link, NetlinkError},
    types::{mac::MacAddr, mode::Mode},
};
use nix::errno::Errno;

fn names(links: &[Link]) -> Vec<&str> {
    links.iter().map(|link| link.name.as_str()).collect()
}

fn macvtap(name: &str, lower: u32) -> Create<'_> {
    Create {
        name,
        index: None,
        lower,
        mode: Mode::Bridge,
        mac: None,
        mtu: None,
        queue_length: 1000,
        group: 0,
        netns: None,
    }
}

#[test]
fn creates_in_another_netns_and_reads_back() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let mut host = node.host.0.socket().unwrap();
    let lower = host.link_by_name(LOWER).unwrap().unwrap();
    assert_eq!(lower.kind.as_deref(), Some("veth"));
    assert!(lower.up && lower.ethernet && !lower.loopback && !lower.is_macvtap());
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let create = Create {
        index: Some(number),
        mode: Mode::Private,
        mac: Some(mac),
        mtu: Some(1400),
        netns: Some(pod.0.as_fd()),
        ..macvtap("net1", lower.index)
    };
    host.create(&create).unwrap();
    let mut pod = pod.0.socket().unwrap();
    let link = pod.link(number).unwrap().unwrap();
    assert_eq!(link.name, "net1");
    assert_eq!(link.mode, Some(Mode::Private));
    assert_eq!((link.mac, link.mtu), (Some(mac), 1400));
    assert_eq!(link.lower, Some(lower.index));
    assert!(
        link.lower_nsid.is_some(),
        "the lower device is in another netns"
    );
    assert!(!link.up && link.is_macvtap());
}

#[test]
fn changes_and_deletes() {
    let (node, number) = (Node::new(), tap_number());
    let mut pod = node.host.0.socket().unwrap();
    let lower = pod.link_by_name(LOWER).unwrap().unwrap();
    let create = Create {
        index: Some(number),
        ..macvtap("net1", lower.index)
    };
    pod.create(&create).unwrap();
    let change = Change {
        name: Some("net2"),
        mode: Some(Mode::Vepa),
        promiscuous: Some(true),
        all_multicast: Some(true),
        up: Some(true),
        ..Change::default()
    };
    pod.change(number, &change).unwrap();
    let link = pod.link_by_name("net2").unwrap().unwrap();
    assert_eq!(link.mode, Some(Mode::Vepa));
    assert!(link.up && link.promiscuous && link.all_multicast);
    assert!(pod.delete(number).unwrap());
    assert!(!pod.delete(number).unwrap(), "there is none any more");
    assert_eq!(pod.link(number).unwrap(), None);
    assert_eq!(pod.link_by_name("net2").unwrap(), None);
}

#[test]
fn lists_this_netns_and_another_by_its_nsid() {
    let node = Node::new();
    let mut host = node.host.0.socket().unwrap();
    let links = host.links().unwrap();
    assert_eq!(names(&links), ["lo", LOWER]);
    // The kernel gave the netns of the veth's other end a number.
    let nsid = links[1].lower_nsid.unwrap();
    let there = host.links_in(nsid).unwrap();
    assert_eq!(names(&there), ["lo", FAR_END]);
    assert_eq!(Some(there[1].index), links[1].lower);
}

#[test]
fn a_list_is_complete_while_links_come_and_go() {
    let node = Node::new();
    for number in 0..100 {
        node.host
            .ip(&format!("link add stable{number} type bridge"));
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                node.host.ip("link add fleeting type bridge");
                node.host.ip("link delete fleeting");
            }
        });
        let mut host = node.host.0.socket().unwrap();
        for _ in 0..200 {
            let links = host.links().unwrap();
            let stable = names(&links)
                .iter()
                .filter(|name| name.starts_with("stable"))
                .count();
            assert_eq!(stable, 100);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_refusal_has_the_kernels_own_text() {
    let node = Node::new();
    let mut host = node.host.0.socket().unwrap();
    let lower = host.link_by_name(LOWER).unwrap().unwrap();
    let change = Change {
        mtu: Some(1 << 20),
        ..Change::default()
    };
    let error = host.change(lower.index, &change).unwrap_err();
    let NetlinkError::Refused { errno, text } = &error else {
        panic!("{error}");
    };
    assert_eq!(*errno, Errno::EINVAL);
    assert_eq!(text.as_deref(), Some("mtu greater than device maximum"));
    let text = error.to_string();
    assert!(
        text.contains("EINVAL") && text.contains("device maximum"),
        "{text}"
    );
    let error = host.create(&macvtap(LOWER, lower.index)).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
}

#[test]
fn knows_whether_the_kernel_has_macvtap_without_making_one() {
    let node = Node::new();
    node.host.0.socket().unwrap().probe_macvtap().unwrap();
    assert_eq!(node.host.links(), [LOWER]);
}
