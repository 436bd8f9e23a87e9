//! A node: its lower device, kubelet, device plugin, and what is true of it when it stands still.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use kit::{
    kubelet::{self, Plugin, WAIT_TIMEOUT},
    netns::{FAR_END, Host, LOWER, Node, tap, tap_of, taps::far_tap, wait_until},
};
use macvtap::{
    deviceplugin::status,
    host::tap as taps,
    selftest::kubelet::{Kubelet, Resource},
    types::status::{LearningStatus, PortStatus},
};
use tempfile::TempDir;

use crate::foreign::{Foreign, Seen};

/// Beside the lower device, for link events that are of no concern.
pub const BYSTANDER: &str = "bystander";

/// In the kubelet's directory: the configuration, and where pods are listed.
const CONFIG: &str = "config.json";
const NETNS_DIR: &str = "netns";

/// What a device plugin held when it was first counted.
#[derive(Clone, Copy)]
struct Baseline {
    descriptors: usize,
    memory: u64,
}

pub struct SoakNode {
    pub node: Node,
    /// The name of its resource: from that the numbers of its taps are drawn.
    name: String,
    dir: TempDir,
    config: PathBuf,
    /// Whether its device plugin is killed now and then.
    pub killed: bool,
    kubelet: RwLock<Option<Kubelet>>,
    pub plugin: Mutex<Plugin>,
    baseline: Mutex<Option<Baseline>>,
    /// IDs that no pod has.
    ids: Mutex<Vec<String>>,
    /// All of them.
    numbers: BTreeSet<u32>,
    /// The far end of the wire; none while there is none.
    pub far: RwLock<Option<File>>,
    /// What is not ours, and how it was when it was last created.
    foreign: Foreign,
    seen: Mutex<Seen>,
    /// Odd while the lower device is being disturbed.
    generation: AtomicU64,
    /// Held for reading during work, for writing to make all stand still.
    still: RwLock<()>,
}

impl SoakNode {
    pub fn new(name: &str, killed: bool) -> Self {
        let node = Node::new();
        node.host.ip(&format!(
            "link add {BYSTANDER} type veth peer name {BYSTANDER}1"
        ));
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join(CONFIG);
        configure(&config, name, 100);
        let kubelet = Kubelet::start(dir.path()).unwrap();
        fs::create_dir(dir.path().join(NETNS_DIR)).unwrap();
        let plugin = start(&node, dir.path());
        let listed = |resource: &Resource| resource.healthy().len() == 100;
        let ids = kubelet
            .wait_for(&kubelet_name(name), WAIT_TIMEOUT, listed)
            .unwrap()
            .healthy();
        let far = far_tap(&node);
        wait_for_wire(&node);
        let numbers = ids.iter().map(|id| tap_of(id)).collect();
        let foreign = Foreign::new(dir.path());
        foreign.create(&node);
        let seen = Mutex::new(foreign.look(&node).expect("they were just created"));
        Self {
            node,
            name: name.to_owned(),
            dir,
            config,
            killed,
            kubelet: RwLock::new(Some(kubelet)),
            plugin: Mutex::new(plugin),
            baseline: Mutex::default(),
            ids: Mutex::new(ids),
            numbers,
            far: RwLock::new(Some(far)),
            foreign,
            seen,
            generation: AtomicU64::new(0),
            still: RwLock::default(),
        }
    }

