//! IP addresses by delegation: real IPAM plugins, and scripts that fail as no real one should.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use kit::netns::{
    Cni, FAR_END, Host, IFNAME, LOWER, Node, device_id, names, tap_number, wait_until,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where Debian has the reference plugins, and the newest version that they speak.
const PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";
/// The gateway at the far end of the wire.
const GATEWAY: &str = "10.66.0.1";
const GATEWAY_V6: &str = "fd00:66::1";

/// A node, a pod, and a place for what IPAM plugins keep.
struct Lan {
    node: Node,
    pod: Host,
    dir: TempDir,
}

impl Lan {
    fn new() -> Self {
        let lan = Self {
            node: Node::new(),
            pod: Host::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        lan.node
            .wire
            .ip(&format!("addr add {GATEWAY}/24 dev {FAR_END}"));
        lan.node
            .wire
            .ip(&format!("addr add {GATEWAY_V6}/64 dev {FAR_END} nodad"));
        lan
    }

    /// A call of a network with its own lower device, in a container of its own.
    fn call(&self, ipam: &Value) -> Cni<'_> {
        let config = json!({"cniVersion": VERSION, "lowerDevice": LOWER, "ipam": ipam});
        let call = self.node.cni(&self.pod, config);
        let call = call.env("CNI_CONTAINERID", &format!("c{}", tap_number()));
        call.env(
            "CNI_PATH",
            &format!("{}:{PLUGINS}", self.dir.path().display()),
        )
    }

