//! How fast the device plugin is and what it takes, against the stand-in for the kubelet.
//!
//! Called by `scripts/bench`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use kit::kubelet::{Plugin, RESOURCE, SOCKET, WAIT_TIMEOUT};
use kit::netns::{LOWER, Node};
use macvtap::{
    deviceplugin::grpc::{
        api::{
            AllocateRequest, ContainerAllocateRequest, device_plugin_client::DevicePluginClient,
        },
        channel,
    },
    selftest::kubelet::{Kubelet, Resource},
};
use tempfile::tempdir;

const ROUNDS: usize = 50;

fn main() {
    println!("| device plugin | measured |");
    println!("| --- | --- |");
    start_to_list();
    restarts();
    many_devices();
    link_events();
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
    let times = allocations(dir.path().join(SOCKET), &ids);
    println!("| Allocate round trip | {} |", median(times));
    let memory = plugin.memory();
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
    println!("| resident memory, 1 resource of 100 devices | {memory} KiB |");
}

/// The times of calls by a client that is already connected, as the kubelet is.
fn allocations(socket: PathBuf, ids: &[String]) -> Vec<Duration> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = channel::connect(socket).await.unwrap();
        let mut client = DevicePluginClient::new(channel);
        let mut times = Vec::new();
        for id in ids.iter().cycle().take(1000) {
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
    })
}

fn many_devices() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let entries = (0..64).map(|number| {
        format!(r#"{{"name": "r{number}", "lowerDevice": "{LOWER}", "capacity": 1000}}"#)
    });
    let entries: Vec<String> = entries.collect();
    let text = format!("[{}]", entries.join(","));
    let start = Instant::now();
    let plugin = Plugin::configured(&node.host, dir.path(), &text);
    for number in 0..64 {
        let name = format!("macvtap.network.kubevirt.io/r{number}");
        let all = |resource: &Resource| resource.healthy().len() == 1000;
        kubelet.wait_for(&name, WAIT_TIMEOUT, all).unwrap();
    }
    let took = start.elapsed().as_secs_f64() * 1e3;
    let memory = plugin.memory();
    println!("| 64 resources of 1,000 devices | {took:.0} ms to the last list, {memory} KiB |");
}

fn link_events() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, whole).unwrap();
    node.host.ip("link add flap type bridge");
    let batch = dir.path().join("batch");
    std::fs::write(
        &batch,
        "link set flap up\nlink set flap down\n".repeat(5000),
    )
    .unwrap();
    let before = plugin.processor_time();
    let start = Instant::now();
    node.host.ip(&format!("-batch {}", batch.display()));
    let took = start.elapsed();
    std::thread::sleep(Duration::from_millis(100));
    let used = plugin.processor_time().saturating_sub(before).as_millis();
    let took = took.as_millis();
    println!("| processor time for 10,000 link events in {took} ms | {used} ms |");
}
