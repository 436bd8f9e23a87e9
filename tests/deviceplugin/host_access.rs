//! Host access: the node and its VMs reach each other, by real frames in both directions.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use kit::{
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{Cni, FAR_END, Host, IFNAME, LOWER, Node, tap_number, tap_of, taps, wait_until},
};
use macvtap::{selftest::kubelet::Kubelet, types::mac::MacAddr};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's macvlan on [`LOWER`].
const ACCESS: &str = "mvh-eth0";
/// Addresses: of the node, of a guest, of another machine.
const NODE: [&str; 2] = ["10.71.0.1", "fd00:71::1"];
const GUEST: [&str; 2] = ["10.71.0.50", "fd00:71::50"];
const MACHINE: [&str; 2] = ["10.71.0.9", "fd00:71::9"];

/// A node with addresses on its lower device, another machine on the wire, and a device plugin.
struct Lab {
    node: Node,
    kubelet: Kubelet,
    plugin: RefCell<Option<Plugin>>,
    name: String,
    dir: TempDir,
}

fn assign(host: &Host, interface: &str, [v4, v6]: [&str; 2]) {
    host.ip(&format!("addr add {v4}/24 dev {interface}"));
    host.ip(&format!("addr add {v6}/64 dev {interface} nodad"));
}

fn resource(name: &str, host_access: bool) -> Value {
    json!({"name": name, "lowerDevice": LOWER, "capacity": 5, "hostAccess": host_access})
}

impl Lab {
    fn new(configuration: &Value) -> Self {
        let node = Node::new();
        assign(&node.host, LOWER, NODE);
        assign(&node.wire, FAR_END, MACHINE);
        let dir = tempfile::tempdir().unwrap();
        for name in ["kubelet", "netns", "config"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let kubelet = Kubelet::start(&dir.path().join("kubelet")).unwrap();
        let lab = Self {
            node,
            kubelet,
            plugin: RefCell::default(),
            name: format!("node-{}", tap_number()),
            dir,
        };
        lab.configure(configuration);
        lab.start();
        lab
    }

    fn configure(&self, configuration: &Value) {
        let file = self.dir.path().join("config/macvtap.json");
        fs::write(file, configuration.to_string()).unwrap();
    }

    fn start(&self) {
        let mut command = kit::kubelet::command(&[], &self.dir.path().join("kubelet"));
        command
            .arg("--config")
            .arg(self.dir.path().join("config/macvtap.json"));
        command
            .arg("--netns-dir")
            .arg(self.dir.path().join("netns"));
        command.args(["-v", "4", "--node-name", &self.name]);
        command.env_remove("DP_MACVTAP_CONF");
        self.plugin
            .replace(Some(Plugin::spawn(&self.node.host, command)));
    }

    fn kill(&self) {
        self.plugin.replace(None);
    }

    fn wait_for_log(&self, text: &str) {
        self.plugin.borrow().as_ref().unwrap().wait_for_log(text);
    }

    /// An ID of a resource's device on [`LOWER`].
    fn device(&self, resource: &str, slot: usize) -> String {
        let name = format!("macvtap.network.kubevirt.io/{resource}");
        let ready = |found: &macvtap::selftest::kubelet::Resource| found.healthy().len() > slot;
        let resource = self.kubelet.wait_for(&name, WAIT_TIMEOUT, ready);
        resource.unwrap().healthy()[slot].clone()
    }

    /// A pod whose kernel is the guest behind the macvtap, with these addresses.
    fn guest(&self, device: &str, addresses: [&str; 2]) -> Guest<'_> {
        let pod = Host::new();
        let name = format!("cni-{}", pod.path().replace('/', "-"));
        let path = self.dir.path().join("netns").join(name);
        let _ = fs::remove_file(&path);
        symlink(pod.path(), path).unwrap();
        let cni = json!({"deviceID": device, "hostStack": true});
        let cni = self.node.cni(&pod, cni).added();
        assign(&pod, IFNAME, addresses);
        let device = device.to_owned();
        Guest { pod, cni, device }
    }

