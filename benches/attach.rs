//! What a container runtime waits for: calls of the plugin, interleaved in one run with the least
//! that a program can do (`floor.c`, `hello.c`) and with Debian's macvlan plugin, beside more and
//! more attachments that exist already; then by many workers at once.
//!
//! Called by `scripts/bench`, which compiles the C programs. Prints tables, and writes what it
//! measured to a directory: `attach.json`, and `attach.dat` to be plotted.

use std::{
    collections::BTreeMap,
    fs,
    io::{Seek, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kit::{
    binary,
    netns::{Host, IFNAME, LOWER, Node, device_id, tap_number},
};
use macvtap::{host::netns::NAMED, learning::query};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

/// Calls of each program beside each number of attachments.
const ROUNDS: usize = 40;
/// Attachments on a program's lower device before it is called.
const EXISTING: [usize; 4] = [1, 10, 100, 1000];
const ATTACHMENTS_IN_A_POD: usize = 10;
const WORKERS: usize = 8;
const PODS: usize = 200;
/// Times that all pods are attached and detached by each program.
const PASSES: usize = 3;
const MACVLAN: &str = "/usr/lib/cni/macvlan";
/// The name of a macvtap that waits on the host.
const WAITING: &str = "dev5Mvp0";

/// What a call took: microseconds, and KiB. Of the processor's time the kernel knows the sum; the
/// parts, user mode and kernel, are as its ticks fell.
#[derive(Clone, Copy)]
struct Sample {
    wall: u64,
    user: u64,
    system: u64,
    memory: u64,
}

impl Sample {
    fn wall(&self) -> u64 {
        self.wall
    }

    fn processor(&self) -> u64 {
        self.user + self.system
    }
}

/// Samples by call, program, and the number of existing attachments.
type Samples = BTreeMap<(&'static str, &'static str, usize), Vec<Sample>>;

/// A program that attaches.
#[derive(Clone)]
struct Program<'a> {
    name: &'static str,
    path: PathBuf,
    /// Whether the environment and standard input say what to do, or arguments.
    plugin: bool,
    /// Keys of its configuration.
    config: Value,
    node: &'a Node,
}

/// What a program is called for.
struct Call<'a> {
    verb: &'static str,
    pod: &'a Host,
    number: u32,
}

