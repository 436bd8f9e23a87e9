//! A guest migrates while it exchanges packets with neighbours on both nodes and with a station
//! outside. Without learning neighbours lose it; with learning none does.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use kit::{
    guest::{Guest, Shell, can_run, initramfs_with},
    netns::Host,
    run_first,
    switch::{Learner, VM, connect, neighbour},
    traffic,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    qmp::Qmp,
    table::{Direction, Phases, Table},
};

const ADDRESS: &str = "10.13.0.9";
const PEERS: [(&str, &str); 3] = [
    ("peer A", "10.13.0.1"),
    ("peer B", "10.13.0.2"),
    ("out", "10.13.0.3"),
];
/// The rate of a guest that has one, in Mbit/s.
const RATE: u32 = 10;
/// How long the guest sends and receives.
const SECONDS: u32 = 36;
/// One migration at a time: their times are what is tested.
static ALONE: Mutex<()> = Mutex::new(());

/// What is different from one migration to another.
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Clone, Copy)]
struct Plan {
    learning: bool,
    /// The switch gives broadcasts back to who sent them.
    reflecting: bool,
    /// The guest sends nothing but answers.
    silent: bool,
    /// What the guest sends and receives is limited.
    limited: bool,
}

impl Plan {
    fn limits(self) -> Vec<(&'static str, Value)> {
        if !self.limited {
            return Vec::new();
        }
        let rate = 1_000_000 * RATE;
        let rates = json!({"ingressRate": rate, "egressRate": rate});
        let security = json!({"addresses": [ADDRESS]});
        vec![("bandwidth", rates), ("security", security)]
    }
}

/// What a migration was like.
struct Outcome {
    table: Table,
    /// From RESUME on the target until the source was parked and the target active, if so.
    reactions: Option<[f64; 2]>,
    reflections: u64,
}

/// The guest's files, with the traffic program.
fn initramfs() -> TempDir {
    let program = std::env::current_exe().unwrap();
    let program = program.ancestors().nth(2).unwrap();
    initramfs_with("traffic", &program.join("examples/traffic"))
}

/// A station that talks to the guest.
fn peer(host: &Host, interface: &str, address: &str) {
    host.ip(&format!("addr add {address}/24 dev {interface}"));
    host.ip(&format!("link set {interface} up"));
    // What is known of neighbours is looked at soon, so that a hole shows in both directions.
    let short = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv4/neigh/{interface}/{name}");
        host.0.run(|| Ok(fs::write(&path, value)?)).unwrap();
    };
    short("base_reachable_time_ms", "2000");
    short("delay_first_probe_time", "1");
}

fn reflect(switch: &Host) {
    for port in ["port0", "port1"] {
        let tc = |words: String| {
            let output = switch.output(Command::new("tc").args(words.split_whitespace()));
            assert!(output.status.success(), "tc {words}: {output:?}");
        };
        tc(format!("qdisc add dev {port} handle ffff: ingress"));
        tc(format!(
            "filter add dev {port} parent ffff: protocol all prio 1 u32 \
             match u16 0xffff 0xffff at -14 match u32 0xffffffff 0xffffffff at -12 \
             action mirred egress mirror dev {port}"
        ));
    }
}

fn qemu<'a>(pod: &Host, tap: u32, initramfs: &'a str, more: &[&'a str]) -> (Guest, Qmp) {
    let words = [
        "-initrd",
        initramfs,
        "-qmp",
        "unix:{dir}/qmp,server=on,wait=off",
    ];
    let guest = Guest::start(pod, tap, &VM.to_string(), &[&words, more].concat());
    let qmp = Qmp::connect(&guest.path().join("qmp"));
    (guest, qmp)
}

fn prepare(shell: &mut Shell) {
    shell.wait();
    shell.run(&format!(
        "ip addr add {ADDRESS}/24 dev eth0 && ip link set eth0 up"
    ));
    let dir = "/proc/sys/net/ipv4/neigh/eth0";
    shell.run(&format!("echo 2000 > {dir}/base_reachable_time_ms"));
    shell.run(&format!("echo 1 > {dir}/delay_first_probe_time"));
    for (_, address) in PEERS {
        assert!(shell.reaches(address), "{address}");
    }
}

