//! Port security: which frames of a guest pass, on the wire and to its neighbours.

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use kit::{
    kernel,
    netns::{
        Case, Cni, Host, IFNAME, Node, happens, tap_number,
        taps::{far_tap, open, send},
    },
};
use macvtap::{
    host::tap::VNET_HEADER,
    macvtap::security::Security,
    netlink::{Nft, Table},
    types::mac::MacAddr,
};
use serde_json::{Value, json};

use crate::forged::{self, Frame, IPV4, IPV6, Kind, MAC, Transport};

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Wire,
    Sibling,
    Broadcast,
}

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    Untagged,
    Tagged,
    TaggedTwice,
    Gso,
}

const SIBLING: [u8; 6] = [2, 0, 0, 0, 0, 0xab];
const DESTINATIONS: [To; 3] = [To::Wire, To::Sibling, To::Broadcast];
const WAYS: [How; 4] = [How::Untagged, How::Tagged, How::TaggedTwice, How::Gso];
/// What every marked frame ends with, before the number of its mark.
const MARK: [u8; 4] = *b"mark";
/// Bytes of a frame that is cut into segments.
const LONG: usize = 4000;

impl To {
    fn mac(self) -> [u8; 6] {
        match self {
            Self::Wire => [2, 0, 0, 0, 0, 0xff],
            Self::Sibling => SIBLING,
            Self::Broadcast => [0xff; 6],
        }
    }
}

/// A guarded guest, a neighbour on the same node, and a station on the wire.
struct Network {
    node: Node,
    pods: [Host; 2],
    guest: File,
    sibling: File,
    wire: File,
    number: u32,
    next_mark: u32,
}

impl Network {
    fn new(security: &Value) -> Self {
        Self::attached(security, add)
    }

