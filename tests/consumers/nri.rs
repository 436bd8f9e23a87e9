//! NRI: pods whose network names nothing but its lower device get their taps from the runtime.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kit::{
    binary,
    guest::QEMU,
    kubelet::{self, Plugin},
    netns::{Node, skipped, tap, tap_exists, wait_until},
    root,
};
use macvtap::{selftest::kubelet::Kubelet, types::mac::MacAddr};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    containerd::{Containerd, Pod, has_containerd, launcher},
    cri::{Container, Sandbox},
};

/// The directories of the containerd releases that `scripts/containerd` unpacked.
fn releases() -> Vec<PathBuf> {
    let releases = ["trixie", "sid"].map(|suite| {
        let bin = root().join("target/containerd").join(suite);
        bin.join("usr/bin")
    });
    let mut releases = releases.to_vec();
    releases.retain(|bin| bin.join("containerd").exists());
    if releases.len() < 2 {
        skipped("scripts/containerd could not unpack two releases of containerd");
    }
    if has_containerd() {
        releases
    } else {
        Vec::new()
    }
}

/// A node whose runtime asks our device plugin.
struct Setup {
    node: Node,
    containerd: Containerd,
    plugin: Plugin,
    kubelet_dir: TempDir,
}

impl Setup {
    fn new(bin: &Path) -> Self {
        let node = Node::new();
        let containerd = Containerd::with_nri(&node, bin);
        let kubelet_dir = tempfile::tempdir().unwrap();
        let plugin = plugin(&node, &containerd, kubelet_dir.path());
        wait_until_ready(&plugin);
        Self {
            node,
            containerd,
            plugin,
            kubelet_dir,
        }
    }

    fn start_plugin(&mut self) {
        self.plugin = plugin(&self.node, &self.containerd, self.kubelet_dir.path());
        wait_until_ready(&self.plugin);
    }
}

fn plugin(node: &Node, containerd: &Containerd, kubelet_dir: &Path) -> Plugin {
    plugin_at(node, &containerd.nri_socket(), kubelet_dir)
}

fn plugin_at(node: &Node, socket: &Path, kubelet_dir: &Path) -> Plugin {
    let mut command = kubelet::command(&[], kubelet_dir);
    command.arg("--nri").arg(socket).args(["-v", "4"]);
    Plugin::spawn(&node.host, command)
}

fn sleeping() -> Container {
    launcher(Vec::new(), Vec::new(), &["/bin/sleep", "86400"])
}

/// The number of the tap that the pod has, after a check that user 107 opens it there.
fn check(containerd: &Containerd, pod: &Pod) -> u32 {
    let paths = containerd.exec(pod, "echo /dev/tap*");
    let number: u32 = paths
        .trim()
        .strip_prefix("/dev/tap")
        .unwrap()
        .parse()
        .unwrap();
    let device = fs::metadata(tap(number)).unwrap().rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let path = tap(number);
    let path = path.display();
    let command = format!("exec 3<>{path} && stat -c '%u:%g %a %t:%T' {path} && id -u");
    let expected = format!("107:107 600 {major:x}:{minor:x}\n{QEMU}\n");
    assert_eq!(containerd.exec(pod, &command), expected);
    number
}

/// What `probe` says of the device plugin.
fn probe(setup: &Setup) -> String {
    let mut command = Command::new(binary());
    command
        .arg("probe")
        .arg("--kubelet-dir")
        .arg(setup.kubelet_dir.path());
    let output = setup.node.host.output(&mut command);
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

fn wait_until_ready(plugin: &Plugin) {
    plugin.wait_for_log("NRI is ready");
}

#[test]
fn a_pod_gets_the_same_tap_whenever_its_sandbox_is_made_again() {
    for bin in releases() {
        let setup = Setup::new(&bin);
        let mut config = setup.containerd.pod("vm", "");
        let mut numbers = Vec::new();
        for attempt in 0..10 {
            config.metadata.as_mut().unwrap().attempt = attempt;
            let pod = setup.containerd.run(&config, sleeping()).unwrap();
            numbers.push(check(&setup.containerd, &pod));
            setup.containerd.remove(&pod);
        }
        numbers.dedup();
        assert_eq!(numbers.len(), 1, "{numbers:?}");
    }
}

#[test]
fn without_a_device_plugin_the_sandbox_fails_and_no_container_starts() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let config = setup.containerd.pod("vm", "");
        setup.plugin.signal("KILL");
        setup.plugin.end();
        let error = setup.containerd.run(&config, sleeping()).err().unwrap();
        assert!(error.contains("would start without a tap"), "{error}");
        assert!(error.contains("is not running"), "{error}");
        setup.start_plugin();
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        check(&setup.containerd, &pod);
    }
}