    /// The configuration of host-local, by both families.
    fn host_local(&self) -> Value {
        json!({
            "type": "host-local",
            "dataDir": self.dir.path().join("leases"),
            "ranges": [
                [{"subnet": "10.66.0.0/24", "rangeStart": "10.66.0.10", "gateway": GATEWAY}],
                [{"subnet": "fd00:66::/64", "rangeStart": "fd00:66::10", "gateway": GATEWAY_V6}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    }

    /// What host-local has leased.
    fn leases(&self) -> Vec<String> {
        let dir = self.dir.path().join("leases/test");
        let mut leases = if dir.exists() {
            names(&dir)
        } else {
            Vec::new()
        };
        leases.retain(|name| name.starts_with(|c: char| c.is_ascii_hexdigit()) && name != "lock");
        leases
    }

    /// An IPAM plugin whose answer to each verb is a script; it notes the verbs.
    fn script(&self, script: &str) -> Value {
        let file = self.dir.path().join("scripted");
        let log = self.log();
        let script = format!(
            "#!/bin/sh\necho $CNI_COMMAND >>{}\n{script}\n",
            log.display()
        );
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        json!({"type": "scripted"})
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The verbs that the script was called with.
    fn verbs(&self) -> Vec<String> {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// A process that ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(host: &Host, words: &str) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(words.split_whitespace());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(host.0.run(|| Ok(command.spawn()?)).unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A DHCP server at the far end of the wire.
struct Server {
    leases: PathBuf,
    _daemon: Daemon,
}

impl Server {
    fn start(lan: &Lan) -> Self {
        let leases = lan.dir.path().join("server");
        let words = format!(
            "prlimit --nofile=1024 dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= \
             --dhcp-leasefile={} --port=0 --user=root --bind-interfaces --no-ping \
             --interface={FAR_END} --dhcp-range=10.66.0.50,10.66.0.99,255.255.255.0,1h",
            leases.display()
        );
        let daemon = Daemon::start(&lan.node.wire, &words);
        wait_until("dnsmasq serves", || leases.exists());
        Self {
            leases,
            _daemon: daemon,
        }
    }

    fn leases(&self) -> String {
        fs::read_to_string(&self.leases).unwrap()
    }
}

/// The daemon of the DHCP plugin.
struct Client {
    socket: PathBuf,
    _daemon: Daemon,
}

impl Client {
    fn start(lan: &Lan) -> Self {
        let socket = lan.dir.path().join("dhcp.sock");
        let words = format!("{PLUGINS}/dhcp daemon -socketpath {}", socket.display());
        let daemon = Daemon::start(&lan.node.host, &words);
        wait_until("the DHCP plugin serves", || socket.exists());
        Self {
            socket,
            _daemon: daemon,
        }
    }
}

/// Whether `host` gets an answer from `address`.
fn reaches(host: &Host, address: &str) -> bool {
    let words = ["ping", "-c", "1", "-W", "5", address];
    host.output(Command::new("busybox").args(words))
        .status
        .success()
}

/// The addresses of a result.
fn ips(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap()).collect()
}

/// With SIGCHLD ignored by the runtime, the kernel would keep no exit status of the IPAM plugin.
#[test]
fn what_signals_the_runtime_ignores_or_blocks_does_not_matter() {
    let lan = Lan::new();
    let inherited = ["env", "--ignore-signal", "--block-signal"];
    let call = lan.call(&lan.host_local()).by(&inherited);
    call.add();
    assert_eq!(lan.leases(), ["10.66.0.10", "fd00:66::10"]);
    call.succeed("DEL");
    assert!(lan.leases().is_empty());
}

#[test]
fn a_pod_with_addresses_of_host_local_reaches_its_gateway() {
    let lan = Lan::new();
    let call = lan.call(&lan.host_local());
    let result = call.add();
    assert_eq!(ips(&result), ["10.66.0.10/24", "fd00:66::10/64"]);
    let interface = &result["ips"][0]["interface"];
    assert_eq!(
        (interface, &result["ips"][0]["gateway"]),
        (&json!(0), &json!(GATEWAY))
    );
    assert_eq!(
        result["routes"],
        json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
    );
    assert!(reaches(&lan.pod, GATEWAY));
    assert!(reaches(&lan.pod, GATEWAY_V6));
    let routes = lan.pod.ip("route show default") + &lan.pod.ip("-6 route show default");
    for gateway in [GATEWAY, GATEWAY_V6] {
        let route = format!("default via {gateway} dev {IFNAME}");
        assert!(routes.contains(&route), "{routes}");
    }
    assert_eq!(lan.leases(), ["10.66.0.10", "fd00:66::10"]);
    let call = call.with("prevResult", result);
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(lan.leases().is_empty(), "{:?}", lan.leases());
    assert!(lan.pod.links().is_empty());
    call.succeed("DEL");
}

/// As the reference's own tests have it for macvlan: each version, on an interface of the node and
/// of the pod.
#[test]
fn in_each_version_on_either_side() {
    for in_pod in [false, true] {
        let lan = Lan::new();
        let ipam = json!({"type": "host-local", "subnet": "10.66.0.0/24",
                          "dataDir": lan.dir.path().join("leases")});
        lan.pod.ip("link add eth7 type veth peer name wire7");
        lan.pod.ip("link set eth7 up");
        lan.pod.ip("link set wire7 up");
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let call = lan.call(&ipam).with("cniVersion", version);
            let lower = if in_pod { "eth7" } else { LOWER };
            let call = call.with("lowerDevice", lower);
            let call = call.with("linkInContainer", in_pod);
            let result = call.add();
            assert_eq!(result["cniVersion"], version);
            let link = lan.pod.link(IFNAME).unwrap();
            if version > "0.3" {
                assert_eq!(result["interfaces"][0]["mac"], link["address"]);
                assert_eq!(ips(&result).len(), 1);
            }
            assert_eq!(lan.leases().len(), 1);
            let call = call.with("prevResult", result);
            if version >= "0.4.0" {
                call.succeed("CHECK");
            } else {
                let expected = (1, "config version does not allow CHECK".to_owned());
                assert_eq!(call.fail("CHECK"), expected);
            }
            call.succeed("DEL");
            assert!(lan.pod.link(IFNAME).is_none());
            assert!(lan.leases().is_empty());
            call.succeed("DEL");
        }
    }
}

/// Pods of clusters without IPv6 have it disabled; and addresses outlive a link that flaps.
#[test]
fn ipv6_is_enabled_for_its_addresses_and_keeps_them() {
    let lan = Lan::new();
    let disabled = |name: &str| format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    let disable = || Ok(["default", "lo"].map(|name| fs::write(disabled(name), "1").unwrap()));
    lan.pod.0.run(disable).unwrap();
    let call = lan.call(&lan.host_local()).added();
    assert!(reaches(&lan.pod, GATEWAY_V6));
    lan.pod.ip(&format!("link set {IFNAME} down"));
    lan.pod.ip(&format!("link set {IFNAME} up"));
    let addresses = lan.pod.ip(&format!("-6 addr show dev {IFNAME}"));
    assert!(addresses.contains("fd00:66::10/64"), "{addresses}");
    call.succeed("DEL");
}

#[test]
fn older_versions_have_the_addresses_in_their_own_shape() {
    for version in ["0.2.0", "0.3.1", "0.4.0"] {
        let lan = Lan::new();
        let call = lan.call(&lan.host_local()).with("cniVersion", version);
        let result = call.add();
        if version == "0.2.0" {
            let expected = json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.66.0.10/24", "gateway": GATEWAY, "routes": [{"dst": "0.0.0.0/0"}]},
                "ip6": {"ip": "fd00:66::10/64", "gateway": GATEWAY_V6, "routes": [{"dst": "::/0"}]},
                "dns": {},
            });
            assert_eq!(result, expected);
        } else {
            assert_eq!(result["ips"][1]["version"], "6");
            assert_eq!(ips(&result), ["10.66.0.10/24", "fd00:66::10/64"]);
        }
        call.succeed("DEL");
        assert!(lan.leases().is_empty());
    }
}

#[test]
fn check_finds_what_was_removed() {
    for (damage, text) in [
        (
            format!("addr del 10.66.0.10/24 dev {IFNAME}"),
            "no address 10.66.0.10/24",
        ),
        (
            format!("addr del fd00:66::10/64 dev {IFNAME}"),
            "no address fd00:66::10/64",
        ),
        ("route del default".to_owned(), "no route 0.0.0.0/0"),
        ("-6 route del default".to_owned(), "no route ::/0"),
    ] {
        let lan = Lan::new();
        let call = lan.call(&lan.host_local()).added();
        call.succeed("CHECK");
        lan.pod.ip(&damage);
        let (_, msg) = call.fail("CHECK");
        assert!(msg.contains(text), "{damage}: {msg}");
        call.succeed("DEL");
    }
    // The IPAM plugin looks at what it keeps itself.
    let lan = Lan::new();
    let call = lan.call(&lan.host_local()).added();
    fs::remove_dir_all(lan.dir.path().join("leases")).unwrap();
    let (_, msg) = call.fail("CHECK");
    assert!(
        msg.contains("IPAM plugin \"host-local\" failed (CHECK)"),
        "{msg}"
    );
}

/// The sbr plugin, for one, moves routes to a table of their own.
#[test]
fn check_takes_routes_in_other_tables() {
    let lan = Lan::new();
    let call = lan.call(&lan.host_local()).added();
    lan.pod.ip("route del default");
    lan.pod.ip(&format!(
        "route add default via {GATEWAY} dev {IFNAME} table 100"
    ));
    call.succeed("CHECK");
}

#[test]
fn the_static_plugin_and_a_gateway_outside_of_the_network() {
    let lan = Lan::new();
    lan.node
        .wire
        .ip(&format!("route add 10.99.0.7/32 dev {FAR_END}"));
    let call = lan.call(&json!({
        "type": "static",
        "addresses": [{"address": "10.99.0.7/32", "gateway": GATEWAY}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }));
    let result = call.add();
    assert!(reaches(&lan.pod, GATEWAY));
    assert_eq!(result["dns"], json!({"nameservers": ["192.0.2.53"]}));
    call.succeed("DEL");
    let own = json!({"nameservers": ["192.0.2.54"]});
    let result = call.with("dns", own.clone()).add();
    assert_eq!(result["dns"], own);
}

#[test]
fn the_options_of_routes_reach_the_kernel() {
    let lan = Lan::new();
    let ipam = lan.script(
        r#"[ $CNI_COMMAND != ADD ] || echo '{"cniVersion": "1.1.0",
        "ips": [{"address": "10.66.0.20/24", "gateway": "10.66.0.1"},
                {"address": "fd00:66::20/64"}], "routes": [
        {"dst": "2001:db8:9::/48", "gw": "fd00:66::2"},
        {"dst": "2001:db8:9::/48", "gw": "fd00:66::3"},
        {"dst": "198.51.100.0/24", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 77},
        {"dst": "203.0.113.0/24", "scope": 253},
        {"dst": "192.0.2.0/24", "gw": "10.66.0.2"},
        {"dst": "192.0.2.0/24", "gw": "10.66.0.3"}]}'"#,
    );
    let call = lan.call(&ipam).with("cniVersion", "1.1.0").added();
    let routes = lan.pod.ip("route show table all");
    for part in [
        format!("198.51.100.0/24 via {GATEWAY} dev {IFNAME} table 77 metric 7"),
        format!("203.0.113.0/24 dev {IFNAME} scope link"),
        format!("192.0.2.0/24 via 10.66.0.2 dev {IFNAME}"),
        format!("192.0.2.0/24 via 10.66.0.3 dev {IFNAME}"),
    ] {
        let squeezed = routes.replace(" proto boot", "");
        assert!(squeezed.contains(&part), "{part}: {routes}");
    }
    assert!(routes.contains("mtu 1400 advmss 1300"), "{routes}");
    call.succeed("CHECK");
    lan.pod.ip("route del 198.51.100.0/24 table 77");
    lan.pod.ip(&format!(
        "route add 198.51.100.0/24 via {GATEWAY} table 78 metric 7"
    ));
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains("198.51.100.0/24"), "{msg}");
}

#[test]
fn the_plugin_gets_what_the_runtime_gave() {
    let lan = Lan::new();
    let seen = lan.dir.path().join("seen");
    let ipam = lan.script(&format!(
        r#"env | grep ^CNI_ | sort >{seen}; cat >{seen}.json
        [ $CNI_COMMAND != ADD ] || echo '{{"ips": [{{"address": "10.66.0.20/24"}}]}}'"#,
        seen = seen.display()
    ));
    let call = lan
        .call(&ipam)
        .env("CNI_ARGS", "IgnoreUnknown=1;IP=10.66.0.20");
    let call = call.with("runtimeConfig", json!({"ips": ["10.66.0.20/24"]}));
    let call = call.with("args", json!({"cni": {"ips": ["10.66.0.20/24"]}}));
    for verb in ["ADD", "CHECK", "DEL"] {
        let call = match verb {
            "CHECK" => call.clone().added(),
            _ => call.clone(),
        };
        assert_eq!(call.call(verb).status, 0);
        let environment = fs::read_to_string(&seen).unwrap();
        let expected = [
            "CNI_ARGS=IgnoreUnknown=1;IP=10.66.0.20",
            &format!("CNI_COMMAND={verb}"),
        ];
        for part in expected {
            assert!(environment.contains(part), "{environment}");
        }
        assert!(environment.contains(&format!("CNI_NETNS={}", lan.pod.path())));
        assert!(environment.contains(&format!("CNI_IFNAME={IFNAME}")));
        let stdin = fs::read(format!("{}.json", seen.display())).unwrap();
        assert_eq!(stdin, call.input());
        if verb == "ADD" {
            call.succeed("DEL");
        }
    }
}

#[test]
fn another_host_with_the_address_fails_add_and_releases_it() {
    let lan = Lan::new();
    lan.node
        .wire
        .ip(&format!("addr add fd00:66::10/64 dev {FAR_END} nodad"));
    let (_, msg) = lan.call(&lan.host_local()).fail("ADD");
    assert!(
        msg.contains("another host of the network has address fd00:66::10/64"),
        "{msg}"
    );
    assert!(lan.leases().is_empty(), "{:?}", lan.leases());
    assert!(lan.pod.links().is_empty());
}

#[test]
fn a_result_that_cannot_be_printed_releases_the_addresses() {
    let lan = Lan::new();
    let call = lan.call(&lan.host_local());
    let call = call.by(&["sh", "-c", "exec \"$@\" >/dev/full", "sh"]);
    assert_eq!(call.call("ADD").status, 1);
    assert!(lan.leases().is_empty(), "{:?}", lan.leases());
    assert!(lan.pod.links().is_empty());
}

#[test]
fn del_releases_what_a_killed_add_left() {
    let lan = Lan::new();
    let ipam = lan.script(&format!(
        "{PLUGINS}/host-local; status=$?; [ $CNI_COMMAND != ADD ] || kill -KILL $PPID; exit $status"
    ));
    let mut config = lan.host_local();
    config["type"] = ipam["type"].clone();
    let call = lan.call(&config);
    assert_eq!(call.output("ADD").status.code(), None);
    wait_until("the addresses are leased", || lan.leases().len() == 2);
    assert_eq!(lan.pod.links(), [IFNAME]);
    call.succeed("DEL");
    assert!(lan.leases().is_empty());
    assert!(lan.pod.links().is_empty());
}

/// The plugin's program outlives an ADD that is killed with SIGKILL. What it leased by the time of
/// DEL is released, and the macvtap is removed.
#[test]
fn del_releases_what_a_plugin_leased_whose_add_was_killed() {
    let lan = Lan::new();
    let ipam = lan.script(&format!(
        "[ $CNI_COMMAND != ADD ] || {{ kill -KILL $PPID; sleep 0.2; }}; exec {PLUGINS}/host-local"
    ));
    let mut config = lan.host_local();
    config["type"] = ipam["type"].clone();
    let call = lan.call(&config);
    assert_eq!(call.output("ADD").status.code(), None);
    wait_until("the addresses are leased", || lan.leases().len() == 2);
    call.succeed("DEL");
    assert!(lan.leases().is_empty() && lan.pod.links().is_empty());
}

/// A runtime that asks for STATUS answers no other request meanwhile.
#[test]
fn a_plugin_that_hangs_does_not_hang_status() {
    let lan = Lan::new();
    let ipam = lan.script("sleep 1000");
    let call = lan.call(&ipam).with("cniVersion", "1.1.0");
    let error = call.call("STATUS").error();
    let msg = error["msg"].as_str().unwrap();
    assert!(
        msg.contains("did not end within 5s and was killed"),
        "{msg}"
    );
}

#[test]
fn del_releases_without_a_netns() {
    let lan = Lan::new();
    let call = lan.call(&lan.host_local());
    call.add();
    for netns in ["/run/netns/gone", ""] {
        call.clone().env("CNI_NETNS", netns).succeed("DEL");
        assert!(lan.leases().is_empty());
    }
}

#[test]
fn del_goes_on_when_the_plugin_fails_and_reports_it() {
    let lan = Lan::new();
    let ipam = lan.script(
        r#"[ $CNI_COMMAND = ADD ] && echo '{"ips": [{"address": "10.66.0.20/24"}]}' && exit
        echo '{"cniVersion": "1.0.0", "code": 142, "msg": "no way", "details": "at all"}'; exit 1"#,
    );
    let call = lan.call(&ipam);
    call.add();
    let error = call.call("DEL").error();
    assert_eq!(
        (&error["code"], &error["details"]),
        (&json!(142), &json!("at all"))
    );
    assert_eq!(
        error["msg"],
        "IPAM plugin \"scripted\" failed (DEL): no way"
    );
    assert!(lan.pod.links().is_empty());
}

/// Another pod may get the address at once, and a DHCP client still needs the interface.
#[test]
fn when_an_address_is_released_the_pod_has_it_no_more() {
    let lan = Lan::new();
    let shown = lan.dir.path().join("shown");
    let ipam = lan.script(&format!(
        r#"[ $CNI_COMMAND = ADD ] && echo '{{"ips": [
            {{"address": "10.66.0.20/24"}}, {{"address": "10.66.0.21/24"}},
            {{"address": "fd00:66::20/64"}}
        ]}}' && exit
        nsenter --net=$CNI_NETNS ip -o addr show dev $CNI_IFNAME up >{}"#,
        shown.display()
    ));
    let call = lan.call(&ipam);
    call.add();
    call.succeed("DEL");
    let shown = fs::read_to_string(shown).unwrap();
    assert!(shown.contains("inet6 fe80:"), "{shown}");
    assert!(
        !shown.contains("10.66.0") && !shown.contains("fd00:66"),
        "{shown}"
    );
    assert!(lan.pod.links().is_empty());
    // One that another network has under the name keeps its addresses.
    lan.pod
        .ip(&format!("link add {IFNAME} type veth peer name other"));
    lan.pod.ip(&format!("addr add 10.66.0.30/24 dev {IFNAME}"));
    call.succeed("DEL");
    assert!(
        lan.pod
            .ip(&format!("addr show dev {IFNAME}"))
            .contains("10.66.0.30/24")
    );
}

