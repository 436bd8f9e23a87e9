//! Host access: the node and its VMs reach each other, by real frames in both directions.
//!
//! Which addresses of guests the node knows is in `host_access_claims.rs`.

use std::{
    cell::RefCell,
    fs,
    os::{fd::AsFd, unix::fs::symlink},
    process::{Command, Stdio},
    time::Duration,
};

use kit::{
    guest::{Guest as VirtualMachine, can_run, has_programs},
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{Cni, FAR_END, Host, IFNAME, LOWER, Node, tap_number, tap_of, taps, wait_until},
    switch::{broadcast, rarp},
    wire,
};
use macvtap::{selftest::kubelet::Kubelet, types::mac::MacAddr};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The node's macvlan on [`LOWER`].
pub(super) const ACCESS: &str = "mvh-eth0";
/// Addresses: of the node, of a guest, of another machine.
pub(super) const NODE: [&str; 2] = ["10.71.0.1", "fd00:71::1"];
pub(super) const GUEST: [&str; 2] = ["10.71.0.50", "fd00:71::50"];
pub(super) const MACHINE: [&str; 2] = ["10.71.0.9", "fd00:71::9"];

/// A node with addresses on its lower device, another machine on the wire, and a device plugin.
pub(super) struct Lab {
    pub(super) node: Node,
    kubelet: Kubelet,
    plugin: RefCell<Option<Plugin>>,
    name: String,
    pub(super) dir: TempDir,
}

pub(super) fn assign(host: &Host, interface: &str, [v4, v6]: [&str; 2]) {
    host.ip(&format!("addr add {v4}/24 dev {interface}"));
    host.ip(&format!("addr add {v6}/64 dev {interface} nodad"));
}

pub(super) fn resource(name: &str, host_access: bool) -> Value {
    json!({"name": name, "lowerDevice": LOWER, "capacity": 5, "hostAccess": host_access})
}

impl Lab {
    pub(super) fn new(configuration: &Value) -> Self {
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

    pub(super) fn configure(&self, configuration: &Value) {
        let file = self.dir.path().join("config/macvtap.json");
        fs::write(file, configuration.to_string()).unwrap();
    }

    pub(super) fn start(&self) {
        self.start_with(&[]);
    }

    fn start_with(&self, words: &[&str]) {
        self.start_by(&[], words);
    }

    fn start_by(&self, by: &[&str], words: &[&str]) {
        let mut command = kit::kubelet::command(by, &self.dir.path().join("kubelet"));
        command
            .arg("--config")
            .arg(self.dir.path().join("config/macvtap.json"));
        command
            .arg("--netns-dir")
            .arg(self.dir.path().join("netns"));
        command.args(["-v", "4", "--node-name", &self.name]);
        command.args(words);
        command.env_remove("DP_MACVTAP_CONF");
        self.plugin
            .replace(Some(Plugin::spawn(&self.node.host, command)));
    }

    pub(super) fn kill(&self) {
        self.plugin.replace(None);
    }

    pub(super) fn wait_for_log(&self, text: &str) {
        self.plugin.borrow().as_ref().unwrap().wait_for_log(text);
    }

    /// An ID of a resource's device on [`LOWER`].
    pub(super) fn device(&self, resource: &str, slot: usize) -> String {
        let name = format!("macvtap.network.kubevirt.io/{resource}");
        let ready = |found: &macvtap::selftest::kubelet::Resource| found.healthy().len() > slot;
        let resource = self.kubelet.wait_for(&name, WAIT_TIMEOUT, ready);
        resource.unwrap().healthy()[slot].clone()
    }

    /// Lists a pod as the runtime does.
    pub(super) fn list(&self, pod: &Host) {
        let name = format!("cni-{}", pod.path().replace('/', "-"));
        let path = self.dir.path().join("netns").join(name);
        let _ = fs::remove_file(&path); // of a pod whose descriptor had the number before
        symlink(pod.path(), path).unwrap();
    }

    /// A pod whose kernel is the guest behind the macvtap, with these addresses.
    pub(super) fn guest(&self, device: &str, addresses: [&str; 2]) -> Guest<'_> {
        let pod = Host::new();
        self.list(&pod);
        let cni = json!({"deviceID": device, "hostStack": true});
        let cni = self.node.cni(&pod, cni).added();
        assign(&pod, IFNAME, addresses);
        let device = device.to_owned();
        Guest { pod, cni, device }
    }

