//! Control sockets: Unix sockets by which the CNI plugin, `probe` and `doctor` query the device
//! plugin. Each is a file in a directory that only root can enter. A message is a line of JSON.

use std::{
    fmt,
    fs::{self, DirBuilder, File, Permissions},
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
    sys::socket::{
        AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket,
        sockopt::PeerCredentials,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::{file_id::FileId, files};

/// Where the CNI plugin looks first.
pub const RUN_DIR: &str = "/run/macvtap";
/// The sub-directory of the kubelet's device-plugins directory, which every manifest mounts. A
/// starting kubelet removes files there, not directories. Probes list that directory by
/// patterns that a hidden name does not match.
const IN_KUBELET_DIR: &str = ".macvtap";
/// Where the kubelet has its socket for device plugins, whatever its `--root-dir` is
/// (`DevicePluginPath` of Kubernetes' `deviceplugin/v1beta1`).
pub const KUBELET_DIR: &str = "/var/lib/kubelet/device-plugins";
/// Bytes of the longest message that is read.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The directories in which the device plugin of a kubelet's directory serves.
#[must_use]
pub fn server_dirs(kubelet_dir: &Path) -> [PathBuf; 2] {
    [RUN_DIR.into(), dir_in(kubelet_dir)]
}

/// The directories in which the CNI plugin looks for a device plugin.
pub fn client_dirs() -> impl Iterator<Item = PathBuf> {
    server_dirs(Path::new(KUBELET_DIR)).into_iter()
}

/// Our directory in a kubelet's device-plugins directory.
#[must_use]
pub fn dir_in(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join(IN_KUBELET_DIR)
}

/// Makes a directory that only root can enter, or takes the rights of others from one that is
/// root's.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    let shown = dir.display();
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("making {shown}"));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir).with_context(|| format!("looking at {shown}"))?;
    let user = metadata.uid();
    ensure!(metadata.is_dir(), "{shown} is not a directory; remove it");
    ensure!(
        user == 0,
        "{shown} belongs to uid {user}, not to root; remove it"
    );
    if metadata.permissions().mode() & 0o077 != 0 {
        let private = fs::set_permissions(dir, Permissions::from_mode(0o700));
        private.with_context(|| format!("closing {shown} to others than root"))?;
    }
    Ok(())
}

/// Why a socket cannot be served.
#[derive(Debug)]
pub enum BindError {
    /// Another process serves it.
    InUse(PathBuf),
    /// Anything else.
    Failed(Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path) => write!(f, "another process serves {}", path.display()),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for BindError {}

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A socket that listens, until this is dropped.
pub struct Server {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, removed when this is dropped.
pub struct SocketFile {
    path: PathBuf,
    id: Option<FileId>,
}

impl Server {
    /// Listens as `name` in `dir`, and removes the sockets there that nothing serves.
    ///
    /// Fails with [`BindError::InUse`] while another process serves that name.
    pub fn bind(dir: &Path, name: &str) -> Result<Self, BindError> {
        make_private_dir(dir)?;
        let _lock = lock(dir)?;
        remove_unserved(dir, |_| true)?;
        let path = dir.join(name);
        let listener = match UnixListener::bind(&path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(BindError::InUse(path));
            }
            bound => bound.with_context(|| format!("listening on {}", path.display()))?,
        };
        let set = listener.set_nonblocking(true);
        set.context("making a socket nonblocking")?;
        let id = FileId::of(&path)?;
        let file = SocketFile { path, id };
        Ok(Self { listener, file })
    }

    /// The next connection of root, if one waits.
    pub fn accept(&self) -> Result<Option<Connection>> {
        match self.listener.accept() {
            Ok((stream, _)) => Connection::with_root(stream).map(Some),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => {
                let path = self.file.path.display();
                Err(error).with_context(|| format!("accepting a connection on {path}"))
            }
        }
    }

    /// Whether clients find the socket: its file is still there.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// The listener, for an event loop, and the file that has to live as long.
    #[must_use]
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl SocketFile {
    /// Whether it is still there, and not another's.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        self.id.is_some() && FileId::of(&self.path).is_ok_and(|id| id == self.id)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let lock = self.path.parent().map(lock);
        if self.is_in_place() {
            // The next server removes it otherwise.
            let _ = fs::remove_file(&self.path);
        }
        drop(lock);
    }
}

/// Keeps others from binding and removing sockets in `dir`.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let file = files::open_with(dir, flags);
    let file = file.with_context(|| format!("opening {}", dir.display()))?;
    match Flock::lock(file, FlockArg::LockExclusive) {
        Ok(lock) => Ok(lock),
        Err((_, errno)) => Err(errno).with_context(|| format!("locking {}", dir.display())),
    }
}

