//! Rates: what passes in a second, both ways, and that a guest loses nothing of what it sends.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use kit::{
    netns::{
        Case, IFNAME,
        taps::{far_tap, open},
    },
    run_first,
};
use macvtap::{
    host::tap::VNET_HEADER,
    macvtap::{bandwidth::MAX_BURST, shaping},
};
use serde_json::{Value, json};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const FAR: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
/// Bytes of a frame whose payload is as long as the MTU.
const FRAME: usize = 1514;
/// What a rate may be off by.
const TOLERANCE: f64 = 0.03;

/// An attachment with these rates, the guest's tap, and one at the far end.
fn attach(case: &Case, bandwidth: &Value) -> [File; 2] {
    let mac = macvtap::types::mac::MacAddr(MAC).to_string();
    let call = case.call().with("mac", mac);
    let call = call.with("bandwidth", bandwidth.clone()).added();
    call.succeed("CHECK");
    [open(case.number), far_tap(&case.node)]
}

/// The bits per second that pass from one tap to another, when as much is written as is taken:
/// without what passes at once at first, and while nothing fails to arrive.
fn rate(mut from: &File, to: &File, destination: [u8; 6]) -> f64 {
    let mut bytes = vec![0; VNET_HEADER];
    bytes.extend(
        destination
            .iter()
            .chain(&if destination == MAC { FAR } else { MAC }),
    );
    bytes.extend([0x88, 0xb5]);
    bytes.resize(VNET_HEADER + FRAME, 0);
    let stop = AtomicBool::new(false);
    scope(|scope| {
        let sender = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match from.write(&bytes) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        sleep(Duration::from_micros(200));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        count(to, Duration::from_millis(300));
        let start = Instant::now();
        let bytes = count(to, Duration::from_millis(1500));
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        sender.join().unwrap();
        8.0 * f64::from(u32::try_from(bytes).unwrap()) / seconds
    })
}

/// Reads for a time, and then up to the next frame, so that a time is a whole number of frames.
fn count(mut tap: &File, time: Duration) -> usize {
    let start = Instant::now();
    let (mut bytes, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let over = start.elapsed() >= time;
        let Ok(length) = tap.read(&mut buffer) else {
            sleep(Duration::from_micros(100));
            continue;
        };
        bytes += length - VNET_HEADER;
        if over {
            return bytes;
        }
    }
}

/// How many frames a queue of the pod dropped.
fn dropped(case: &Case, index: u32) -> u32 {
    let qdiscs = case.pod.0.socket().unwrap().qdiscs().unwrap();
    let mut of_device = qdiscs.iter().filter(|qdisc| qdisc.index == index);
    let tbf = of_device.find(|qdisc| qdisc.kind == "tbf");
    tbf.expect("a token bucket").dropped_frames
}

fn assert_close(found: f64, wanted: u32) {
    let off = found / f64::from(wanted) - 1.0;
    assert!(
        off.abs() <= TOLERANCE,
        "{found:.0} of {wanted} bit/s: {:+.1} %",
        100.0 * off
    );
}

#[test]
fn passes_what_the_rate_says_both_ways_and_loses_nothing_on_the_way_out() {
    run_first();
    for wanted in [1_000_000, 20_000_000] {
        let case = Case::new();
        let bandwidth = json!({"ingressRate": wanted, "egressRate": wanted});
        let [guest, far] = attach(&case, &bandwidth);
        assert_close(rate(&guest, &far, FAR), wanted);
        assert_eq!(dropped(&case, case.number), 0);
        assert_close(rate(&far, &guest, MAC), wanted);
    }
}

