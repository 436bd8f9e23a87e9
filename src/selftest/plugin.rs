//! The device plugin as a process in the node's network namespace, and the kubelet with which it
//! registers.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::{Builder, TempDir};

use super::{
    kubelet::{Kubelet, Resource},
    wire::{self, Wire},
};
use crate::{
    host::tap,
    types::device_id::{DeviceId, NAMESPACE},
};

const CAPACITY: usize = 8;
/// How long the device plugin may take to register, and to exit.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A running device plugin with its kubelet, in a temporary directory.
pub struct Plugin {
    directory: TempDir,
    child: Child,
    kubelet: Option<Kubelet>,
    resource: String,
}

impl Plugin {
    /// Starts a kubelet, and the device plugin by executing this program.
    pub fn start(wire: &Wire) -> Result<Self> {
        let id = std::process::id();
        let directory = Builder::new().prefix("macvtap-selftest-").tempdir();
        let directory = directory.context("creating a temporary directory")?;
        let kubelet = Kubelet::start(directory.path())?;
        let log = File::create(directory.path().join("log")).context("creating a log file")?;
        // A name that only this run has, and so taps that only this run has.
        let name = format!("selftest-{id}");
        let configuration = serde_json::json!([
            {"name": name, "lowerDevice": wire::LOWER, "capacity": CAPACITY}
        ]);
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("deviceplugin")
            .arg("--kubelet-dir")
            .arg(directory.path());
        command.env("DP_MACVTAP_CONF", configuration.to_string());
        command.env_remove("CNI_COMMAND");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = || command.spawn().context("executing this program");
        Ok(Self {
            child: wire.node.run(child)?,
            directory,
            kubelet: Some(kubelet),
            resource: format!("{NAMESPACE}/{name}"),
        })
    }

    /// Waits until the kubelet has the devices. Returns their IDs.
    pub fn devices(&self) -> Result<Vec<String>> {
        let whole = |resource: &Resource| resource.healthy().len() == CAPACITY;
        let resource = self
            .kubelet()?
            .wait_for(&self.resource, ANSWER_TIMEOUT, whole);
        Ok(resource.with_context(|| self.log())?.healthy())
    }

    /// Allocates a device as the kubelet does when it admits a pod.
    pub fn allocate(&self) -> Result<DeviceId> {
        let kubelet = self.kubelet()?;
        let preferred = kubelet.prefer(&self.resource, &self.devices()?, 1)?;
        let answer = kubelet.allocate(&self.resource, &preferred)?;
        let id: DeviceId = preferred
            .first()
            .context("no device is preferred")?
            .parse()?;
        let containers = answer.container_responses;
        let allocated = containers.first().and_then(|first| first.devices.first());
        let allocated = allocated.context("no device node is allocated")?;
        let path = tap::path(id.tap);
        let path = path.to_string_lossy();
        ensure!(
            allocated.host_path == path && allocated.container_path == path,
            "{} is allocated instead of {path}",
            allocated.host_path
        );
        Ok(id)
    }

    /// Calls `PreStartContainer`, as before a container is created.
    pub fn pre_start(&self, id: &DeviceId) -> Result<()> {
        self.kubelet()?.pre_start(&self.resource, &[id.to_string()])
    }

    /// Ends the kubelet and starts another one, with which nothing is registered.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet = None;
        self.kubelet = Some(Kubelet::start(self.directory.path())?);
        Ok(())
    }

    /// Ends the device plugin by SIGTERM, and checks that it removed its sockets.
    pub fn stop(&mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("a process ID over 2^31")?;
        kill(Pid::from_raw(id), Signal::SIGTERM).context("ending the device plugin")?;
        let start = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => break,
                Some(status) => bail!("the device plugin failed with {status}: {}", self.log()),
                None if start.elapsed() > ANSWER_TIMEOUT => {
                    bail!("the device plugin does not exit: {}", self.log())
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        for entry in fs::read_dir(self.directory.path())? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            ensure!(!name.starts_with(NAMESPACE), "socket {name} still exists");
        }
        Ok(())
    }

    fn kubelet(&self) -> Result<&Kubelet> {
        self.kubelet.as_ref().context("the kubelet is not running")
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        format!("log of the device plugin: {log}")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // Both fail only if it has exited and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
