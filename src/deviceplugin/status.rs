//! Whether the device plugin does its work, told to who asks on a socket without a file:
//! it is in the abstract namespace, so that a read-only container needs no directory for it.

use std::{
    io::Read,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};
use twox_hash::XxHash64;

use crate::{
    host::{peer, stdout},
    types::status::{Status, Summary},
};

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
pub fn answer(mut asker: UnixStream, status: &Status) -> Result<()> {
    let text = serde_json::to_string(status).context("writing the status as JSON")?;
    tokio::spawn(async move {
        let _ = tokio::time::timeout(PATIENCE, asker.write_all(text.as_bytes())).await;
    });
    Ok(())
}

/// Asks the device plugin of a kubelet's directory, and prints what is well and what is not.
pub fn probe(kubelet_dir: &Path) -> Result<ExitCode> {
    let status = ask(kubelet_dir).with_context(|| {
        let dir = kubelet_dir.display();
        format!("the device plugin of {dir} does not answer; is it running in this netns?")
    })?;
    let Summary { ok, failures } = status.summary();
    if !failures.is_empty() {
        bail!("unhealthy: {}", failures.join("; "));
    }
    let text = format!("{}\n", ok.join("\n"));
    stdout::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the device plugin of a kubelet's directory how it is.
pub fn ask(kubelet_dir: &Path) -> Result<Status> {
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