/// As whereabouts fails: it may have stored the address before.
#[test]
fn what_a_failed_add_may_have_reserved_is_released() {
    let lan = Lan::new();
    let ipam = lan.script(
        r#"echo '{"code": 999, "msg": "error at storage engine: context deadline exceeded"}'; exit 1"#,
    );
    let (code, msg) = lan.call(&ipam).fail("ADD");
    let failed = |verb| {
        format!(
            "IPAM plugin \"scripted\" failed ({verb}): error at storage engine: context deadline exceeded"
        )
    };
    let expected = format!(
        "{}; and releasing its addresses: {}",
        failed("ADD"),
        failed("DEL")
    );
    assert_eq!((code, msg), (999, expected));
    assert_eq!(lan.verbs(), ["ADD", "DEL"]);
    assert!(lan.pod.links().is_empty());
}

#[test]
fn what_no_plugin_should_do_fails_add_and_leaves_nothing() {
    for (script, code, part) in [
        ("kill -TERM $$", 999, "it was killed by SIGTERM"),
        ("exit 3", 999, "exit status: 3 and no error of CNI"),
        ("echo sorry >&2; exit 1", 999, "saying \"sorry\""),
        (
            "echo '{\"code\": 0, \"msg\": \"zero\"}'; exit 1",
            999,
            "zero",
        ),
        ("true", 6, "no JSON"),
        ("echo rubbish", 6, "\"rubbish\\n\""),
        ("head -c 100000000 /dev/zero", 6, "more than 1048576 bytes"),
        (
            "head -c 100000000 /dev/zero >&2; exit 1",
            999,
            "exit status: 1",
        ),
        ("echo '{\"ips\": []}'", 6, "no addresses"),
        (
            "echo '{\"ips\": [{\"address\": \"10.0.0.1/8\", \"interface\": 4}]}'",
            6,
            "interface 4",
        ),
        ("echo '{\"cniVersion\": \"9.0.0\"}'", 6, "9.0.0"),
    ] {
        let lan = Lan::new();
        let answer = format!("[ $CNI_COMMAND != ADD ] && exit\n{script}");
        let (found, msg) = lan.call(&lan.script(&answer)).fail("ADD");
        assert_eq!(found, code, "{script}: {msg}");
        let named = msg.starts_with("IPAM plugin \"scripted\" failed (ADD): ");
        assert!(named && msg.contains(part), "{script}: {msg}");
        assert_eq!(lan.verbs(), ["ADD", "DEL"], "{script}");
        assert!(lan.pod.links().is_empty(), "{script}");
    }
}