    /// Waits until both reach each other by both families.
    pub(super) fn connects(&self, guest: &Guest<'_>, addresses: [&str; 2]) {
        for address in NODE {
            reaches(&guest.pod, address);
        }
        for address in addresses {
            reaches(&self.node.host, address);
        }
    }

    /// The node's routes to guests.
    pub(super) fn routes(&self) -> String {
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

    /// What the program prints, in the node's network namespace.
    pub(super) fn run(&self, words: &[&str]) -> String {
        let mut command = Command::new(kit::binary());
        command.args(words).arg("--kubelet-dir");
        command.arg(self.dir.path().join("kubelet"));
        let output = self.node.host.output(&mut command);
        String::from_utf8(output.stdout).unwrap()
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

pub(super) struct Guest<'a> {
    pub(super) pod: Host,
    pub(super) cni: Cni<'a>,
    pub(super) device: String,
}

pub(super) fn ping(from: &Host, address: &str) -> bool {
    let mut command = Command::new("busybox");
    command.args(["ping", "-c", "1", "-W", "1", address]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    from.output(&mut command).status.success()
}

pub(super) fn reaches(from: &Host, address: &str) {
    wait_until(address, || ping(from, address));
}

/// The hardware addresses by which `host` is answered, asked anew.
pub(super) fn answers(host: &Host, interface: &str, address: &str) -> Vec<String> {
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

pub(super) fn mac(host: &Host, interface: &str) -> String {
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
    let doctor = lab.run(&["doctor"]);
    let left = format!("{ACCESS} is of a device plugin; if there is none any more: ip link delete");
    assert!(doctor.contains(&left), "{doctor}");
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

/// A host that has an answer does not ask again soon.
#[test]
fn a_guest_is_answered_only_once_its_claims_are_received() {
    if !has_programs(&["strace", "setpriv"]) {
        return;
    }
    let lab = Lab::new(&json!([resource("a", false)]));
    lab.kill();
    lab.configure(&json!([resource("a", true)]));
    let slow = "--inject=setsockopt:delay_enter=100000";
    let strace = [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        "--trace=setsockopt",
        slow,
    ];
    let ends_with_strace = ["setpriv", "--pdeathsig", "KILL"];
    lab.start_by(&[&strace[..], &ends_with_strace].concat(), &[]);
    lab.wait_for_log("learning ports=0");
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    // It asks all the time, and not again once it has an answer.
    for (key, value) in [
        ("retrans_time_ms", 20),
        ("mcast_solicit", 1000),
        ("base_reachable_time_ms", 600_000),
    ] {
        let file = format!("/proc/sys/net/ipv4/neigh/{IFNAME}/{key}");
        let write = || Ok(fs::write(&file, value.to_string())?);
        guest.pod.0.run(write).unwrap();
    }
    reaches(&guest.pod, NODE[0]);
}

/// A frame by which a host with this MAC says that it has an address.
pub(super) fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
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

#[test]
fn a_guest_does_not_get_the_address_of_another_host() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let (host, wire) = (&lab.node.host, &lab.node.wire);
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    let address: MacAddr = mac(&guest.pod, IFNAME).parse().unwrap();
    lab.connects(&guest, GUEST);
    let tap = taps::open(tap_of(&guest.device));
    let claim = |last| taps::send(&tap, &arp(address.0, [10, 71, 0, last]));
    // The node knows nothing yet of the other host.
    wire.ip(&format!("addr add 10.71.0.8/24 dev {FAR_END}"));
    claim(8);
    lab.wait_for_log("address=10.71.0.8 reason=\"is the address of another host");
    assert!(!lab.routes().contains("10.71.0.8 "));
    claim(53);
    wait_until("an unused address is believed", || {
        lab.routes().contains("10.71.0.53 ")
    });
    // A host that has the address appears, and says so to the node.
    wire.ip(&format!("addr add 10.71.0.53/24 dev {FAR_END}"));
    answers(wire, FAR_END, NODE[0]);
    let mut command = Command::new("busybox");
    command.args(["ping", "-c", "1", "-W", "1", "-I", "10.71.0.53", NODE[0]]);
    wire.output(&mut command);
    wait_until("the claim is given up", || {
        !lab.routes().contains("10.71.0.53 ")
    });
    reaches(host, "10.71.0.53");
    // The administrator's own route precedes that to a guest.
    host.ip("route add 10.71.0.50 via 10.71.0.9");
    let route = host.ip("route get 10.71.0.50");
    assert!(route.contains("via 10.71.0.9 "), "{route}");
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2);
    let words = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()).to_be_bytes()
}

/// An ICMP message of this type from [`GUEST`] to [`NODE`], behind these options of IPv4.
fn icmp(kind: u8, options: &[u8]) -> Vec<u8> {
    let inner = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 71, 0, 1, 10, 71, 0, 9, 0, 9, 0, 9, 0, 8, 0,
        0,
    ];
    let mut message = [&[kind, 1, 0, 0, 10, 71, 0, 50][..], &inner].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let total = u8::try_from(usize::from(words) * 4 + message.len()).unwrap();
    let start = [0x40 | words, 0, 0, total, 0, 0, 0, 0, 64, 1, 0, 0];
    let addresses = [10, 71, 0, 50, 10, 71, 0, 1];
    let mut header = [&start[..], &addresses, options].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header, message].concat()
}