/// The bits per second that leave the queues of a guest with these rates, in and out, when as many
/// long segments are written as are taken.
fn rates_of_segments(wanted: u64) -> [f64; 2] {
    let case = Case::new();
    // As much as passes in 0.2 s: a busy machine lets a writer wait for its turn.
    let burst = (wanted / 5).min(MAX_BURST);
    let bandwidth = json!({
        "ingressRate": wanted, "ingressBurst": burst, "egressRate": wanted, "egressBurst": burst,
    });
    let [guest, far] = attach(&case, &bandwidth);
    let mut pod = case.pod.0.socket().unwrap();
    [(0, &far, &guest, MAC), (1, &guest, &far, FAR)].map(|(way, from, to, destination)| {
        let stop = AtomicBool::new(false);
        scope(|scope| {
            scope.spawn(|| write_until(&stop, from, destination));
            scope.spawn(|| read_until(&stop, to));
            let mut sent = || {
                let qdiscs = pod.qdiscs().unwrap();
                let shapes = shaping::shapes(&qdiscs, case.number);
                shapes[way].unwrap().sent_bytes
            };
            sleep(Duration::from_millis(800));
            let (start, before) = (Instant::now(), sent());
            sleep(Duration::from_secs(3));
            let bytes = sent() - before;
            let seconds = start.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let bits = 8.0 * bytes as f64;
            bits / seconds
        })
    })
}

fn write_until(stop: &AtomicBool, mut tap: &File, destination: [u8; 6]) {
    let bytes = segmented(destination, 58_800);
    while !stop.load(Ordering::Relaxed) {
        if tap.write(&bytes).is_err() {
            sleep(Duration::from_micros(50));
        }
    }
}

/// What waits to be read counts as not sent, so it is read.
fn read_until(stop: &AtomicBool, mut tap: &File) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        if tap.read(&mut buffer).is_err() {
            sleep(Duration::from_micros(50));
        }
    }
}

/// As far as the machine goes, which here has little else to do: three times as much, or it is only
/// not exceeded.
#[test]
fn high_rates_are_reached_as_far_as_the_machine_goes_and_not_exceeded() {
    let most = rates_of_segments(1_000_000_000_000);
    for wanted in [100_000_000_u32, 1_000_000_000, 4_000_000_000] {
        let mut found = (0..3).map(|_| rates_of_segments(wanted.into()));
        let is_kept = |found: [f64; 2]| {
            let wanted = f64::from(wanted);
            let kept = |found: f64, most: f64| {
                let reached = found > (1.0 - TOLERANCE) * wanted || most < 3.0 * wanted;
                reached && found < (1.0 + TOLERANCE) * wanted
            };
            println!("in, out: {found:.0?} of {wanted}, most {most:.0?}");
            kept(found[0], most[0]) && kept(found[1], most[1])
        };
        assert!(found.any(is_kept), "{wanted} bit/s");
    }
}

#[test]
fn either_direction_alone_leaves_the_other_as_it_is() {
    for (key, tbfs) in [("ingressRate", 1), ("egressRate", 1)] {
        let case = Case::new();
        let [guest, far] = attach(&case, &json!({key: 2_000_000}));
        let qdiscs = case.pod.0.socket().unwrap().qdiscs().unwrap();
        let found = qdiscs.iter().filter(|qdisc| qdisc.kind == "tbf").count();
        assert_eq!(found, tbfs, "{qdiscs:?}");
        let limited = [rate(&guest, &far, FAR), rate(&far, &guest, MAC)].map(|rate| rate < 3e6);
        assert_eq!(limited, [key == "egressRate", key == "ingressRate"]);
    }
}

#[test]
fn frames_of_64_kib_pass_any_burst() {
    let case = Case::new();
    let bandwidth = json!({
        "ingressRate": 100_000_000, "ingressBurst": 8000,
        "egressRate": 100_000_000, "egressBurst": 8000,
    });
    let [guest, far] = attach(&case, &bandwidth);
    for (from, to, destination) in [(&guest, &far, FAR), (&far, &guest, MAC)] {
        let sent = segmented(destination, 60_000);
        let mut from = from;
        assert_eq!(from.write(&sent).unwrap(), sent.len());
        let start = Instant::now();
        let (mut payload, mut to, mut buffer) = (0, to, vec![0; 1 << 16]);
        while payload < 60_000 {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{payload} of 60000 bytes arrived"
            );
            match to.read(&mut buffer) {
                Ok(length) => payload += length - VNET_HEADER - 54,
                Err(_) => sleep(Duration::from_millis(1)),
            }
        }
    }
    assert_eq!(dropped(&case, case.number), 0);
}

