//! A minimal container runtime: it has a pod's network namespace, and calls the CNI plugin for it
//! by executing this program.

use std::{
    io::Write,
    os::fd::{AsFd, AsRawFd},
    process::{Command, Stdio, id},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::wire::Wire;
use crate::{
    host::netns::Netns,
    types::{device_id::DeviceId, mac::MacAddr},
};

/// The interface's name in the pod.
pub const IFNAME: &str = "net1";

/// A pod, and how its attachment is configured.
pub struct Runtime<'a> {
    wire: &'a Wire,
    pod: Netns,
    config: Value,
    /// The MAC that ADD reported.
    pub mac: MacAddr,
}

impl<'a> Runtime<'a> {
    /// Creates a pod to which `device` is allocated.
    pub fn new(wire: &'a Wire, device: &DeviceId) -> Result<Self> {
        Ok(Self {
            wire,
            pod: Netns::create()?,
            config: json!({
                "cniVersion": "1.1.0",
                "name": "selftest",
                "type": "macvtap",
                "deviceID": device.to_string(),
            }),
            mac: MacAddr([0; 6]),
        })
    }

    /// Calls ADD, and remembers its result as runtimes do.
    pub fn add(&mut self) -> Result<MacAddr> {
        let result = self.call("ADD")?;
        let mac = result["interfaces"][0]["mac"].as_str();
        self.mac = mac.context("the result has no MAC")?.parse()?;
        self.config["prevResult"] = result;
        Ok(self.mac)
    }

    /// Destroys the pod's network namespace as in a crash, and creates a new one.
    pub fn lose_pod(&mut self) -> Result<()> {
        self.pod = Netns::create()?;
        if let Some(config) = self.config.as_object_mut() {
            config.remove("prevResult");
        }
        Ok(())
    }

    /// Fails unless loopback is the only interface in the pod.
    pub fn check_empty(&self) -> Result<()> {
        let links = self.pod.socket()?.links()?;
        let left: Vec<&str> = links
            .iter()
            .filter(|link| !link.loopback)
            .map(|link| link.name.as_str())
            .collect();
        ensure!(left.is_empty(), "left in the pod: {}", left.join(", "));
        Ok(())
    }

    /// Executes the plugin in the node's network namespace.
    pub fn call(&self, verb: &str) -> Result<Value> {
        let mut command = Command::new("/proc/self/exe");
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("selftest-{}", id()))
            .env("CNI_NETNS", self.netns_path())
            .env("CNI_IFNAME", IFNAME)
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = || command.spawn().context("executing this program");
        let mut child = self.wire.node.run(child)?;
        let stdin = child.stdin.take();
        let config = self.config.to_string();
        stdin
            .context("no stdin")?
            .write_all(config.as_bytes())
            .context("writing the configuration")?;
        let output = child.wait_with_output().context("waiting for the plugin")?;
        let answer: Value = match output.stdout.as_slice() {
            [] => Value::Null,
            text => serde_json::from_slice(text).context("the plugin did not print JSON")?,
        };
        let msg = answer["msg"].as_str().unwrap_or_default();
        ensure!(output.status.success(), "{verb} failed: {msg}");
        Ok(answer)
    }

    /// A path to the namespace that needs no mount: our own descriptor.
    fn netns_path(&self) -> String {
        format!("/proc/{}/fd/{}", id(), self.pod.as_fd().as_raw_fd())
    }
}