    /// A network whose guest is attached by `add`.
    fn attached(security: &Value, add: impl Fn(&Cni<'_>) -> Value) -> Self {
        let (node, pods) = (Node::new(), [Host::new(), Host::new()]);
        let numbers = [tap_number(), tap_number()];
        let call = node.allocated(&pods[0], numbers[0]);
        let call = call
            .with("mac", text(MAC))
            .with("security", security.clone());
        let result = add(&call);
        call.with("prevResult", result).succeed("CHECK");
        let call = node.allocated(&pods[1], numbers[1]);
        call.with("mac", text(SIBLING)).add();
        Self {
            guest: open(numbers[0]),
            sibling: open(numbers[1]),
            wire: far_tap(&node),
            node,
            pods,
            number: numbers[0],
            next_mark: 0,
        }
    }

    /// Sends a frame with a mark of its own; the mark. None if the kernel does not take it.
    fn send(&mut self, frame: &Frame, how: How, to: To) -> Option<u32> {
        self.next_mark += 1;
        let mut bytes = match (how, frame.transport) {
            (How::Gso, Some(transport)) => segmentation(transport).to_vec(),
            (How::Gso, None) => return None,
            _ => vec![0; VNET_HEADER],
        };
        bytes.extend(to.mac().iter().chain(&frame.source));
        match how {
            How::Untagged | How::Gso => {}
            How::Tagged => bytes.extend([0x81, 0, 0, 100]),
            How::TaggedTwice => bytes.extend([0x88, 0xa8, 0, 7, 0x81, 0, 0, 100]),
        }
        bytes.extend(frame.ethertype.to_be_bytes());
        bytes.extend(&frame.payload);
        if how == How::Gso {
            bytes.resize(LONG, 0);
        }
        bytes.extend(MARK);
        bytes.extend(self.next_mark.to_be_bytes());
        match (&self.guest).write(&bytes) {
            Ok(length) => assert_eq!(length, bytes.len()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}"),
        }
        Some(self.next_mark)
    }

    /// What arrived up to a frame that every security lets pass, on the wire and at the sibling.
    fn arrived(&mut self) -> [BTreeSet<u32>; 2] {
        let last = forged::ipv4(17, [0; 4], &forged::udp(68, 67));
        let last = self.send(&last, How::Untagged, To::Broadcast).unwrap();
        [&self.wire, &self.sibling].map(|tap| marks(tap, last))
    }

    /// Sends each of `kinds` in each way; asserts that those arrive which `passes` says.
    fn check(&mut self, kinds: &[Kind], passes: impl Fn(&Kind, How) -> bool) {
        let mut wrong = Vec::new();
        for kind in kinds {
            let mut sent = Vec::new();
            for (how, to) in WAYS
                .iter()
                .flat_map(|how| DESTINATIONS.map(|to| (*how, to)))
            {
                let mark = self.send(&kind.frame, how, to);
                sent.extend(mark.map(|mark| (mark, how, to)));
            }
            let [wire, sibling] = self.arrived();
            for (mark, how, to) in sent {
                let expected = passes(kind, how);
                // The macvtap at the far end keeps fragments of broadcasts until they are whole.
                let kept = to == To::Broadcast && kind.frame.is_ipv4_fragment() && untagged(how);
                let on_wire = expected && to != To::Sibling && !kept;
                let expected = [on_wire, expected && to != To::Wire];
                let found = [wire.contains(&mark), sibling.contains(&mark)];
                if found != expected {
                    wrong.push(format!("{}, {how:?}, to {to:?}: {found:?}", kind.name));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "on the wire, at the sibling:\n{}",
            wrong.join("\n")
        );
    }
}

/// Whether a receiver finds the packet: the outer tag it takes off.
fn untagged(how: How) -> bool {
    matches!(how, How::Untagged | How::Tagged)
}

/// With `"mac"`. Options of router advertisements are not searched behind two tags.
fn passes_mac(kind: &Kind, how: How) -> bool {
    let is_searched = how != How::TaggedTwice || !kind.name.starts_with("router advertisement");
    kind.mac && is_searched
}

fn add(call: &Cni<'_>) -> Value {
    call.add()
}

fn text(mac: [u8; 6]) -> String {
    MacAddr(mac).to_string()
}

/// A header by which the kernel, or the card, cuts segments.
fn segmentation(transport: Transport) -> [u8; VNET_HEADER] {
    let start = 14 + u16::try_from(transport.offset).unwrap();
    let headers = start + u16::try_from(transport.length).unwrap();
    let mut header = [0; VNET_HEADER];
    (header[0], header[1]) = (1, transport.gso);
    header[2..4].copy_from_slice(&headers.to_le_bytes());
    header[4..6].copy_from_slice(&1400_u16.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&transport.checksum.to_le_bytes());
    header
}

/// The marks of the frames that can be read from a tap, up to `last`.
fn marks(tap: &File, last: u32) -> BTreeSet<u32> {
    frames(tap, last)
        .iter()
        .filter_map(|frame| mark(frame))
        .collect()
}

/// The mark at the end of a frame.
fn mark(frame: &[u8]) -> Option<u32> {
    let (rest, number) = frame.split_last_chunk()?;
    let marked = rest.ends_with(&MARK);
    marked.then(|| u32::from_be_bytes(*number))
}

/// The frames that can be read from a tap, up to that with the mark `last`.
fn frames(mut tap: &File, last: u32) -> Vec<Vec<u8>> {
    let start = Instant::now();
    let (mut frames, mut buffer) = (Vec::<Vec<u8>>::new(), vec![0; 1 << 16]);
    while frames.last().and_then(|frame| mark(frame)) != Some(last) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the last frame does not arrive"
        );
        match tap.read(&mut buffer) {
            Ok(length) => frames.push(buffer[VNET_HEADER..length].to_vec()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    frames
}

fn strict() -> Value {
    let (v4, v6) = (
        std::net::Ipv4Addr::from(IPV4),
        std::net::Ipv6Addr::from(IPV6),
    );
    json!({"addresses": [v4.to_string(), v6.to_string()]})
}

#[test]
fn strict_lets_no_forged_frame_pass_and_every_honest_one() {
    let mut network = Network::new(&strict());
    network.check(&forged::forged(), |_, _| false);
    network.check(&forged::honest(), |_, how| {
        matches!(how, How::Untagged | How::Gso)
    });
}

/// Virtio headers that no driver writes: flags, `gso_type`, and in little endian `hdr_len`,
/// `gso_size`, `csum_start` and `csum_offset`.
fn odd_headers() -> Vec<[u8; VNET_HEADER]> {
    let mut headers = Vec::new();
    for (flags, starts) in [
        (0, &[0][..]),
        (2, &[0]),
        (1, &[0, 6, 12, 14, 20, 34, 1400, 65535]),
    ] {
        for gso in [0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x7f] {
            for (start, offset) in starts.iter().flat_map(|start| [(start, 0_u16), (start, 6)]) {
                for (length, size) in [(0_u16, 0_u16), (14, 1), (54, 1400), (65535, 65535)] {
                    let mut header = [0; VNET_HEADER];
                    (header[0], header[1]) = (flags, gso);
                    header[2..4].copy_from_slice(&length.to_le_bytes());
                    header[4..6].copy_from_slice(&size.to_le_bytes());
                    header[6..8].copy_from_slice(&u16::to_le_bytes(*start));
                    header[8..10].copy_from_slice(&offset.to_le_bytes());
                    headers.push(header);
                }
            }
        }
    }
    headers
}

/// A checksum that the kernel is to write is written after the rules have seen the frame, but not
/// over its MAC addresses.
#[test]
fn no_virtio_header_helps_a_forged_frame() {
    let mut network = Network::new(&strict());
    let own = Kind {
        name: "own",
        mac: true,
        frame: forged::ipv4(6, IPV4, &forged::tcp()),
    };
    let forged = forged::forged();
    let mut own_arrived = 0;
    for header in odd_headers() {
        for kind in forged.iter().chain([&own]) {
            let mut bytes = [&header, &SIBLING[..], &kind.frame.source].concat();
            bytes.extend(kind.frame.ethertype.to_be_bytes());
            bytes.extend(&kind.frame.payload);
            bytes.resize(LONG, 0);
            // Most are refused.
            let _ = (&network.guest).write(&bytes);
        }
        let last = forged::ipv4(17, [0; 4], &forged::udp(68, 67));
        let last = network.send(&last, How::Untagged, To::Broadcast).unwrap();
        for tap in [&network.wire, &network.sibling] {
            for frame in frames(tap, last) {
                assert_ne!(frame[6..12], forged::OTHER, "{header:?}: {frame:02x?}");
                if frame[..6] != SIBLING {
                    continue;
                }
                own_arrived += 1;
                let expected = [&MAC[..], &[8, 0]].concat();
                assert_eq!(frame[6..14], expected, "{header:?}: {frame:02x?}");
                let has_checksum = header[0] == 1;
                assert!(has_checksum || frame[26..30] == IPV4, "{header:?}");
            }
        }
    }
    assert!(own_arrived > 0);
}

/// A call that is made with faults, and says what it did.
fn with_faults<'a>(call: &Cni<'a>, faults: &[String]) -> Cni<'a> {
    let words = faults.iter().flat_map(|fault| ["-e", fault]);
    let words: Vec<&str> = ["strace", "-o", "/dev/null"]
        .into_iter()
        .chain(words)
        .collect();
    call.clone().with("logLevel", "info").by(&words)
}

/// The fault that a kernel without nf_tables is: which of the sockets of ADD it refuses is found by
/// trying.
fn without_nftables(call: &Cni<'_>) -> String {
    let mut faults = (1..32).map(|n| format!("inject=socket:error=EPROTONOSUPPORT:when={n}"));
    let found = faults.find(|fault| {
        let answer = with_faults(call, std::slice::from_ref(fault)).call("ADD");
        call.succeed("DEL");
        answer.status == 0 && answer.stderr.contains("mechanism=\"classic BPF\"")
    });
    found.expect("ADD never falls back to classic BPF")
}

fn add_without_nftables(call: &Cni<'_>) -> Value {
    let answer = with_faults(call, &[without_nftables(call)]).call("ADD");
    serde_json::from_str(&answer.stdout).unwrap()
}

#[test]
fn without_nftables_the_same_is_enforced_by_classic_bpf() {
    let mut network = Network::attached(&strict(), add_without_nftables);
    network.check(&forged::forged(), |_, _| false);
    network.check(&forged::honest(), |_, how| {
        matches!(how, How::Untagged | How::Gso)
    });
    let mut network = Network::attached(&json!("mac"), add_without_nftables);
    network.check(&forged::forged(), passes_mac);
    network.check(&forged::honest(), |_, _| true);
}

/// So many addresses, and these further MACs and VLANs.
fn many(count: u32, macs: &[String], vlans: &Value) -> Value {
    let of = |n: u32| match n % 2 {
        0 => format!("2001:db8::{n:x}"),
        _ => format!("192.0.2.{n}"),
    };
    let addresses: Vec<String> = (1..=count).map(of).collect();
    json!({"mac": macs, "addresses": addresses, "vlans": vlans})
}

/// As many addresses as a guest may have, by both mechanisms; STATUS knows how many that are.
#[test]
fn a_guest_may_have_many_addresses_and_no_more() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let fault = without_nftables(&call.clone().with("security", "mac"));
    for (most, vlans) in [(64, json!([])), (32, json!([100, 200])), (21, json!("any"))] {
        let with_most = call.clone().with("security", many(most, &[], &vlans));
        with_most.succeed("STATUS");
        with_most.clone().added().succeed("CHECK");
        with_most.succeed("DEL");
        let answer = with_faults(&with_most, std::slice::from_ref(&fault)).call("ADD");
        assert_eq!(answer.status, 0, "{answer:?}");
        call.succeed("DEL");
        let more = call.clone().with("security", many(most + 1, &[], &vlans));
        for command in ["ADD", "STATUS"] {
            let (_, msg) = more.fail(command);
            let part = format!("at most {most} are possible");
            assert!(msg.contains(&part), "{msg}");
        }
    }
}

/// Further MACs make further rules, which may be too many for either mechanism.
#[test]
fn too_many_rules_are_refused_with_what_to_leave_out() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let fault = without_nftables(&call.clone().with("security", "mac"));
    let macs: Vec<String> = (1..=8).map(|n| format!("02:00:00:00:01:{n:02x}")).collect();
    let full = call.with("security", many(21, &macs, &json!("any")));
    for command in ["ADD", "STATUS"] {
        let (_, msg) = full.fail(command);
        assert!(
            msg.contains("list fewer MACs, VLANs and addresses"),
            "{msg}"
        );
    }
    let added = with_faults(&full, &[fault]).call("ADD");
    assert!(
        added
            .stdout
            .contains("list fewer MACs, VLANs and addresses"),
        "{added:?}"
    );
    assert_eq!(pod.links(), [""; 0]);
}