impl Program<'_> {
    /// The words by which it is called.
    fn words(&self, call: &Call) -> Vec<String> {
        let mut words = vec![self.path.display().to_string()];
        if !self.plugin {
            words.extend([call.verb.to_owned(), call.pod.path()]);
            if call.verb == "ADD" {
                words.extend([LOWER.to_owned(), IFNAME.to_owned()]);
            }
            words.push(call.number.to_string());
        }
        words
    }

    fn command(&self, words: &[String], call: &Call) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear();
        command
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", "bench")
            .env("CNI_NETNS", call.pod.path())
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", "/usr/lib/cni")
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_UID=bench");
        // A file, not a pipe: what is measured is the program, not who writes to it.
        command.stdin(self.input(call));
        command
    }

    fn input(&self, call: &Call) -> fs::File {
        let path = call.pod.path();
        let mut config = json!({
            "cniVersion": if call.verb == "STATUS" { "1.1.0" } else { "1.0.0" },
            "name": "bench", "type": "macvtap", "ipam": {}, "deviceID": device_id(call.number),
            "prevResult": {
                "cniVersion": "1.0.0", "interfaces": [{"name": IFNAME, "sandbox": path}]
            },
        });
        let extra = self.config.as_object().cloned().unwrap_or_default();
        config.as_object_mut().unwrap().extend(extra);
        if call.verb != "CHECK" {
            config.as_object_mut().unwrap().remove("prevResult");
        }
        let mut file = NamedTempFile::new().unwrap().into_file();
        file.write_all(config.to_string().as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    /// What a call takes, by the program `timed` in `dir`.
    fn sample(&self, dir: &Path, call: &Call) -> Sample {
        let timed = dir.join("timed").display().to_string();
        let words = [vec![timed], self.words(call)].concat();
        let mut command = self.command(&words, call);
        let output = self.node.host.output(&mut command);
        let what = (self.name, call.verb);
        assert!(output.status.success(), "{what:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        let [wall, user, system, memory] = numbers[..] else {
            panic!("{text}");
        };
        Sample {
            wall,
            user,
            system,
            memory,
        }
    }

    /// The time that a call takes.
    fn time(&self, call: &Call) -> Duration {
        let words = self.words(call);
        let mut command = self.command(&words, call);
        command.stdout(Stdio::null());
        let start = Instant::now();
        let status = self.node.host.0.run(|| Ok(command.status()?)).unwrap();
        let took = start.elapsed();
        assert!(status.success(), "{} {}: {status}", self.name, call.verb);
        took
    }
}

/// A device plugin that answers ADD.
struct Learning(
    Child,
    #[expect(dead_code, reason = "it lives as long")] TempDir,
);

impl Learning {
    fn start(node: &Node) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.arg("deviceplugin");
        command.arg("--kubelet-dir").arg(dir.path());
        command
            .args(["--netns-dir", NAMED])
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

/// A node, and the pods of the attachments that exist on it.
struct Crowd {
    node: Node,
    pods: Vec<Host>,
    attachments: usize,
}

impl Crowd {
    fn new() -> Self {
        Self {
            node: Node::new(),
            pods: Vec::new(),
            attachments: 0,
        }
    }

    /// Attaches until there are `wanted`.
    fn grow(&mut self, wanted: usize) {
        while self.attachments < wanted {
            let end = wanted.min(self.attachments + ATTACHMENTS_IN_A_POD);
            let pod = Host::named();
            self.node.attach(&pod, self.attachments..end);
            for number in self.attachments..end {
                pod.ip(&format!("link set net{number} up"));
            }
            self.pods.push(pod);
            self.attachments = end;
        }
    }
}

fn main() {
    // cargo bench adds an option of its own.
    let given: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let [dir, results] = &given[..] else {
        println!("run scripts/bench");
        return;
    };
    let dir = Path::new(dir);
    let mut samples = Samples::new();
    let mut crowds = [Crowd::new(), Crowd::new()];
    let _learning = Learning::start(&crowds[1].node);
    for existing in EXISTING {
        for crowd in &mut crowds {
            crowd.grow(existing);
        }
        // Each is the first in turn: the kernel is still busy with what the one before left.
        let mut programs = programs(dir, &crowds);
        for _ in 0..ROUNDS {
            round(dir, &programs, existing, &mut samples);
            programs.rotate_left(1);
        }
    }
    for crowd in &mut crowds {
        crowd.pods.clear();
    }
    let [floor, ours, asking, _, macvlan] = &programs(dir, &crowds);
    let hello = Program {
        name: "hello.c",
        path: dir.join("hello"),
        ..floor.clone()
    };
    starts(dir, [&hello, ours, macvlan], &mut samples);
    print(&samples, is_main);
    let busy = busy(&[floor, ours, asking, macvlan]);
    println!();
    print(&samples, |_| true);
    write(Path::new(results), &samples, &busy);
}

/// The programs, in the order of the tables: on the first node there is no device plugin.
fn programs<'a>(dir: &Path, [plain, asking]: &'a [Crowd; 2]) -> [Program<'a>; 5] {
    let ours = Program {
        name: "macvtap",
        path: binary(),
        plugin: true,
        config: Value::Null,
        node: &plain.node,
    };
    [
        Program {
            name: "floor.c",
            path: dir.join("floor"),
            plugin: false,
            ..ours.clone()
        },
        ours.clone(),
        Program {
            name: "macvtap with a device plugin",
            node: &asking.node,
            ..ours.clone()
        },
        Program {
            name: "macvtap, taken over",
            config: json!({"deviceID": WAITING}),
            ..ours.clone()
        },
        Program {
            name: "Debian's macvlan",
            path: MACVLAN.into(),
            config: json!({"master": LOWER}),
            ..ours
        },
    ]
}

/// Each program attaches, checks and detaches one pod.
fn round(dir: &Path, programs: &[Program], existing: usize, samples: &mut Samples) {
    let (pod, number) = (Host::named(), tap_number());
    for program in programs {
        if program.config["deviceID"] == WAITING {
            program.node.host.ip(&format!(
                "link add {WAITING} link {LOWER} type macvtap mode bridge"
            ));
        }
        for verb in ["ADD", "CHECK", "DEL"] {
            if verb == "CHECK" && !program.plugin {
                continue;
            }
            let pod = &pod;
            let sample = program.sample(dir, &Call { verb, pod, number });
            let key = (verb, program.name, existing);
            samples.entry(key).or_default().push(sample);
        }
    }
}

/// What costs the same wherever it is called.
fn starts(dir: &Path, [hello, ours, macvlan]: [&Program; 3], samples: &mut Samples) {
    let (pod, number) = (Host::new(), tap_number());
    for _ in 0..2 * ROUNDS {
        for (program, verb) in [
            (hello, "VERSION"),
            (ours, "VERSION"),
            (macvlan, "VERSION"),
            (ours, "STATUS"),
        ] {
            let pod = &pod;
            let sample = program.sample(dir, &Call { verb, pod, number });
            let key = (verb, program.name, 0);
            samples.entry(key).or_default().push(sample);
        }
    }
}

fn percentile<T: Ord + Copy>(values: impl IntoIterator<Item = T>, percent: usize) -> T {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values[values.len() * percent / 100]
}

/// Milliseconds of a percentile of what `of` takes from each sample.
fn ms(samples: &[Sample], percent: usize, of: fn(&Sample) -> u64) -> f64 {
    let micros = percentile(samples.iter().map(of), percent);
    Duration::from_micros(micros).as_secs_f64() * 1e3
}

/// How much of what the least program takes, by what `of` takes from each sample.
fn times(samples: &Samples, key: (&str, &str, usize), of: fn(&Sample) -> u64) -> String {
    let (verb, _, existing) = key;
    let least = |(call, program, number): &(&str, &str, usize)| {
        *call == verb && *number == existing && ["floor.c", "hello.c"].contains(program)
    };
    let Some((_, least)) = samples.iter().find(|(key, _)| least(key)) else {
        return String::new();
    };
    let own = ms(&samples[&key], 50, of);
    format!("{:.2} x", own / ms(least, 50, of))
}

/// Whether a call is in the first table: with nothing beside it, and among many.
fn is_main(&(verb, _, existing): &(&str, &str, usize)) -> bool {
    match verb {
        "ADD" => [1, 1000].contains(&existing),
        "CHECK" | "DEL" => existing == 1000,
        _ => true,
    }
}

/// A table of the calls that are chosen.
fn print(samples: &Samples, chosen: fn(&(&str, &str, usize)) -> bool) {
    println!(
        "| call | existing | program | median ms | p10 to p90 | of the least | processor ms | of the \
         least | peak KiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut keys: Vec<_> = samples.keys().copied().filter(chosen).collect();
    keys.sort_by_key(|(verb, _, existing)| (*verb, *existing));
    for key in keys {
        let (verb, program, existing) = key;
        let own = &samples[&key];
        let at = |percent| ms(own, percent, Sample::wall);
        println!(
            "| {verb} | {existing} | {program} | {:.2} | {:.2} to {:.2} | {} | {:.2} | {} | {} |",
            at(50),
            at(10),
            at(90),
            times(samples, key, Sample::wall),
            ms(own, 50, Sample::processor),
            times(samples, key, Sample::processor),
            percentile(own.iter().map(|sample| sample.memory), 50),
        );
    }
    println!();
}

/// All pods are attached and detached by workers: seconds, and the times of ADD.
fn pass(program: &Program, pods: &[(Host, u32)]) -> (Duration, Vec<Duration>) {
    let (next, times) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some((pod, number)) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let call = |verb| Call {
                        verb,
                        pod,
                        number: *number,
                    };
                    let took = program.time(&call("ADD"));
                    times.lock().unwrap().push(took);
                    program.time(&call("DEL"));
                }
            });
        }
    });
    (start.elapsed(), times.into_inner().unwrap())
}

