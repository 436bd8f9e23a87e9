//! The netlink layer against the kernel, with `ip` as the second opinion.

use std::{
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use kit::netns::{FAR_END, Host, LOWER, Node, tap_number};
use macvtap::{
    netlink::{Change, Create, Link, LinkWatch, NetlinkError, Uevents},
    types::{mac::MacAddr, mode::Mode, port_options::NO_OPTIONS},
};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, sendto,
            socket,
        },
        stat,
    },
};

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
        options: &NO_OPTIONS,
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

/// A router changes routes by the thousand, and addresses nearly as fast.
#[test]
fn changes_that_matter_are_reported_and_the_rest_is_none() {
    let node = Node::new();
    let host = &node.host;
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let inside = runtime.enter();
    let watch = host.0.run(LinkWatch::open).unwrap();
    drop(inside);
    let changed = |within: u64| {
        let timeout = Duration::from_millis(within);
        runtime.block_on(async {
            let changed = tokio::time::timeout(timeout, watch.changed()).await;
            changed.map(Result::unwrap).is_ok()
        })
    };
    // Its link-local address is checked for a duplicate, which ends with a change.
    host.ip(&format!("address flush dev {LOWER}"));
    while changed(300) {}
    host.ip(&format!("address add 192.0.2.7/24 dev {LOWER}"));
    assert!(!changed(300), "addresses are not followed yet");
    watch.follow_addresses(true).unwrap();
    let gateway = format!("via 192.0.2.1 dev {LOWER}");
    for number in 0..100 {
        host.ip(&format!("route add 198.51.100.{number}/32 {gateway}"));
    }
    assert!(!changed(300), "routes that are none of the default ones");
    for words in [
        format!("route add default {gateway}"),
        format!("route delete default {gateway}"),
        format!("address add 2001:db8::7/64 nodad dev {LOWER}"),
        format!("-6 route add default via 2001:db8::1 dev {LOWER}"),
        format!("link set {LOWER} mtu 1400"),
    ] {
        host.ip(&words);
        assert!(changed(30_000), "{words}");
        while changed(300) {}
    }
    watch.rest(Duration::from_millis(50));
    let start = Instant::now();
    host.ip(&format!("link set {LOWER} mtu 1300"));
    assert!(changed(30_000));
    assert!(start.elapsed() > Duration::from_millis(400), "it rests");
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

/// A socket that sends uevents, as a process in the netns can.
fn forger(netns: &Host) -> OwnedFd {
    netns
        .0
        .run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let protocol = SockProtocol::NetlinkKObjectUEvent;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(socket)
        })
        .unwrap()
}

#[test]
fn an_answer_of_another_process_is_refused() {
    let node = Node::new();
    let mut kernel = node.host.0.socket().unwrap();
    let index = kernel.link_by_name(LOWER).unwrap().unwrap().index;
    let (forger, port) = node
        .host
        .0
        .run(|| {
            let protocol = SockProtocol::NetlinkRoute;
            let flags = SockFlag::SOCK_CLOEXEC;
            let forger = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            // The first socket of a process in a netns gets the process's number.
            let taken = bind(forger.as_raw_fd(), &NetlinkAddr::new(std::process::id(), 0));
            assert_eq!(taken, Err(Errno::EADDRINUSE));
            Ok((forger, std::process::id()))
        })
        .unwrap();
    let to = NetlinkAddr::new(port, 0);
    for sequence in 0..10_u32 {
        // `NLMSG_ERROR` with the errno 0: an acknowledgement.
        let header = [36_u32.to_ne_bytes(), 2_u32.to_ne_bytes()].concat();
        let answer = [header, sequence.to_ne_bytes().to_vec(), vec![0; 24]].concat();
        let sent = sendto(forger.as_raw_fd(), &answer, &to, MsgFlags::empty());
        assert_eq!(sent, Err(Errno::ECONNREFUSED));
    }
    assert_eq!(kernel.link(index).unwrap().unwrap().name, LOWER);
}

/// A macvtap with this index on a veth in the netns itself.
fn add_tap(netns: &Host, name: &str, number: u32) {
    netns.ip(&format!(
        "link add {name} index {number} link {LOWER} type macvtap"
    ));
}

fn device(number: u32) -> (u64, u64) {
    let rdev = std::fs::metadata(kit::netns::tap(number)).unwrap().rdev();
    (stat::major(rdev), stat::minor(rdev))
}

fn announced(uevents: &Uevents, number: u32) -> Option<(u64, u64)> {
    let device = uevents.tap_added(number);
    device.map(|device| (device.major, device.minor))
}

#[test]
fn the_kernel_announces_taps_in_their_own_netns_only() {
    let (node, other) = (Node::new(), Node::new());
    let [one, two, three] = [tap_number(), tap_number(), tap_number()];
    let uevents = node.host.0.run(Uevents::open).unwrap();
    add_tap(&other.host, "net1", two);
    add_tap(&node.host, "net1", one);
    add_tap(&node.host, "net2", three);
    assert_eq!(announced(&uevents, one), Some(device(one)));
    let uevents = node.host.0.run(Uevents::open).unwrap();
    node.host.ip("link delete net2");
    add_tap(&node.host, "net2", three);
    assert_eq!(announced(&uevents, two), None);
    assert_eq!(announced(&uevents, three), None, "each is read once");
}

#[test]
fn a_forged_announcement_is_not_believed() {
    let (node, number) = (Node::new(), tap_number());
    let uevents = node.host.0.run(Uevents::open).unwrap();
    let path = format!("/devices/virtual/net/net1/macvtap/tap{number}");
    let event = format!("add@{path}\0ACTION=add\0MAJOR=1\0MINOR=3\0");
    let forger = forger(&node.host);
    // To who listens, and to the kernel, which hands on what it is sent.
    for (port, groups) in [(0, 1), (0, 0)] {
        let to = NetlinkAddr::new(port, groups);
        let sent = sendto(forger.as_raw_fd(), event.as_bytes(), &to, MsgFlags::empty());
        assert_eq!(sent, Ok(event.len()));
    }
    add_tap(&node.host, "net1", number);
    for (port, groups) in [(0, 1), (0, 0)] {
        let to = NetlinkAddr::new(port, groups);
        sendto(forger.as_raw_fd(), event.as_bytes(), &to, MsgFlags::empty()).unwrap();
    }
    assert_eq!(announced(&uevents, number), Some(device(number)));
}

#[test]
fn an_announcement_that_is_lost_among_others_is_none() {
    let (node, number) = (Node::new(), tap_number());
    let uevents = node.host.0.run(Uevents::open).unwrap();
    for number in 0..200 {
        node.host.ip(&format!("link add b{number} type bridge"));
    }
    add_tap(&node.host, "net1", number);
    let found = announced(&uevents, number);
    assert!(
        found.is_none_or(|found| found == device(number)),
        "{found:?} is another device"
    );
    let buffer = std::fs::read_to_string("/proc/sys/net/core/rmem_default").unwrap();
    if buffer.trim() == "212992" {
        assert_eq!(found, None, "the buffer of the socket holds less");
    }
}
