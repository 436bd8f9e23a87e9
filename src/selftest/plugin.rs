//! The device plugin as a process in the node's network namespace, and the kubelet that it
//! registers with.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    kubelet::{Kubelet, Resource},
    wire::{self, Wire},
};
use crate::{deviceplugin::names::NAMESPACE, host::tap, types::device_id::DeviceId};

const CAPACITY: usize = 8;
const PATIENCE: Duration = Duration::from_secs(5);

/// A device plugin that runs, with a directory of its own.
pub struct Plugin {
    directory: PathBuf,
    child: Child,
    kubelet: Option<Kubelet>,
    resource: String,
}

impl Plugin {
    /// Starts a kubelet, and the device plugin by executing this very program.
    pub fn start(wire: &Wire) -> Result<Self> {
        let id = std::process::id();
        let directory = std::env::temp_dir().join(format!("macvtap-selftest-{id}"));
        let shown = directory.display();
        // Fails if somebody was there before, so nobody else's files are in it.
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("making {shown}"))?;
        let kubelet = Kubelet::start(&directory)?;
        let log = File::create(directory.join("log")).context("making a log")?;
        // A name of this run's own, and so taps of its own.
        let name = format!("selftest-{id}");
        let configuration = serde_json::json!([
            {"name": name, "lowerDevice": wire::LOWER, "capacity": CAPACITY}
        ]);
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("deviceplugin")
            .arg("--kubelet-dir")
            .arg(&directory);
        command.env("DP_MACVTAP_CONF", configuration.to_string());
        command.env_remove("CNI_COMMAND");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = || command.spawn().context("executing this program again");
        Ok(Self {
            child: wire.node.run(child)?,
            directory,
            kubelet: Some(kubelet),
            resource: format!("{NAMESPACE}/{name}"),
        })
    }

    /// Waits until the kubelet knows the devices; their IDs.
    pub fn devices(&self) -> Result<Vec<String>> {
        let whole = |resource: &Resource| resource.healthy().len() == CAPACITY;
        let resource = self.kubelet()?.wait_for(&self.resource, PATIENCE, whole);
        Ok(resource.with_context(|| self.log())?.healthy())
    }

    /// Has the kubelet allocate a device, as when a pod is admitted.
    pub fn allocate(&self) -> Result<DeviceId> {
        let kubelet = self.kubelet()?;
        let preferred = kubelet.prefer(&self.resource, &self.devices()?, 1)?;
        let answer = kubelet.allocate(&self.resource, &preferred)?;
        let id: DeviceId = preferred
            .first()
            .context("no device is preferred")?
            .parse()?;
        let containers = answer.container_responses;
        let promised = containers.first().and_then(|first| first.devices.first());
        let promised = promised.context("no device node is promised")?;
        let path = tap::path(id.tap);
        let path = path.to_string_lossy();
        ensure!(
            promised.host_path == path && promised.container_path == path,
            "promised is {}, not {path}",
            promised.host_path
        );
        Ok(id)
    }

    /// Tells the plugin that the container is about to be made.
    pub fn pre_start(&self, id: &DeviceId) -> Result<()> {
        self.kubelet()?.pre_start(&self.resource, &[id.to_string()])
    }

    /// Ends the kubelet and starts another one, which knows of no device plugin.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet = None;
        self.kubelet = Some(Kubelet::start(&self.directory)?);
        Ok(())
    }

    /// Ends the device plugin as a node does.
    pub fn stop(&mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("a process ID over 2^31")?;
        kill(Pid::from_raw(id), Signal::SIGTERM).context("ending the device plugin")?;
        let start = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => break,
                Some(status) => bail!("the device plugin ended with {status}: {}", self.log()),
                None if start.elapsed() > PATIENCE => bail!("it does not end: {}", self.log()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            ensure!(!name.starts_with(NAMESPACE), "the socket {name} is left");
        }
        Ok(())
    }

    fn kubelet(&self) -> Result<&Kubelet> {
        self.kubelet.as_ref().context("there is no kubelet")
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        format!("the device plugin said: {log}")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // Both fail only if there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
