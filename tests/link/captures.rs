//! What the READMEs show of the output is what the program prints.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    process::Command,
};

use kit::{
    binary,
    kubelet::{Plugin, connected},
    netns::{
        Host, Node, skipped, tap_of,
        taps::{open, send},
        wait_until,
    },
    pod_resources::PodResources,
    root,
};
use macvtap::selftest::kubelet::Kubelet;
use tempfile::TempDir;

use super::{Resident, alone};

/// Set, it makes the READMEs show what the program prints now.
const UPDATE: &str = "UPDATE_README";
const README: &str = "manifests/README.md";

/// A node with two VMs, the second of which migrates.
struct World {
    node: Node,
    dir: TempDir,
    taps: Vec<u32>,
    pods: Vec<(Host, Resident)>,
    _kubelet: Kubelet,
    _plugin: Plugin,
    _resources: PodResources,
}

impl World {
    fn new() -> Self {
        let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
        for name in ["device-plugins", "bin", "net.d", "etc"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::copy(binary(), dir.path().join("bin/macvtap")).unwrap();
        let kubelet_dir = dir.path().join("device-plugins");
        let kubelet = Kubelet::start(&kubelet_dir).unwrap();
        let plugin = Plugin::start(&node.host, &kubelet_dir);
        let ids: Vec<String> = connected(&kubelet).healthy().into_iter().take(2).collect();
        let mut ids = ids;
        ids.sort_by_key(|id| tap_of(id));
        let pods = ["vms/virt-launcher-vm1-x7k2p", "vms/virt-launcher-vm2-q9wzt"];
        let named: Vec<(&str, &str)> = pods.into_iter().zip(ids.iter().map(|id| &id[..])).collect();
        let resources = PodResources::serve(&kubelet_dir, &named);
        let mut world = Self {
            taps: ids.iter().map(|id| tap_of(id)).collect(),
            node,
            dir,
            pods: Vec::new(),
            _kubelet: kubelet,
            _plugin: plugin,
            _resources: resources,
        };
        for (index, id) in ids.iter().enumerate() {
            world.attach(index + 1, id);
        }
        world.first_vm_runs();
        world.add_program("containerd", "containerd containerd.io v2.1.9");
        world.add_program("kubelet", "Kubernetes v1.36.1");
        world
    }

    fn attach(&mut self, number: usize, id: &str) {
        let pod = Host::named();
        let interface = format!("pod37a8eec1ce{number}");
        let call = self.node.cni(&pod, serde_json::json!({"deviceID": id}));
        let call = call.with("mac", format!("02:00:00:00:00:0{number}"));
        call.env("CNI_IFNAME", &interface).add();
        let resident = Resident::new(&pod);
        self.pods.push((pod, resident));
    }

    /// It sends a frame, by which learning knows that it is here.
    fn first_vm_runs(&self) {
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x08, 0x06], &[0; 46]].concat();
        let is_active = || {
            send(&open(self.taps[0]), &frame);
            let list = self.capture(200, "link list");
            list.contains("bridge  ") && list.contains("bridge (parked)")
        };
        wait_until("the first port is active", is_active);
    }

    fn add_program(&self, name: &str, version: &str) {
        let file = self.dir.path().join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }

    /// What a command prints on a terminal of so many columns.
    fn capture(&self, columns: u32, words: &str) -> String {
        let (binary, dir) = (binary(), self.dir.path().display());
        let doctor = format!(
            "--cni-dir {dir}/bin --cni-conf-dir {dir}/net.d --runtime-conf-dir {dir}/etc \
             --nri-socket {dir}/etc"
        );
        let options = match words {
            "doctor" => &doctor,
            // Other tests have lower devices in other network namespaces.
            "link list" => "--lower-device eth0",
            _ => "",
        };
        let script = format!(
            "stty cols {columns} rows 30; {} {words} {options} --kubelet-dir {dir}/device-plugins",
            binary.display()
        );
        let path = format!("{dir}/bin:{}", std::env::var("PATH").unwrap());
        let mut command = Command::new("script");
        command.args(["-qec", &script, "/dev/null"]);
        command.envs([("NO_COLOR", "1"), ("TERM", "dumb"), ("PATH", &path)]);
        let output = self.node.host.output(&mut command);
        self.stable(&String::from_utf8(output.stdout).unwrap())
    }

    /// What differs between two runs, as on a node.
    fn stable(&self, text: &str) -> String {
        let dir = self.dir.path().display().to_string();
        let mut text = text.replace('\r', "");
        for (tap, shown) in self.taps.iter().zip(["16777301", "16777302"]) {
            text = text.replace(&tap.to_string(), shown);
        }
        for ((pod, _), shown) in self
            .pods
            .iter()
            .zip(["cni-4f1c0a52-7c1b-4e6", "cni-9a27b3d1-02fe-4c8"])
        {
            text = text.replace(pod.path().trim_start_matches("/run/netns/"), shown);
        }
        for (own, shown) in [
            ("bin", "/opt/cni/bin"),
            ("net.d", "/etc/cni/net.d"),
            ("device-plugins", "/var/lib/kubelet/device-plugins"),
        ] {
            text = text.replace(&format!("{dir}/{own}"), shown);
        }
        let mut of_others = false;
        let lines = text.lines().filter(|line| {
            // A long line goes on below, until the next finding or the end of the paragraph.
            let goes_on = !line.trim().is_empty() && !line.starts_with("  ok ");
            let goes_on = goes_on && !line.starts_with("  FAIL ");
            of_others = is_of_others(line) || (of_others && goes_on);
            !of_others
        });
        let lines = lines.map(|line| match line.split_once(" macvtaps, no problems") {
            Some(_) => "  ok   macvtaps       2 macvtaps, no problems",
            None => line.trim_end(),
        });
        lines.collect::<Vec<_>>().join("\n") + "\n"
    }
}