fn busy(programs: &[&Program]) -> Value {
    let pods: Vec<(Host, u32)> = (0..PODS).map(|_| (Host::named(), tap_number())).collect();
    let mut measured = vec![(Vec::new(), Vec::new()); programs.len()];
    for _ in 0..PASSES {
        for (program, (elapsed, times)) in programs.iter().zip(&mut measured) {
            let (took, of_add) = pass(program, &pods);
            elapsed.push(took);
            times.extend(of_add);
        }
    }
    println!(
        "| {WORKERS} workers, {PODS} pods | pods a second | of floor.c | ADD p50 ms | p99 ms |"
    );
    println!("| --- | --- | --- | --- | --- |");
    let mut rows = Vec::new();
    let rate = |elapsed: &[Duration]| {
        let median = percentile(elapsed.iter().copied(), 50);
        #[expect(clippy::cast_precision_loss, reason = "there are few")]
        let pods = PODS as f64;
        pods / median.as_secs_f64()
    };
    let floor = rate(&measured[0].0);
    for (program, (elapsed, times)) in programs.iter().zip(&measured) {
        let at = |percent| percentile(times.iter().copied(), percent).as_secs_f64() * 1e3;
        let (rate, name) = (rate(elapsed), program.name);
        let share = rate / floor * 100.0;
        println!(
            "| {name} | {rate:.0} | {share:.0} % | {:.2} | {:.2} |",
            at(50),
            at(99)
        );
        rows.push(json!({
            "program": name, "podsPerSecond": rate, "addP50Ms": at(50), "addP99Ms": at(99),
        }));
    }
    json!({"workers": WORKERS, "pods": PODS, "programs": rows})
}