#[expect(clippy::too_many_lines, reason = "it is read from top to bottom")]
fn migrate(plan: Plan) -> Outcome {
    let start_node = || {
        if plan.learning {
            Learner::new()
        } else {
            Learner::without_plugin()
        }
    };
    let (a, b) = (start_node(), start_node());
    let switch = connect([&a.node, &b.node]);
    if plan.reflecting {
        reflect(&switch);
    }
    peer(&switch, "br0", PEERS[2].1);
    let (peer_a, peer_b) = (neighbour(&a.node), neighbour(&b.node));
    peer(&peer_a, "peer0", PEERS[0].1);
    peer(&peer_b, "peer0", PEERS[1].1);
    let files = initramfs();
    let initramfs = files.path().join("initramfs");
    let initramfs = initramfs.to_str().unwrap();
    let limits = plan.limits();
    let (source_pod, source_tap, _) = a.attach_pod_with(VM, &limits);
    let (mut source, mut source_qmp) = qemu(&source_pod, source_tap, initramfs, &[]);
    prepare(&mut source.shell);

    let stop = AtomicBool::new(false);
    let stopped = || stop.load(Ordering::Relaxed);
    let sockets = [&peer_a, &peer_b, &switch].map(|host| {
        let bind = || Ok(UdpSocket::bind("0.0.0.0:4000")?);
        host.0.run(bind).unwrap()
    });
    let targets = if plan.silent {
        String::new()
    } else {
        PEERS
            .map(|(_, address)| format!(" {address}:4000"))
            .concat()
    };
    source.shell.send(&format!("traffic {SECONDS}{targets}"));
    let vm = format!("{ADDRESS}:4000");
    scope(|scope| {
        let senders: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| traffic::send(socket, &vm, stopped)))
            .collect();
        let receivers: Vec<_> = sockets
            .iter()
            .map(|socket| scope.spawn(|| traffic::receive(socket, stopped)))
            .collect();
        sleep(Duration::from_secs(2));
        let mut phases: Phases = vec![("base", Instant::now())];
        sleep(Duration::from_secs(4));

        phases.push(("prepared", Instant::now()));
        let (target_pod, target_tap, cni) = b.attach_pod_with(VM, &limits);
        // They are in force before there is a guest.
        cni.succeed("CHECK");
        let unparked = b.plugin.as_ref().map(|_| b.stats().unparks);
        let incoming = ["-incoming", "defer"];
        let (mut target, mut target_qmp) = qemu(&target_pod, target_tap, initramfs, &incoming);
        let uri = format!("unix:{}/migration", target.path().display());
        target_qmp.run("migrate-incoming", &json!({"uri": uri}));
        sleep(Duration::from_secs(5));

        phases.push(("pre-copy", Instant::now()));
        let slow = json!({"max-bandwidth": 12_000_000});
        source_qmp.run("migrate-set-parameters", &slow);
        source_qmp.run("migrate", &json!({"uri": uri}));
        let stop_time = source_qmp.wait_for("STOP");
        let resume = target_qmp.wait_for("RESUME");
        phases.push(("switch-over", stop_time));
        sleep((resume + Duration::from_secs(2)).saturating_duration_since(Instant::now()));
        if plan.learning {
            assert_eq!(
                (source_pod.mode(), target_pod.mode()),
                ("vepa".to_owned(), "bridge".to_owned())
            );
        }

        // The source's QEMU ends; its pod lingers, then goes.
        source.kill();
        phases.push(("lingering", Instant::now()));
        sleep(Duration::from_secs(6));
        drop(source_pod);
        phases.push(("", Instant::now()));
        sleep(Duration::from_secs(1));
        phases.push(("after", Instant::now()));
        sleep(Duration::from_secs(3));
        phases.push(("", Instant::now()));
        let (status, printed) = target.shell.finish("traffic");
        assert_eq!(status, 0, "{printed}");
        if plan.limited {
            assert_limited(&switch, &mut target.shell);
        }
        stop.store(true, Ordering::Relaxed);

        let mut directions: BTreeMap<String, Direction> = BTreeMap::new();
        let guest = Printed::read(&printed);
        for (index, (sender, receiver)) in senders.into_iter().zip(receivers).enumerate() {
            let (name, address) = PEERS[index];
            let sent = sender.join().unwrap();
            let arrived = guest.arrived(address, &sent);
            directions.insert(format!("{name} to VM"), Direction { sent, arrived });
            let arrived = receiver.join().unwrap().remove(ADDRESS).unwrap_or_default();
            if let Some(sent) = guest.sent(address, &arrived) {
                directions.insert(format!("VM to {name}"), Direction { sent, arrived });
            }
        }
        let reactions = plan.learning.then(|| {
            assert_eq!(
                (a.stats().parks, b.stats().unparks - unparked.unwrap()),
                (1, 1)
            );
            let milliseconds = |learner: &Learner, what: &str| {
                let at = logged(&learner.log(), what);
                at.duration_since(resume).as_secs_f64() * 1000.0
            };
            [
                milliseconds(&a, "parked: its MAC"),
                milliseconds(&b, "msg=active "),
            ]
        });
        let reflections = if plan.learning {
            a.stats().reflections + b.stats().reflections
        } else {
            0
        };
        Outcome {
            table: Table::new(&directions, &phases),
            reactions,
            reflections,
        }
    })
}

