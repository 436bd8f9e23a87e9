//! Two nodes on a switch, with learning device plugins.

use std::{fs::File, os::unix::fs::symlink, path::PathBuf, process::Command, time::Duration};

use macvtap::{
    deviceplugin::status,
    types::{mac::MacAddr, status::LearningStatus},
};
use tempfile::TempDir;

use crate::{
    binary,
    kubelet::{Plugin, configuration},
    netns::{Cni, FAR_END, Host, LOWER, Node, tap_number, taps, wait_until},
};

/// The VM's MAC, which is the same on both nodes.
pub const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xaa]);

/// A node, and the device plugin that learns there.
pub struct Learner {
    pub node: Node,
    pub plugin: Option<Plugin>,
    dir: TempDir,
}

impl Learner {
    pub fn new() -> Self {
        let mut learner = Self::without_plugin();
        learner.start();
        learner
    }

    pub fn without_plugin() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("netns")).unwrap();
        std::fs::create_dir(dir.path().join("kubelet")).unwrap();
        Self {
            node: Node::new(),
            plugin: None,
            dir,
        }
    }

    /// The directory of the kubelet's socket.
    pub fn kubelet_dir(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    /// The directory that lists the network namespaces of pods.
    pub fn netns_dir(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// Starts the device plugin.
    pub fn start(&mut self) {
        self.start_by(Command::new(binary()), &[]);
        self.plugin
            .as_ref()
            .unwrap()
            .wait_for_log("learning ports=");
    }

    /// Starts it by a command, to which its words are added, with further words.
    pub fn start_by(&mut self, mut command: Command, words: &[&str]) {
        command
            .arg("deviceplugin")
            .arg("--netns-dir")
            .arg(self.netns_dir());
        command
            .arg("--kubelet-dir")
            .arg(self.kubelet_dir())
            .args(words);
        command.env("DP_MACVTAP_CONF", configuration());
        self.plugin = Some(Plugin::spawn(&self.node.host, command));
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.plugin = None;
    }

    pub fn log(&self) -> String {
        self.plugin.as_ref().unwrap().log()
    }

    /// What learning did so far.
    pub fn stats(&self) -> LearningStatus {
        let ask = || status::query(&self.kubelet_dir());
        self.node.host.0.run(ask).unwrap().learning.unwrap()
    }

    /// Makes a pod that is listed as a runtime's are.
    pub fn pod(&self) -> Host {
        let pod = Host::new();
        let name = format!("cni-{}", pod.path().replace('/', "-"));
        let path = self.netns_dir().join(name);
        let _ = std::fs::remove_file(&path); // of a pod whose descriptor had the number before
        symlink(pod.path(), path).unwrap();
        pod
    }

    /// Attaches a pod with the VM's MAC.
    pub fn attach(&self) -> Port<'_> {
        self.attach_as(VM)
    }

    pub fn attach_as(&self, mac: MacAddr) -> Port<'_> {
        let (pod, number, cni) = self.attach_pod(mac);
        let tap = taps::open(number);
        Port {
            pod,
            number,
            cni,
            tap,
        }
    }

    /// Attaches a pod whose port begins parked. On a busy machine the answer may come too late
    /// for that: then it is attached again.
    pub fn attach_parked(&self) -> Port<'_> {
        self.attach_parked_as(VM)
    }

    pub fn attach_parked_as(&self, mac: MacAddr) -> Port<'_> {
        for _ in 0..50 {
            let port = self.attach_as(mac);
            if port.mode() == "vepa" {
                return port;
            }
            port.cni.succeed("DEL");
        }
        panic!("no port begins parked");
    }

    /// Attaches a pod, without opening its tap.
    pub fn attach_pod(&self, mac: MacAddr) -> (Host, u32, Cni<'_>) {
        self.attach_pod_with(mac, &[])
    }

    /// Attaches a pod of a network that has further keys.
    pub fn attach_pod_with(
        &self,
        mac: MacAddr,
        keys: &[(&str, serde_json::Value)],
    ) -> (Host, u32, Cni<'_>) {
        let (pod, number) = (self.pod(), tap_number());
        let cni = self.node.allocated(&pod, number);
        let cni = cni.with("mac", mac.to_string());
        let keys = keys.iter();
        let cni = keys.fold(cni, |cni, (key, value)| cni.with(key, value.clone()));
        let cni = cni.added();
        (pod, number, cni)
    }
}