#[test]
fn a_plugin_that_cannot_be_called_fails_add_and_leaves_nothing() {
    let lan = Lan::new();
    lan.script("");
    let file = lan.dir.path().join("scripted");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(lan.dir.path().join("directory")).unwrap();
    std::os::unix::fs::symlink(kit::binary(), lan.dir.path().join("itself")).unwrap();
    for (plugin, code, part) in [
        (
            "scripted",
            999,
            "it could not be started: Permission denied",
        ),
        (
            "missing",
            999,
            "failed to find plugin \"missing\" in path [",
        ),
        ("directory", 999, "failed to find plugin"),
        ("../scripted", 7, "invalid plugin name: ../scripted"),
        ("/bin/true", 7, "invalid plugin name: /bin/true"),
        ("..", 7, "invalid plugin name: .."),
        ("itself", 7, "gives no addresses"),
    ] {
        let call = lan.call(&json!({"type": plugin}));
        let (found, msg) = call.fail("ADD");
        assert!(
            found == code && msg.contains(part),
            "{plugin}: {found} {msg}"
        );
        assert_eq!(msg.contains("releasing"), plugin == "scripted", "{msg}");
        assert!(lan.pod.links().is_empty(), "{plugin}");
        let (found, msg) = call.fail("DEL");
        assert!(
            found == code && msg.contains(part),
            "{plugin}: {found} {msg}"
        );
    }
    assert!(lan.verbs().is_empty());
}