#[test]
fn a_container_that_started_without_is_reported() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let config = setup.containerd.pod("vm", "");
        let cri = &setup.containerd.cri;
        let sandbox = cri.run_sandbox(&config).unwrap();
        setup.plugin.signal("KILL");
        setup.plugin.end();
        let container = cri.start(&sandbox, &config, sleeping()).unwrap();
        let pod = Pod { sandbox, container };
        let nodes = setup.containerd.exec(&pod, "ls /dev");
        assert!(!nodes.contains("tap"), "{nodes}");
        setup.start_plugin();
        setup.plugin.wait_for_log("container runs without its taps");
        let _kubelet = Kubelet::start(setup.kubelet_dir.path()).unwrap();
        let without = "compute of pod default/vm runs without /dev/tap";
        wait_until("it is reported", || probe(&setup).contains(without));
        setup.containerd.remove(&pod);
        wait_until("it is forgotten", || !probe(&setup).contains(without));
    }
}

/// Between the creation of a container and its start the device plugin may be restarted.
#[test]
fn a_container_that_was_created_with_its_tap_starts_and_one_without_does_not() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let config = setup.containerd.pod("vm", "");
        let cri = &setup.containerd.cri;
        let sandbox = cri.run_sandbox(&config).unwrap();
        let with = cri.create(&sandbox, &config, sleeping()).unwrap();
        setup.plugin.signal("KILL");
        setup.plugin.end();
        let mut other = sleeping();
        other.metadata.as_mut().unwrap().name = "other".into();
        let without = cri.create(&sandbox, &config, other).unwrap();
        setup.plugin = plugin(&setup.node, &setup.containerd, setup.kubelet_dir.path());
        wait_until_ready(&setup.plugin);
        let error = cri.start_created(&without).unwrap_err();
        assert!(error.contains("would start without /dev/tap"), "{error}");
        cri.start_created(&with).unwrap();
        let pod = Pod {
            sandbox,
            container: with,
        };
        check(&setup.containerd, &pod);
        cri.remove_container(&without);
        setup.containerd.remove(&pod);
    }
}

#[test]
fn after_a_restart_of_the_runtime_pods_keep_and_get_their_taps() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let pods = ["before", "after"].map(|name| setup.containerd.pod(name, ""));
        let before = setup.containerd.run(&pods[0], sleeping()).unwrap();
        for _ in 0..4 {
            setup.containerd.restart(&setup.node);
            let after = setup.containerd.run(&pods[1], sleeping()).unwrap();
            check(&setup.containerd, &after);
            setup.containerd.remove(&after);
        }
        check(&setup.containerd, &before);
        let log = setup.plugin.log();
        assert!(!log.contains("without its taps"), "{log}");
    }
}

#[test]
fn of_a_vm_s_containers_compute_alone_gets_the_tap() {
    for bin in releases() {
        let setup = Setup::new(&bin);
        let mut config = setup.containerd.pod("vm", "");
        config.labels = [("kubevirt.io".into(), "virt-launcher".into())].into();
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        check(&setup.containerd, &pod);
        let mut other = sleeping();
        other.metadata.as_mut().unwrap().name = "guest-console-log".into();
        let cri = &setup.containerd.cri;
        let container = cri.start(&pod.sandbox, &config, other).unwrap();
        let sandbox = pod.sandbox.clone();
        let nodes = setup
            .containerd
            .exec(&Pod { sandbox, container }, "ls /dev");
        assert!(!nodes.contains("tap"), "{nodes}");
    }
}

/// Each container to which two plugins give the same device fails.
#[test]
fn a_second_device_plugin_waits_for_the_first_one() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let dir = tempfile::tempdir().unwrap();
        let second = plugin(&setup.node, &setup.containerd, dir.path());
        second.wait_for_log("another device plugin serves NRI");
        let config = setup.containerd.pod("vm", "");
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        check(&setup.containerd, &pod);
        setup.plugin.signal("TERM");
        setup.plugin.end();
        wait_until_ready(&second);
        setup.containerd.remove(&pod);
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        check(&setup.containerd, &pod);
    }
}

/// The network namespace that has a tap, by its name.
fn netns_of(setup: &Setup, number: u32) -> String {
    let mut command = Command::new(binary());
    command.args(["link", "list", "--json", &number.to_string()]);
    let output = setup.node.host.output(&mut command);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    list["macvtaps"][0]["netns"].as_str().unwrap().to_owned()
}