#[test]
fn mac_lets_pass_what_has_the_guests_mac() {
    let mut network = Network::new(&json!("mac"));
    network.check(&forged::forged(), passes_mac);
    network.check(&forged::honest(), |_, _| true);
}

#[test]
fn off_lets_everything_pass() {
    let mut network = Network::new(&json!("off"));
    network.check(&forged::forged(), |_, _| true);
    network.check(&forged::honest(), |_, _| true);
}

/// What a pod accepts in a table of its own does not lift ours, and DEL leaves that table.
#[test]
fn tables_of_the_pod_itself_lift_nothing_and_stay() {
    let mut network = Network::new(&json!("mac"));
    let anything = Security {
        macs: None,
        ..Security::mac()
    };
    let filter = anything.filter(MacAddr(MAC));
    let own = Table {
        name: "own",
        device: IFNAME,
        comment: "of the pod",
        filter: &filter,
    };
    let pod = &network.pods[0].0;
    pod.run(|| Ok(Nft::open()?.install(&own)?)).unwrap();
    network.check(&forged::forged(), passes_mac);
    let pod = &network.pods[0];
    let call = network.node.allocated(pod, network.number);
    call.with("security", "mac").succeed("DEL");
    let tables = || Ok(Nft::open()?.tables()?);
    let tables = pod.0.run(tables).unwrap();
    assert_eq!(tables, [("own".to_owned(), "of the pod".to_owned())]);
}

