//! Health and metrics by HTTP.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use kit::{
    kubelet::{Plugin, RESOURCE, command, connected},
    netns::{FAR_END, LOWER, Node, skipped, wait_until},
};
use macvtap::{deviceplugin::metrics::METRICS, selftest::kubelet::Kubelet};

struct Served {
    node: Node,
    _dir: tempfile::TempDir,
    kubelet: Kubelet,
    plugin: Plugin,
    address: String,
}

/// Status line and body.
fn served_get(node: &Node, address: &str, path: &str) -> (String, String) {
    let connect = || Ok(TcpStream::connect(address)?);
    let mut stream = node.host.0.run(connect).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

impl Served {
    fn new() -> Self {
        Self::by(&[])
    }

    /// With a device plugin that is started by these words.
    fn by(words: &[&str]) -> Self {
        let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
        node.host.ip("link set lo up");
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let mut command = command(words, dir.path());
        command.args(["--status-address", "127.0.0.1:0"]);
        let plugin = Plugin::spawn(&node.host, command);
        plugin.wait_for_log("serving health and metrics");
        let log = plugin.log();
        let address = log
            .split("serving health and metrics\" address=")
            .nth(1)
            .unwrap();
        let address = address.lines().next().unwrap().to_owned();
        connected(&kubelet);
        Self {
            node,
            _dir: dir,
            kubelet,
            plugin,
            address,
        }
    }

    fn connect(&self) -> TcpStream {
        let connect = || Ok(TcpStream::connect(&self.address)?);
        self.node.host.0.run(connect).unwrap()
    }

    fn get(&self, path: &str) -> (String, String) {
        served_get(&self.node, &self.address, path)
    }

    /// The metrics by name and labels.
    fn metrics(&self) -> BTreeMap<String, u64> {
        let (_, body) = self.get("/metrics");
        let samples = body.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| line.rsplit_once(' ').unwrap());
        samples
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }
}

#[test]
fn count_what_happens() {
    let served = Served::new();
    let of_resource =
        |name: &str| format!("macvtap_{name}{{resource=\"dataplane\",lower_device=\"{LOWER}\"}}");
    let metrics = served.metrics();
    assert_eq!(metrics[&of_resource("devices")], 100);
    assert_eq!(metrics[&of_resource("devices_healthy")], 100);
    assert_eq!(metrics[&of_resource("registered")], 1);
    assert_eq!(metrics[&of_resource("allocations_total")], 0);
    assert_eq!(metrics["macvtap_learning_enabled"], 1);
    let id = served.kubelet.resource(RESOURCE).unwrap().healthy()[0].clone();
    served
        .kubelet
        .allocate(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    served
        .kubelet
        .allocate(RESOURCE, &["nonsense".to_owned()])
        .unwrap_err();
    served.kubelet.pre_start(RESOURCE, &[id]).unwrap();
    let of_lower = |name: &str| {
        let name = format!("macvtap_lower_device_{name}{{lower_device=\"{LOWER}\"}}");
        served.metrics()[&name]
    };
    assert_eq!(["up", "carrier", "required"].map(of_lower), [1, 1, 1]);
    served.node.wire.ip(&format!("link set {FAR_END} down"));
    wait_until("the cable is pulled", || of_lower("carrier") == 0);
    assert_eq!(of_lower("up"), 1);
    served.node.host.ip(&format!("link set {LOWER} down"));
    wait_until("the lower device is down", || of_lower("up") == 0);
    served.node.host.ip(&format!("link set {LOWER} name other"));
    let failures = of_resource("allocation_failures_total").replace('}', ",reason=\"device_id\"}");
    wait_until("all is counted", || {
        let metrics = served.metrics();
        metrics[&of_resource("allocations_total")] == 1
            && metrics.get(&failures) == Some(&1)
            && metrics[&of_resource("attachments")] == 1
            && metrics[&of_resource("devices_healthy")] == 0
            && metrics["macvtap_link_resyncs_total"] > 0
    });
}

#[test]
fn report_health() {
    let served = Served::new();
    let ok = ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned());
    assert_eq!(served.get("/healthz"), ok);
    assert_eq!(served.get("/readyz"), ok);
    assert!(served.get("/nonsense").0.contains("404"));
    // A kubelet that is gone.
    drop(served.kubelet);
    let get = |path: &str| served_get(&served.node, &served.address, path);
    wait_until("it is not ready", || get("/readyz").0.contains("503"));
    assert!(get("/readyz").1.contains("is not registered"));
    assert_eq!(get("/healthz"), ok);
}

/// What Prometheus' own client makes of them.
#[expect(clippy::too_many_lines, reason = "most of them are Python's")]
#[test]
fn are_read_by_the_parser_of_another_project() {
    let python = kit::root().join("target/python/bin/python");
    let script = "import sys
from prometheus_client.parser import text_string_to_metric_families as parse
families = list(parse(sys.stdin.read()))
for family in families:
    assert family.documentation and family.type in ('counter', 'gauge'), family
    # What has no sample yet, such as frames dropped on no interface, has a type all the same.
    print(family.name + '_total' if family.type == 'counter' else family.name)";
    let mut command = Command::new(python);
    command
        .args(["-c", "import prometheus_client"])
        .stderr(Stdio::null());
    if !command.status().is_ok_and(|status| status.success()) {
        skipped("prometheus_client is not installed; scripts/test does that");
        return;
    }
    let served = Served::new();
    served
        .kubelet
        .allocate(RESOURCE, &["nonsense".to_owned()])
        .unwrap_err();
    let (_, body) = served.get("/metrics");
    let mut command = Command::new(kit::root().join("target/python/bin/python"));
    command
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(body.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?} {body}");
    let seen = String::from_utf8(output.stdout).unwrap();
    for metric in &METRICS {
        assert!(
            seen.lines().any(|name| name == metric.name),
            "{} is not in {seen}",
            metric.name
        );
    }
}

