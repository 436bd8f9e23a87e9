//! Learning and port security: what security drops is no evidence, and is counted.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use kit::{
    binary,
    netns::{
        Host, LOWER, tap_number,
        taps::{open, send},
        wait_until,
    },
    switch::{Learner, VM, broadcast, connect, gratuitous_arp, rarp},
};
use macvtap::types::mac::MacAddr;
use serde_json::{Value, json};

const ATTACKER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xbb]);

/// A pod on a node whose guest has a MAC of its own.
fn attacker(learner: &Learner, security: &Value) -> (Host, u32) {
    let (pod, number) = (learner.pod(), tap_number());
    let call = learner.node.allocated(&pod, number);
    let call = call.with("mac", ATTACKER.to_string());
    call.with("security", security.clone()).add();
    (pod, number)
}

#[test]
fn a_secured_guest_cannot_park_the_port_of_another() {
    let (a, mut b) = (Learner::new(), Learner::without_plugin());
    b.node.host.ip("link set lo up");
    b.start_by(Command::new(binary()), &["--status-address", "127.0.0.1:0"]);
    b.plugin.as_ref().unwrap().wait_for_log("serving health");
    let _switch = connect([&a.node, &b.node]);
    let victim = a.attach();
    victim.send(&broadcast(VM));
    victim.becomes("bridge");
    let announce = |number: u32| {
        let tap = open(number);
        for frame in [rarp(VM), gratuitous_arp(VM)] {
            send(&tap, &frame);
        }
    };
    let (secured_pod, secured) = attacker(&b, &json!("mac"));
    announce(secured);
    victim.stays("bridge");
    assert_eq!(a.stats().parks, 0);
    let labels = of_tap(secured);
    let dropped = format!("macvtap_frames_dropped_total{{{labels},reason=\"mac\"}} 2");
    wait_until("the frames are counted", || metrics(&b).contains(&dropped));
    drop(secured_pod);
    // The same without security parks it, or this would prove nothing.
    let (_pod, number) = attacker(&b, &json!("off"));
    announce(number);
    victim.becomes("vepa");
}

#[test]
fn a_rate_is_counted_by_direction() {
    let mut learner = Learner::without_plugin();
    learner.node.host.ip("link set lo up");
    learner.start_by(Command::new(binary()), &["--status-address", "127.0.0.1:0"]);
    learner
        .plugin
        .as_ref()
        .unwrap()
        .wait_for_log("serving health");
    let (pod, number) = (learner.pod(), tap_number());
    let call = learner.node.allocated(&pod, number);
    call.with("bandwidth", json!({"egressRate": 8000})).add();
    let tap = open(number);
    for _ in 0..8 {
        send(
            &tap,
            &[&[0xff; 6][..], &[2; 6], &[0x88, 0xb5], &[0; 1486]].concat(),
        );
    }
    let labels = format!("{{{},direction=\"egress\"}}", of_tap(number));
    wait_until("the rate is in the metrics", || {
        let text = metrics(&learner);
        let value = |name: &str| {
            let start = format!("{name}{labels} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
            line.parse::<u64>().ok()
        };
        assert!(!text.contains("direction=\"ingress\""), "{text}");
        value("macvtap_rate_waiting_bytes").is_some_and(|bytes| bytes >= 4500)
            && value("macvtap_throttled_total").is_some_and(|count| count > 0)
            && value("macvtap_limited_bytes_total").is_some_and(|bytes| bytes >= 1500)
    });
}

/// The labels of a tap that is of no resource of its node's device plugin.
fn of_tap(number: u32) -> String {
    format!("tap=\"{number}\",resource=\"\",lower_device=\"{LOWER}\"")
}

/// What the device plugin of a node serves.
fn metrics(learner: &Learner) -> String {
    let log = learner.log();
    let address = log.split("health and metrics\" address=").nth(1).unwrap();
    let address = address.lines().next().unwrap().to_owned();
    let connect = || Ok(TcpStream::connect(&address)?);
    let mut stream = learner.node.host.0.run(connect).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
