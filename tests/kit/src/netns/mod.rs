//! Nodes, pods and wires in network namespaces that descriptors hold: nothing is
//! mounted, nothing is named, nothing is left behind whatever happens to the test.

pub mod dev;
pub mod mounted;
pub mod taps;

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio, id},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use macvtap::{
    host::netns::Netns,
    learning,
    netlink::Create,
    types::{device_id::DeviceId, mode::Mode, port_options::NO_OPTIONS},
};
use serde_json::{Value, json};

use crate::binary;

/// The name of every node's lower device.
pub const LOWER: &str = "eth0";
/// The interface at the far end of a node's wire.
pub const FAR_END: &str = "wire0";
/// The interface that tests attach.
pub const IFNAME: &str = "net1";
/// How long tests wait for something at most. No bound: that something has happened by then says
/// nothing of its speed.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Says that a test was skipped, past the harness, which shows nothing of tests that pass, and in
/// the file that `scripts/test` shows in the end.
pub fn skipped(why: &str) {
    let line = format!("SKIPPED: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = env::var_os("SKIPPED_TESTS") {
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// A tap number that no other test of this machine uses.
pub fn tap_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static BLOCK: OnceLock<(u32, UnixListener)> = OnceLock::new();
    let counter = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(counter < 1 << 12);
    1 << 24 | BLOCK.get_or_init(block).0 << 12 | counter
}

/// The same of numbers that no device plugin of ours gives to a tap.
pub fn foreign_tap_number() -> u32 {
    1 << 26 | tap_number() & 0xff_ffff
}

/// A block of tap numbers that is this process's while it lives: a socket says so.
fn block() -> (u32, UnixListener) {
    let mut blocks = (0..1 << 12).map(|offset| (id() + offset) & 0xfff);
    let claim = |block| {
        let name = format!("macvtap-test-block-{block}");
        let address = SocketAddr::from_abstract_name(name).unwrap();
        Some((block, UnixListener::bind_addr(&address).ok()?))
    };
    blocks.find_map(claim).expect("a free block")
}

/// A device ID for the tap `number` on [`LOWER`].
pub fn device_id(number: u32) -> String {
    device_id_in("bridge", number)
}

/// A device ID for the tap `number` on [`LOWER`] in a mode.
pub fn device_id_in(mode: &str, number: u32) -> String {
    format!("dataplaneMvp7@{LOWER}:{mode}:{number}")
}

/// The number of a device ID's tap.
pub fn tap_of(id: &str) -> u32 {
    id.parse::<DeviceId>().unwrap().tap
}

/// A netns, held by a descriptor; some have a name as well.
pub struct Host(pub Netns, Option<Name>);

/// A name of a netns, as runtimes and `ip netns` give it.
struct Name(String);

impl Drop for Name {
    fn drop(&mut self) {
        let mut command = Command::new("ip");
        let _ = command.args(["netns", "delete", &self.0]).status();
    }
}

impl Host {
    /// A fresh one.
    pub fn new() -> Self {
        Self::of(Netns::create().expect("the tests make network namespaces: run them as root"))
    }

    /// One that there is.
    pub fn of(netns: Netns) -> Self {
        Self(netns, None)
    }

    /// A fresh one with a name, for processes that cannot open the descriptors of the test.
    pub fn named() -> Self {
        let name = Name(format!("macvtap-test-{}", tap_number()));
        let mut command = Command::new("ip");
        let made = command.args(["netns", "add", &name.0]).status();
        assert!(made.unwrap().success());
        let netns = Netns::open(Path::new(&format!("/run/netns/{}", name.0)));
        Self(netns.unwrap().unwrap(), Some(name))
    }

    /// A path to open it by.
    pub fn path(&self) -> String {
        match &self.1 {
            Some(Name(name)) => format!("/run/netns/{name}"),
            None => format!("/proc/{}/fd/{}", id(), self.0.as_fd().as_raw_fd()),
        }
    }

    /// Runs a command in it.
    pub fn output(&self, command: &mut Command) -> Output {
        self.0
            .run(|| Ok(command.output()?))
            .unwrap_or_else(|error| panic!("{command:?}: {error:#}"))
    }

    /// Runs `ip` with these words; it has to succeed.
    pub fn ip(&self, words: &str) -> String {
        let output = self.try_ip(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {words}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `ip` with these words.
    pub fn try_ip(&self, words: &str) -> Output {
        self.output(Command::new("ip").args(words.split_whitespace()))
    }

    /// What `ip` says of a link, if it exists.
    pub fn link(&self, name: &str) -> Option<Value> {
        let output = self.try_ip(&format!("-j -d link show dev {name}"));
        output.status.success().then(|| {
            let list: Value = serde_json::from_slice(&output.stdout).unwrap();
            list[0].clone()
        })
    }

    /// Whether the link is up, and frames pass.
    pub fn is_up(&self, name: &str) -> bool {
        self.link(name)
            .is_some_and(|link| link["operstate"] == "UP")
    }

    /// The mode of the macvtap that tests attach.
    pub fn mode(&self) -> String {
        let link = self.link(IFNAME).expect("the pod's macvtap");
        let mode = link["linkinfo"]["info_data"]["mode"].as_str();
        mode.unwrap().to_owned()
    }

    /// The names of its links but loopback.
    pub fn links(&self) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.ip("-j link show")).unwrap();
        let names = list.as_array().unwrap().iter();
        let names = names.map(|link| link["ifname"].as_str().unwrap().to_owned());
        names.filter(|name| name != "lo").collect()
    }
}

/// A node with its lower device, up, and what is at the other end of the wire.
pub struct Node {
    /// The node's own netns.
    pub host: Host,
    /// The netns at the other end.
    pub wire: Host,
}

/// Removes what says that the pods of a node get taps by NRI: a device plugin that is killed leaves
/// it, and the next network namespace may get the same number.
fn forget(host: &Host) {
    let (_, inode) = host.0.identity().unwrap();
    let _ = fs::remove_file(format!("/run/macvtap/nri-{inode}"));
}

impl Drop for Node {
    fn drop(&mut self) {
        forget(&self.host);
    }
}

impl Node {
    /// A node whose lower device [`LOWER`] is a veth, wired to [`FAR_END`].
    pub fn new() -> Self {
        let (host, wire) = (Host::new(), Host::new());
        forget(&host);
        let mut socket = host.0.socket().unwrap();
        socket.create_veth(LOWER, FAR_END, wire.0.as_fd()).unwrap();
        host.ip(&format!("link set {LOWER} up"));
        wire.ip(&format!("link set {FAR_END} up"));
        Self { host, wire }
    }

    /// Makes macvtaps in `pod` as ADD makes them, down, with these numbers behind `net`.
    pub fn attach(&self, pod: &Host, numbers: Range<usize>) {
        let mut socket = self.host.0.socket().unwrap();
        let lower = socket.link_by_name(LOWER).unwrap().unwrap().index;
        for number in numbers {
            let create = Create {
                name: &format!("net{number}"),
                index: Some(tap_number()),
                lower,
                mode: Mode::Bridge,
                mac: None,
                mtu: None,
                queue_length: 1000,
                group: learning::group(Mode::Bridge),
                options: &NO_OPTIONS,
                netns: Some(pod.0.as_fd()),
            };
            socket.create(&create).unwrap();
        }
    }

    /// A call of the plugin on this node for `pod`.
    pub fn cni<'a>(&'a self, pod: &Host, config: Value) -> Cni<'a> {
        let mut defaults = json!({"cniVersion": "1.1.0", "name": "test", "type": "macvtap"});
        let extra = config.as_object().expect("a configuration").clone();
        defaults.as_object_mut().unwrap().extend(extra);
        Cni {
            node: self,
            stdin: defaults.to_string().into_bytes(),
            config: defaults,
            environment: vec![
                ("CNI_CONTAINERID".into(), format!("c{}", id())),
                ("CNI_NETNS".into(), pod.path()),
                ("CNI_IFNAME".into(), IFNAME.into()),
                ("CNI_PATH".into(), "/opt/cni/bin".into()),
            ],
            wrapper: Vec::new(),
        }
    }

    /// A call for `pod`, with the allocated tap `number`.
    pub fn allocated(&self, pod: &Host, number: u32) -> Cni<'_> {
        self.cni(pod, json!({"deviceID": device_id(number)}))
    }
}

