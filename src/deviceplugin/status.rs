//! The status socket, by which `probe` and `doctor` query a device plugin. It is in the abstract
//! namespace, so that a read-only container needs no directory for it.

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
use log::warn;
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
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of an answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// The address of the device plugin of a kubelet's directory.
fn address(kubelet_dir: &Path) -> Result<SocketAddr> {
    // As a text that a slash at the end does not change.
    let path: PathBuf = kubelet_dir.components().collect();
    let hash = XxHash64::oneshot(0, path.as_os_str().as_encoded_bytes());
    let name = format!("macvtap-deviceplugin-{hash:016x}");
    SocketAddr::from_abstract_name(name).context("naming the status socket")
}

/// The socket on which a device plugin is queried.
pub struct StatusServer(Option<UnixListener>);

impl StatusServer {
    /// Listens. A device plugin that cannot be queried still serves.
    #[must_use]
    pub fn listen(kubelet_dir: &Path) -> Self {
        let listener = listen(kubelet_dir);
        let listener = listener.inspect_err(|error| {
            warn!(error:% = format!("{error:#}"); "cannot serve probe and doctor");
        });
        Self(listener.ok())
    }

    /// The next client. Only root may query: every process in this netns can reach the socket.
    pub async fn accept(&self) -> Option<UnixStream> {
        let Some(listener) = &self.0 else {
            return std::future::pending().await;
        };
        loop {
            let (stream, _) = listener.accept().await.ok()?;
            if peer::is_root(&stream) {
                return Some(stream);
            }
        }
    }
}

fn listen(kubelet_dir: &Path) -> Result<UnixListener> {
    let address = address(kubelet_dir)?;
    let listener = StdListener::bind_addr(&address).context("making the status socket")?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Answers. A client that does not read must not hold the device plugin up.
pub fn answer(mut stream: UnixStream, status: &Status) -> Result<()> {
    let text = serde_json::to_string(status).context("writing the status as JSON")?;
    tokio::spawn(async move {
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, stream.write_all(text.as_bytes())).await;
    });
    Ok(())
}

/// Queries the device plugin of a kubelet's directory and prints what works. Fails with what does
/// not.
pub fn probe(kubelet_dir: &Path) -> Result<ExitCode> {
    let status = query(kubelet_dir).with_context(|| {
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

/// Queries the device plugin of a kubelet's directory.
pub fn query(kubelet_dir: &Path) -> Result<Status> {
    let stream = StdStream::connect_addr(&address(kubelet_dir)?)?;
    // Only root may answer for the node's device plugin.
    let user = peer::user(&stream)?;
    ensure!(user == 0, "socket is owned by uid {user}, not root");
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let mut text = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut text)?;
    ensure!(!text.is_empty(), "it answers only root");
    serde_json::from_str(&text).context("decoding its answer")
}