/// The ICMP messages of this kind that the node has received, by the kernel's own name.
fn received(host: &Host, name: &str) -> u64 {
    let output = host.output(Command::new("cat").arg("/proc/net/snmp"));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Icmp:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = std::iter::zip(names.split(' '), values.split(' '));
    let (_, value) = pairs.find(|(found, _)| *found == name).unwrap();
    value.parse().unwrap()
}

#[test]
fn a_guest_does_not_change_the_nodes_routes_by_icmp() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let tap = taps::open(tap_of(&guest.device));
    let parse = |text: String| text.parse::<MacAddr>().unwrap().0;
    let header = [
        &parse(mac(host, ACCESS))[..],
        &parse(mac(&guest.pod, IFNAME)),
        &[8, 0],
    ]
    .concat();
    let send = |packet: Vec<u8>| taps::send(&tap, &[&header[..], &packet].concat());
    let before = received(host, "InEchos");
    send(icmp(5, &[]));
    send(icmp(5, &[1; 4]));
    send(icmp(8, &[]));
    wait_until("the ping is received", || {
        received(host, "InEchos") > before
    });
    assert_eq!(received(host, "InRedirects"), 0);
}

#[test]
fn names_of_one_lower_device_share_it() {
    let lab = Lab::new(&json!([]));
    let host = &lab.node.host;
    host.ip(&format!("link property add dev {LOWER} altname lan7"));
    host.ip(&format!(
        "link add upper link {LOWER} type macvlan mode bridge"
    ));
    let mut resources = ["a", "b", "c"].map(|name| resource(name, true));
    resources[1]["lowerDevice"] = "lan7".into();
    resources[2]["lowerDevice"] = "upper".into();
    lab.configure(&json!(resources));
    let addresses = [
        GUEST,
        ["10.71.0.51", "fd00:71::51"],
        ["10.71.0.52", "fd00:71::52"],
    ];
    let devices = ["a", "b", "c"].map(|name| lab.device(name, 0));
    let guests: Vec<Guest<'_>> = std::iter::zip(&devices, addresses)
        .map(|(device, addresses)| lab.guest(device, addresses))
        .collect();
    let index = || host.link(ACCESS).unwrap()["ifindex"].clone();
    let before = index();
    for (guest, addresses) in std::iter::zip(&guests, addresses) {
        lab.connects(guest, addresses);
    }
    assert_eq!(index(), before);
}

