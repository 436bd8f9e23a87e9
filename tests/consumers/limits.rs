//! Guests whose frames and rates are limited.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use kit::{
    binary,
    guest::{Guest, can_run},
    netns::{Host, IFNAME, Node, tap_number, wait_until},
    wire::{ADDRESS, ADDRESS_V6, Router},
};
use serde_json::{Value, json};

const MAC: &str = "02:00:00:00:00:aa";
/// Payload and length of a full frame of TCP with time stamps: rates count frames.
const PAYLOAD: f64 = 1448.0;
const FRAME: f64 = 1514.0;

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

#[test]
fn a_secured_guest_uses_dhcp_slaac_ipv4_and_ipv6_and_nothing_else() {
    if !can_run(&["qemu-system-x86_64", "setpriv", "dnsmasq"]) {
        return;
    }
    for (security, is_bound) in [
        (json!({"addresses": ["10.11.0.0/24", "fd00:11::/64"]}), true),
        (json!("mac"), false),
    ] {
        let node = Node::new();
        let _router = Router::start(&node.wire);
        node.wire.ip("addr add 10.99.0.1/24 dev wire0");
        let (_pod, _, mut guest) = boot(&node, "security", security);
        let shell = &mut guest.shell;
        assert!(shell.reaches(ADDRESS));
        wait_until("the guest has an address by SLAAC", || {
            shell.run("ip -6 addr show dev eth0").contains("fd00:11:")
        });
        assert!(shell.reaches(ADDRESS_V6));
        shell.run("ip addr add 10.99.0.9/24 dev eth0");
        assert_eq!(shell.reaches("10.99.0.1"), !is_bound);
        shell.run("ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:bb");
        shell.run("ip link set eth0 up");
        assert!(!shell.reaches(ADDRESS), "with another MAC");
    }
}

/// Megabits of frames per second that TCP makes of what passes in a time.
fn measure(mut pass: impl FnMut() -> usize, time: Duration) -> f64 {
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < time {
        bytes += pass();
    }
    let payload = 8.0 * f64::from(u32::try_from(bytes).unwrap()) / start.elapsed().as_secs_f64();
    payload / 1e6 * FRAME / PAYLOAD
}

fn accept(node: &Node, port: u16) -> TcpListener {
    let bind = || Ok(TcpListener::bind((ADDRESS, port))?);
    node.wire.0.run(bind).unwrap()
}

fn assert_close(found: f64, wanted: f64) {
    assert!(
        (found / wanted - 1.0).abs() <= 0.03,
        "{found:.2} of {wanted} Mbit/s"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is read from top to bottom")]
fn tcp_of_a_guest_has_the_rate_both_ways_also_after_a_change() {
    if !can_run(&["qemu-system-x86_64", "setpriv", "dnsmasq"]) {
        return;
    }
    let node = Node::new();
    let _router = Router::start(&node.wire);
    let rates = json!({"ingressRate": 10_000_000, "egressRate": 10_000_000});
    let (pod, number, mut guest) = boot(&node, "bandwidth", rates);
    let change = |rate: &str| {
        let mut command = Command::new(binary());
        let netns = pod.path();
        command.args(["link", "set", IFNAME, "--netns", &netns, "--rate", rate]);
        assert!(node.host.output(&mut command).status.success());
    };
    let mut buffer = vec![0; 1 << 16];
    let (warm_up, time) = (Duration::from_secs(2), Duration::from_secs(6));

    let listener = accept(&node, 4001);
    guest.shell.send(&format!("nc {ADDRESS} 4001 </dev/zero"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut read = |stream: &mut TcpStream| stream.read(&mut buffer).unwrap();
    measure(|| read(&mut stream), warm_up);
    assert_close(measure(|| read(&mut stream), time), 10.0);
    change("20M");
    measure(|| read(&mut stream), warm_up);
    assert_close(measure(|| read(&mut stream), time), 20.0);
    drop(stream);
    guest.shell.finish("nc");
    let qdiscs = pod.0.socket().unwrap().qdiscs().unwrap();
    let sent = qdiscs
        .iter()
        .find(|qdisc| qdisc.index == number && qdisc.kind == "tbf");
    assert_eq!(sent.unwrap().dropped_frames, 0);

    let listener = accept(&node, 4002);
    guest
        .shell
        .send(&format!("nc {ADDRESS} 4002 >/dev/null </dev/null"));
    let (mut stream, _) = listener.accept().unwrap();
    let bytes = vec![0; 1 << 14];
    let mut write = || stream.write(&bytes).unwrap();
    measure(&mut write, warm_up);
    assert_close(measure(&mut write, time), 20.0);
    change("10M");
    measure(&mut write, warm_up);
    assert_close(measure(&mut write, time), 10.0);
}
