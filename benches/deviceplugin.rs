//! How fast the device plugin is and what it takes, against the stand-in for the kubelet.
//!
//! Called by `scripts/bench`.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::kubelet::{Plugin, RESOURCE, SOCKET, TUNABLES, WAIT_TIMEOUT};
use kit::netns::{Host, LOWER, Node};
use macvtap::{
    deviceplugin::grpc::{
        api::{
            AllocateRequest, ContainerAllocateRequest, device_plugin_client::DevicePluginClient,
        },
        channel,
    },
    selftest::kubelet::{Kubelet, Resource},
};
use tempfile::{NamedTempFile, tempdir};

const ROUNDS: usize = 50;

fn main() {
    println!("| device plugin | measured |");
    println!("| --- | --- |");
    start_to_list();
    restarts();
    memory();
    link_events();
    at_size();
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e3;
    format!("{:.2} ms median, {:.2} ms p90", at(50), at(90))
}

fn whole(resource: &Resource) -> bool {
    resource.healthy().len() == 100
}

fn start_to_list() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let plugin = Plugin::start(&node.host, dir.path());
        kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, whole).unwrap();
        let took = start.elapsed();
        drop(plugin);
        let gone = |resource: &Resource| !resource.connected;
        kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, gone).unwrap();
        took
    });
    println!("| start to first list | {} |", median(times.collect()));
}

fn restarts() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let plugin = Plugin::start(&node.host, dir.path());
    let mut kubelet = Kubelet::start(dir.path()).unwrap();
    let resource = kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, whole).unwrap();
    let before = plugin.descriptors();
    let ids = resource.healthy();
    let times = allocations(&dir.path().join(SOCKET), &ids, 1, 1000);
    println!("| Allocate round trip | {} |", median(times));
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        drop(kubelet);
        let start = Instant::now();
        kubelet = Kubelet::start(dir.path()).unwrap();
        kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, whole).unwrap();
        times.push(start.elapsed());
    }
    println!("| kubelet restart to list | {} |", median(times));
    let after = plugin.descriptors();
    println!("| descriptors before and after {ROUNDS} kubelet restarts | {before}, {after} |");
}

fn memory() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let _kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::alone(&node.host, dir.path(), TUNABLES);
    let (memory, own) = (plugin.memory(), plugin.private_memory());
    let of = "of which its own are";
    println!("| resident memory, 1 resource of 100 devices | {memory} KiB, {of} {own} KiB |");
}

/// The times of calls, `calls` by each of `clients` that are already connected, as the kubelet is.
fn allocations(socket: &Path, ids: &[String], clients: usize, calls: usize) -> Vec<Duration> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let clients = (0..clients).map(|client| {
            let (socket, ids) = (socket.to_owned(), ids.to_vec());
            tokio::spawn(async move { allocate(socket, &ids, client * calls, calls).await })
        });
        let clients: Vec<_> = clients.collect();
        let mut times = Vec::new();
        for client in clients {
            times.extend(client.await.unwrap());
        }
        times
    })
}

async fn allocate(socket: PathBuf, ids: &[String], first: usize, calls: usize) -> Vec<Duration> {
    let channel = channel::connect(socket).await.unwrap();
    let mut client = DevicePluginClient::new(channel);
    let mut times = Vec::new();
    for id in ids.iter().cycle().skip(first % ids.len()).take(calls) {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: vec![id.clone()],
            }],
        };
        let start = Instant::now();
        client.allocate(request).await.unwrap();
        times.push(start.elapsed());
    }
    times
}

/// As large as a node gets.
fn at_size() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let pods: Vec<Host> = (0..100).map(|_| Host::new()).collect();
    for (number, pod) in pods.iter().enumerate() {
        node.attach(pod, number * 10..number * 10 + 10);
    }
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let entries = (0..64).map(|number| {
        format!(r#"{{"name": "r{number}", "lowerDevice": "{LOWER}", "capacity": 1000}}"#)
    });
    let entries: Vec<String> = entries.collect();
    let text = format!("[{}]", entries.join(","));
    let start = Instant::now();
    let plugin = Plugin::configured(&node.host, dir.path(), &text);
    let name = |number| format!("macvtap.network.kubevirt.io/r{number}");
    for number in 0..64 {
        let all = |resource: &Resource| resource.healthy().len() == 1000;
        kubelet.wait_for(&name(number), WAIT_TIMEOUT, all).unwrap();
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    let what = "64 resources of 1,000 devices beside 1,000 macvtaps";
    let (memory, used) = (plugin.memory(), plugin.processor_time().as_millis());
    println!(
        "| {what} | {took:.0} ms to the last list, {used} ms of processor time, {memory} KiB |"
    );
    let ids = kubelet.resource(&name(0)).unwrap().healthy();
    let socket = dir.path().join("macvtap.network.kubevirt.io_r0");
    for (clients, calls) in [(1, 2000), (64, 50)] {
        let mut times = allocations(&socket, &ids, clients, calls);
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e3;
        let (median, last) = (at(50), at(99));
        println!("| Allocate there, {clients} clients | {median:.2} ms p50, {last:.2} ms p99 |");
    }
    events(&node, &plugin, "there");
    let lists = (0..64).map(|number| kubelet.resource(&name(number)).unwrap().lists);
    let (lists, memory) = (lists.sum::<u32>(), plugin.memory());
    println!("| lists sent to the kubelet by then, and memory | {lists}, {memory} KiB |");
}

fn link_events() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, whole).unwrap();
    events(&node, &plugin, "with 1 resource");
}

/// What 10,000 link events cost.
fn events(node: &Node, plugin: &Plugin, with: &str) {
    node.host.ip("link add flap type bridge");
    let mut batch = NamedTempFile::new().unwrap();
    let lines = "link set flap up\nlink set flap down\n".repeat(5000);
    batch.write_all(lines.as_bytes()).unwrap();
    let before = plugin.processor_time();
    let start = Instant::now();
    node.host.ip(&format!("-batch {}", batch.path().display()));
    let took = start.elapsed();
    std::thread::sleep(Duration::from_millis(100));
    let used = plugin.processor_time().saturating_sub(before).as_millis();
    let took = took.as_millis();
    println!("| processor time for 10,000 link events in {took} ms, {with} | {used} ms |");
}