#[test]
fn a_second_device_plugin_leaves_it_to_the_first() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    lab.device("a", 0);
    wait_until("the macvlan is made", || lab.node.host.is_up(ACCESS));
    let index = || host.link(ACCESS).map(|link| link["ifindex"].clone());
    let before = index();
    host.ip("link add other0 type veth peer name other1");
    host.ip("link set other0 up");
    let configuration = json!([{"name": "a", "lowerDevice": "other0", "hostAccess": true}]);
    let kubelet_dir = lab.dir.path().join("kubelet");
    let second = Plugin::configured(host, &kubelet_dir, &configuration.to_string());
    second.wait_for_log("host access is left to another device plugin");
    for up in ["down", "up"] {
        host.ip(&format!("link set {LOWER} {up}"));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(index(), before);
    assert!(host.link("mvh-other0").is_none());
    lab.kill();
    second.wait_for_log("created a macvlan of other0");
    wait_until("the second has taken over", || {
        index().is_none() && host.link("mvh-other0").is_some()
    });
}

#[test]
fn former_devices_get_none_on_a_lower_device_for_which_it_is_not_set() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    let held = ("macvtap.network.kubevirt.io/a", &*guest.device);
    let kubelet_dir = lab.dir.path().join("kubelet");
    super::held::checkpoint(&kubelet_dir, held, tap_of(&guest.device));
    lab.connects(&guest, GUEST);
    host.ip("link add other0 type veth peer name other1");
    host.ip("link set other0 up");
    let mut other = resource("a", true);
    other["lowerDevice"] = "other0".into();
    lab.configure(&json!([other]));
    wait_until("it is on the other one", || {
        host.link("mvh-other0").is_some()
    });
    lab.gone();
    drop(guest);
}

#[test]
fn it_is_shown_and_goes_as_scripts_uninstall_configures() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let doctor = lab.run(&["doctor"]);
    let text = format!("host access on {LOWER} by {ACCESS}: 2 addresses of VMs");
    assert!(doctor.contains(&text), "{doctor}");
    lab.kill();
    lab.configure(&json!([{"name": "none", "lowerDevice": "none", "nodes": []}]));
    lab.start();
    lab.gone();
}

fn sysctl(host: &Host, key: &str, value: u8) {
    let script = format!("echo {value} >/proc/sys/net/ipv4/conf/all/{key}");
    let set = host.output(Command::new("sh").args(["-c", &script]));
    assert!(set.status.success(), "{set:?}");
}

/// As kube-proxy sets them for IPVS, and distributions for hosts with several interfaces.
#[test]
fn strict_settings_of_the_node_do_not_keep_it_from_guests() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let strict = "cd /proc/sys/net/ipv4/conf/all && echo 1 >rp_filter && echo 1 >arp_ignore && \
                  echo 2 >arp_announce && echo 1 >arp_notify";
    let set = lab
        .node
        .host
        .output(Command::new("sh").args(["-c", strict]));
    assert!(set.status.success(), "{set:?}");
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    assert_eq!(
        answers(&lab.node.wire, FAR_END, NODE[0]),
        [mac(&lab.node.host, LOWER)]
    );
}

#[test]
fn resources_share_it_and_guests_of_others_are_kept_out() {
    let lab = Lab::new(&json!([
        resource("a", true),
        resource("b", true),
        resource("c", false)
    ]));
    let addresses = [
        GUEST,
        ["10.71.0.51", "fd00:71::51"],
        ["10.71.0.52", "fd00:71::52"],
    ];
    let devices = ["a", "b", "c"].map(|name| lab.device(name, 0));
    let guests: Vec<Guest<'_>> = std::iter::zip(&devices, addresses)
        .map(|(device, addresses)| lab.guest(device, addresses))
        .collect();
    lab.connects(&guests[0], addresses[0]);
    lab.connects(&guests[1], addresses[1]);
    for address in NODE {
        assert!(!ping(&guests[2].pod, address), "{address}");
    }
    assert!(!lab.routes().contains("52 dev"));
    // Guests reach each other as before.
    reaches(&guests[2].pod, GUEST[0]);
    lab.configure(&json!([
        resource("a", false),
        resource("b", true),
        resource("c", true)
    ]));
    lab.connects(&guests[2], addresses[2]);
    wait_until("the first one is kept out", || {
        !lab.routes().contains("50 dev")
    });
    lab.connects(&guests[1], addresses[1]);
    assert!(!ping(&guests[0].pod, NODE[0]));
    let macvlans = lab.node.host.ip("link show type macvlan");
    assert_eq!(macvlans.matches("mvh-").count(), 1, "{macvlans}");
    lab.configure(&json!([resource("c", true)]));
    wait_until("the second one is kept out", || {
        !lab.routes().contains("51 dev")
    });
    lab.configure(&json!([]));
    lab.gone();
}

