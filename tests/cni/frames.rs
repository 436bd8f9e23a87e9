//! Frames: what the tap exchanges with the wire, and what must not leave.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kit::netns::{
    FAR_END, Host, IFNAME, Node, tap_number,
    taps::{arrives, far_tap, open, send},
    wait_until,
};
use serde_json::json;

const MAC: &str = "02:00:00:00:00:aa";

/// Who counts the frames with source address [`MAC`] on the wire.
struct Watcher(Child);

impl Watcher {
    fn start(node: &Node) -> Self {
        let mut command = Command::new("tcpdump");
        command.args(["-i", FAR_END, "-nn", "-e", "-l", "--immediate-mode"]);
        command.args(["ether", "src", MAC]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = node.wire.0.run(|| Ok(command.spawn()?)).unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "tcpdump ended");
        }
        // Keep reading, lest it stops at a closed pipe.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Self(child)
    }

    fn stop(mut self) -> Vec<String> {
        self.0.kill().unwrap();
        let mut text = String::new();
        self.0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        self.0.wait().unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<macvtap::types::mac::MacAddr>().unwrap().0
}

fn frame(destination: &str, source: &str) -> Vec<u8> {
    let payload = [0x88, 0xb5].into_iter().chain([0x5a; 100]);
    let addresses = mac(destination).into_iter().chain(mac(source));
    addresses.chain(payload).collect()
}

const LONG: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn pass_between_tap_and_wire() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    node.allocated(&pod, number).with("mac", MAC).add();
    let (near, far) = (open(number), far_tap(&node));
    let out = frame("02:00:00:00:00:ff", MAC);
    send(&near, &out);
    assert!(arrives(&far, &out, LONG));
    for destination in [
        MAC,
        "ff:ff:ff:ff:ff:ff",
        "33:33:00:00:00:01",
        "01:00:5e:01:02:03",
    ] {
        let into = frame(destination, "02:00:00:00:00:ff");
        send(&far, &into);
        assert!(arrives(&near, &into, LONG), "{destination}");
    }
    let others = frame("02:00:00:00:00:bb", "02:00:00:00:00:ff");
    send(&far, &others);
    assert!(
        !arrives(&near, &others, SHORT),
        "a frame for another station"
    );
}

#[test]
fn only_an_all_multicast_macvtap_hears_the_guests_groups() {
    for (key, hears) in [(true, true), (false, false)] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let call = node.allocated(&pod, number).with("mac", MAC);
        call.with("allMulticast", key).add();
        let (near, far) = (open(number), far_tap(&node));
        // The solicited-node group of a guest's address: neighbour discovery needs it.
        let group = frame("33:33:ff:12:34:56", "02:00:00:00:00:ff");
        send(&far, &group);
        assert_eq!(
            arrives(&near, &group, if hears { LONG } else { SHORT }),
            hears
        );
    }
}

#[test]
fn a_promiscuous_macvtap_hears_every_group_and_in_passthru_mode_everybody() {
    for (mode, destination) in [
        ("bridge", "33:33:ff:12:34:56"),
        ("passthru", "02:00:00:00:00:bb"),
    ] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let id = kit::netns::device_id_in(mode, number);
        let call = node.cni(&pod, json!({"deviceID": id, "mac": MAC}));
        let call = call.with("promiscMode", true).with("allMulticast", false);
        call.add();
        let (near, far) = (open(number), far_tap(&node));
        let others = frame(destination, "02:00:00:00:00:ff");
        send(&far, &others);
        assert!(arrives(&near, &others, LONG), "{mode}");
    }
}

#[test]
fn pass_between_two_pods_in_bridge_mode_only() {
    for (mode, reaches) in [("bridge", true), ("private", false), ("vepa", false)] {
        let node = Node::new();
        let pods = [Host::new(), Host::new()];
        let macs = [MAC, "02:00:00:00:00:ab"];
        let taps: Vec<File> = std::iter::zip(&pods, macs)
            .map(|(pod, mac)| {
                let number = tap_number();
                let id = kit::netns::device_id_in(mode, number);
                node.cni(pod, json!({"deviceID": id, "mac": mac})).add();
                open(number)
            })
            .collect();
        let frame = frame(macs[1], macs[0]);
        send(&taps[0], &frame);
        let timeout = if reaches { LONG } else { SHORT };
        assert_eq!(arrives(&taps[1], &frame, timeout), reaches, "{mode}");
    }
}

