//! Whether the device plugin does its work, told to who asks on a socket without a file:
//! it is in the abstract namespace, so that a read-only container needs no directory for it.

use std::{
    io::{self, Read},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};
use twox_hash::XxHash64;

use crate::host::peer;

/// How long the device plugin may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The address of the device plugin of a kubelet's directory.
fn address(kubelet_dir: &Path) -> Result<SocketAddr> {
    // As a text that a slash at the end does not change.
    let path: PathBuf = kubelet_dir.components().collect();
    let hash = XxHash64::oneshot(0, path.as_os_str().as_encoded_bytes());
    let name = format!("macvtap-deviceplugin-{hash:016x}");
    SocketAddr::from_abstract_name(name).context("naming the status socket")
}

/// Begins to listen for who asks.
pub fn listen(kubelet_dir: &Path) -> Result<UnixListener> {
    let address = address(kubelet_dir)?;
    let listener = StdListener::bind_addr(&address).context("making the status socket")?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Answers. Who does not read must not hold the device plugin up.
pub fn answer(mut asker: UnixStream, status: &Value) {
    let text = status.to_string();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(PATIENCE, asker.write_all(text.as_bytes())).await;
    });
}

/// Asks the device plugin of a kubelet's directory, and prints what is well and what is not.
pub fn probe(kubelet_dir: &Path) -> Result<ExitCode> {
    let status = ask(kubelet_dir).with_context(|| {
        let dir = kubelet_dir.display();
        format!("the device plugin of {dir} does not answer; is it running in this netns?")
    })?;
    let (well, unwell) = judge(&status);
    let text = [well, unwell.clone()].concat().join("\n");
    if unwell.is_empty() {
        io::Write::write_all(&mut io::stdout(), format!("{text}\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    bail!("unhealthy: {}", unwell.join("; "))
}

/// Asks the device plugin of a kubelet's directory how it is.
pub fn ask(kubelet_dir: &Path) -> Result<Value> {
    let stream = StdStream::connect_addr(&address(kubelet_dir)?)?;
    // Only root may speak for the node's device plugin.
    let user = peer::user(&stream)?;
    ensure!(user == 0, "user {user} pretends to be it");
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.take(LONGEST).read_to_string(&mut text)?;
    ensure!(!text.is_empty(), "it answers nobody but root");
    serde_json::from_str(&text).context("reading its answer")
}

/// What is well, and what is not.
#[must_use]
pub fn judge(status: &Value) -> (Vec<String>, Vec<String>) {
    let (mut well, mut unwell) = (Vec::new(), Vec::new());
    match status["netlink"].as_str() {
        None => well.push("netlink answers".to_owned()),
        Some(error) => unwell.push(format!("netlink does not answer: {error}")),
    }
    if let (Some(live), Some(parked)) = (
        status["learning"]["live"].as_u64(),
        status["learning"]["parked"].as_u64(),
    ) {
        well.push(format!("learning, {live} ports live and {parked} parked"));
    }
    if let Some(resources) = status["resources"].as_array() {
        for resource in resources {
            let name = resource["name"].as_str().unwrap_or_default();
            if resource["registered"] == true {
                let devices = &resource["devices"];
                let trouble = resource["trouble"].as_str();
                let trouble =
                    trouble.map_or("healthy".to_owned(), |why| format!("unhealthy: {why}"));
                well.push(format!(
                    "resource {name} is registered, {devices} devices {trouble}"
                ));
            } else {
                let why = resource["complaint"].as_str().filter(|why| !why.is_empty());
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                unwell.push(format!("resource {name} is not registered{why}"));
            }
        }
        if resources.is_empty() {
            well.push("no resource is offered".to_owned());
        }
    }
    (well, unwell)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_that_is_not_registered_is_unwell() {
        let status = |registered| {
            let resource = json!({
                "name": "dataplane", "registered": registered, "devices": 100,
                "trouble": null, "complaint": "connection refused",
            });
            json!({"netlink": null, "resources": [resource]})
        };
        let (well, unwell) = judge(&status(true));
        assert_eq!(well.len(), 2);
        assert!(unwell.is_empty());
        let (_, unwell) = judge(&status(false));
        assert!(unwell[0].contains("connection refused"), "{unwell:?}");
        let (_, unwell) = judge(&json!({"netlink": "EPERM", "resources": []}));
        assert_eq!(unwell.len(), 1);
    }

    #[test]
    fn a_missing_lower_device_is_the_nodes_trouble_not_the_plugins() {
        let resource = json!({
            "name": "dataplane", "registered": true, "devices": 100,
            "trouble": "the lower device does not exist", "complaint": "",
        });
        let (well, unwell) = judge(&json!({"netlink": null, "resources": [resource]}));
        assert!(unwell.is_empty());
        assert!(well[1].contains("does not exist"), "{well:?}");
    }
}
