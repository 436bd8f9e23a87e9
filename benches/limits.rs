//! What limits cost: ADD with and without them, interleaved in one run; a frame that a guest sends;
//! and `/metrics` beside many attachments with limits.
//!
//! Called by `scripts/bench`, which compiles the C programs.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use kit::{
    binary,
    netns::{Cni, Host, IFNAME, Node, device_id, tap_number, taps},
    switch::Learner,
};
use macvtap::host::tap::VNET_HEADER;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

const ROUNDS: usize = 200;
/// Frames that are sent in a row, and how often.
const FRAMES: u32 = 5_000;
const ROWS: usize = 60;
const ATTACHMENTS: usize = 100;
const SCRAPES: usize = 40;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];

/// Limits by their name. The first ones are none.
fn limits() -> Vec<(&'static str, Value)> {
    let rates = json!({"ingressRate": 1_000_000_000, "egressRate": 1_000_000_000});
    let strict = json!({"addresses": ["192.0.2.5", "2001:db8::5"]});
    vec![
        ("none", json!({})),
        ("`\"mac\"`", json!({"security": "mac"})),
        ("`\"strict\"`", json!({"security": strict})),
        ("both rates", json!({"bandwidth": rates})),
        (
            "`\"strict\"`, both rates",
            json!({"security": strict, "bandwidth": rates}),
        ),
    ]
}

fn main() {
    // cargo bench adds an option of its own.
    let mut words = std::env::args().skip(1);
    let Some(dir) = words.find(|word| !word.starts_with("--")) else {
        println!("run scripts/bench");
        return;
    };
    calls(Path::new(&dir));
    println!();
    frames();
    println!();
    scrapes();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// === calls ===

fn calls(dir: &Path) {
    let (node, limits, program) = (Node::new(), limits(), dir.join("timed"));
    // One that stays: the kernel changes its own code for the first of each kind.
    let (kept, number) = (Host::new(), tap_number());
    milliseconds(&program, (&node, &kept, number), "ADD", &limits[4].1);
    let mut took = vec![[vec![], vec![]]; limits.len()];
    for _ in 0..ROUNDS {
        for ((_, keys), [add, del]) in limits.iter().zip(&mut took) {
            // The first of a network namespace costs more.
            let (pod, number) = (Host::new(), tap_number());
            let place = (&node, &pod, number);
            add.push(milliseconds(&program, place, "ADD", keys));
            del.push(milliseconds(&program, place, "DEL", keys));
        }
    }
    println!(
        "| limits | ADD, median ms | more | processor ms | more | DEL, median ms | processor ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let of = |samples: &[[f64; 2]], part: usize| {
        median(samples.iter().map(|sample| sample[part]).collect())
    };
    let base = [0, 1].map(|part| of(&took[0][0], part));
    for ((name, _), [add, del]) in limits.iter().zip(&took) {
        let [wall, processor] = [0, 1].map(|part| of(add, part));
        println!(
            "| {name} | {wall:.2} | {:+.2} | {processor:.2} | {:+.2} | {:.2} | {:.2} |",
            wall - base[0],
            processor - base[1],
            of(del, 0),
            of(del, 1),
        );
    }
}

/// What a call takes from exec to exit, and of the processor.
fn milliseconds(
    timed: &PathBuf,
    (node, pod, number): (&Node, &Host, u32),
    verb: &str,
    keys: &Value,
) -> [f64; 2] {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "macvtap", "deviceID": device_id(number),
    });
    let keys = keys.as_object().cloned().unwrap();
    config.as_object_mut().unwrap().extend(keys);
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), config.to_string()).unwrap();
    let mut command = Command::new(timed);
    command.arg(binary()).env_clear();
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "bench")
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", IFNAME)
        .env("CNI_PATH", "/usr/lib/cni");
    command.stdin(File::open(file.path()).unwrap());
    let output = node.host.output(&mut command);
    assert!(output.status.success(), "{verb} {config}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers = text
        .split_whitespace()
        .map(|word| word.parse::<f64>().unwrap() / 1e3);
    let numbers: Vec<f64> = numbers.collect();
    [numbers[0], numbers[1] + numbers[2]]
}

// === frames ===

