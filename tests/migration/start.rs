//! A guest that starts in a parked port, as every guest does, notices nothing of it.

use std::time::{Duration, Instant};

use kit::{
    guest::{Guest, can_run},
    run_first,
    switch::{Learner, VM, neighbour},
    wire::{ADDRESS, Router},
};

#[test]
fn a_guest_gets_its_lease_and_its_first_ping_from_a_neighbour() {
    if !can_run(&["qemu-system-x86_64", "setpriv", "dnsmasq"]) {
        return;
    }
    run_first();
    let learner = Learner::new();
    let neighbour = neighbour(&learner.node);
    let _router = Router::start_on(&neighbour, "peer0");
    for dhcp in [true, false] {
        let (pod, tap, cni) = learner.attach_pod(VM);
        assert_eq!(pod.mode(), "vepa");
        let mut guest = Guest::boot(&pod, tap, &VM.to_string());
        let shell = &mut guest.shell;
        // The guest's own IPv6 would be the first to send.
        shell.run("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip link set eth0 up");
        let start = Instant::now();
        if dhcp {
            let lease = shell.run("udhcpc -i eth0 -s /bin/lease -n -q 2>&1");
            assert!(lease.contains("lease=10.11.0."), "{lease}");
            assert!(
                start.elapsed() < Duration::from_secs(4),
                "{:?}",
                start.elapsed()
            );
        } else {
            shell.run("ip addr add 10.11.0.9/24 dev eth0");
            let printed = shell.run(&format!("ping -c 1 -W 3 {ADDRESS}"));
            let time = printed
                .split("time=")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            let time: f64 = time.parse().unwrap();
            assert!(time < 500.0, "{time} ms");
        }
        assert_eq!(pod.mode(), "bridge");
        drop(guest);
        cni.succeed("DEL");
    }
}
