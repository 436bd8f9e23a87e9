//! Host access: which addresses the node takes for those of guests, and when.

use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

use kit::netns::{FAR_END, Host, IFNAME, LOWER, tap_of, taps, wait_until};
use macvtap::{
    learning,
    netlink::Create,
    types::{mac::MacAddr, mode::Mode, port_options::NO_OPTIONS},
};
use serde_json::json;

use super::host_access::{
    ACCESS, GUEST, Guest, Lab, MACHINE, NODE, arp, assign, mac, ping, reaches, resource,
};

/// Addresses that no host has, of which guests and others take some.
const FREE: [&str; 2] = ["10.71.0.53", "fd00:71::53"];

impl Lab {
    /// A guest that has said nothing of its addresses: it does not look whether they are free.
    fn silent_guest(&self, slot: usize, addresses: [&str; 2]) -> Guest<'_> {
        let device = self.device("a", slot);
        let guest = self.guest(&device, addresses);
        wait_until("its filter is set", || self.knows(&guest));
        guest
    }

    /// Whether the macvlan lets the guest pass.
    fn knows(&self, guest: &Guest<'_>) -> bool {
        let mut command = Command::new("tc");
        command.args(["filter", "show", "dev", ACCESS, "ingress"]);
        let shown = self.node.host.output(&mut command).stdout;
        let shown = String::from_utf8(shown).unwrap();
        let mac = mac(&guest.pod, IFNAME).replace(':', "");
        let low = u32::from_str_radix(&mac[..8], 16).unwrap();
        shown.contains(&format!(" {low},")) || shown.contains(&format!(" {low}\n"))
    }

    fn has_route(&self, address: &str) -> bool {
        self.routes().contains(&format!("{address} dev {ACCESS}"))
    }

    fn forgets_neighbours(&self) {
        self.node.host.ip(&format!("neigh flush all dev {LOWER}"));
        for address in FREE {
            let words = format!("neigh del {address} dev {LOWER}");
            let _ = self.node.host.try_ip(&words);
        }
    }
}

/// As a host that has asked by another address before, and knows the node: it does not ask again.
#[test]
fn an_address_that_a_guest_looks_for_before_it_takes_it_is_known() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let guest = lab.silent_guest(0, ["10.71.0.51", "fd00:71::51"]);
    let pod = &guest.pod;
    let access = mac(&lab.node.host, ACCESS);
    pod.ip(&format!(
        "neigh replace {} lladdr {access} dev {IFNAME} nud permanent",
        NODE[1]
    ));
    pod.ip(&format!("addr add {}/64 dev {IFNAME}", GUEST[1]));
    wait_until("the node has a route", || lab.has_route(GUEST[1]));
    pod.ip(&format!("addr del fd00:71::51/64 dev {IFNAME}"));
    reaches(pod, NODE[1]);
}

#[test]
fn a_guest_that_says_nothing_is_asked() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let guest = lab.silent_guest(0, GUEST);
    let _other = lab.silent_guest(1, ["10.71.0.51", "fd00:71::51"]);
    assert_eq!(lab.routes(), "");
    for address in GUEST {
        reaches(&lab.node.host, address);
    }
    let routes = lab.routes();
    assert!(!routes.contains("51 dev"), "{routes}");
    lab.connects(&guest, GUEST);
}

impl Guest<'_> {
    /// Has the guest say that it has `10.71.0.<last>`.
    fn claim(&self, last: u8) {
        let mac: MacAddr = mac(&self.pod, IFNAME).parse().unwrap();
        let tap = taps::open(tap_of(&self.device));
        taps::send(&tap, &arp(mac.0, [10, 71, 0, last]));
    }
}

/// Another host takes the address, and speaks to others than the node.
#[test]
fn a_later_owner_on_the_wire_is_noticed_by_what_it_says_to_others() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let (host, wire) = (&lab.node.host, &lab.node.wire);
    let guest = lab.guest(&lab.device("a", 0), FREE);
    for address in FREE {
        reaches(host, address);
    }
    // The kernel has asked the wire before the node had the routes.
    lab.forgets_neighbours();
    assign(wire, FAR_END, FREE);
    for (own, other) in std::iter::zip(FREE, ["10.71.0.200", "fd00:71::200"]) {
        wait_until("the guest's claim is given up", || {
            let mut command = Command::new("busybox");
            command.args(["ping", "-c", "1", "-W", "1", "-I", own, other]);
            wire.output(&mut command);
            !lab.has_route(own)
        });
        reaches(host, own);
    }
    drop(guest);
}