#[test]
fn a_guest_that_migrates_is_reached_by_the_wire_until_it_comes_back() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let (device, pod) = (lab.device("a", 0), Host::new());
    lab.list(&pod);
    let cni = lab.node.cni(&pod, json!({"deviceID": device})).added();
    let tap = taps::open(tap_of(&device));
    let address: MacAddr = mac(&pod, IFNAME).parse().unwrap();
    let here = || {
        wait_until("the node has a route", || {
            taps::send(&tap, &arp(address.0, [10, 71, 0, 50]));
            std::thread::sleep(Duration::from_millis(50));
            lab.routes().contains("10.71.0.50 ")
        });
    };
    here();
    // It is on another node now, which the wire says.
    let far = taps::far_tap(&lab.node);
    wait_until("the route is gone", || {
        taps::send(&far, &rarp(address));
        std::thread::sleep(Duration::from_millis(50));
        lab.routes().is_empty()
    });
    let route = lab.node.host.ip(&format!("route get {}", GUEST[0]));
    assert!(route.contains(&format!("dev {LOWER} ")), "{route}");
    assert_eq!(pod.mode(), "vepa");
    here();
    cni.succeed("DEL");
    wait_until("the route is gone", || lab.routes().is_empty());
}

/// As one that has migrated here from a node where it reached this one by the wire.
#[test]
fn a_guest_that_knows_the_node_by_another_mac_is_corrected() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let device = lab.device("a", 0);
    wait_until("the macvlan is made", || lab.node.host.is_up(ACCESS));
    let guest = lab.guest(&device, GUEST);
    let known = mac(&lab.node.host, LOWER);
    for address in NODE {
        guest.pod.ip(&format!(
            "neigh replace {address} lladdr {known} dev {IFNAME} nud reachable"
        ));
    }
    // Linux keeps a MAC that it has just got (`locktime` of `arp(7)`).
    std::thread::sleep(Duration::from_millis(1100));
    let access = mac(&lab.node.host, ACCESS);
    for (machine, address) in std::iter::zip(MACHINE, NODE) {
        wait_until("the guest has the right MAC", || {
            // It may have asked before what it says was received.
            guest
                .pod
                .ip(&format!("neigh flush to {machine} dev {IFNAME}"));
            ping(&guest.pod, machine);
            let shown = guest.pod.ip(&format!("neigh show {address} dev {IFNAME}"));
            shown.contains(&access)
        });
    }
    lab.connects(&guest, GUEST);
}

/// The wire's end of a new lower device with the addresses of the old one.
fn plug(lab: &Lab) {
    let mut socket = lab.node.host.0.socket().unwrap();
    let wire = lab.node.wire.0.as_fd();
    socket.create_veth(LOWER, FAR_END, wire).unwrap();
    lab.node.host.ip(&format!("link set {LOWER} mtu 1400 up"));
    lab.node.wire.ip(&format!("link set {FAR_END} mtu 1400 up"));
    assign(&lab.node.host, LOWER, NODE);
    assign(&lab.node.wire, FAR_END, MACHINE);
}

