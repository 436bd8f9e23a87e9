//! A macvtap as a pod's only network: containerd, with IPAM and further plugins in the chain.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
};

use kit::netns::{FAR_END, LOWER, Node, names, wait_until};
use serde_json::{Value, json};

use super::containerd::{Containerd, Pod, has_containerd, launcher};

const GATEWAY: &str = "10.67.0.1";
const PORT: u16 = 4000;

/// The only network of a node.
fn network(ipam: &Value) -> String {
    let plugins = json!([
        {"type": "macvtap", "lowerDevice": LOWER, "ipam": ipam},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.accept_local": "1"}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]);
    json!({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins}).to_string()
}

/// A node whose only network is a macvtap with addresses of host-local.
fn start() -> (Node, Containerd) {
    let node = Node::new();
    node.wire
        .ip(&format!("addr add {GATEWAY}/24 dev {FAR_END}"));
    let ipam = json!({
        "type": "host-local", "dataDir": "{path}/leases",
        "subnet": "10.67.0.0/24", "rangeStart": "10.67.0.10", "gateway": GATEWAY,
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let containerd = Containerd::with_network(&node, &network(&ipam));
    (node, containerd)
}

fn run(containerd: &Containerd) -> Pod {
    let container = launcher(Vec::new(), Vec::new(), &["/bin/sleep", "86400"]);
    containerd
        .run(&containerd.pod("web-0", ""), container)
        .unwrap()
}

#[test]
fn a_pods_only_network_can_be_a_macvtap() {
    if !has_containerd() {
        return;
    }
    let (node, containerd) = start();
    let leases = || {
        let mut names = names(&containerd.dir().join("leases/lan"));
        names.retain(|name| name.starts_with("10.67"));
        names
    };
    let pod = run(&containerd);
    assert_eq!(containerd.cri.address(&pod.sandbox), "10.67.0.10");
    assert_eq!(leases(), ["10.67.0.10"]);
    // As `kubectl exec` sees it: the interface, the default route, what the chain set.
    let command = "/bin/busybox ip -o -4 addr show dev eth0 && /bin/busybox ip route";
    let seen = containerd.exec(&pod, command);
    let route = format!("default via {GATEWAY} dev eth0");
    assert!(
        seen.contains("inet 10.67.0.10/24") && seen.contains(&route),
        "{seen}"
    );
    let sysctl = "cat /proc/sys/net/ipv4/conf/eth0/accept_local";
    assert_eq!(containerd.exec(&pod, sysctl), "1\n");
    let ping = ["ping", "-c", "1", "-W", "5", "10.67.0.10"];
    let ping = node.wire.output(Command::new("busybox").args(ping));
    assert!(ping.status.success(), "{ping:?}");
    containerd.remove(&pod);
    assert!(leases().is_empty(), "{:?}", leases());
    let pod = run(&containerd);
    assert!(containerd.cri.address(&pod.sandbox).starts_with("10.67.0."));
    containerd.remove(&pod);
}

/// Isolated from its own node as it is, the pod serves and is served.
#[test]
fn the_pod_and_other_machines_connect_to_each_other() {
    if !has_containerd() {
        return;
    }
    let (node, containerd) = start();
    let pod = run(&containerd);
    let bind = || Ok(TcpListener::bind((GATEWAY, PORT))?);
    let listener = node.wire.0.run(bind).unwrap();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello"));
    let fetch = format!("/bin/busybox nc {GATEWAY} {PORT} </dev/null");
    assert_eq!(containerd.exec(&pod, &fetch), "hello");
    server.join().unwrap().unwrap();
    // As a probe does.
    let serve = format!("echo alive | /bin/busybox nc -l -p {PORT} >/dev/null 2>&1 &");
    containerd.exec(&pod, &serve);
    let address = SocketAddr::from(([10, 67, 0, 10], PORT));
    let connect = || Ok(TcpStream::connect(address)?);
    let mut stream = None;
    wait_until("the pod listens", || {
        stream = node.wire.0.run(connect).ok();
        stream.is_some()
    });
    let mut answer = [0; 6];
    stream.unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"alive\n");
    containerd.remove(&pod);
}

/// The runtime takes no sandbox without an address.
#[test]
fn without_an_address_it_is_refused() {
    if !has_containerd() {
        return;
    }
    let node = Node::new();
    let containerd = Containerd::with_network(&node, &network(&json!({})));
    let config = containerd.pod("web-0", "");
    let error = containerd.cri.run_sandbox(&config).unwrap_err();
    assert!(
        error.contains("failed to find network info for sandbox"),
        "{error}"
    );
}