/// Writes everything for programs, and for gnuplot a block for each verb and program: the number of
/// attachments, median, p10 and p90, and the median of the processor time, in milliseconds.
fn write(results: &Path, samples: &Samples, busy: &Value) {
    let calls = samples.iter().map(|((verb, program, existing), samples)| {
        json!({
            "call": verb, "program": program, "existing": existing, "rounds": samples.len(),
            "p10Ms": ms(samples, 10, Sample::wall),
            "medianMs": ms(samples, 50, Sample::wall),
            "p90Ms": ms(samples, 90, Sample::wall),
            "userMs": ms(samples, 50, |s| s.user),
            "systemMs": ms(samples, 50, |s| s.system),
            "processorMs": ms(samples, 50, Sample::processor),
            "peakKib": percentile(samples.iter().map(|s| s.memory), 50),
        })
    });
    let report = json!({"calls": calls.collect::<Vec<_>>(), "busy": busy});
    let text = serde_json::to_string_pretty(&report).unwrap();
    fs::write(results.join("attach.json"), text + "\n").unwrap();
    let mut file = fs::File::create(results.join("attach.dat")).unwrap();
    let mut block = None;
    for ((verb, program, existing), samples) in samples {
        if *existing == 0 {
            continue;
        }
        if block != Some((verb, program)) {
            write!(file, "\n\n# {verb} {program}\n").unwrap();
            block = Some((verb, program));
        }
        let at = |percent| ms(samples, percent, Sample::wall);
        let processor = ms(samples, 50, Sample::processor);
        writeln!(
            file,
            "{existing} {} {} {} {processor}",
            at(50),
            at(10),
            at(90)
        )
        .unwrap();
    }
}