/// Removes the sockets in `dir` that nothing serves, as a process that was killed left them, of
/// those whose name `is_ours`.
pub fn remove_unserved(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    for entry in entries.flatten() {
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        let is_ours = entry.file_name().to_str().is_some_and(&is_ours);
        let path = entry.path();
        // A socket of another type refuses the connection, but only where one is served.
        let served = || try_connect(&path, SockType::Datagram);
        let refused = || matches!(served(), Err(Errno::ECONNREFUSED));
        if is_socket && is_ours && refused() {
            files::remove(&path)?;
        }
    }
    Ok(())
}

/// A connection whose other end is root.
pub struct Connection(UnixStream);

impl Connection {
    /// Connects to `name` in `dir`. Never waits.
    pub fn open(dir: &Path, name: &str) -> Result<Self> {
        check_trusted(dir)?;
        let path = dir.join(name);
        let stream = try_connect(&path, SockType::Stream);
        Self::with_root(stream.with_context(|| format!("connecting to {}", path.display()))?)
    }

    fn with_root(stream: UnixStream) -> Result<Self> {
        let user = peer(&stream)?.uid();
        ensure!(
            user == 0,
            "the peer of a control socket is uid {user}, not root"
        );
        stream.set_nonblocking(false)?;
        Ok(Self(stream))
    }

    /// The process at the other end; 0 if it cannot be seen from our PID namespace.
    pub fn peer_process(&self) -> Result<i32> {
        Ok(peer(&self.0)?.pid())
    }

    /// Sends a message.
    pub fn send(&mut self, message: &impl Serialize, deadline: Instant) -> Result<()> {
        let mut line = serde_json::to_vec(message).context("encoding a message")?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            self.0.set_write_timeout(Some(remaining(deadline)?))?;
            match self.0.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("sending a message"),
            }
        }
        Ok(())
    }

    /// Receives a message. None if the peer closed the connection without one: it only looked
    /// whether the socket is served.
    pub fn try_receive<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<Option<T>> {
        let mut line = Vec::new();
        let mut buffer = [0; 4096];
        while !line.ends_with(b"\n") {
            self.0.set_read_timeout(Some(remaining(deadline)?))?;
            match self.0.read(&mut buffer) {
                Ok(0) if line.is_empty() => return Ok(None),
                Ok(0) => bail!("the peer closed the connection after {} bytes", line.len()),
                Ok(length) => line.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("receiving a message"),
            }
            ensure!(
                line.len() <= MAX_MESSAGE_BYTES,
                "a message is longer than {MAX_MESSAGE_BYTES} bytes"
            );
        }
        let message = serde_json::from_slice(&line).context("decoding a message")?;
        Ok(Some(message))
    }

    /// Receives a message.
    pub fn receive<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<T> {
        let message = self.try_receive(deadline)?;
        message.context("the peer closed the connection without a message")
    }
}

/// Process and user at the other end (`SO_PEERCRED`, `unix(7)`).
fn peer(socket: &impl AsFd) -> Result<UnixCredentials> {
    getsockopt(socket, PeerCredentials).context("asking for the peer of a socket")
}

/// Whether the other end is root. False if the kernel does not say.
#[must_use]
pub fn is_root(socket: &impl AsFd) -> bool {
    peer(socket).is_ok_and(|peer| peer.uid() == 0)
}

/// Fails if another user than root could have put a socket into `dir`.
fn check_trusted(dir: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(dir);
    let metadata = metadata.with_context(|| format!("looking at {}", dir.display()))?;
    let writable = metadata.permissions().mode() & 0o022 != 0;
    ensure!(
        metadata.is_dir() && metadata.uid() == 0 && !writable,
        "{} is not a directory of root alone",
        dir.display()
    );
    Ok(())
}

/// Not by std, whose connect waits while the other end's backlog is full.
fn try_connect(path: &Path, kind: SockType) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn remaining(deadline: Instant) -> Result<Duration> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    ensure!(!remaining.is_zero(), "the peer took too long");
    Ok(remaining)
}