#[test]
fn a_vms_network_has_addresses_only_where_it_says_so() {
    let lan = Lan::new();
    let number = tap_number();
    let call = lan
        .call(&lan.host_local())
        .with("deviceID", device_id(number));
    let log = call.call("ADD").stderr;
    assert!(log.contains("ipam is ignored"), "{log}");
    assert!(lan.leases().is_empty());
    call.succeed("DEL");

    let call = call.with("ipamMode", "report");
    let result = call.add();
    assert_eq!(ips(&result), ["10.66.0.10/24", "fd00:66::10/64"]);
    assert_eq!(lan.leases().len(), 2);
    let addresses = lan.pod.ip(&format!("address show dev {IFNAME}"));
    assert!(
        addresses.contains("NOARP") && !addresses.contains("inet"),
        "{addresses}"
    );
    let call = call.with("prevResult", result);
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(lan.leases().is_empty());

    let call = call
        .with("ipamMode", "assign")
        .with("prevResult", json!(null));
    call.add();
    assert!(reaches(&lan.pod, GATEWAY));
    call.succeed("DEL");
}

#[test]
fn security_takes_the_addresses_of_ipam() {
    let lan = Lan::new();
    let call = lan
        .call(&lan.host_local())
        .with("security", "strict")
        .added();
    call.succeed("CHECK");
    assert!(reaches(&lan.pod, GATEWAY));
    assert!(reaches(&lan.pod, GATEWAY_V6));
    // Another address of the same network is dropped.
    lan.pod
        .ip(&format!("address add 10.66.0.99/24 dev {IFNAME}"));
    lan.pod.ip("route del default");
    lan.pod
        .ip(&format!("route add default via {GATEWAY} src 10.66.0.99"));
    lan.pod.ip(&format!(
        "route add {GATEWAY}/32 dev {IFNAME} src 10.66.0.99"
    ));
    let words = ["ping", "-c", "1", "-W", "1", GATEWAY];
    let ping = lan.pod.output(Command::new("busybox").args(words));
    assert!(!ping.status.success());
    lan.pod.ip(&format!("route del {GATEWAY}/32"));
    assert!(reaches(&lan.pod, GATEWAY));
    call.succeed("DEL");
}