/// A guest sends UDP to a station that takes nothing: of what a frame takes, the way to the wire
/// is the same for all.
fn frames() {
    let security: Vec<_> = limits()
        .into_iter()
        .filter(|(_, keys)| keys.get("bandwidth").is_none())
        .collect();
    let guests: Vec<(Node, Host, File)> = security
        .iter()
        .map(|(_, keys)| {
            let (node, pod, number) = (Node::new(), Host::new(), tap_number());
            let call = node.allocated(&pod, number);
            let call = call.with("mac", macvtap::types::mac::MacAddr(MAC).to_string());
            with(call, keys).add();
            (node, pod, taps::open(number))
        })
        .collect();
    let mut times = vec![Vec::new(); guests.len()];
    let frame = frame();
    for _ in 0..ROWS {
        for ((_, _, tap), times) in guests.iter().zip(&mut times) {
            let start = Instant::now();
            for _ in 0..FRAMES {
                let mut tap = tap;
                tap.write_all(&frame).unwrap();
            }
            times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(FRAMES));
        }
    }
    println!("| security | ns a frame that a guest sends | more than none |");
    println!("| --- | --- | --- |");
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for ((name, _), ns) in security.iter().zip(&medians) {
        println!("| {name} | {ns:.0} | {:+.0} |", ns - medians[0]);
    }
}

fn frame() -> Vec<u8> {
    let mut bytes = vec![0; VNET_HEADER];
    bytes.extend([2, 0, 0, 0, 0, 0xff]);
    bytes.extend(MAC);
    bytes.extend([8, 0, 0x45, 0, 0, 46, 0, 1, 0, 0, 64, 17, 0, 0]);
    bytes.extend([192, 0, 2, 5, 192, 0, 2, 6, 0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    bytes.resize(VNET_HEADER + 60, 0);
    bytes
}

// === scrapes ===

fn scrapes() {
    let mut learner = Learner::without_plugin();
    learner.node.host.ip("link set lo up");
    learner.start_by(Command::new(binary()), &["--status-address", "127.0.0.1:0"]);
    let serving = "health and metrics\" address=";
    learner.plugin.as_ref().unwrap().wait_for_log(serving);
    let log = learner.log();
    let address = log.split(serving).nth(1).unwrap();
    let address = address.lines().next().unwrap();
    let measure = || {
        let times = (0..SCRAPES).map(|_| {
            let start = Instant::now();
            scrape(&learner, address);
            start.elapsed().as_secs_f64() * 1e3
        });
        median(times.collect())
    };
    println!("| attachments | limits | /metrics, median ms | ms an attachment |");
    println!("| --- | --- | --- | --- |");
    let none = measure();
    println!("| 0 | | {none:.2} | |");
    for (name, keys) in limits() {
        let pods: Vec<Host> = (0..ATTACHMENTS).map(|_| attach(&learner, &keys)).collect();
        let limited = if name == "none" { 0 } else { ATTACHMENTS };
        kit::netns::wait_until("all are in the metrics", || {
            let text = scrape(&learner, address);
            let named = |name: &str| text.matches(name).count();
            let ports = text
                .lines()
                .filter(|line| line.starts_with("macvtap_learning_ports{"));
            let ports = ports.filter_map(|line| line.split(' ').next_back()?.parse::<usize>().ok());
            let count = named("reason=\"mac\"").max(named("throttled_total{") / 2);
            count == limited && ports.sum::<usize>() == ATTACHMENTS
        });
        let took = measure();
        #[expect(clippy::cast_precision_loss, reason = "there are few")]
        let each = (took - none) / ATTACHMENTS as f64;
        println!("| {ATTACHMENTS} | {name} | {took:.2} | {each:.3} |");
        drop(pods);
    }
}

fn attach(learner: &Learner, keys: &Value) -> Host {
    let (pod, number) = (learner.pod(), tap_number());
    let call = learner.node.allocated(&pod, number);
    with(call, keys).add();
    pod
}

/// A call with further keys.
fn with<'a>(call: Cni<'a>, keys: &Value) -> Cni<'a> {
    let keys = keys.as_object().unwrap().iter();
    keys.fold(call, |call, (key, value)| call.with(key, value.clone()))
}

fn scrape(learner: &Learner, address: &str) -> String {
    let connect = || Ok(TcpStream::connect(address)?);
    let mut stream = learner.node.host.0.run(connect).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