/// A TCP packet that the kernel is to cut into segments.
fn segmented(destination: [u8; 6], length: u16) -> Vec<u8> {
    let mut bytes = vec![1, 1, 54, 0];
    bytes.extend(1400_u16.to_le_bytes());
    bytes.extend([34, 0, 16, 0]);
    bytes.extend(
        destination
            .iter()
            .chain(&if destination == MAC { FAR } else { MAC }),
    );
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend((40 + length).to_be_bytes());
    bytes.extend([0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 5, 192, 0, 2, 6]);
    bytes.extend([
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
    ]);
    bytes.resize(bytes.len() + usize::from(length), 0);
    bytes
}

#[test]
fn del_leaves_nothing_of_rates_and_rules() {
    let case = Case::new();
    let call = case
        .call()
        .with("bandwidth", json!({"ingressRate": 1_000_000}));
    let call = call.with("security", "mac");
    call.add();
    assert_eq!(
        case.pod.links().len(),
        2,
        "the interface and what it receives by"
    );
    call.succeed("DEL");
    assert_eq!(case.pod.links(), [""; 0]);
    let tables = || Ok(macvtap::netlink::Nft::open()?.tables()?);
    assert_eq!(case.pod.0.run(tables).unwrap(), []);
    call.succeed("DEL");
}

/// Runtimes say no burst by the highest one: containerd 2^32 - 1 bits, CRI-O 2^35 - 9. The kernel
/// shows only 274 seconds of it.
#[test]
fn check_accepts_the_bursts_of_runtimes() {
    for (rate, burst) in [
        (1_000_u64, 4_294_967_295_u64),
        (1_000_000, 4_294_967_295),
        (10_000_000, 4_294_967_295),
        (100_000_000, 34_359_738_359),
        (10_000_000_000, 34_359_738_359),
    ] {
        let case = Case::new();
        let rates = json!({
            "ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst
        });
        let call = case
            .call()
            .with("runtimeConfig", json!({"bandwidth": rates}));
        call.added().succeed("CHECK");
    }
}

/// As the tuning plugin lowers it. A bucket that a whole frame does not fit into drops it.
#[test]
fn check_accepts_a_lower_mtu_but_no_bucket_that_is_too_small() {
    let case = Case::new();
    let rates = json!({"ingressRate": 1_000_000, "egressRate": 1_000_000});
    let call = case
        .call()
        .with("bandwidth", rates)
        .with("mtu", 1400)
        .added();
    case.pod.ip(&format!("link set {IFNAME} mtu 1280"));
    call.succeed("CHECK");
    case.pod.ip(&format!("link set {IFNAME} mtu 1500"));
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains("does not have the rates"), "{msg}");
}

#[test]
fn check_finds_a_rate_or_a_rule_that_is_gone() {
    let limited = |key: &str, value: Value| {
        let case = Case::new();
        let stdin = case.call().with(key, value).added().input().to_vec();
        (case, stdin)
    };
    let fails = |case: &Case, stdin: &[u8], part: &str| {
        let call = case.call().stdin(stdin);
        let (_, msg) = call.fail("CHECK");
        assert!(msg.contains(part), "{msg}");
    };
    let rates = json!({"ingressRate": 1_000_000, "egressRate": 1_000_000});
    let (case, stdin) = limited("bandwidth", rates.clone());
    case.pod.ip(&format!("link delete ifb{}", case.number));
    fails(&case, &stdin, "does not have the rates");
    let (case, stdin) = limited("bandwidth", rates);
    let mut pod = case.pod.0.socket().unwrap();
    assert!(pod.delete_rate(case.number).unwrap());
    fails(&case, &stdin, "does not have the rates");
    let (case, stdin) = limited("security", json!("mac"));
    let delete = || Ok(macvtap::netlink::Nft::open()?.delete(&format!("macvtap-{IFNAME}"))?);
    assert!(case.pod.0.run(delete).unwrap());
    fails(&case, &stdin, "is not filtered as security mac");
}