#[test]
fn status_and_gc_reach_the_plugin() {
    let lan = Lan::new();
    let broken = lan.dir.path().join("broken");
    let ipam = lan.script(&format!(
        r#"[ ! -e {} ] || {{ echo '{{"code": 51, "msg": "half"}}'; exit 1; }}"#,
        broken.display()
    ));
    let call = lan.call(&ipam).with("cniVersion", "1.1.0");
    let gc = call.clone().with("cni.dev/valid-attachments", json!([]));
    call.succeed("STATUS");
    gc.succeed("GC");
    fs::write(&broken, "").unwrap();
    for (verb, call) in [("STATUS", &call), ("GC", &gc)] {
        let expected = format!("IPAM plugin \"scripted\" failed ({verb}): half");
        assert_eq!(call.fail(verb), (51, expected));
    }
    assert_eq!(lan.verbs(), ["STATUS", "GC", "STATUS", "GC"]);
    let missing = lan
        .call(&json!({"type": "missing"}))
        .with("cniVersion", "1.1.0");
    assert_eq!(missing.fail("STATUS").0, 50);
    // Where ADD would ignore it, nothing is asked.
    let of_vm = json!({"cniVersion": "1.1.0", "name": "n", "ipam": {"type": "scripted"}});
    gc.stdin(of_vm.to_string()).succeed("STATUS");
    assert_eq!(lan.verbs().len(), 4);
}