/// One that says of itself that it has a guest's address, but does not answer the node.
#[test]
fn what_another_host_only_says_does_not_take_a_guests_route() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    lab.forgets_neighbours();
    let far = taps::far_tap(&lab.node);
    for _ in 0..20 {
        taps::send(&far, &arp([2, 0, 0, 0, 0, 0x99], [10, 71, 0, 50]));
        std::thread::sleep(Duration::from_millis(20));
    }
    // What the kernel does not know it may be asking for, up to 3 seconds.
    wait_until("the node reaches the guest", || {
        ping(&lab.node.host, GUEST[0])
    });
    wait_until("the kernel has given up", || {
        let words = format!("neigh show {} dev {LOWER}", GUEST[0]);
        let shown = lab.node.host.ip(&words);
        shown.is_empty() || shown.contains("FAILED")
    });
    wait_until("the guest's route is back", || lab.has_route(GUEST[0]));
    lab.connects(&guest, GUEST);
}

/// The kernel keeps what it knew of a host for as long as it has room.
#[test]
fn a_guest_gets_an_address_of_a_host_that_is_gone_but_not_of_one_that_is_silent() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let stale = |address: &str, mac: &str| {
        host.ip(&format!(
            "neigh replace {address} lladdr {mac} dev {LOWER} nud stale"
        ));
    };
    stale("10.71.0.53", "02:00:00:00:00:99");
    stale("10.71.0.9", &mac(&lab.node.wire, FAR_END));
    for last in [9, 53] {
        guest.claim(last);
    }
    wait_until("the host is found to be gone", || {
        lab.has_route("10.71.0.53")
    });
    lab.wait_for_log("address=10.71.0.9 reason=\"is the address of another host");
    assert!(!lab.has_route(MACHINE[0]));
    reaches(host, MACHINE[0]);
}

/// A sweep alone would take 10 seconds each time.
#[test]
fn routes_of_the_node_are_followed_at_once() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let start = Instant::now();
    for _ in 0..3 {
        host.ip(&format!("route add {} via 10.71.0.9", GUEST[0]));
        wait_until("ours is gone", || !lab.has_route(GUEST[0]));
        host.ip(&format!("route del {} via 10.71.0.9", GUEST[0]));
        guest.claim(50);
        wait_until("ours is back", || lab.has_route(GUEST[0]));
    }
    // A network that is on the link by a route alone.
    host.ip(&format!("route add 10.72.0.0/24 dev {LOWER}"));
    guest
        .pod
        .ip(&format!("addr add 10.72.0.50/24 dev {IFNAME}"));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    wait_until("the network counts", || {
        ping(&guest.pod, "10.72.0.9");
        lab.has_route("10.72.0.50")
    });
}

fn sysctl(host: &Host, key: &str, value: u8) {
    let script = format!("echo {value} >/proc/sys/net/ipv4/conf/{key}");
    let set = host.output(Command::new("sh").args(["-c", &script]));
    assert!(set.status.success(), "{set:?}");
}

/// A router that answers for every address of its own network, so that all traffic goes by it: it
/// cannot be distinguished from the host that has the address.
#[test]
fn where_a_router_answers_for_all_addresses_the_guests_need_those_of_ipam() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let wire = &lab.node.wire;
    sysctl(wire, "all/forwarding", 1);
    sysctl(wire, &format!("{FAR_END}/proxy_arp_pvlan"), 1);
    sysctl(wire, &format!("{FAR_END}/proxy_arp"), 1);
    wire.ip("link add beyond type veth peer name beyond1");
    wire.ip("link set beyond up");
    wire.ip("link set beyond1 up");
    wire.ip("route add default dev beyond");
    sysctl(wire, "all/proxy_arp", 1);
    let guest = lab.silent_guest(0, GUEST);
    guest.claim(50);
    lab.wait_for_log("address=10.71.0.50 reason=\"is the address of another host");
    assert!(!lab.has_route(GUEST[0]));
    let pod = Host::new();
    let call = lab.leased(&lab.device("a", 1), &pod, "assign");
    reaches(&lab.node.host, "10.71.0.60");
    reaches(&pod, NODE[0]);
    call.succeed("DEL");
}

impl Lab {
    /// The lower device goes down, or has another name for a while. Down, it loses its IPv6 addresses.
    fn disturb(&self, how: &[&str]) {
        for words in how {
            self.node.host.ip(&format!("link set {words}"));
        }
        let words = format!("addr replace {}/64 dev {LOWER} nodad", NODE[1]);
        self.node.host.ip(&words);
    }
}

