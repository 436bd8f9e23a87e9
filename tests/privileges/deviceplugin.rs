//! The device plugin in its container.

use std::{
    fs,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicUsize, Ordering},
};

use kit::{
    kubelet::{Plugin, RESOURCE, configuration, connected},
    netns::{Host, IFNAME, LOWER, Node, tap_number, taps, wait_until},
};
use macvtap::{selftest::kubelet::Kubelet, types::mac::MacAddr};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::container::{Container, own_profile, pod};

/// A node with a kubelet and the device plugin's container, and a pod whose netns has a name.
struct World {
    node: Node,
    kubelet: Kubelet,
    dirs: [TempDir; 3],
    pod: Host,
    slot: usize,
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        // The plugin that the tests call looks there.
        fs::create_dir_all("/run/macvtap").unwrap();
        fs::write(dirs[1].path().join("DP_MACVTAP_CONF"), configuration()).unwrap();
        Self {
            node: Node::new(),
            kubelet: Kubelet::start(dirs[0].path()).unwrap(),
            dirs,
            pod: Host::named(),
            slot: process::id() as usize + NEXT.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn container(&self) -> Container {
        let which = &pod()["containers"][0];
        let mounts = [
            ("device-plugins", self.dirs[0].path()),
            ("config", self.dirs[1].path()),
            ("pod-resources", self.dirs[2].path()),
            ("netns", Path::new("/run/netns")),
            ("run", Path::new("/run/macvtap")),
        ];
        Container::new(which, &self.node.host, &mounts)
    }

    fn start(&self, container: &Container) -> Plugin {
        let plugin = Plugin::spawn(&self.node.host, container.command());
        plugin.wait_for_log("healthy");
        plugin
    }

    /// A device's ID; another one in each world and process, for its tap is the machine's.
    fn some_id(&self) -> [String; 1] {
        let resource = connected(&self.kubelet);
        let ids = resource.healthy();
        [ids[self.slot % ids.len()].clone()]
    }

    /// What the device plugin is for, from the list to a port that becomes live.
    fn use_all(&self, container: &Container, plugin: &mut Plugin) {
        let id = self.some_id();
        self.kubelet.allocate(RESOURCE, &id).unwrap();
        self.kubelet.pre_start(RESOURCE, &id).unwrap();
        assert_eq!(
            self.node.host.links().len(),
            2,
            "the lower device, and the pod's macvtap"
        );
        self.kubelet.allocate(RESOURCE, &id).unwrap();
        wait_until("the former owner's macvtap is gone", || {
            self.node.host.links().len() == 1
        });
        self.learn();
        self.reach(&id[0]);
        self.kubelet.drop_streams();
        fs::write(self.dirs[1].path().join("DP_MACVTAP_CONF"), "[]").unwrap();
        plugin.wait_for_log("offering every NIC and bond");
        for words in [["/macvtap", "probe"], ["/macvtap", "doctor"]] {
            let output = container.exec(&words);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.code().is_some_and(|code| code < 2),
                "{words:?}: {output:?}"
            );
            assert!(!text.contains("panicked"), "{text}");
        }
        container.signal("TERM");
        assert_eq!(plugin.end().0, Some(0), "{}", plugin.log());
    }

    /// Node and guest reach each other.
    fn reach(&self, device: &str) {
        let host = &self.node.host;
        for (prefix, length) in [("10.73.0.", 24), ("fd00:73::", 64)] {
            host.ip(&format!("addr add {prefix}1/{length} dev {LOWER}"));
        }
        let text = configuration().replace('}', r#", "hostAccess": true}"#);
        fs::write(self.dirs[1].path().join("DP_MACVTAP_CONF"), text).unwrap();
        let call = json!({"deviceID": device, "hostStack": true});
        let call = self.node.cni(&self.pod, call).added();
        for (prefix, length) in [("10.73.0.", 24), ("fd00:73::", 64)] {
            self.pod
                .ip(&format!("addr add {prefix}5/{length} dev {IFNAME} nodad"));
            for (from, last) in [(&self.pod, 1), (host, 5)] {
                let address = format!("{prefix}{last}");
                wait_until(&address, || {
                    let words = ["ping", "-c", "1", "-W", "1", &address];
                    from.output(Command::new("busybox").args(words))
                        .status
                        .success()
                });
            }
        }
        call.succeed("DEL");
    }

    /// ADD of a pod is answered, and the port live after its first frame.
    fn learn(&self) {
        let number = tap_number();
        let mac = MacAddr([2, 0, 0, 0, 0, 0x11]);
        let call = self.node.allocated(&self.pod, number);
        let call = call.with("mac", mac.to_string()).added();
        assert_eq!(self.pod.mode(), "vepa", "it was not asked");
        let tap = taps::open(number);
        let mut frame = [&[0xff; 6][..], &mac.0, &[0x88, 0xb5]].concat();
        frame.resize(60, 0);
        taps::send(&tap, &frame);
        wait_until("the port is live", || self.pod.mode() == "bridge");
        drop(tap);
        call.succeed("DEL");
    }
}

#[test]
fn the_manifests_rights_suffice() {
    let world = World::new();
    let container = world.container();
    let mut plugin = world.start(&container);
    world.use_all(&container, &mut plugin);
}

#[test]
fn the_seccomp_profile_of_its_own_suffices() {
    let world = World::new();
    let features = tempfile::tempdir().unwrap();
    let container = world.container().with_profile(&own_profile());
    let container = container.with_feature_dir(features.path());
    let mut plugin = world.start(&container);
    wait_until("the feature file is written", || {
        features.path().join("macvtap").exists()
    });
    world.use_all(&container, &mut plugin);
}

#[test]
fn the_seccomp_profile_leaves_out_what_attackers_want() {
    let profile = own_profile();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    let names: Vec<&str> = rules
        .iter()
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .filter_map(Value::as_str)
        .collect();
    for name in [
        "add_key",
        "bpf",
        "chroot",
        "fsopen",
        "init_module",
        "io_uring_setup",
        "kexec_load",
        "keyctl",
        "kill",
        "mknod",
        "mknodat",
        "mount",
        "move_mount",
        "open_by_handle_at",
        "perf_event_open",
        "pivot_root",
        "process_vm_writev",
        "ptrace",
        "symlink",
        "umount2",
        "unshare",
        "userfaultfd",
    ] {
        assert!(!names.contains(&name), "{name}");
    }
    assert!(names.len() < 120, "{}", names.len());
}

/// Without `missing` it still serves; its log then.
fn without(missing: &str) -> (World, Container, Plugin) {
    let world = World::new();
    let container = world.container();
    let mut kept = container.capabilities();
    kept.retain(|name| name != missing);
    assert_eq!(kept.len(), 2);
    let container = container.with_capabilities(&kept);
    let plugin = world.start(&container);
    world.kubelet.allocate(RESOURCE, &world.some_id()).unwrap();
    (world, container, plugin)
}

#[test]
fn without_net_raw_or_sys_admin_it_does_not_learn_and_says_why() {
    for missing in ["CAP_NET_RAW", "CAP_SYS_ADMIN"] {
        let (world, _container, plugin) = without(missing);
        plugin.wait_for_log(&format!("{missing} is missing"));
        world.kubelet.pre_start(RESOURCE, &world.some_id()).unwrap();
    }
}

#[test]
fn without_net_admin_a_pod_without_cni_gets_an_error() {
    let (world, _container, _plugin) = without("CAP_NET_ADMIN");
    let error = world
        .kubelet
        .pre_start(RESOURCE, &world.some_id())
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("CAP_NET_ADMIN"), "{error}");
}