/// A neighbour of the node's VMs, by its interface "peer0": a macvlan on the lower device.
pub fn neighbour(node: &Node) -> Host {
    let (neighbour, host) = (Host::new(), &node.host);
    host.ip(&format!(
        "link add peer0 link {LOWER} type macvlan mode bridge"
    ));
    host.ip(&format!("link set peer0 netns {}", neighbour.path()));
    neighbour.ip("link set peer0 up");
    neighbour
}

impl Drop for Learner {
    fn drop(&mut self) {
        if let (true, Some(plugin)) = (std::thread::panicking(), &self.plugin) {
            eprintln!("device plugin: {}", plugin.log());
        }
    }
}

/// A pod with the tap that a VM's QEMU would hold.
pub struct Port<'a> {
    pub pod: Host,
    pub number: u32,
    pub cni: Cni<'a>,
    pub tap: File,
}

impl Port<'_> {
    /// The mode it is in.
    pub fn mode(&self) -> String {
        self.pod.mode()
    }

    /// Waits until it is in a mode.
    pub fn becomes(&self, mode: &str) {
        wait_until(mode, || self.mode() == mode);
    }

    /// Looks whether it stays in a mode.
    pub fn stays(&self, mode: &str) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.mode(), mode);
    }

    /// The VM sends a frame.
    pub fn send(&self, frame: &[u8]) {
        taps::send(&self.tap, frame);
    }

    /// Waits until the VM receives a frame.
    pub fn wait_for(&self, frame: &[u8]) {
        assert!(taps::arrives(&self.tap, frame, Duration::from_secs(10)));
    }

    /// Whether the VM receives a frame that it should not.
    pub fn receives(&self, frame: &[u8]) -> bool {
        taps::arrives(&self.tap, frame, Duration::from_millis(300))
    }
}

/// Connects the nodes' wires to one switch.
pub fn connect(nodes: [&Node; 2]) -> Host {
    let switch = Host::new();
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    for (number, node) in nodes.iter().enumerate() {
        let words = format!(
            "link set {FAR_END} name port{number} netns {}",
            switch.path()
        );
        node.wire.ip(&words);
        switch.ip(&format!("link set port{number} master br0 up"));
    }
    // The kernel sees after a moment that there is a carrier again, and drops frames before.
    wait_until("the switch has its ports up", || {
        let ports = ["port0", "port1", "br0"];
        ports.iter().all(|name| switch.is_up(name))
            && nodes.iter().all(|node| node.host.is_up(LOWER))
    });
    switch
}

/// A frame to everybody that is no announcement.
pub fn broadcast(source: MacAddr) -> Vec<u8> {
    let payload = [0x88, 0xb5].into_iter().chain([0x5a; 60]);
    [0xff; 6]
        .into_iter()
        .chain(source.0)
        .chain(payload)
        .collect()
}

/// What QEMU announces a migrated guest with.
pub fn rarp(source: MacAddr) -> Vec<u8> {
    arp_like(0x8035, 3, source, [0; 4])
}

/// A gratuitous ARP.
pub fn gratuitous_arp(source: MacAddr) -> Vec<u8> {
    arp_like(0x0806, 1, source, [10, 0, 0, 9])
}

fn arp_like(kind: u16, operation: u8, source: MacAddr, address: [u8; 4]) -> Vec<u8> {
    let header = [0, 1, 8, 0, 6, 4, 0, operation];
    let mut frame = [&[0xff; 6][..], &source.0, &kind.to_be_bytes(), &header].concat();
    frame.extend([&source.0[..], &address, &source.0, &address].concat());
    frame.resize(60, 0);
    frame
}