/// With everything that a network may have besides, and at whatever point the device plugin is killed.
#[test]
fn it_comes_back_after_flaps_renames_and_restarts() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let pod = Host::new();
    let call = lab.leased(&lab.device("a", 0), &pod, "assign");
    call.succeed("DEL");
    let call = call.with("security", "strict");
    let rate = json!({"ingressRate": 10_000_000, "ingressBurst": 1_000_000});
    let call = call.with("bandwidth", rate).added();
    let reach = |when: &str| {
        // The address after the one that was released.
        wait_until(when, || ping(&lab.node.host, "10.71.0.61"));
        for address in NODE {
            wait_until(when, || ping(&pod, address));
        }
    };
    reach("at first");
    for (begin, end) in [
        ("eth0 down", "eth0 up"),
        ("eth0 name lan7", "lan7 name eth0"),
        ("eth0 mtu 1400", "eth0 mtu 1500"),
    ] {
        lab.disturb(&[begin, end]);
        reach(begin);
        lab.kill();
        lab.disturb(&[begin, end]);
        lab.start();
        reach(begin);
        lab.node.host.ip(&format!("link set {begin}"));
        lab.kill();
        lab.start();
        lab.disturb(&[end]);
        reach(begin);
    }
    call.succeed("DEL");
    wait_until("the routes are gone", || lab.routes().is_empty());
}

/// Macvtaps as ADD makes them, with these taps; for each its tap, and a frame by which its guest says
/// that it has an address of its own.
fn many_guests(lab: &Lab, pod: &Host, (first, taps): (usize, &[u32])) -> Vec<(File, Vec<u8>)> {
    let mut host = lab.node.host.0.socket().unwrap();
    let mut inside = pod.0.socket().unwrap();
    let lower = host.link_by_name(LOWER).unwrap().unwrap().index;
    let guest = |(number, &tap): (usize, &u32)| {
        let [.., high, low] = number.to_be_bytes();
        let mac = [2, 0, 0, 1, high, low];
        let create = Create {
            name: &format!("net{number}"),
            index: Some(tap),
            lower,
            mode: Mode::Bridge,
            mac: Some(MacAddr(mac)),
            mtu: None,
            queue_length: 1000,
            group: learning::group(Mode::Bridge),
            options: &NO_OPTIONS,
            netns: Some(pod.0.as_fd()),
        };
        host.create(&create).unwrap();
        inside.set_up_without_addresses(tap).unwrap();
        (taps::open(tap), arp(mac, [10, 71, high + 4, low]))
    };
    (first..).zip(taps).map(guest).collect()
}

/// Those that came first keep what they have.
#[test]
fn more_guests_than_are_supported() {
    const MANY: usize = 503;
    let mut many = resource("a", true);
    many["capacity"] = (MANY + 1).into();
    let lab = Lab::new(&json!([many]));
    lab.node
        .host
        .ip(&format!("addr add 10.71.0.77/16 dev {LOWER}"));
    let first = lab.guest(&lab.device("a", MANY), GUEST);
    lab.connects(&first, GUEST);
    // Learning looks for a few in each network namespace.
    let pods: Vec<Host> = (0..MANY.div_ceil(50)).map(|_| Host::new()).collect();
    let taps: Vec<u32> = (0..MANY)
        .map(|slot| tap_of(&lab.device("a", slot)))
        .collect();
    let mut guests = Vec::new();
    for (pod, taps) in std::iter::zip(&pods, taps.chunks(50)) {
        lab.list(pod);
        guests.extend(many_guests(&lab, pod, (guests.len(), taps)));
    }
    lab.wait_for_log(&format!(
        "host access on {LOWER}: 504 guests, but only 500 are supported: 4 have no host access"
    ));
    lab.connects(&first, GUEST);
    wait_until("the others that are supported are reached", || {
        for (tap, frame) in &guests {
            taps::send(tap, frame);
        }
        std::thread::sleep(Duration::from_millis(200));
        lab.routes().matches(" src 10.71.").count() == 500
    });
    assert!(lab.has_route(GUEST[0]));
}

/// The NIC is chosen by what it is, or each gets a resource of its own.
#[test]
fn selectors_and_discovery_give_host_access() {
    let selected = json!({
        "name": "a", "lowerDevice": {"address": "10.71.0.0/24"}, "capacity": 3, "hostAccess": true,
    });
    let lab = Lab::new(&json!([selected]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    // The addresses move to another NIC, and host access with them.
    host.ip("link add lan9 type veth peer name far9");
    host.ip("link set lan9 up");
    host.ip("link set far9 up");
    host.ip(&format!("addr flush dev {LOWER}"));
    assign(host, "lan9", NODE);
    wait_until("it is on the other NIC", || host.is_up("mvh-lan9"));
    wait_until("it is not on the first", || host.link(ACCESS).is_none());
    let discover = json!({
        "discover": {"allow": "lan*", "kinds": "*"}, "capacity": 2, "hostAccess": true,
    });
    lab.configure(&json!([discover]));
    let device = lab.device("lan9", 0);
    let other = ["10.71.0.51", "fd00:71::51"];
    let guest = lab.guest(&device, other);
    lab.connects(&guest, other);
}
