//! What a guest's frames get through, and how long they take: the same guest on our macvtap, on
//! one that is made and moved as kubevirt/macvtap-cni does it, and on a tap in a bridge.
//!
//! Called by `scripts/bench`, which compiles `stream.c`. All guests run at the same time, and take
//! turns.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use kit::{
    guest::{Guest, can_run, initramfs_with, qemu, qemu_dir},
    netns::{FAR_END, Host, IFNAME, LOWER, Node, tap, tap_number},
};
use tempfile::TempDir;

const ROUNDS: usize = 5;
const SECONDS: u64 = 3;
const PINGS: usize = 200;
const VHOST: &str = "/dev/vhost-net";
/// The addresses of the guest and of the station at the other end of its node's wire.
const GUEST: &str = "192.0.2.2";
const STATION: &str = "192.0.2.1";

/// By what a guest is on its node's wire.
#[derive(Clone, Copy)]
enum Network {
    Ours,
    Moved,
    Bridged,
}

/// A guest, and where it is.
struct Place {
    name: String,
    node: Node,
    guest: Guest,
    #[expect(dead_code, reason = "it lives as long")]
    pod: Host,
}

/// What was measured in one round: megabits a second, and microseconds.
#[derive(Clone, Copy)]
struct Sample {
    sent: f64,
    received: f64,
    round_trip: f64,
}

fn main() {
    // cargo bench adds an option of its own.
    let Some(dir) = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"))
    else {
        println!("run scripts/bench");
        return;
    };
    if !can_run(&["qemu-system-x86_64", "setpriv", "ping"]) {
        return;
    }
    let boot = initramfs_with("stream", &Path::new(&dir).join("stream"));
    let mut places = Vec::new();
    for vhost in [false, true] {
        if vhost && !Path::new(VHOST).exists() {
            println!("There is no {VHOST} here: QEMU alone moves the frames.\n");
            continue;
        }
        for network in [Network::Ours, Network::Moved, Network::Bridged] {
            places.push(network.place(vhost, &boot));
        }
    }
    let mut samples = vec![Vec::new(); places.len()];
    for _ in 0..ROUNDS {
        for (place, samples) in places.iter_mut().zip(&mut samples) {
            samples.push(place.measure());
        }
    }
    println!("| a guest on | sends, Mbit/s | receives, Mbit/s | ping, ms |");
    println!("| --- | --- | --- | --- |");
    for (place, samples) in places.iter().zip(&samples) {
        let of = |take: fn(&Sample) -> f64| median(samples.iter().map(take).collect());
        let (sent, received) = (of(|it| it.sent), of(|it| it.received));
        let round_trip = of(|it| it.round_trip);
        let name = &place.name;
        println!("| {name} | {sent:.0} | {received:.0} | {round_trip:.3} |");
    }
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "our macvtap",
            Self::Moved => "a macvtap made on the host and moved",
            Self::Bridged => "a tap in a bridge",
        }
    }

    /// Makes it, with tap `number` if that is a macvtap's.
    fn make(self, node: &Node, pod: &Host, number: u32) {
        let words = match self {
            Self::Ours => {
                node.allocated(pod, number).add();
                Vec::new()
            }
            Self::Moved => vec![
                format!("link add link {LOWER} name mvt0 index {number} type macvtap mode bridge"),
                format!("link set mvt0 netns {} name {IFNAME} up", pod.path()),
            ],
            Self::Bridged => vec![
                "link add br0 type bridge".to_owned(),
                format!("link set {LOWER} master br0"),
                "tuntap add tap0 mode tap vnet_hdr".to_owned(),
                "link set tap0 master br0 up".to_owned(),
                "link set br0 up".to_owned(),
            ],
        };
        for words in words {
            node.host.ip(&words);
        }
    }

    /// Makes it, and boots a guest on it.
    fn place(self, vhost: bool, boot: &TempDir) -> Place {
        let (node, pod, number) = (Node::new(), Host::new(), tap_number());
        node.wire
            .ip(&format!("addr add {STATION}/24 dev {FAR_END}"));
        self.make(&node, &pod, number);
        let (host, file, netdev) = match self {
            Self::Bridged => {
                let netdev = "tap,id=net1,ifname=tap0,script=no,downscript=no";
                (&node.host, PathBuf::from("/dev/null"), netdev)
            }
            _ => (&pod, tap(number), "tap,id=net1,fd=3"),
        };
        let mac = match host.link(IFNAME) {
            Some(link) => link["address"].as_str().unwrap().to_owned(),
            None => "52:54:00:00:00:01".to_owned(),
        };
        let netdev = format!("{netdev}{}", if vhost { ",vhost=on" } else { "" });
        let dir = qemu_dir();
        let is_netdev = |word: &str| word.starts_with("tap,");
        let words = qemu(dir.path(), &mac).into_iter();
        let words = words.map(|word| {
            if is_netdev(&word) {
                netdev.clone()
            } else {
                word
            }
        });
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", "exec 3<>\"$0\" \"$@\""]);
        command.arg(file);
        command.args(words);
        command.arg("-initrd").arg(boot.path().join("initramfs"));
        let mut guest = Guest::spawn(host, command, dir);
        prepare(&mut guest);
        let name = format!("{}{}", self.name(), if vhost { ", vhost" } else { "" });
        Place {
            name,
            node,
            guest,
            pod,
        }
    }
}

fn prepare(guest: &mut Guest) {
    guest.shell.wait();
    let set = format!("ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up");
    guest.shell.run(&set);
    assert!(guest.shell.reaches(STATION));
}

impl Place {
    fn measure(&mut self) -> Sample {
        let wire = &self.node.wire;
        let listener = wire
            .0
            .run(|| Ok(TcpListener::bind((STATION, 5001))?))
            .unwrap();
        let shell = &mut self.guest.shell;
        let command = format!("stream send {STATION} {SECONDS}");
        shell.send(&command);
        let sent = receive(listener.accept().unwrap().0);
        assert_eq!(shell.finish(&command).0, 0);
        let command = format!("stream receive {STATION}");
        shell.send(&command);
        let start = Instant::now();
        send(listener.accept().unwrap().0);
        let (status, bytes) = shell.finish(&command);
        assert_eq!(status, 0, "{bytes}");
        let received = megabits(bytes.trim().parse().unwrap(), start.elapsed());
        let round_trip = ping(wire);
        Sample {
            sent,
            received,
            round_trip,
        }
    }
}

/// Megabits a second that come until the other end closes.
fn receive(mut connection: TcpStream) -> f64 {
    let (start, mut bytes, mut buffer) = (Instant::now(), 0, vec![0; 1 << 16]);
    loop {
        match connection.read(&mut buffer).unwrap() {
            0 => return megabits(bytes, start.elapsed()),
            length => bytes += length,
        }
    }
}

fn send(mut connection: TcpStream) {
    let (start, zeros) = (Instant::now(), vec![0; 1 << 16]);
    while start.elapsed() < Duration::from_secs(SECONDS) {
        connection.write_all(&zeros).unwrap();
    }
}

fn megabits(bytes: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it is shown in three figures")]
    let bits = bytes as f64 * 8.0;
    bits / took.as_secs_f64() / 1e6
}

/// The median time of a ping, in milliseconds.
fn ping(wire: &Host) -> f64 {
    let words = format!("-n -c {PINGS} -i 0.005 {GUEST}");
    let output = wire.output(Command::new("ping").args(words.split(' ')));
    let text = String::from_utf8(output.stdout).unwrap();
    let times = text.split("time=").skip(1);
    let times = times.map(|rest| rest.split(' ').next().unwrap().parse().unwrap());
    median(times.collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