/// A guest that has migrated has its rate, and only its address.
fn assert_limited(switch: &Host, shell: &mut Shell) {
    let (_, out) = PEERS[2];
    let bind = || Ok(TcpListener::bind((out, 4001))?);
    let listener = switch.0.run(bind).unwrap();
    shell.send(&format!("nc {out} 4001 </dev/zero"));
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 1 << 16];
    let mut pass = || stream.read(&mut buffer).unwrap();
    let found = (0..3).map(|_| {
        traffic::measure(&mut pass, Duration::from_secs(2));
        traffic::measure(&mut pass, Duration::from_secs(4))
    });
    let mut found = found.inspect(|found| eprintln!("{found:.2} of {RATE} Mbit/s"));
    assert!(found.any(|found| traffic::is_close(found, f64::from(RATE))));
    drop(stream);
    shell.finish("nc");
    assert!(shell.reaches(out));
    shell.run("ip addr flush dev eth0 && ip addr add 10.13.0.77/24 dev eth0");
    assert!(!shell.reaches(out));
}

/// When the last line with this text was logged.
fn logged(log: &str, text: &str) -> Instant {
    let line = log
        .split_inclusive('\n')
        .rfind(|line| line.contains(text))
        .unwrap();
    let stamp = line.split(' ').next().unwrap().trim_start_matches("ts=");
    super::qmp::instant(humantime::parse_rfc3339(stamp).unwrap())
}

/// What the guest's traffic program printed.
struct Printed {
    sent: BTreeMap<String, Vec<u64>>,
    received: BTreeMap<String, BTreeMap<u32, u64>>,
}

