//! containerd, driven by the CRI as the kubelet drives it: what a pod with a tap goes through.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use kit::{
    binary,
    guest::{QEMU, can_run},
    lock_dev,
    netns::{Node, device_id, owner, skipped, tap, tap_number},
    wire::sha256,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::cri::{
    Capabilities, Container, Cri, Device, Int64, Linux, Metadata, Mount, Name, Sandbox,
    SecurityContext,
};

/// Where Debian has the plugins that give a pod its first interface.
const PLUGINS: &str = "/usr/lib/cni";
const IMAGE: &str = "localhost/guest:1";
/// Multus' part: it looks up which device the kubelet allocated to the pod, and gives it to the plugin.
const ALLOCATED: &str = r#"#!/bin/sh
pod=${CNI_ARGS##*K8S_POD_NAME=}
dir=${0%/bin/allocated}
device=$(cat "$dir/devices/${pod%%;*}")
exec 3<&0
sed "s|ALLOCATED|$device|; s|allocated|macvtap|" <&3 | "$dir/bin/macvtap"
"#;
/// A plugin that fails while the file "broken" is there.
const FLAKY: &str = r#"#!/bin/sh
dir=${0%/bin/flaky}
if [ "$CNI_COMMAND" = ADD ] && [ -e "$dir/broken" ]; then
	echo '{"cniVersion": "1.0.0", "code": 999, "msg": "the second plugin fails"}'
	exit 1
fi
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion": "1.0.0"}'
"#;
const FIRST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp",
    "ipam": {"type": "host-local", "subnet": "10.12.0.0/16"}}]}"#;
const SECOND: &str = r#"{"cniVersion": "1.0.0", "name": "vms", "plugins": [
    {"type": "allocated", "deviceID": "ALLOCATED", "master": "eth9"}, {"type": "flaky"}]}"#;

const CONFIG: &str = r#"
version = 2
root = "{path}/root"
state = "{path}/state"
[grpc]
address = "{path}/sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{path}/bin"
conf_dir = "{path}/net.d"
max_conf_num = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#;
const NRI_CONFIG: &str = r#"
[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = "{path}/nri/nri.sock"
plugin_path = "{path}/nri/plugins"
plugin_config_path = "{path}/nri/conf.d"
"#;
/// A network that names its lower device alone.
const BY_NRI: &str = r#"{"cniVersion": "1.0.0", "name": "vms", "plugins": [
    {"type": "macvtap", "lowerDevice": "eth0"}]}"#;

/// A containerd of the test's own in a node's network namespace, and the CRI to it.
pub struct Containerd {
    daemon: Child,
    dir: TempDir,
    /// Where its programs are, if not where the machine's are.
    bin: Option<PathBuf>,
    pub cri: Cri,
}

/// A pod that runs, with one container.
pub struct Pod {
    pub sandbox: String,
    pub container: String,
}

/// Whether this machine has what it needs. Says so if not.
pub fn has_containerd() -> bool {
    let plugins = Path::new(PLUGINS).join("ptp").exists();
    if !plugins {
        skipped("containernetworking-plugins is not installed; scripts/test does that");
    }
    plugins && can_run(&["containerd", "ctr", "runc"])
}

impl Containerd {
    pub fn start(node: &Node) -> Self {
        Self::start_with(node, None, &[FIRST, SECOND])
    }

    /// Starts one whose pods have this network only. `{path}` stands for a directory of its own.
    pub fn with_network(node: &Node, conflist: &str) -> Self {
        Self::start_with(node, None, &[conflist])
    }

    /// Starts the one in the directory `bin`, with NRI; its pods have a macvtap without a device
    /// ID.
    pub fn with_nri(node: &Node, bin: &Path) -> Self {
        Self::start_with(node, Some(bin.to_owned()), &[FIRST, BY_NRI])
    }

