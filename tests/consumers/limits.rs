//! Guests whose frames and rates are limited.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::Command,
    time::Duration,
};

use kit::{
    binary,
    guest::{Guest, can_run},
    netns::{Host, IFNAME, Node, tap_number, wait_until},
    run_first, traffic,
    wire::{ADDRESS, ADDRESS_V6, Router},
};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:aa";
/// A guest that has an address by DHCP, on a pod with these limits.
fn boot(node: &Node, key: &str, limits: Value) -> (Host, u32, Guest) {
    let (pod, number) = (Host::new(), tap_number());
    let call = node.allocated(&pod, number).with("mac", MAC);
    call.with(key, limits).added().succeed("CHECK");
    let mut guest = Guest::boot(&pod, number, MAC);
    guest.shell.run("ip link set eth0 up");
    let lease = guest.shell.run("udhcpc -i eth0 -n -q -s /bin/lease 2>&1");
    assert!(lease.contains("lease=10.11.0."), "{lease}");
    (pod, number, guest)
}

/// A guest uses DHCP, SLAAC, ARP, IPv4 and IPv6. Which other address or MAC it can then use as well
/// is what security is about: a second address, and one that two routers share (VRRP).
#[test]
fn a_guest_uses_its_network_whatever_security_is() {
    if !can_run(&["qemu-system-x86_64", "setpriv", "dnsmasq"]) {
        return;
    }
    let own = ["10.11.0.0/25", "fd00:11::/64"];
    let shared = [&own[..], &["10.11.0.200"]].concat();
    for (security, foreign, virtual_router, other_mac) in [
        (json!("off"), true, true, true),
        (json!("mac"), true, true, false),
        (json!({"addresses": own}), false, false, false),
        (json!({"addresses": shared}), false, true, false),
        (
            json!({"addresses": shared, "mac": ["02:00:00:00:00:bb"]}),
            false,
            true,
            true,
        ),
    ] {
        let node = Node::new();
        let _router = Router::start(&node.wire);
        node.wire.ip("addr add 10.99.0.1/24 dev wire0");
        let (pod, _, mut guest) = boot(&node, "security", security.clone());
        let shell = &mut guest.shell;
        assert!(shell.reaches(ADDRESS));
        wait_until("the guest has an address by SLAAC", || {
            let addresses = shell.run("ip -6 addr show dev eth0");
            addresses.contains("fd00:11:") && !addresses.contains("tentative")
        });
        assert!(shell.reaches(ADDRESS_V6));
        shell.run("ip addr add 10.99.0.9/24 dev eth0");
        assert_eq!(shell.reaches("10.99.0.1"), foreign, "{security}");
        shell.run("ip addr add 10.11.0.200/32 dev eth0");
        let mut ping = Command::new("ping");
        ping.args(["-c", "3", "-i", "0.2", "-W", "1", "10.11.0.200"]);
        let reached = node.wire.output(&mut ping).status.success();
        assert_eq!(reached, virtual_router, "{security}");
        // The interface receives for its own MAC alone.
        shell.run("ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:bb");
        pod.ip(&format!("link set {IFNAME} address 02:00:00:00:00:bb"));
        shell.run("ip link set eth0 up");
        assert_eq!(shell.reaches(ADDRESS), other_mac, "{security}");
    }
}

fn accept(node: &Node, port: u16) -> TcpListener {
    let bind = || Ok(TcpListener::bind((ADDRESS, port))?);
    node.wire.0.run(bind).unwrap()
}

/// A guest and its rates, which change while it runs.
struct Rated {
    node: Node,
    pod: Host,
    number: u32,
    guest: Guest,
    _router: Router,
}

impl Rated {
    /// Mbit/s, as ADD sets them.
    const AT_FIRST: u32 = 10;

    fn boot() -> Self {
        let node = Node::new();
        let router = Router::start(&node.wire);
        let rate = 1_000_000 * Self::AT_FIRST;
        let rates = json!({"ingressRate": rate, "egressRate": rate});
        let (pod, number, guest) = boot(&node, "bandwidth", rates);
        Self {
            node,
            pod,
            number,
            guest,
            _router: router,
        }
    }

    /// Changes the rates, to Mbit/s or to none.
    fn change(&self, rate: u32) {
        let rate = if rate == 0 {
            "0".to_owned()
        } else {
            format!("{rate}M")
        };
        let mut command = Command::new(binary());
        let netns = self.pod.path();
        command.args(["link", "set", IFNAME, "--netns", &netns, "--rate", &rate]);
        assert!(self.node.host.output(&mut command).status.success());
    }

    /// Frames that the queue of what the guest sends dropped.
    fn dropped(&self) -> u32 {
        let qdiscs = self.pod.0.socket().unwrap().qdiscs().unwrap();
        let mut sent = qdiscs.iter().filter(|qdisc| qdisc.index == self.number);
        let tbf = sent.find(|qdisc| qdisc.kind == "tbf");
        tbf.map_or(0, |tbf| tbf.dropped_frames)
    }

    /// Measures whether what passes has the rate, in Mbit/s.
    fn check(&self, way: &str, rate: u32, pass: &mut dyn FnMut() -> usize) {
        // A busy machine keeps the guest from its rate for a moment.
        let mut found = (0..3).map(|_| measure(pass));
        let wanted = f64::from(rate);
        let close = found.find(|found| traffic::is_close(*found, wanted));
        assert!(close.is_some(), "{way}: not {rate} Mbit/s");
        eprintln!("{way}: {:.2} of {rate} Mbit/s", close.unwrap_or_default());
        let dropped = self.dropped();
        assert!(way == "received" || dropped == 0, "{dropped} dropped");
    }

    /// Sets one rate after the other, as far as the guest, whose processor is emulated, has three
    /// times as much to send or receive; how many.
    fn check_all(&self, way: &str, pass: &mut dyn FnMut() -> usize) -> usize {
        self.check(way, Self::AT_FIRST, pass);
        self.change(0);
        let most = measure(pass);
        eprintln!("{way}: {most:.0} Mbit/s without a rate");
        let rates = [1, 10, 30, 100, 300, 1000, 3000].into_iter();
        let rates = rates.filter(|rate| f64::from(3 * *rate) < most);
        let check = |rate| {
            self.change(rate);
            self.check(way, rate, pass);
        };
        rates.map(check).count()
    }
}

fn measure(pass: &mut dyn FnMut() -> usize) -> f64 {
    traffic::measure(&mut *pass, Duration::from_millis(2500));
    traffic::measure(pass, Duration::from_secs(4))
}

/// As high as an emulated guest goes; `tests/cni/bandwidth.rs` goes on with taps.
#[test]
fn tcp_of_a_guest_has_the_rate_both_ways_also_after_changes() {
    if !can_run(&["qemu-system-x86_64", "setpriv", "dnsmasq"]) {
        return;
    }
    run_first();
    let mut buffer = vec![0; 1 << 16];
    let mut rated = Rated::boot();
    let listener = accept(&rated.node, 4001);
    rated
        .guest
        .shell
        .send(&format!("nc {ADDRESS} 4001 </dev/zero"));
    let (mut stream, _) = listener.accept().unwrap();
    assert!(rated.check_all("sent", &mut || stream.read(&mut buffer).unwrap()) >= 2);

    drop(rated);
    let mut rated = Rated::boot();
    let listener = accept(&rated.node, 4002);
    let receive = format!("nc {ADDRESS} 4002 >/dev/null </dev/null");
    rated.guest.shell.send(&receive);
    let (mut stream, _) = listener.accept().unwrap();
    assert!(rated.check_all("received", &mut || stream.write(&buffer).unwrap()) >= 2);
}