impl Printed {
    fn read(text: &str) -> Self {
        let (mut sent, mut received) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (kind, whom) = (words.next(), words.next().unwrap_or_default());
            match kind {
                Some("sent") => {
                    let whom = whom.split(':').next().unwrap().to_owned();
                    sent.insert(whom, words.map(|word| word.parse().unwrap()).collect());
                }
                Some("received") => {
                    let pairs = words.map(|word| word.split_once(':').unwrap());
                    let pairs = pairs.map(|(n, ms)| (n.parse().unwrap(), ms.parse().unwrap()));
                    received.insert(whom.to_owned(), pairs.collect());
                }
                _ => {}
            }
        }
        Self { sent, received }
    }

    /// When the guest received what `address` sent, by the clock of who sent it: the two
    /// clocks differ by what the fastest packet took.
    fn arrived(&self, address: &str, sent: &[Instant]) -> BTreeMap<u32, Instant> {
        let Some(received) = self.received.get(address) else {
            return BTreeMap::new();
        };
        let at = |ms: &u64| Duration::from_millis(*ms);
        let of = |number: &u32| sent.get(usize::try_from(*number).unwrap());
        let starts = received
            .iter()
            .filter_map(|(number, ms)| of(number)?.checked_sub(at(ms)));
        let start = starts.max().unwrap();
        received
            .iter()
            .map(|(number, ms)| (*number, start + at(ms)))
            .collect()
    }

    /// When the guest sent what arrived at `address`, by the clock there.
    fn sent(&self, address: &str, arrived: &BTreeMap<u32, Instant>) -> Option<Vec<Instant>> {
        let sent = self.sent.get(address)?;
        let at = |ms: &u64| Duration::from_millis(*ms);
        let starts = arrived.iter().filter_map(|(number, time)| {
            time.checked_sub(at(sent.get(usize::try_from(*number).unwrap())?))
        });
        let start = starts.min()?;
        Some(sent.iter().map(|ms| start + at(ms)).collect())
    }
}

/// Migrates; again if the guest lost something before anything happened, for then it is the
/// emulation's fault.
fn run(plan: Plan) -> Option<Outcome> {
    let programs = ["qemu-system-x86_64", "setpriv", "tc", "cpio"];
    if !can_run(&programs) {
        return None;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run_first();
    for _ in 0..3 {
        let outcome = migrate(plan);
        let lost: u32 = outcome
            .table
            .0
            .values()
            .map(|phases| phases["base"].0)
            .sum();
        let mut stderr = std::io::stderr();
        writeln!(
            stderr,
            "learning {}, reflecting {}, silent {}: park and unpark after RESUME {:?} ms\n{}",
            plan.learning, plan.reflecting, plan.silent, outcome.reactions, outcome.table
        )
        .unwrap();
        if lost == 0 {
            return Some(outcome);
        }
    }
    panic!("the guest loses packets without a migration")
}

/// The fault that learning is against. If this does not show it the others prove nothing.
#[test]
fn without_learning_neighbours_lose_the_guest() {
    let plan = Plan {
        learning: false,
        reflecting: false,
        silent: false,
        limited: false,
    };
    let Some(Outcome { table, .. }) = run(plan) else {
        return;
    };
    for (direction, phase) in [
        ("peer B to VM", "prepared"),
        ("peer B to VM", "pre-copy"),
        ("peer A to VM", "lingering"),
    ] {
        let (lost, sent) = table.of(direction, phase);
        assert!(
            lost * 100 >= sent * 95,
            "{direction}, {phase}: {lost}/{sent}"
        );
    }
    for direction in table.0.keys() {
        assert_eq!(table.of(direction, "after").0, 0, "{direction}");
    }
}

fn assert_whole(table: &Table) {
    for direction in table.0.keys() {
        for phase in ["base", "prepared", "pre-copy", "lingering", "after"] {
            assert_eq!(table.of(direction, phase).0, 0, "{direction}, {phase}");
        }
        assert!(table.of(direction, "switch-over").0 <= 2, "{direction}");
    }
}

#[test]
fn with_learning_none_loses_the_guest() {
    let plan = Plan {
        learning: true,
        reflecting: false,
        silent: false,
        limited: true,
    };
    let Some(outcome) = run(plan) else { return };
    assert_eq!(outcome.table.0.len(), 6);
    assert_whole(&outcome.table);
    let [parked, _] = outcome.reactions.unwrap();
    assert!(parked < 2000.0, "parked after the source's QEMU ended");
}

#[test]
fn none_does_where_broadcasts_come_back_and_the_guest_is_silent() {
    let plan = Plan {
        learning: true,
        reflecting: true,
        silent: true,
        limited: false,
    };
    let Some(outcome) = run(plan) else { return };
    assert_eq!(outcome.table.0.len(), 3);
    assert_whole(&outcome.table);
    assert!(outcome.reflections >= 1);
}