/// More idle connections than are served at a time do not keep a probe out.
#[test]
fn idle_connections_do_not_deny_health() {
    let served = Served::new();
    let ok = ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned());
    let mut idle = Vec::new();
    for _ in 0..4 {
        idle.extend((0..50).map(|_| served.connect()));
        assert_eq!(served.get("/healthz"), ok);
        assert_eq!(served.get("/readyz"), ok);
    }
    let id = served.kubelet.resource(RESOURCE).unwrap().healthy()[0].clone();
    served.kubelet.allocate(RESOURCE, &[id]).unwrap();
}

/// Reading the limits of attachments goes through all network namespaces.
#[test]
fn many_scrapes_at_a_time_read_the_limits_one_after_the_other() {
    let served = Served::new();
    let threads = || {
        let path = format!("/proc/{}/task", served.plugin.id());
        std::fs::read_dir(path).unwrap().count()
    };
    let before = threads();
    let mut scrapes: Vec<TcpStream> = (0..50).map(|_| served.connect()).collect();
    for scrape in &mut scrapes {
        write!(scrape, "GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    }
    for scrape in &mut scrapes {
        let mut text = String::new();
        scrape.read_to_string(&mut text).unwrap();
        assert!(text.contains("macvtap_devices_healthy"), "{text}");
    }
    assert!(threads() <= before + 1, "{before}, then {}", threads());
}

#[test]
fn at_the_limit_of_descriptors_it_does_not_spin() {
    let mut served = Served::by(&["prlimit", "--nofile=26"]);
    let idle: Vec<TcpStream> = (0..40).map(|_| served.connect()).collect();
    served.plugin.wait_for_log("cannot accept connections");
    let before = served.plugin.processor_time();
    std::thread::sleep(Duration::from_secs(1));
    let used = served.plugin.processor_time().saturating_sub(before);
    assert!(used < Duration::from_millis(300), "{used:?}");
    drop(idle);
    wait_until("it is healthy", || served.get("/healthz").0.contains("200"));
    assert!(served.plugin.is_alive());
}

#[test]
fn a_taken_port_costs_no_resource_and_is_served_when_it_is_free() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    node.host.ip("link set lo up");
    let bind = || Ok(TcpListener::bind("127.0.0.1:9403")?);
    let other = node.host.0.run(bind).unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut command = command(&[], dir.path());
    command.args(["--status-address", "localhost:9403"]);
    let plugin = Plugin::spawn(&node.host, command);
    connected(&kubelet);
    plugin.wait_for_log("cannot serve health and metrics; retrying");
    drop(other);
    plugin.wait_for_log("address=127.0.0.1:9403");
    let (status, _) = served_get(&node, "127.0.0.1:9403", "/healthz");
    assert!(status.contains("200 OK"), "{status}");
}

#[test]
fn a_port_alone_is_that_of_all_addresses() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    node.host.ip("link set lo up");
    let mut command = command(&[], dir.path());
    command.args(["--status-address", ":9403"]);
    let plugin = Plugin::spawn(&node.host, command);
    plugin.wait_for_log("serving health and metrics");
    for address in ["127.0.0.1:9403", "[::1]:9403"] {
        let (status, _) = served_get(&node, address, "/healthz");
        assert!(status.contains("200 OK"), "{address}: {status}");
    }
}

/// The table in the README of the manifests is that of the code, and the dashboard and the alerts
/// use what there is.
#[test]
fn are_described() {
    let manifests = kit::root().join("manifests");
    let read = |name: &str| std::fs::read_to_string(manifests.join(name)).unwrap();
    let readme = read("README.md");
    for metric in &METRICS {
        let row = format!("| `{}` | {} | {} |", metric.name, metric.kind, metric.help);
        assert!(readme.contains(&row), "not in manifests/README.md: {row}");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 6);
    let panels = panels.iter().map(|panel| &panel["targets"][0]["expr"]);
    let rules = read("components/prometheus-operator/prometheusrule.yaml");
    let rules: serde_json::Value = serde_yaml_ng::from_str(&rules).unwrap();
    let rules = rules["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 4);
    for rule in rules {
        let row = format!("| `{}` | ", rule["alert"].as_str().unwrap());
        assert!(readme.contains(&row), "not in manifests/README.md: {row}");
    }
    for expression in panels.chain(rules.iter().map(|rule| &rule["expr"])) {
        let expression = expression.as_str().unwrap();
        let names = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let mut names = names.filter(|name| name.starts_with("macvtap_")).peekable();
        // Prometheus' own, where there is no device plugin.
        let is_of_scrape = expression.starts_with("up{");
        assert!(names.peek().is_some() || is_of_scrape, "{expression}");
        assert!(
            names.all(|name| METRICS.iter().any(|metric| metric.name == name)),
            "{expression}"
        );
    }
}