#[test]
fn not_one_leaves_the_pods_kernel_unless_host_ipv6_is_set() {
    for (host_ipv6, hand_over) in [(false, false), (false, true), (true, false)] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let watcher = Watcher::start(&node);
        let mut call = node.allocated(&pod, number);
        if hand_over {
            let words = format!("link add dev5Mvp0 index {number} link eth0 type macvtap");
            node.host.ip(&words);
            call = call.with("deviceID", "dev5Mvp0");
        }
        call.with("mac", MAC).with("hostIPv6", host_ipv6).add();
        // Duplicate address detection, MLD and router solicitations all come within this.
        std::thread::sleep(Duration::from_millis(2500));
        let seen = watcher.stop();
        assert_eq!(
            seen.is_empty(),
            !host_ipv6,
            "hand-over {hand_over}: {seen:#?}"
        );
        let addresses = pod.ip(&format!("-6 address show dev {IFNAME}"));
        assert_eq!(addresses.contains("fe80"), host_ipv6, "{addresses}");
    }
}

#[test]
fn a_router_advertisement_before_the_guest_opens_the_tap_has_no_effect() {
    for host_ipv6 in [false, true] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        let call = node.allocated(&pod, number).with("mac", MAC);
        call.with("hostIPv6", host_ipv6).add();
        let far = far_tap(&node);
        let watcher = Watcher::start(&node);
        let configured = || {
            let text = pod.ip(&format!("-6 address show dev {IFNAME}"));
            text.contains("2001:db8:")
        };
        for _ in 0..10 {
            send(&far, &router_advertisement());
            std::thread::sleep(Duration::from_millis(50));
        }
        if host_ipv6 {
            wait_until("the pod configures an address", configured);
        } else {
            assert!(!configured(), "the pod took the router's prefix");
            let seen = watcher.stop();
            assert!(seen.is_empty(), "{seen:#?}");
        }
    }
}

/// The pod has other addresses too; the guest has this MAC, and answers for itself.
#[test]
fn the_pods_kernel_answers_no_arp_request() {
    for host_stack in [false, true] {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        pod.ip("address add 192.0.2.1/32 dev lo");
        pod.ip("link set lo up");
        let call = node.allocated(&pod, number).with("mac", MAC);
        call.with("hostStack", host_stack).add();
        // On a wire with an address of that network the kernel asks who has 192.0.2.1.
        let watcher = Watcher::start(&node);
        node.wire
            .ip(&format!("address add 192.0.2.2/24 dev {FAR_END}"));
        let script = "for i in 1 2 3; do echo > /dev/udp/192.0.2.1/9; sleep 0.2; done";
        node.wire.output(Command::new("bash").args(["-c", script]));
        let seen = watcher.stop();
        let answered = seen
            .iter()
            .any(|line| line.contains("Reply 192.0.2.1 is-at"));
        assert_eq!(answered, host_stack, "{seen:#?}");
    }
}

/// What a router tells all nodes (RFC 4861): a prefix, from which they may configure addresses.
fn router_advertisement() -> Vec<u8> {
    let source = [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0xff,
    ];
    let all_nodes = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    message.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let length = u16::try_from(message.len()).unwrap();
    let pseudo = [
        &source[..],
        &all_nodes,
        &[0, 0],
        &length.to_be_bytes(),
        &[0, 0, 0, 58],
    ];
    let sum = checksum(&[pseudo.concat(), message.clone()].concat());
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = mac("33:33:00:00:00:01").to_vec();
    frame.extend(mac("02:00:00:00:00:ff"));
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(source.iter().chain(&all_nodes).chain(&message));
    frame
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