    /// Waits until both reach each other by both families.
    fn connects(&self, guest: &Guest<'_>, addresses: [&str; 2]) {
        for address in NODE {
            reaches(&guest.pod, address);
        }
        for address in addresses {
            reaches(&self.node.host, address);
        }
    }

    /// The node's routes to guests.
    fn routes(&self) -> String {
        let host = &self.node.host;
        let show = |family| host.ip(&format!("-{family} route show proto 109"));
        [show(4), show(6)].concat()
    }

    /// All that the node has of its own.
    fn own(&self) -> String {
        let host = &self.node.host;
        let shown = [
            format!("addr show dev {LOWER}"),
            "-4 route show table all".to_owned(),
            "-6 route show table all".to_owned(),
            "neigh show nud permanent".to_owned(),
        ];
        shown.map(|words| host.ip(&words)).concat()
    }

    fn gone(&self) {
        wait_until("the macvlan is gone", || {
            self.node.host.link(ACCESS).is_none()
        });
        assert_eq!(self.routes(), "");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let (true, Some(plugin)) = (std::thread::panicking(), &*self.plugin.borrow()) {
            eprintln!("device plugin: {}", plugin.log());
            eprintln!("{}", self.own());
            eprintln!("{}", self.node.host.ip("-d addr"));
        }
    }
}

struct Guest<'a> {
    pod: Host,
    cni: Cni<'a>,
    device: String,
}

fn ping(from: &Host, address: &str) -> bool {
    let mut command = Command::new("ping");
    command.args(["-c", "1", "-W", "1", address]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    from.output(&mut command).status.success()
}

fn reaches(from: &Host, address: &str) {
    wait_until(address, || ping(from, address));
}

/// The hardware addresses by which `host` is answered, asked anew.
fn answers(host: &Host, interface: &str, address: &str) -> Vec<String> {
    let mut command = Command::new("python3");
    let script = "import socket,sys,struct,time\n\
        i,a=sys.argv[1:]\n\
        s=socket.socket(17,3,socket.htons(0x0806));s.bind((i,0x0806));s.settimeout(0.3)\n\
        m=s.getsockname()[4];q=bytes([0,1,8,0,6,4,0,1])+m+bytes([10,71,0,9])+bytes(6)\n\
        s.send(b'\\xff'*6+m+b'\\x08\\x06'+q+socket.inet_aton(a))\n\
        try:\n\
        \u{20}while 1:\n\
        \u{20} f=s.recv(99)\n\
        \u{20} if f[21]==2:print(f[6:12].hex(':'))\n\
        except TimeoutError:pass\n";
    let output = host.output(command.args(["-c", script, interface, address]));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn mac(host: &Host, interface: &str) -> String {
    let link = host.link(interface).unwrap();
    link["address"].as_str().unwrap().to_owned()
}

#[test]
fn node_and_guest_reach_each_other_and_the_wire_sees_the_node_once() {
    let lab = Lab::new(&json!([resource("a", false)]));
    let device = lab.device("a", 0);
    let host = &lab.node.host;
    wait_until("addresses settle", || {
        !host.ip("addr").contains("tentative")
    });
    let before = lab.own();
    let guest = lab.guest(&device, GUEST);
    assert!(!ping(&guest.pod, NODE[0]), "a macvtap alone");
    lab.configure(&json!([resource("a", true)]));
    lab.connects(&guest, GUEST);
    // The wire has not noticed.
    for address in MACHINE {
        reaches(host, address);
        reaches(&guest.pod, address);
    }
    assert_eq!(
        answers(&lab.node.wire, FAR_END, NODE[0]),
        [mac(host, LOWER)]
    );
    lab.node.wire.ip("neigh flush all");
    reaches(&lab.node.wire, NODE[1]);
    let neighbours = lab.node.wire.ip(&format!("neigh show {}", NODE[1]));
    assert!(neighbours.contains(&mac(host, LOWER)), "{neighbours}");
    let routes = lab.routes();
    for (address, source) in GUEST.iter().zip(NODE) {
        let part = format!("{address} dev {ACCESS}");
        assert!(
            routes.contains(&part) && routes.contains(source),
            "{routes}"
        );
    }
    lab.configure(&json!([resource("a", false)]));
    lab.gone();
    assert_eq!(lab.own(), before);
    for address in MACHINE {
        reaches(host, address);
    }
    assert!(!ping(&guest.pod, NODE[0]));
    drop(guest);
}

#[test]
fn a_device_plugin_that_starts_again_adopts_it_and_a_pod_that_goes_takes_its_routes_along() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let (device, other) = (lab.device("a", 0), lab.device("a", 1));
    let guest = lab.guest(&device, GUEST);
    let gone = lab.guest(&other, ["10.71.0.51", "fd00:71::51"]);
    lab.connects(&guest, GUEST);
    lab.connects(&gone, ["10.71.0.51", "fd00:71::51"]);
    let (before, routes) = (lab.node.host.link(ACCESS), lab.routes());
    lab.kill();
    lab.connects(&guest, GUEST);
    // One goes while there is no device plugin.
    gone.cni.succeed("DEL");
    drop(gone);
    lab.start();
    wait_until("its routes are gone", || !lab.routes().contains("::51"));
    assert_eq!(lab.node.host.link(ACCESS), before);
    let kept: Vec<&str> = routes
        .lines()
        .filter(|line| !line.contains("51 dev"))
        .collect();
    assert_eq!(lab.routes().lines().collect::<Vec<_>>(), kept);
    lab.connects(&guest, GUEST);
    guest.cni.succeed("DEL");
    wait_until("the routes are gone", || lab.routes().is_empty());
}

/// A frame by which a host with this MAC says that it has an address.
fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let start = [0, 1, 8, 0, 6, 4, 0, 1];
    let head = [&[0xff; 6][..], &mac, &[8, 6], &start].concat();
    [&head[..], &mac, &address, &[0; 6], &address].concat()
}