    fn start_with(node: &Node, bin: Option<PathBuf>, networks: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), bin.is_some(), networks);
        node.host.ip("link set lo up"); // its streaming server binds there
        let daemon = daemon(node, dir.path(), bin.as_deref());
        let cri = Cri::new(dir.path().join("sock"));
        let containerd = Self {
            daemon,
            dir,
            bin,
            cri,
        };
        containerd.wait_until_up();
        containerd.import();
        containerd
    }

    fn wait_until_up(&self) {
        let start = Instant::now();
        while !self.cri.is_up() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "containerd is not up"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it and starts it again. Its pods go on.
    pub fn restart(&mut self, node: &Node) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = daemon(node, self.dir.path(), self.bin.as_deref());
        self.wait_until_up();
    }

    /// Ends it and everything that runs by it, as the machine's end does: what is under /run is
    /// gone, what is on the disk stays.
    pub fn power_off(&mut self) {
        self.delete_tasks();
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.end_shims();
        self.unmount();
        fs::remove_dir_all(self.dir.path().join("state")).unwrap();
    }

    /// Starts it again.
    pub fn power_on(&mut self, node: &Node) {
        self.daemon = daemon(node, self.dir.path(), self.bin.as_deref());
        self.wait_until_up();
    }

    fn delete_tasks(&self) {
        let list = self.ctr(&["tasks", "list", "--quiet"]);
        for id in String::from_utf8_lossy(&list.stdout).lines() {
            self.ctr(&["tasks", "delete", "--force", id]);
        }
    }

    /// The names of the network namespaces of the pods that it still has.
    fn network_namespaces(&self) -> BTreeSet<String> {
        let list = self.ctr(&["containers", "list", "--quiet"]).stdout;
        let specs = String::from_utf8_lossy(&list).into_owned();
        let specs = specs
            .lines()
            .map(|id| self.ctr(&["containers", "info", "--spec", id]).stdout);
        let names = specs.flat_map(|spec| {
            let spec: Value = serde_json::from_slice(&spec).unwrap_or_default();
            let namespaces = spec["linux"]["namespaces"].as_array().cloned();
            let paths = namespaces.unwrap_or_default().into_iter();
            paths.filter_map(|namespace| {
                let name = namespace["path"]
                    .as_str()?
                    .strip_prefix("/var/run/netns/")?;
                name.starts_with("cni-").then(|| name.to_owned())
            })
        });
        names.collect()
    }

    /// Ends shims of sandboxes, whose tasks are gone.
    fn end_shims(&self) {
        let address = self.dir.path().join("sock");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let command_line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
            let is_shim = words[0].ends_with(b"/containerd-shim-runc-v2")
                && words.contains(&address.as_os_str().as_encoded_bytes());
            let id = process.file_name();
            if let Some(id) = id
                .to_str()
                .and_then(|id| id.parse().ok())
                .filter(|_| is_shim)
            {
                let _ = kill(Pid::from_raw(id), Signal::SIGKILL);
            }
        }
    }

    /// Unmounts what it mounted under its state.
    fn unmount(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| point.starts_with(dir)) {
            let _ = Command::new("umount").args(["--lazy", point]).status();
        }
    }

    pub fn nri_socket(&self) -> PathBuf {
        self.dir.path().join("nri/nri.sock")
    }

    fn ctr(&self, words: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.path().join("sock"));
        command.args(["--namespace", "k8s.io"]).args(words);
        command.output().unwrap()
    }

    fn import(&self) {
        let archive = self.dir.path().join("image.tar");
        let output = self.ctr(&["images", "import", archive.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }

    /// What the kubelet gives the runtime for a pod with an allocated device.
    pub fn pod(&self, name: &str, device_id: &str) -> Sandbox {
        fs::write(self.dir.path().join("devices").join(name), device_id).unwrap();
        Sandbox {
            metadata: Some(Metadata {
                name: name.into(),
                uid: format!("uid-{name}-{}", tap_number()),
                namespace: "default".into(),
                attempt: 0,
            }),
            labels: HashMap::new(),
            linux: None,
        }
    }

    /// Makes a pod's sandbox, and a container in it that runs `command`.
    pub fn run(&self, config: &Sandbox, container: Container) -> Result<Pod, String> {
        let sandbox = self.cri.run_sandbox(config)?;
        let container = self.cri.create(&sandbox, config, container);
        let container = container.inspect_err(|_| self.cri.remove_sandbox(&sandbox))?;
        let pod = Pod { sandbox, container };
        let started = self.cri.start_created(&pod.container);
        started.inspect_err(|_| self.remove(&pod))?;
        Ok(pod)
    }

    pub fn remove(&self, pod: &Pod) {
        self.cri.remove(&pod.sandbox, &pod.container);
    }

    /// Runs a command in the pod's container, which has to succeed; what it printed.
    pub fn exec(&self, pod: &Pod, command: &str) -> String {
        let output = self.cri.exec(&pod.container, command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.exit_code, 0, "in the pod: {command}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A directory of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn breaks(&self, broken: bool) {
        let path = self.dir.path().join("broken");
        if broken {
            fs::write(path, "").unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its shims outlive it, so the pods have to go first.
        self.delete_tasks();
        let left = self.network_namespaces();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for name in left {
            let _ = Command::new("ip").args(["netns", "delete", &name]).output();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            eprintln!("containerd, last line first: {}", tail.join("\n"));
        }
        self.end_shims();
        self.unmount();
    }
}

/// Starts the daemon with the shims that are beside it.
fn daemon(node: &Node, dir: &Path, bin: Option<&Path>) -> Child {
    let path = std::env::var("PATH").unwrap();
    let path = bin.map_or_else(|| path.clone(), |bin| format!("{}:{path}", bin.display()));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "containerd", "--config"]);
    command.arg(dir.join("config.toml")).env("PATH", path);
    let mut append = fs::File::options();
    let log = append.create(true).append(true).open(dir.join("log"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.unwrap());
    node.host.0.run(|| Ok(command.spawn()?)).unwrap()
}

fn configure(dir: &Path, nri: bool, networks: &[&str]) {
    let path = dir.to_str().unwrap();
    let sections = [CONFIG, NRI_CONFIG];
    let config = sections[..=usize::from(nri)].concat();
    let config = config.replace("{path}", path).replace("{IMAGE}", IMAGE);
    fs::write(dir.join("config.toml"), config).unwrap();
    for name in ["bin", "net.d", "devices"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    for name in ["ptp", "host-local", "loopback", "portmap", "tuning"] {
        symlink(Path::new(PLUGINS).join(name), dir.join("bin").join(name)).unwrap();
    }
    symlink(binary(), dir.join("bin/macvtap")).unwrap();
    for (name, script) in [("allocated", ALLOCATED), ("flaky", FLAKY)] {
        let file = dir.join("bin").join(name);
        fs::write(&file, script).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (number, network) in networks.iter().enumerate() {
        let file = dir.join(format!("net.d/{number}.conflist"));
        fs::write(file, network.replace("{path}", path)).unwrap();
    }
    make_image(dir);
}

/// An image with busybox, and with places for the machine's own programs. As `docker save`
/// writes it.
fn make_image(dir: &Path) {
    let root = dir.join("image");
    for name in ["bin", "usr", "dev", "proc", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "sleep", "stat", "cat", "id"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    tar(&root, &dir.join("layer.tar"), &["."]);
    let sum = sha256(&fs::read(dir.join("layer.tar")).unwrap());
    let config = format!(
        r#"{{"architecture": "amd64", "os": "linux", "config": {{"Cmd": ["/bin/sleep", "86400"]}},
            "rootfs": {{"type": "layers", "diff_ids": ["sha256:{sum}"]}}}}"#
    );
    fs::write(dir.join("config.json"), config).unwrap();
    let manifest = format!(
        r#"[{{"Config": "config.json", "RepoTags": ["{IMAGE}"], "Layers": ["layer.tar"]}}]"#
    );
    fs::write(dir.join("manifest.json"), manifest).unwrap();
    tar(
        dir,
        &dir.join("image.tar"),
        &["manifest.json", "config.json", "layer.tar"],
    );
}

fn tar(dir: &Path, archive: &Path, names: &[&str]) {
    let mut command = Command::new("tar");
    command
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(archive)
        .args(names);
    assert!(command.status().unwrap().success());
}

/// A container as virt-launcher's is: user 107, no capabilities but one, no new privileges.
pub fn launcher(devices: Vec<Device>, mounts: Vec<Mount>, command: &[&str]) -> Container {
    let user = Some(Int64 {
        value: i64::from(QEMU),
    });
    let name = |name: &str| Some(Name { name: name.into() });
    Container {
        metadata: name("compute"),
        image: name(IMAGE),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        mounts,
        devices,
        linux: Some(Linux {
            security_context: Some(SecurityContext {
                capabilities: Some(Capabilities {
                    add: vec!["NET_BIND_SERVICE".into()],
                    drop: vec!["ALL".into()],
                }),
                run_as_user: user,
                no_new_privs: true,
                run_as_group: user,
            }),
        }),
    }
}

/// The device that was allocated to a pod, as Allocate describes it.
fn allocated(number: u32) -> Vec<Device> {
    let path = tap(number).to_str().unwrap().to_owned();
    vec![Device {
        container_path: path.clone(),
        host_path: path,
        permissions: "rw".into(),
    }]
}

fn waiting(number: u32) -> Container {
    launcher(allocated(number), Vec::new(), &["/bin/sleep", "86400"])
}

/// In the pod the node is the tap's, has its owner, and user 107 opens it.
fn check(containerd: &Containerd, pod: &Pod, number: u32) {
    let path = tap(number);
    assert_eq!(owner(&path), (QEMU, QEMU, 0o600));
    let path = path.display();
    let command = format!("exec 3<>{path} && stat -c '%u:%g %a %t:%T' {path} && id -u");
    let device = fs::metadata(tap(number)).unwrap().rdev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let expected = format!("107:107 600 {major:x}:{minor:x}\n107\n");
    assert_eq!(containerd.exec(pod, &command), expected);
}

#[test]
fn a_sandbox_that_is_made_again_gets_the_same_tap() {
    if !has_containerd() {
        return;
    }
    let (node, number) = (Node::new(), tap_number());
    let containerd = Containerd::start(&node);
    let mut config = containerd.pod("vm", &device_id(number));
    for attempt in 0..10 {
        config.metadata.as_mut().unwrap().attempt = attempt;
        let pod = containerd.run(&config, waiting(number)).unwrap();
        check(&containerd, &pod, number);
        containerd.remove(&pod);
        assert!(!tap(number).exists());
    }
    // What the plugin warned of is where the node's administrator looks.
    let log = fs::read_to_string(containerd.dir().join("log")).unwrap();
    assert!(log.contains("level=warn msg=\"lowerDevice"), "{log}");
}

#[test]
fn fifty_pods_one_after_another_get_one_device() {
    if !has_containerd() {
        return;
    }
    let (node, number) = (Node::new(), tap_number());
    let containerd = Containerd::start(&node);
    for turn in 0..50 {
        let config = containerd.pod(&format!("vm-{turn}"), &device_id(number));
        let pod = containerd.run(&config, waiting(number)).unwrap();
        assert_eq!(owner(&tap(number)), (QEMU, QEMU, 0o600));
        containerd.remove(&pod);
    }
}

#[test]
fn two_pods_at_once_have_a_tap_each() {
    if !has_containerd() {
        return;
    }
    let (node, numbers) = (Node::new(), [tap_number(), tap_number()]);
    let containerd = Containerd::start(&node);
    let pods = numbers.map(|number| {
        let config = containerd.pod(&format!("vm-{number}"), &device_id(number));
        containerd.run(&config, waiting(number)).unwrap()
    });
    for (pod, number) in pods.iter().zip(numbers) {
        check(&containerd, pod, number);
    }
    containerd.remove(&pods[0]);
    check(&containerd, &pods[1], numbers[1]);
    containerd.remove(&pods[1]);
}

#[test]
fn a_sandbox_that_fails_after_us_is_tried_again() {
    if !has_containerd() {
        return;
    }
    let (node, number) = (Node::new(), tap_number());
    let containerd = Containerd::start(&node);
    let config = containerd.pod("vm", &device_id(number));
    containerd.breaks(true);
    for _ in 0..3 {
        let error = containerd.run(&config, waiting(number)).err().unwrap();
        assert!(error.contains("the second plugin fails"), "{error}");
        assert!(!tap(number).exists(), "left behind");
    }
    containerd.breaks(false);
    let pod = containerd.run(&config, waiting(number)).unwrap();
    check(&containerd, &pod, number);
    containerd.remove(&pod);
}

/// "not a device node": a file that was left at the path of the tap. The sandbox fails
/// with our words before containerd would look at the file.
#[test]
fn a_file_at_the_taps_path_is_named_before_the_container_fails() {
    if !has_containerd() {
        return;
    }
    let _dev = lock_dev();
    let (node, number) = (Node::new(), tap_number());
    let containerd = Containerd::start(&node);
    let config = containerd.pod("vm", &device_id(number));
    fs::write(tap(number), "").unwrap();
    let outcome = containerd.run(&config, waiting(number));
    fs::remove_file(tap(number)).unwrap();
    let error = outcome.err().unwrap();
    assert!(error.contains("is not the node of a macvtap"), "{error}");
    let pod = containerd.run(&config, waiting(number)).unwrap();
    check(&containerd, &pod, number);
    containerd.remove(&pod);
}