#[test]
fn a_lower_device_that_is_renamed_or_gone_and_back_has_it_again() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let device = lab.device("a", 0);
    let guest = lab.guest(&device, GUEST);
    lab.connects(&guest, GUEST);
    let address = mac(host, ACCESS);
    host.ip(&format!("link set {LOWER} name lan7"));
    lab.gone();
    host.ip(&format!("link set lan7 name {LOWER}"));
    lab.connects(&guest, GUEST);
    assert_eq!(mac(host, ACCESS), address);
    host.ip(&format!("link delete {LOWER}"));
    lab.gone();
    assert!(guest.pod.link(IFNAME).is_none());
    plug(&lab);
    wait_until("the device is healthy", || {
        lab.device("a", 0) == device && host.link(ACCESS).is_some()
    });
    let guest = lab.guest(&device, GUEST);
    lab.connects(&guest, GUEST);
    assert_eq!(
        (mac(host, ACCESS), host.link(ACCESS).unwrap()["mtu"].clone()),
        (address, 1400.into())
    );
    host.ip(&format!("link set {LOWER} mtu 1500"));
    wait_until("the MTU follows", || {
        host.link(ACCESS).unwrap()["mtu"] == 1500
    });
}

#[test]
fn the_nodes_addresses_are_followed() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    sysctl(host, "promote_secondaries", 1);
    assign(host, LOWER, ["10.71.0.2", "fd00:71::2"]);
    reaches(&guest.pod, "10.71.0.2");
    reaches(&guest.pod, "fd00:71::2");
    for (address, length) in [(NODE[0], 24), (NODE[1], 64)] {
        host.ip(&format!("addr del {address}/{length} dev {LOWER}"));
    }
    wait_until("it has the addresses no more", || {
        let shown = host.ip(&format!("addr show dev {ACCESS}"));
        !shown.contains("10.71.0.1/") && !shown.contains("fd00:71::1/")
    });
    assert!(!ping(&guest.pod, NODE[0]));
    reaches(&guest.pod, "10.71.0.2");
    reaches(&guest.pod, "fd00:71::2");
    reaches(host, GUEST[0]);
}

/// What a guest may not do to any host of its network: change its routes, or its idea of others.
#[test]
fn a_guest_does_not_change_the_nodes_routes_by_ipv6() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let before = lab.own();
    let _router = wire::Router::start_on(&guest.pod, IFNAME);
    let mut command = Command::new("timeout");
    command.args(["30", "tcpdump", "-c", "2", "-i", FAR_END, "icmp6[0] = 134"]);
    let heard = lab.node.wire.output(&mut command);
    assert!(heard.status.success(), "the wire receives them: {heard:?}");
    assert_eq!(lab.own(), before);
    let shown = host.ip(&format!("addr show dev {ACCESS}"));
    assert!(!shown.contains("fd00:11:"), "{shown}");
}

#[test]
fn what_does_not_work_is_reported_and_devices_are_offered_all_the_same() {
    let lab = Lab::new(&json!([]));
    let host = &lab.node.host;
    host.ip(&format!("link add {ACCESS} type bridge"));
    lab.configure(
        &json!([resource("a", true), {"name": "b", "lowerDevice": "none0", "hostAccess": true}]),
    );
    lab.device("a", 0);
    let taken = format!("host access on {LOWER}: interface \\\"{ACCESS}\\\" exists");
    lab.wait_for_log(&taken);
    lab.wait_for_log("host access on none0: lower device \\\"none0\\\" does not exist");
    let text = lab.run(&["probe"]);
    assert!(
        text.contains(&format!("host access on {LOWER}: interface")),
        "{text}"
    );
    host.ip(&format!("link delete {ACCESS}"));
    wait_until("it is made", || host.link(ACCESS).is_some());
    host.ip(&format!("addr flush dev {LOWER}"));
    lab.wait_for_log("the lower device has no address of the node");
}

impl Lab {
    /// A call of a network with host-local, which begins at `.60` and `::60`.
    pub(super) fn leased(&self, device: &str, pod: &Host, mode: &str) -> Cni<'_> {
        self.list(pod);
        let ipam = json!({
            "type": "host-local",
            "dataDir": self.dir.path().join("leases"),
            "ranges": [
                [{"subnet": "10.71.0.0/24", "rangeStart": "10.71.0.60"}],
                [{"subnet": "fd00:71::/64", "rangeStart": "fd00:71::60"}],
            ],
        });
        let config = json!({
            "cniVersion": "1.0.0", "deviceID": device, "ipamMode": mode, "ipam": ipam,
        });
        let call = self.node.cni(pod, config);
        let call = call.env("CNI_CONTAINERID", &format!("c{}", tap_number()));
        call.env("CNI_PATH", "/usr/lib/cni").added()
    }
}