#[test]
fn a_guest_that_lies_gets_no_route_but_for_its_own_address() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    host.ip("route add default via 10.71.0.254");
    host.ip("route add 10.71.0.99 via 10.71.0.9");
    let before = host.ip("route show");
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    let address: MacAddr = mac(&guest.pod, IFNAME).parse().unwrap();
    lab.connects(&guest, GUEST);
    // From now on frames for the guest go to its tap.
    let tap = taps::open(tap_of(&guest.device));
    let claim = |last| taps::send(&tap, &arp(address.0, [10, 71, 0, last]));
    let lies = [1, 254, 99, 0, 255];
    for last in lies {
        claim(last);
        lab.wait_for_log(&format!("address=10.71.0.{last} reason="));
    }
    for foreign in [[10, 72, 0, 5], [127, 0, 0, 1], [224, 0, 0, 5], [8, 8, 8, 8]] {
        taps::send(&tap, &arp(address.0, foreign));
    }
    taps::send(&tap, &arp([2, 0, 0, 0, 0, 7], [10, 71, 0, 52]));
    claim(53);
    wait_until("the truth is believed", || {
        lab.routes().contains("10.71.0.53 ")
    });
    let routes = lab.routes();
    let mut found: Vec<&str> = routes
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    found.sort_unstable();
    assert_eq!(found, ["10.71.0.50", "10.71.0.53", GUEST[1]]);
    let ours = |line: &&str| !line.contains("proto 109");
    let after = host.ip("route show");
    assert_eq!(
        after.lines().filter(ours).collect::<Vec<_>>(),
        before.lines().collect::<Vec<_>>()
    );
}