#[test]
fn new_addresses_are_announced() {
    let lan = Lan::new();
    // Who had the addresses before is in the neighbour's tables.
    for address in ["10.66.0.10", "fd00:66::10"] {
        lan.node.wire.ip(&format!(
            "neigh add {address} lladdr 02:00:00:00:00:99 dev {FAR_END} nud stale"
        ));
    }
    let call = lan.call(&lan.host_local());
    let result = call.add();
    let mac = result["interfaces"][0]["mac"].as_str().unwrap();
    for address in ["10.66.0.10", "fd00:66::10"] {
        wait_until("the neighbour knows", || {
            let known = lan
                .node
                .wire
                .ip(&format!("neigh show {address} dev {FAR_END}"));
            known.contains(mac)
        });
    }
    call.succeed("DEL");
}

/// A DHCP client of the reference plugins, and a server at the far end of the wire.
#[test]
fn an_address_by_dhcp_is_leased_and_released() {
    let lan = Lan::new();
    let server = Server::start(&lan);
    let client = Client::start(&lan);
    let call = lan.call(&json!({"type": "dhcp", "daemonSocketPath": client.socket}));
    let result = call.add();
    assert!(ips(&result)[0].starts_with("10.66.0."), "{result}");
    assert!(reaches(&lan.pod, GATEWAY));
    assert_eq!(server.leases().lines().count(), 1, "{}", server.leases());
    call.succeed("DEL");
    wait_until("the lease is released", || server.leases().is_empty());
}