/// Other tests have macvtaps meanwhile.
fn is_of_others(line: &str) -> bool {
    line.starts_with("Taps in network namespaces that are not visible")
        || line.contains("note macvtaps")
}

/// The block of the README after the comment that names a capture.
fn shown<'a>(readme: &'a str, name: &str) -> &'a str {
    let comment = format!("<!-- {name} -->\n```text\n");
    let (_, rest) = readme
        .split_once(&comment)
        .unwrap_or_else(|| panic!("no {comment}"));
    rest.split_once("```").unwrap().0
}

#[test]
fn the_readme_shows_what_is_printed() {
    let _alone = alone();
    let world = World::new();
    let path = root().join(README);
    let mut readme = fs::read_to_string(&path).unwrap();
    for (columns, words) in [
        (80, "link list"),
        (140, "link list"),
        (80, "doctor"),
        (140, "doctor"),
    ] {
        let name = format!("{words}, {columns} columns");
        let printed = world.capture(columns, words);
        if printed.contains("  note ") {
            skipped("this kernel has less than the README shows of doctor");
            continue;
        }
        if std::env::var_os(UPDATE).is_some() {
            readme = readme.replace(shown(&readme, &name), &printed);
            fs::write(&path, &readme).unwrap();
        }
        let shown = shown(&readme, &name);
        assert_eq!(
            shown, printed,
            "{README} is not up to date: set {UPDATE}=1 and run this test"
        );
    }
    // Its figures are never the same.
    for columns in [80, 140] {
        let printed = world.capture(columns, "link top --count 1 --interval 0.1");
        let shown = shown(&readme, &format!("link top, {columns} columns"));
        let head = |text: &str| {
            text.lines()
                .nth(1)
                .unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(head(shown), head(&printed));
        assert!(
            shown
                .lines()
                .all(|line| line.chars().count() <= columns as usize)
        );
    }
}