    /// Held during work.
    pub fn work(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// By this it is known afterwards whether the lower device was undisturbed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Disturbs the lower device.
    pub fn disturb(&self, work: impl FnOnce(&Self)) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        work(self);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Those that are not ours come back after the lower device was made again.
    pub fn create_foreign(&self) {
        self.foreign.create(&self.node);
        *lock(&self.seen) = self
            .foreign
            .look(&self.node)
            .expect("they were just created");
    }

    /// Whether those that are not ours are as they were created. False too while the lower device
    /// is made again.
    pub fn foreign_is_unchanged(&self) -> bool {
        let seen = self.foreign.look(&self.node);
        seen.is_some_and(|seen| seen == *lock(&self.seen))
    }

    /// A pod that is listed as a runtime's are.
    pub fn pod(&self) -> Host {
        let pod = Host::new();
        let name = pod.path().replace('/', "-");
        let path = self.dir.path().join(NETNS_DIR).join(name);
        let _ = fs::remove_file(&path); // of a pod whose descriptor had the number before
        symlink(pod.path(), path).unwrap();
        pod
    }

    /// What learning believes of the port with this tap, if it knows it.
    pub fn believed(&self, number: u32) -> Option<PortStatus> {
        self.learning()?.ports.get(&number).cloned()
    }

    /// The status of learning, if the device plugin answers.
    pub fn learning(&self) -> Option<LearningStatus> {
        let query = || status::query(self.dir.path());
        self.node.host.0.run(query).ok()?.learning
    }

    pub fn take_id(&self, place: u64) -> String {
        let mut ids = lock(&self.ids);
        let place = usize::try_from(place).unwrap() % ids.len();
        ids.swap_remove(place)
    }

    pub fn give_id_back(&self, id: String) {
        lock(&self.ids).push(id);
    }

    /// What the kubelet calls its resource.
    pub fn resource(&self) -> String {
        kubelet_name(&self.name)
    }

    pub fn configure(&self, capacity: usize) {
        configure(&self.config, &self.name, capacity);
    }

    pub fn restart_plugin(&self) {
        let mut plugin = lock(&self.plugin);
        plugin.signal("KILL");
        plugin.end();
        *plugin = start(&self.node, self.dir.path());
    }

    /// Does something with the kubelet, which restarts at no such time.
    pub fn with_kubelet<T>(&self, work: impl FnOnce(&Kubelet) -> T) -> T {
        let kubelet = self.kubelet.read().unwrap_or_else(PoisonError::into_inner);
        work(kubelet.as_ref().unwrap())
    }

    pub fn restart_kubelet(&self) {
        let mut kubelet = self.kubelet.write().unwrap_or_else(PoisonError::into_inner);
        drop(kubelet.take());
        *kubelet = Some(Kubelet::start(self.dir.path()).unwrap());
    }

    /// All stand still: no pod has anything.
    pub fn take_stock(&self) {
        let _still = self.still.write().unwrap_or_else(PoisonError::into_inner);
        // Namespaces that were dropped take a moment to go.
        wait_until("every tap is gone", || {
            taps::numbers().unwrap().is_disjoint(&self.numbers)
        });
        for number in &self.numbers {
            assert!(!tap(*number).exists(), "tap {number} left a node");
        }
        let mut links = self.node.host.links();
        links.sort();
        let peer = format!("{BYSTANDER}1");
        let mut expected: Vec<&str> = self.foreign.names().collect();
        expected.extend([BYSTANDER, &peer, LOWER]);
        expected.sort_unstable();
        assert_eq!(links, expected);
        assert_eq!(
            self.foreign.look(&self.node).as_ref(),
            Some(&*lock(&self.seen))
        );
        let offered = |resource: &Resource| resource.connected && resource.healthy().len() >= 100;
        let resource =
            self.with_kubelet(|kubelet| kubelet.wait_for(&self.resource(), WAIT_TIMEOUT, offered));
        let mut plugin = lock(&self.plugin);
        resource.unwrap_or_else(|error| panic!("{error:#}: {}", plugin.log()));
        assert!(plugin.is_alive(), "{}", plugin.log());
        if !self.killed {
            self.compare(&plugin);
        }
    }

    /// No tap is left, so learning forgets its ports.
    pub fn assert_ports_forgotten(&self) {
        let none = |learning: LearningStatus| learning.ports.is_empty();
        wait_until("learning knows no port that is gone", || {
            self.learning().is_some_and(none)
        });
    }

    fn compare(&self, plugin: &Plugin) {
        let now = Baseline {
            descriptors: plugin.descriptors(),
            memory: plugin.private_memory(),
        };
        let first = *lock(&self.baseline).get_or_insert(now);
        // Connections of a kubelet that is gone take a moment to close, and a watch of the lower
        // device comes and goes with ports that need it.
        wait_until(
            "the device plugin has no more descriptors than before",
            || plugin.descriptors() <= first.descriptors + 3,
        );
        // The log is not the plugin's. It grows by 0.5 MiB in minutes, and then no more; beside tests
        // that leave it little of the processor, allocations wait in a queue.
        let grown = now.memory.saturating_sub(first.memory);
        assert!(
            grown < 16 << 10,
            "{} KiB, {} before",
            now.memory,
            first.memory
        );
    }
}

fn kubelet_name(name: &str) -> String {
    format!("macvtap.network.kubevirt.io/{name}")
}

fn start(node: &Node, dir: &Path) -> Plugin {
    let mut command = kubelet::command(&[], dir);
    command.arg("--config").arg(dir.join(CONFIG));
    command.arg("--netns-dir").arg(dir.join(NETNS_DIR));
    command.env_remove("DP_MACVTAP_CONF");
    Plugin::spawn(&node.host, command)
}

fn configure(path: &std::path::Path, name: &str, capacity: usize) {
    let text = format!(
        r#"[{{"name": "{name}", "lowerDevice": "{LOWER}", "mode": "bridge", "capacity": {capacity}}}]"#
    );
    std::fs::write(path, text).unwrap();
}

/// Waits until frames pass from end to end.
pub fn wait_for_wire(node: &Node) {
    wait_until("the wire is up", || {
        let far = [FAR_END, "far"];
        node.host.is_up(LOWER) && far.iter().all(|name| node.wire.is_up(name))
    });
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
