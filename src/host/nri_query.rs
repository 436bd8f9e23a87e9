//! What ADD queries of the device plugin before it makes a macvtap for which the pod has no
//! device: does the container runtime ask us about containers?
//!
//! A runtime skips a plugin that is not connected, and starts the container without its tap.

use std::{
    ffi::OsStr,
    fs,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use log::debug;
use serde::{Deserialize, Serialize};

use crate::host::{
    accept_pause::AcceptPause,
    control_socket::{self, BindError, Connection, RUN_DIR},
    files,
    listener::Listener,
    netns::Netns,
};

/// The only version there is. A message of another one is not understood.
const VERSION: u64 = 1;
/// How long either end waits for the other.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// A file that says that this node's pods get taps by NRI. In the kubelet's directory it outlives
/// the device plugin and the machine's next start, when pods may come before the device plugin.
const MARKER: &str = "nri";

/// How a pod's containers get its taps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// Not by NRI on this node.
    NotNri,
    /// By NRI, and the runtime asks for them.
    Nri,
    /// By NRI, but the runtime would start them without, because of this.
    NoNri(String),
}

#[derive(Deserialize, Serialize)]
struct ReplyMessage {
    version: u64,
    /// Why the runtime does not ask; none if it does.
    obstacle: Option<String>,
}

/// What distinguishes nodes that share a directory: their network namespace.
fn node() -> Result<u64> {
    let (_, inode) = Netns::current()?.identity()?;
    Ok(inode)
}

/// The name of the sockets.
pub fn socket_name() -> Result<String> {
    Ok(format!("nri-{}.sock", node()?))
}

fn shared_marker() -> Result<PathBuf> {
    Ok(Path::new(RUN_DIR).join(format!("{MARKER}-{}", node()?)))
}

fn own_marker(kubelet_dir: &Path) -> PathBuf {
    control_socket::dir_in(kubelet_dir).join(MARKER)
}

// === the CNI plugin's end ===

/// How the containers of a pod of Kubernetes get its taps.
#[must_use]
pub fn tap_source() -> TapSource {
    let Ok(name) = socket_name() else {
        return TapSource::NotNri;
    };
    let mut dirs = control_socket::client_dirs();
    let connection = dirs.find_map(|dir| Connection::open(&dir, &name).ok());
    match connection.map(receive) {
        Some(Ok(None)) => TapSource::Nri,
        Some(Ok(Some(obstacle))) => TapSource::NoNri(obstacle),
        Some(Err(error)) => TapSource::NoNri(format!("the device plugin: {error:#}")),
        None if is_marked() => {
            TapSource::NoNri("the device plugin of this node is not running".to_owned())
        }
        None => TapSource::NotNri,
    }
}

fn is_marked() -> bool {
    let own = own_marker(Path::new(control_socket::KUBELET_DIR));
    let mut markers = [own].into_iter().chain(shared_marker());
    markers.any(|marker| marker.exists())
}

fn receive(mut connection: Connection) -> Result<Option<String>> {
    let reply: ReplyMessage = connection.receive(Instant::now() + ANSWER_TIMEOUT)?;
    ensure!(reply.version == VERSION, "its version is another one");
    Ok(reply.obstacle)
}

// === the device plugin's end ===

/// Answers queries on the sockets on which the device plugin is queried.
pub struct Responder {
    listener: Listener,
    pause: AcceptPause,
}

impl Responder {
    /// For the device plugin of this kubelet's directory. It does not listen yet.
    pub fn new(kubelet_dir: &Path) -> Result<Self> {
        Self::in_dirs(control_socket::server_dirs(kubelet_dir))
    }

    /// With sockets in these directories.
    pub fn in_dirs(dirs: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        Ok(Self {
            listener: Listener::new(socket_name()?, dirs),
            pause: AcceptPause::default(),
        })
    }

    /// Listens where it does not yet. Fails while another device plugin listens, and if there is no
    /// socket at all. While another one listens in one directory, this one does in none: each would
    /// wait for the other.
    pub fn bind(&mut self) -> Result<(), BindError> {
        let bound = self.listener.bind();
        if let Err(BindError::InUse(_)) = bound {
            self.listener.release();
        }
        bound
    }

    /// Answers those who wait: why the runtime does not ask, or that it does.
    pub fn answer(&mut self, obstacle: Option<&str>) {
        if self.pause.until().is_some() {
            return;
        }
        match answer(&self.listener, obstacle) {
            Ok(()) => self.pause.end(),
            Err(error) => {
                self.pause.begin(&format_args!("{error:#}"));
            }
        }
    }

    /// The sockets, to wait for; none while no connection can be accepted.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let accepting = self.pause.until().is_none();
        let all = self.listener.descriptors();
        all.filter(move |_| accepting)
    }

    /// Until when no connection can be accepted; none if they can.
    #[must_use]
    pub fn paused_until(&self) -> Option<Instant> {
        self.pause.until()
    }
}

fn answer(listener: &Listener, obstacle: Option<&str>) -> Result<()> {
    while let Some(mut connection) = listener.accept()? {
        let message = ReplyMessage {
            version: VERSION,
            obstacle: obstacle.map(str::to_owned),
        };
        if let Err(error) = connection.send(&message, Instant::now() + ANSWER_TIMEOUT) {
            debug!(error:% = format!("{error:#}"); "ADD did not wait for the answer");
        }
    }
    Ok(())
}

/// Notes that the pods of this kubelet's node get taps by NRI.
pub fn mark(kubelet_dir: &Path) -> Result<()> {
    let write = |marker: &Path| files::replace(marker, kubelet_dir.as_os_str().as_bytes());
    control_socket::make_private_dir(&control_socket::dir_in(kubelet_dir))?;
    // There may be no such directory.
    if let Err(error) = remove_stale_markers().and_then(|()| write(&shared_marker()?)) {
        debug!(error:% = format!("{error:#}"); "not noted here");
    }
    write(&own_marker(kubelet_dir))
}

/// Removes what device plugins of former nodes left in the shared directory, as those of `KinD`
/// do: their kubelet's directory is gone. The kernel gives another network namespace their number.
fn remove_stale_markers() -> Result<()> {
    let entries = fs::read_dir(RUN_DIR).with_context(|| format!("listing {RUN_DIR}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let node = name.to_str().and_then(|name| name.strip_prefix("nri-"));
        if node.is_none_or(|node| node.parse::<u64>().is_err()) {
            continue;
        }
        let kubelet_dir = fs::read(entry.path()).unwrap_or_default();
        let kubelet_dir = Path::new(OsStr::from_bytes(&kubelet_dir));
        if kubelet_dir.is_absolute() && !kubelet_dir.exists() {
            files::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Notes that they do not.
pub fn unmark(kubelet_dir: &Path) -> Result<()> {
    files::remove(&shared_marker()?)?;
    files::remove(&own_marker(kubelet_dir))
}