/// Where neither nf_tables nor traffic control takes the rules, nothing is attached.
#[test]
fn without_a_way_to_enforce_security_add_fails() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let call = call.with("security", "mac");
    let without_nftables = without_nftables(&call);
    let mut refused = 0;
    for message in 1..32 {
        let without_tc = format!("inject=sendto:error=EOPNOTSUPP:when={message}");
        let answer = with_faults(&call, &[without_nftables.clone(), without_tc]).call("ADD");
        if answer
            .stdout
            .contains("this kernel cannot enforce security mac")
        {
            refused += 1;
            assert_eq!(pod.links(), [""; 0]);
        }
        if answer.status == 0 {
            let result: Value = serde_json::from_str(&answer.stdout).unwrap();
            call.clone().with("prevResult", result).succeed("CHECK");
        }
        call.succeed("DEL");
    }
    assert_eq!(refused, 2, "without clsact, and without the program");
}

/// nf_tables knows a device by its name: since Linux 6.16 it lets go of one that is renamed, for
/// which it takes `NET_ADMIN` in the pod's network namespace, as it does to remove the rules.
#[test]
fn an_interface_that_is_renamed_has_its_rules_under_its_name_only() {
    let mut network = Network::new(&json!("mac"));
    let passes = |network: &mut Network| {
        let packet = Frame {
            source: forged::OTHER,
            ..forged::ipv4(6, IPV4, &forged::tcp())
        };
        let mark = network.send(&packet, How::Untagged, To::Wire).unwrap();
        network.arrived()[0].contains(&mark)
    };
    let rename = |network: &Network, from, to| {
        network.pods[0].ip(&format!("link set {from} name {to}"));
    };
    assert!(!passes(&mut network));
    rename(&network, IFNAME, "other");
    let pod = &network.pods[0];
    let call = network.node.allocated(pod, network.number);
    let result = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": IFNAME, "sandbox": pod.path()}],
    });
    let call = call.with("security", "mac").with("prevResult", result);
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains("does not exist"), "{msg}");
    rename(&network, "other", IFNAME);
    assert!(!passes(&mut network));
    let call = network.node.allocated(&network.pods[0], network.number);
    call.with("security", "mac").succeed("DEL");
}