/// The kubelet makes another sandbox for the same pod. It need not wait for the device plugin to
/// register, as it does with a resource.
#[test]
fn a_pod_comes_back_with_its_tap_after_a_reboot() {
    for bin in releases() {
        let mut setup = Setup::new(&bin);
        let mut config = setup.containerd.pod("vm", "");
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        let number = check(&setup.containerd, &pod);
        let netns = netns_of(&setup, number);
        setup.plugin.signal("KILL");
        setup.plugin.end();
        setup.containerd.power_off();
        let deleted = Command::new("ip")
            .args(["netns", "delete", &netns])
            .status();
        assert!(deleted.unwrap().success(), "{netns}");
        wait_until("the macvtap is gone", || !tap_exists(number));
        setup.containerd.power_on(&setup.node);
        config.metadata.as_mut().unwrap().attempt = 1;
        let error = setup.containerd.run(&config, sleeping()).err().unwrap();
        assert!(error.contains("would start without a tap"), "{error}");
        setup.start_plugin();
        setup.containerd.remove(&pod);
        let pod = setup.containerd.run(&config, sleeping()).unwrap();
        assert_eq!(check(&setup.containerd, &pod), number);
    }
}

/// The time that the runtime takes to make a container, in milliseconds.
fn creation(containerd: &Containerd, sandbox: &str, config: &Sandbox) -> f64 {
    let start = Instant::now();
    let container = containerd.cri.create(sandbox, config, sleeping()).unwrap();
    let time = start.elapsed();
    containerd.cri.remove_container(&container);
    time.as_secs_f64() * 1e3
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// `NRI_CREATIONS` measures more of them than the ten that a slow machine allows.
#[test]
fn creating_a_container_takes_as_long_as_without_a_device_plugin() {
    for bin in releases() {
        let setup = Setup::new(&bin);
        let other = Node::new();
        let without = Containerd::with_nri(&other, &bin);
        let pods = [&setup.containerd, &without].map(|containerd| {
            let config = containerd.pod("vm", "");
            let sandbox = containerd.cri.run_sandbox(&config).unwrap();
            (containerd, sandbox, config)
        });
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..count("NRI_CREATIONS", 10) {
            for ((containerd, sandbox, config), times) in pods.iter().zip(&mut times) {
                times.push(creation(containerd, sandbox, config));
            }
        }
        let [with, without] = times.map(median);
        let bin = bin.display();
        eprintln!("{bin}: CreateContainer {with:.2} ms, {without:.2} ms without a device plugin");
        // A machine that does other things meanwhile is not exact to a millisecond.
        assert!(with < without + 25.0, "{with} ms, {without} ms without");
        for (containerd, sandbox, _) in &pods {
            containerd.cri.remove_sandbox(sandbox);
        }
    }
}

/// How often something is done: as the environment says.
fn count(variable: &str, default: u32) -> u32 {
    let count = std::env::var(variable);
    count.map_or(default, |text| text.parse().unwrap())
}

/// How many containers are started while the device plugin is killed again and again.
fn starts() -> u32 {
    count("NRI_STARTS", 20)
}

/// Kills the device plugin at random moments, and starts another one.
fn kill_again_and_again(
    current: &Mutex<Plugin>,
    start: impl Fn() -> Plugin,
    done: &AtomicBool,
) -> u32 {
    let mut kills = 0;
    while !done.load(Ordering::Relaxed) {
        let pause = u64::from(MacAddr::random().unwrap().0[5]) * 8;
        std::thread::sleep(Duration::from_millis(pause));
        let mut plugin = current.lock().unwrap();
        plugin.signal("KILL");
        plugin.end();
        *plugin = start();
        kills += 1;
    }
    kills
}

/// Sets a flag when it is dropped.
struct Set<'a>(&'a AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts a pod until it runs, and removes it. Whether it had its tap: if not, it was reported.
fn run_meanwhile(containerd: &Containerd, current: &Mutex<Plugin>, name: &str) -> bool {
    let config = containerd.pod(name, "");
    let pod = loop {
        match containerd.run(&config, sleeping()) {
            Ok(pod) => break pod,
            Err(error) => assert!(error.contains("start without"), "{error}"),
        }
    };
    let has_tap = containerd.exec(&pod, "ls /dev").contains("tap");
    if !has_tap {
        let plugin = current.lock().unwrap();
        plugin.wait_for_log(&format!("pod=default/{name} container=compute"));
        assert!(plugin.log().contains("container runs without its taps"));
    }
    containerd.remove(&pod);
    has_tap
}

#[test]
fn no_container_starts_without_its_tap_and_without_a_report() {
    for bin in releases() {
        let node = Node::new();
        let containerd = Containerd::with_nri(&node, &bin);
        let kubelet_dir = tempfile::tempdir().unwrap();
        let socket = containerd.nri_socket();
        let start = || plugin_at(&node, &socket, kubelet_dir.path());
        let (current, done) = (Mutex::new(start()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let killer = scope.spawn(|| kill_again_and_again(&current, start, &done));
            let names = (0..starts()).map(|number| format!("vm-{number}"));
            let stop = Set(&done);
            let had = names.filter(|name| run_meanwhile(&containerd, &current, name));
            let had = had.count();
            drop(stop);
            let kills = killer.join().unwrap();
            eprintln!("{had} of {} had their tap, {kills} kills", starts());
            assert!(kills > 0 && had > 0);
        });
    }
}
