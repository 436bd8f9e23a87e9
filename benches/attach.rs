//! How long a runtime waits for the plugin, from exec to exit, interleaved in one run with the
//! least that a program can do (`floor.c`, `hello.c`) and with Debian's macvlan plugin.
//!
//! Called by `scripts/bench`, which compiles the C programs.

use std::{
    io::{Seek, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kit::{
    binary,
    netns::{Host, IFNAME, LOWER, Node, device_id, tap_number},
};
use macvtap::learning::query;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

const ROUNDS: usize = 200;
const MACVLAN: &str = "/usr/lib/cni/macvlan";

/// A program whose calls are timed.
struct Program {
    name: &'static str,
    path: PathBuf,
    /// What it is called with, if it is no plugin.
    arguments: Vec<String>,
    /// Its standard input.
    config: NamedTempFile,
}

struct Bench {
    node: Node,
    pod: Host,
}

impl Bench {
    /// The time from starting the program to its end.
    fn time(&self, program: &Program, verb: &str) -> Duration {
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).env_clear();
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "bench");
        command
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", IFNAME);
        command.env("CNI_PATH", "/usr/lib/cni");
        // Files, not pipes: what is measured is the program, not who waits for it.
        let config = program.config.as_file();
        config.try_clone().unwrap().rewind().unwrap();
        command.stdin(config.try_clone().unwrap());
        command.stdout(Stdio::null());
        self.node
            .host
            .0
            .run(|| {
                let start = Instant::now();
                let status = command.status()?;
                let took = start.elapsed();
                assert!(status.success(), "{}: {status}", program.name);
                Ok(took)
            })
            .unwrap()
    }
}

fn main() {
    // cargo bench adds an option of its own.
    let mut given = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"));
    let (Some(floor), Some(hello)) = (given.next(), given.next()) else {
        println!("run scripts/bench");
        return;
    };
    let bench = Bench {
        node: Node::new(),
        pod: Host::new(),
    };
    let number = tap_number();
    let ours = plugin("macvtap", binary(), &json!({"deviceID": device_id(number)}));
    let macvlan = plugin(
        "Debian's macvlan",
        MACVLAN.into(),
        &json!({"master": LOWER}),
    );
    let arguments = [&bench.pod.path(), LOWER, IFNAME, &number.to_string()];
    let floor = program("floor.c: the message alone", &floor, &arguments);
    let hello = program("hello.c", &hello, &[]);
    println!("| call | program | median ms | p10 to p90 | against the first |");
    println!("| --- | --- | --- | --- | --- |");
    interleave(&bench, "VERSION", [&hello, &ours]);
    interleave(&bench, "VERSION", [&hello, &macvlan]);
    interleave(&bench, "ADD", [&floor, &ours, &macvlan]);
    interleave(&bench, "DEL", [&ours, &macvlan]);
    compare_limits(&bench, &ours, number);
    let ours = Program {
        name: "macvtap, asking a device plugin that learns",
        ..ours
    };
    let _learning = Learning::start(&bench.node);
    interleave(&bench, "ADD", [&floor, &ours]);
}

/// What limits cost, interleaved with none.
fn compare_limits(bench: &Bench, ours: &Program, number: u32) {
    let _other = limited_pod(&bench.node);
    let limited = [
        ("macvtap, mac", json!({"security": "mac"})),
        ("macvtap, strict", strict()),
        ("macvtap, strict, a rate out", limits("egressRate")),
        ("macvtap, strict, a rate both ways", both_ways()),
    ];
    let limited = limited.map(|(name, mut limits)| {
        limits["deviceID"] = device_id(number).into();
        plugin(name, binary(), &limits)
    });
    let [mac, strict, out, both] = &limited;
    for verb in ["ADD", "DEL"] {
        interleave(bench, verb, [ours, mac, strict, out, both]);
    }
}

fn strict() -> Value {
    json!({"security": {"addresses": ["192.0.2.5", "2001:db8::5"]}})
}

/// Security, and a rate.
fn limits(rate: &str) -> Value {
    let mut limits = strict();
    limits["bandwidth"] = json!({rate: 1_000_000_000});
    limits
}

fn both_ways() -> Value {
    let mut limits = limits("egressRate");
    limits["bandwidth"]["ingressRate"] = 1_000_000_000.into();
    limits
}

/// A pod with limits. The first of a node costs more: the kernel patches its code.
fn limited_pod(node: &Node) -> Host {
    let pod = Host::new();
    let call = node.allocated(&pod, tap_number());
    let limits = both_ways();
    let call = call.with("security", limits["security"].clone());
    call.with("bandwidth", limits["bandwidth"].clone()).add();
    pod
}

/// A device plugin that answers ADD.
struct Learning(
    Child,
    #[expect(dead_code, reason = "its directory lives as long")] TempDir,
);

impl Learning {
    fn start(node: &Node) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command
            .arg("deviceplugin")
            .arg("--kubelet-dir")
            .arg(dir.path());
        command.arg("--netns-dir").arg(dir.path());
        command
            .stderr(Stdio::null())
            .env_remove("CNI_COMMAND")
            .env("DP_MACVTAP_CONF", "[]");
        let child = node.host.0.run(|| Ok(command.spawn()?)).unwrap();
        kit::netns::wait_until("it answers", || {
            node.host.0.run(|| Ok(query::find().is_some())).unwrap()
        });
        Self(child, dir)
    }
}

impl Drop for Learning {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plugin(name: &'static str, path: PathBuf, extra: &serde_json::Value) -> Program {
    let mut config = json!({"cniVersion": "1.0.0", "name": "bench", "type": name, "ipam": {}});
    let extra = extra.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(extra);
    Program {
        name,
        path,
        arguments: Vec::new(),
        config: file(&config.to_string()),
    }
}

fn program(name: &'static str, path: &str, arguments: &[&str]) -> Program {
    Program {
        name,
        path: path.into(),
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        config: file(""),
    }
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn interleave<const N: usize>(bench: &Bench, verb: &str, programs: [&Program; N]) {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (program, times) in programs.iter().zip(&mut times) {
            if verb == "DEL" {
                bench.time(program, "ADD");
            }
            times.push(bench.time(program, verb));
            if verb == "ADD" && program.path == binary() {
                bench.time(program, "DEL");
            } else if verb == "ADD" {
                bench.pod.ip(&format!("link delete {IFNAME}"));
            }
        }
    }
    let mut first = None;
    for (program, times) in programs.iter().zip(&mut times) {
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e3;
        let median = at(50);
        let first = *first.get_or_insert(median);
        println!(
            "| {verb} | {} | {median:.2} | {:.2} to {:.2} | {:+.2} ms, {:.2} x |",
            program.name,
            at(10),
            at(90),
            median - first,
            median / first,
        );
    }
}