/// A node, a pod, and a tap that is allocated to the pod.
pub struct Case {
    pub node: Node,
    pub pod: Host,
    pub number: u32,
}

impl Case {
    pub fn new() -> Self {
        Self {
            node: Node::new(),
            pod: Host::new(),
            number: tap_number(),
        }
    }

    /// The call that attaches.
    pub fn call(&self) -> Cni<'_> {
        self.node.allocated(&self.pod, self.number)
    }

    /// ADD of `call` fails with `code`, says all `parts`, and leaves nothing.
    pub fn refuses(&self, call: &Cni<'_>, code: u64, parts: &[&str]) {
        let (pod, host) = (self.pod.links(), self.node.host.links());
        let (found, msg) = call.fail("ADD");
        assert_eq!(found, code, "{msg}");
        for part in parts {
            assert!(msg.contains(part), "{part:?} is not in {msg:?}");
        }
        assert_eq!(self.pod.links(), pod, "left in the pod");
        assert_eq!(self.node.host.links(), host, "left on the host");
        assert!(!tap_exists(self.number), "a tap is left");
    }
}

/// A call of the plugin that can be repeated and varied.
#[derive(Clone)]
pub struct Cni<'a> {
    node: &'a Node,
    config: Value,
    stdin: Vec<u8>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Cni<'_> {
    /// Sets a key of the configuration.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self.stdin = self.config.to_string().into_bytes();
        self
    }

    /// Gives another configuration altogether.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Calls by these words before the binary, `nsenter` for one.
    #[must_use]
    pub fn by(mut self, words: &[&str]) -> Self {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The command alone; its standard input has to be [`Self::input`].
    pub fn command(&self, verb: &str) -> Command {
        let mut words = self.wrapper.iter().map(PathBuf::from).chain([binary()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command.env_clear().env("CNI_COMMAND", verb);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        command
    }

    /// What the runtime writes to the plugin.
    pub fn input(&self) -> &[u8] {
        &self.stdin
    }

    /// Calls a verb; how the program ended and what it printed.
    pub fn output(&self, verb: &str) -> Output {
        let mut command = self.command(verb);
        let mut child = self.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
        // A plugin that does not read what it was given is not wrong.
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        child.wait_with_output().unwrap()
    }

    /// Calls a verb.
    pub fn call(&self, verb: &str) -> Answer {
        let output = self.output(verb);
        Answer {
            status: output.status.code().expect("killed by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Calls ADD, which has to succeed; the result.
    pub fn add(&self) -> Value {
        let answer = self.call("ADD");
        assert_eq!(answer.status, 0, "{answer:?}");
        serde_json::from_str(&answer.stdout).unwrap()
    }

    /// Calls ADD with the previous result then set for CHECK, as runtimes do.
    #[must_use]
    pub fn added(self) -> Self {
        let result = self.add();
        self.with("prevResult", result)
    }

    /// Calls a verb that prints nothing when it succeeds, which it has to.
    pub fn succeed(&self, verb: &str) {
        let answer = self.call(verb);
        assert_eq!(
            (answer.status, answer.stdout.as_str()),
            (0, ""),
            "{answer:?}"
        );
    }

    /// Calls a verb that has to fail; code and message.
    pub fn fail(&self, verb: &str) -> (u64, String) {
        let error = self.call(verb).error();
        let msg = error["msg"].as_str().unwrap().to_owned();
        (error["code"].as_u64().unwrap(), msg)
    }
}

impl Answer {
    /// The error object; there has to be one.
    pub fn error(&self) -> Value {
        assert_eq!(self.status, 1, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).expect("one JSON document");
        assert!(error["cniVersion"].is_string(), "{error}");
        error
    }
}

/// The node of tap `number`.
pub fn tap(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/tap{number}"))
}

/// Whether the kernel has a tap of this name, in whatever netns.
pub fn tap_exists(number: u32) -> bool {
    let suffix = format!("/tap{number}");
    let entries = fs::read_dir("/sys/dev/char").unwrap().flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.to_string_lossy().ends_with(&suffix))
}

/// The names in a directory, in their order.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// User, group and permission bits of a node.
pub fn owner(path: &Path) -> (u32, u32, u32) {
    let metadata =
        fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

/// Waits until `done`: as long as a busy machine may take.
pub fn wait_until(what: &str, done: impl FnMut() -> bool) {
    assert!(happens(done), "not in {WAIT_TIMEOUT:?}: {what}");
}

/// Whether it is `done` as soon as a busy machine may take.
pub fn happens(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > WAIT_TIMEOUT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}