/// The same call of another plugin of the chain.
fn of_plugin<'a>(call: &Cni<'a>, plugin: &str) -> Cni<'a> {
    let command = format!("exec {PLUGINS}/{plugin}");
    let call = call.clone().with("type", plugin);
    call.by(&["sh", "-c", &command, "sh"])
}

/// The reference plugins that change an interface of whatever kind, behind ours.
#[test]
fn a_chain_of_plugins_attaches_checks_and_detaches() {
    let lan = Lan::new();
    let mut ipam = lan.host_local();
    ipam["ranges"].as_array_mut().unwrap().pop();
    ipam["routes"].as_array_mut().unwrap().pop();
    let call = lan.call(&ipam);
    let tuning = of_plugin(&call, "tuning").with("mac", "02:00:00:00:00:7b");
    let mappings = json!({"portMappings": []});
    let portmap = of_plugin(&call, "portmap").with("runtimeConfig", mappings);
    let later = [tuning, of_plugin(&call, "sbr"), portmap];
    let mut result = call.add();
    for plugin in &later {
        result = plugin.clone().with("prevResult", result).add();
    }
    assert_eq!(ips(&result), ["10.66.0.10/24"]);
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:7b");
    let rules = lan.pod.ip("rule");
    assert!(rules.contains("from 10.66.0.10 lookup 100"), "{rules}");
    for plugin in [&call].into_iter().chain(&later) {
        plugin
            .clone()
            .with("prevResult", result.clone())
            .succeed("CHECK");
    }
    // The bandwidth plugin shapes a veth's end on the node, and says that there is none.
    let rate = json!({"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 1_000_000}});
    let bandwidth = of_plugin(&call, "bandwidth").with("runtimeConfig", rate);
    let answer = bandwidth.with("prevResult", result.clone()).call("ADD");
    let refused = answer.status != 0 && answer.stdout.contains("veth");
    assert!(refused, "{answer:?}");
    for plugin in later.iter().rev().chain([&call]) {
        plugin
            .clone()
            .with("prevResult", result.clone())
            .succeed("DEL");
    }
    assert!(lan.pod.links().is_empty());
    assert!(lan.leases().is_empty());
}

/// Where other plugins come first, what they report stays.
#[test]
fn what_came_before_in_the_chain_stays_in_the_result() {
    let lan = Lan::new();
    let prev = json!({
        "cniVersion": VERSION,
        "interfaces": [{"name": "veth7"}, {"name": "eth7", "sandbox": lan.pod.path()}],
        "ips": [{"interface": 1, "address": "10.68.0.5/24", "gateway": "10.68.0.1"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let call = lan.call(&lan.host_local()).with("prevResult", prev.clone());
    let result = call.add();
    assert_eq!(result["interfaces"][2]["name"], IFNAME);
    assert_eq!(result["ips"][0], prev["ips"][0]);
    assert_eq!(
        ips(&result),
        ["10.68.0.5/24", "10.66.0.10/24", "fd00:66::10/64"]
    );
    assert_eq!(result["ips"][2]["interface"], 2);
    assert_eq!(result["dns"], prev["dns"]);
    let call = call.with("prevResult", result);
    call.succeed("CHECK");
    call.succeed("DEL");
}

#[test]
fn add_that_fails_with_addresses_reports_both_failures() {
    let lan = Lan::new();
    // A route on the link with a gateway, which the kernel does not take.
    let ipam = lan.script(
        r#"[ $CNI_COMMAND = ADD ] && echo '{"ips": [{"address": "10.66.0.20/24"}],
        "routes": [{"dst": "192.0.2.0/24", "gw": "10.66.0.1", "scope": 254}]}' && exit
        echo '{"code": 142, "msg": "no way"}'; exit 1"#,
    );
    let (code, msg) = lan.call(&ipam).fail("ADD");
    for part in [
        "adding route 192.0.2.0/24 via 10.66.0.1: the kernel answered",
        "addresses could not be released (IPAM plugin \"scripted\" failed (DEL): no way)",
    ] {
        assert!(msg.contains(part), "{msg}");
    }
    assert_eq!(code, 999);
    assert_eq!(lan.verbs(), ["ADD", "DEL"]);
    assert!(lan.pod.links().is_empty());
}
