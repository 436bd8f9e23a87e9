//! Port security: which frames of a guest pass, on the wire and to its neighbours.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use kit::netns::{
    Case, Cni, Host, IFNAME, Node, tap_number,
    taps::{far_tap, open},
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

/// A guarded guest, a neighbour on the same node, and somebody on the wire.
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
fn marks(mut tap: &File, last: u32) -> BTreeSet<u32> {
    let start = Instant::now();
    let (mut marks, mut buffer) = (BTreeSet::new(), vec![0; 1 << 16]);
    while !marks.contains(&last) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the last frame does not arrive"
        );
        let Ok(length) = tap.read(&mut buffer) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        if let [rest @ .., a, b, c, d] = &buffer[..length]
            && rest.ends_with(&MARK)
        {
            marks.insert(u32::from_be_bytes([*a, *b, *c, *d]));
        }
    }
    marks
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

/// ADD on a kernel without nf_tables: the one of its sockets that is refused is found by trying.
fn add_without_nftables(call: &Cni<'_>) -> Value {
    for number in 1..32 {
        let inject = format!("inject=socket:error=EPROTONOSUPPORT:when={number}");
        let suffering = call.clone().with("logLevel", "info");
        let suffering = suffering.by(&["strace", "-o", "/dev/null", "-e", &inject]);
        let answer = suffering.call("ADD");
        if answer.status != 0 {
            continue;
        }
        if answer.stderr.contains("mechanism=\"classic BPF\"") {
            return serde_json::from_str(&answer.stdout).unwrap();
        }
        call.succeed("DEL");
    }
    panic!("ADD never falls back to classic BPF");
}

#[test]
fn without_nftables_the_same_is_enforced_by_classic_bpf() {
    let mut network = Network::attached(&strict(), add_without_nftables);
    network.check(&forged::forged(), |_, _| false);
    network.check(&forged::honest(), |_, how| {
        matches!(how, How::Untagged | How::Gso)
    });
    let mut network = Network::attached(&json!("mac"), add_without_nftables);
    network.check(&forged::forged(), |kind, _| kind.mac);
    network.check(&forged::honest(), |_, _| true);
}

#[test]
fn mac_lets_pass_what_has_the_guests_mac() {
    let mut network = Network::new(&json!("mac"));
    network.check(&forged::forged(), |kind, _| kind.mac);
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
    network.check(&forged::forged(), |kind, _| kind.mac);
    let pod = &network.pods[0];
    let call = network.node.allocated(pod, network.number);
    call.with("security", "mac").succeed("DEL");
    let tables = || Ok(Nft::open()?.tables()?);
    let tables = pod.0.run(tables).unwrap();
    assert_eq!(tables, [("own".to_owned(), "of the pod".to_owned())]);
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
