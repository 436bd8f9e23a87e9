//! The device plugin as a process, and kubelets that do not behave.
//!
//! The one that does is [`macvtap::selftest::kubelet::Kubelet`].

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use macvtap::{
    deviceplugin::grpc::api::{
        Empty, RegisterRequest,
        registration_server::{Registration, RegistrationServer},
    },
    selftest::kubelet::{Kubelet, Resource},
};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    binary,
    netns::{Host, LOWER, wait_until},
};

pub use crate::netns::WAIT_TIMEOUT;

/// The resource that [`configuration`] lists, as the kubelet knows it.
pub const RESOURCE: &str = "macvtap.network.kubevirt.io/dataplane";
/// The name of its socket.
pub const SOCKET: &str = "macvtap.network.kubevirt.io_dataplane";

/// A configuration that lists one resource on [`LOWER`].
pub fn configuration() -> String {
    format!(r#"[{{"name": "dataplane", "lowerDevice": "{LOWER}", "mode": "bridge"}}]"#)
}

/// A command that runs the device plugin with [`configuration`], after these words.
pub fn command(by: &[&str], kubelet_dir: &Path) -> Command {
    let binary = binary();
    let mut words = by.iter().map(OsStr::new).chain([binary.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("deviceplugin");
    command.arg("--kubelet-dir").arg(kubelet_dir);
    command.env("DP_MACVTAP_CONF", configuration());
    command
}

/// The same, configured as the DaemonSet does it: by a file, and with health and metrics.
pub fn command_with_file(by: &[&str], kubelet_dir: &Path) -> Command {
    let config = kubelet_dir.join("config");
    fs::create_dir(&config).unwrap();
    let file = config.join("DP_MACVTAP_CONF");
    fs::write(&file, configuration()).unwrap();
    let mut command = command(by, kubelet_dir);
    command.env_remove("DP_MACVTAP_CONF");
    command.arg("--config").arg(file);
    command.args(["--status-address", "[::]:9403"]);
    command
}

/// As the DaemonSet sets it.
pub const TUNABLES: &str = "glibc.malloc.arena_max=1";

/// Waits until the kubelet has a stream of [`RESOURCE`].
pub fn connected(kubelet: &Kubelet) -> Resource {
    let connected = |resource: &Resource| resource.connected;
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, connected).unwrap()
}

/// A device plugin that runs; killed at the end unless it ended before.
pub struct Plugin {
    child: Child,
    log: PathBuf,
    _log_dir: tempfile::TempDir,
}

impl Plugin {
    /// Starts one in `host`, with [`configuration`].
    pub fn start(host: &Host, kubelet_dir: &Path) -> Self {
        Self::configured(host, kubelet_dir, &configuration())
    }

    /// Starts one with a configuration of the environment.
    pub fn configured(host: &Host, kubelet_dir: &Path, configuration: &str) -> Self {
        let mut command = command(&[], kubelet_dir);
        command
            .args(["-v", "4"])
            .env("DP_MACVTAP_CONF", configuration);
        Self::spawn(host, command)
    }

    /// Starts one with a configuration file.
    pub fn with_file(host: &Host, kubelet_dir: &Path, file: &Path) -> Self {
        let mut command = command(&[], kubelet_dir);
        command.arg("--config").arg(file);
        command.env_remove("DP_MACVTAP_CONF");
        Self::spawn(host, command)
    }

    /// Starts one in a mount namespace of its own, after what `mounts` does there.
    pub fn mounted(host: &Host, kubelet_dir: &Path, mounts: &str) -> Self {
        let script = format!("{mounts} && exec \"$@\"");
        let private = ["unshare", "--mount", "--propagation", "private"];
        let words = [&private[..], &["sh", "-c", &script, "sh"]].concat();
        let command = command(&words, kubelet_dir);
        Self::spawn(host, command)
    }

    /// Starts one as the DaemonSet does, but with these tunables of glibc. It sees no processes but
    /// its own: what others there are, it looks at as well.
    pub fn alone(host: &Host, kubelet_dir: &Path, tunables: &str) -> Self {
        let alone = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
        // A copy, as installers make it: what a linker wrote at once, the kernel maps at once.
        let copy = kubelet_dir.join("macvtap").display().to_string();
        let script = format!("cp \"$0\" {copy} && exec {copy} \"$@\"");
        let words = [&["unshare"][..], &alone, &["sh", "-c", &script]].concat();
        let mut command = command_with_file(&words, kubelet_dir);
        command.env("GLIBC_TUNABLES", tunables);
        let plugin = Self::spawn(host, command);
        for text in ["serving health", "learning", "registered"] {
            plugin.wait_for_log(text);
        }
        wait_until("it is idle", || {
            let before = (plugin.memory(), plugin.private_memory());
            std::thread::sleep(Duration::from_millis(100));
            (plugin.memory(), plugin.private_memory()) == before
        });
        plugin
    }

    /// Starts one by a command.
    pub fn spawn(host: &Host, mut command: Command) -> Self {
        let log_dir = tempfile::tempdir().unwrap();
        let log = log_dir.path().join("log");
        command.env_remove("CNI_COMMAND").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).unwrap());
        let child = host.0.run(|| Ok(command.spawn()?)).unwrap();
        Self {
            child,
            log,
            _log_dir: log_dir,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it said `text`.
    pub fn wait_for_log(&self, text: &str) {
        let start = Instant::now();
        while !self.log().contains(text) {
            let log = self.log();
            assert!(start.elapsed() < WAIT_TIMEOUT, "{text:?} is not in {log}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn signal(&self, name: &str) {
        let mut command = Command::new("kill");
        command.arg(format!("-{name}")).arg(self.id().to_string());
        assert!(command.status().unwrap().success());
    }

    /// Waits for its end; the exit status and how long it took.
    pub fn end(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), start.elapsed());
            }
            assert!(
                start.elapsed() < WAIT_TIMEOUT,
                "it does not end: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.id());
        fs::read_dir(path).unwrap().count()
    }

    /// Resident memory, in KiB.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Resident memory that is not a file's, in KiB.
    pub fn private_memory(&self) -> u64 {
        self.status("RssAnon:")
    }

    /// The most resident memory that it ever had, in KiB.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Its process, which `unshare --fork` starts as its child.
    fn process(&self) -> u32 {
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let child = children.split_whitespace().next();
        child.map_or(id, |child| child.parse().unwrap())
    }

    fn status(&self, key: &str) -> u64 {
        let mut status = String::new();
        let path = format!("/proc/{}/status", self.process());
        File::open(path)
            .unwrap()
            .read_to_string(&mut status)
            .unwrap();
        let line = status.lines().find(|line| line.starts_with(key));
        let number = line.unwrap().split_whitespace().nth(1).unwrap();
        number.parse().unwrap()
    }

    /// The processor time that it used.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let after = stat.rsplit(')').next().unwrap();
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10) // USER_HZ is 100
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a kubelet does wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It refuses.
    Refuse,
    /// It never answers.
    Hang,
}

/// A kubelet that accepts nothing.
pub struct Faulty {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Faulty {
    pub fn start(directory: &Path, fault: Fault) -> Self {
        let path = directory.join("kubelet.sock");
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(path).unwrap();
                let incoming = UnixListenerStream::new(listener);
                let service = RegistrationServer::new(fault);
                tokio::select! {
                    _ = Server::builder().serve_with_incoming(service, incoming) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let socket = directory.join("kubelet.sock");
        wait_until("the faulty kubelet listens", || socket.exists());
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

#[tonic::async_trait]
impl Registration for Fault {
    async fn register(&self, _: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        match self {
            Self::Refuse => Err(Status::unknown("not today")),
            Self::Hang => std::future::pending().await,
        }
    }
}