/// What changes the MAC after ADD opens nothing: neither the new one nor the former one is lost
/// sight of, and CHECK says what to do. A MAC that the network lists may come later.
#[test]
fn a_mac_that_changes_after_add_is_not_followed() {
    for (security, is_listed) in [
        (json!("mac"), false),
        (
            json!({"mac": [text(forged::OTHER)], "addresses": "any", "vlans": "any"}),
            true,
        ),
    ] {
        let mut network = Network::new(&security);
        let pod = &network.pods[0];
        let other = text(forged::OTHER);
        pod.ip(&format!("link set {IFNAME} address {other}"));
        let send = |network: &mut Network, source| {
            let packet = Frame {
                source,
                ..forged::ipv4(6, IPV4, &forged::tcp())
            };
            let mark = network.send(&packet, How::Untagged, To::Wire).unwrap();
            network.arrived()[0].contains(&mark)
        };
        assert!(send(&mut network, MAC), "the rules are as they were");
        assert_eq!(send(&mut network, forged::OTHER), is_listed);
        let pod = &network.pods[0];
        let call = network.node.allocated(pod, network.number);
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": IFNAME, "sandbox": pod.path(), "mac": other}],
        });
        let call = call.with("security", security).with("prevResult", result);
        if is_listed {
            call.succeed("CHECK");
            continue;
        }
        let (_, msg) = call.fail("CHECK");
        for part in ["drops its guest's frames", "mac for 02:00:00:00:00:aa"] {
            assert!(msg.contains(part), "{msg}");
        }
    }
}

/// A plugin that sets the interface up, as dhcp does, and takes its time: until a file is there.
fn slow_plugin(dir: &Path, until: &Path) {
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n\
         nsenter --net=$CNI_NETNS ip link set $CNI_IFNAME up\n\
         while ! [ -e {} ]; do sleep 0.01; done\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"{}/24\"}}]}}'\n",
        until.display(),
        Ipv4Addr::from(IPV4),
    );
    let plugin = dir.join("slow");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, Permissions::from_mode(0o755)).unwrap();
}