#[test]
fn addresses_of_ipam_are_known_before_a_guest_says_anything_of_them() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let devices = [0, 1].map(|slot| lab.device("a", slot));
    let (vm, liar) = (Host::new(), lab.guest(&devices[1], GUEST));
    let call = lab.leased(&devices[0], &vm, "report");
    let tap = taps::open(tap_of(&devices[0]));
    let address: MacAddr = mac(&vm, IFNAME).parse().unwrap();
    taps::send(&tap, &broadcast(address));
    wait_until("the node has routes to the VM", || {
        let routes = lab.routes();
        routes.contains("10.71.0.60 ") && routes.contains("fd00:71::60 ")
    });
    // Another guest does not get what IPAM gave.
    let liars = taps::open(tap_of(&liar.device));
    let other: MacAddr = mac(&liar.pod, IFNAME).parse().unwrap();
    wait_until("it is heard", || {
        for last in [60, 61] {
            taps::send(&liars, &arp(other.0, [10, 71, 0, last]));
        }
        lab.routes().contains("10.71.0.61 ")
    });
    let neighbour = lab
        .node
        .host
        .ip(&format!("neigh show 10.71.0.60 dev {ACCESS}"));
    assert!(neighbour.contains(&address.to_string()), "{neighbour}");
    call.succeed("DEL");
    wait_until("its routes are gone", || {
        !lab.routes().contains("fd00:71::60 ")
    });
}

#[test]
fn a_pod_with_addresses_of_ipam_and_the_node_reach_each_other() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let pod = Host::new();
    let call = lab.leased(&lab.device("a", 0), &pod, "assign");
    for address in ["10.71.0.60", "fd00:71::60"] {
        reaches(&lab.node.host, address);
    }
    for address in NODE {
        reaches(&pod, address);
    }
    call.succeed("DEL");
    wait_until("the routes are gone", || lab.routes().is_empty());
}

/// What a former device plugin knew of the guests stays as it is.
#[test]
fn without_learning_it_says_so_and_keeps_what_there_is() {
    let lab = Lab::new(&json!([resource("a", true)]));
    let guest = lab.guest(&lab.device("a", 0), GUEST);
    lab.connects(&guest, GUEST);
    let routes = lab.routes();
    lab.kill();
    lab.start_with(&["--learning", "off"]);
    lab.wait_for_log(&format!("host access on {LOWER}: learning is off"));
    lab.device("a", 0);
    assert_eq!(lab.routes(), routes);
    lab.connects(&guest, GUEST);
}

/// With the offloads of a real guest, whose frames have no checksums yet.
#[test]
fn a_vm_and_the_node_exchange_more_than_pings() {
    if !can_run(&["qemu-system-x86_64", "setpriv"]) {
        return;
    }
    let lab = Lab::new(&json!([resource("a", true)]));
    let host = &lab.node.host;
    host.ip(&format!("addr add {}/24 dev {LOWER}", wire::ADDRESS));
    let (device, pod) = (lab.device("a", 0), Host::new());
    lab.list(&pod);
    let cni = lab.node.cni(&pod, json!({"deviceID": device})).added();
    let mut guest = VirtualMachine::boot(&pod, tap_of(&device), &mac(&pod, IFNAME));
    let [v4, v6] = GUEST;
    guest.shell.run(&format!(
        "ip addr add 10.11.0.50/24 dev eth0; ip addr add {v4}/24 dev eth0; \
         ip link set eth0 up; ip -6 addr add {v6}/64 dev eth0"
    ));
    for address in [wire::ADDRESS, NODE[0], NODE[1]] {
        wait_until(address, || guest.shell.reaches(address));
    }
    for address in ["10.11.0.50", v4, v6] {
        reaches(host, address);
    }
    let (command, sum, server) = wire::serve_noise(host, 2 << 20);
    let printed = guest.shell.run(&command);
    assert!(printed.contains(&sum), "{printed}");
    server.join().unwrap();
    drop(guest);
    cni.succeed("DEL");
    wait_until("the routes are gone", || lab.routes().is_empty());
}