fn ethernet(frame: &Frame) -> Vec<u8> {
    let addresses = To::Wire.mac().into_iter().chain(frame.source);
    let ethertype = frame.ethertype.to_be_bytes();
    addresses
        .chain(ethertype)
        .chain(frame.payload.clone())
        .collect()
}

/// Which of these frames arrive that the guest sends, the last one at least.
fn pass(guest: &File, far: &File, frames: &[&Frame]) -> Vec<bool> {
    let frames: Vec<Vec<u8>> = frames.iter().map(|frame| ethernet(frame)).collect();
    for frame in &frames {
        send(guest, frame);
    }
    let (start, mut arrived) = (Instant::now(), BTreeSet::new());
    let mut buffer = vec![0; 1 << 16];
    while !arrived.contains(frames.last().unwrap()) && start.elapsed() < Duration::from_secs(10) {
        match (&mut &*far).read(&mut buffer) {
            Ok(length) => drop(arrived.insert(buffer[VNET_HEADER..length].to_vec())),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    frames.iter().map(|frame| arrived.contains(frame)).collect()
}

/// Before it knows the address, it lets a DHCP client ask for one.
#[test]
fn it_is_in_force_while_the_ipam_plugin_runs() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let dir = tempfile::tempdir().unwrap();
    let until = dir.path().join("until");
    slow_plugin(dir.path(), &until);
    let call = node.allocated(&pod, number).with("mac", text(MAC));
    let call = call.with("security", "strict").with("ipamMode", "report");
    let call = call.with("ipam", json!({"type": "slow"}));
    let call = call.env("CNI_PATH", &dir.path().display().to_string());
    let far = far_tap(&node);
    let own = forged::ipv4(17, IPV4, &forged::udp(1000, 1000));
    let asking = forged::ipv4(17, [0; 4], &forged::udp(68, 67));
    let mut other = own.clone();
    other.source = forged::OTHER;
    let frames = [&other, &own, &asking];
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| call.clone().added());
        let is_up = || {
            pod.link(IFNAME)
                .is_some_and(|link| link["operstate"] == "UP")
        };
        let passed = happens(is_up).then(|| pass(&open(number), &far, &frames));
        fs::write(&until, "").unwrap();
        assert_eq!(passed, Some(vec![false, false, true]));
        let call = adding.join().unwrap();
        assert_eq!(pass(&open(number), &far, &frames), [false, true, true]);
        call.succeed("CHECK");
        call.succeed("DEL");
    });
}

/// Before Linux 6.2 it takes less.
#[test]
fn nftables_takes_the_rules_of_every_security() {
    let case = Case::new();
    for security in [
        json!("mac"),
        json!("strict"),
        json!({"vlans": "any", "routerAdvertisements": true, "addresses": "any"}),
        json!({"vlans": [5], "routerAdvertisements": true, "addresses": ["192.0.2.1"]}),
    ] {
        let call = case.call().with("security", security.clone());
        let call = call.with("runtimeConfig", json!({"ips": ["192.0.2.1/24"]}));
        let answer = call.with("logLevel", "info").call("ADD");
        assert_eq!(answer.status, 0, "{security}: {answer:?}");
        let log = answer.stderr;
        assert!(log.contains("mechanism=nf_tables"), "{security}: {log}");
        case.call().succeed("DEL");
    }
}

#[test]
fn all_of_these_under_debians_kernel() {
    kernel::run_tests(&["security::nftables_takes_the_rules"]);
}

#[test]
fn a_macvtap_that_is_handed_over_is_secured_too() {
    let case = Case::new();
    let words = format!(
        "link add dev5Mvp0 index {} link eth0 type macvtap",
        case.number
    );
    case.node.host.ip(&words);
    let call = case
        .call()
        .with("deviceID", "dev5Mvp0")
        .with("security", "mac");
    let call = call.added();
    call.succeed("CHECK");
    case.pod.ip("link set net1 down");
    case.pod.ip(&format!(
        "link set {IFNAME} address {}",
        text(forged::OTHER)
    ));
    case.pod.ip("link set net1 up");
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains(&text(forged::OTHER)), "{msg}");
    call.succeed("DEL");
}
