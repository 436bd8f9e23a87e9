//! A network namespace, named by a path or a descriptor.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, fstatfs},
};

use super::files;
use crate::netlink;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: FsType = FsType(0x6e73_6673);
/// The calling thread's network namespace.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// What is missing for a namespace to be made.
const NOT_PERMITTED: &str =
    "creating a network namespace needs CAP_SYS_ADMIN, and a seccomp profile that allows unshare";

/// Why a path does not lead to a network namespace.
#[derive(Debug)]
pub enum NetnsError {
    /// What stands there is something else.
    Other(String),
    /// It could not be looked at.
    Failed(anyhow::Error),
}

impl fmt::Display for NetnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(path) => write!(f, "{path} is not a network namespace"),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for NetnsError {}

impl From<anyhow::Error> for NetnsError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// An open network namespace, which lives as long as this.
pub struct Netns {
    file: File,
}

impl Netns {
    /// Opens the namespace that the file at `path` stands for. None if there is no such file.
    pub fn open(path: &Path) -> Result<Option<Self>, NetnsError> {
        // Not blocking: the path may be that of a FIFO.
        let file = match files::open_with(path, OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) if is_no_path(&error) => return Err(other(path)),
            Err(error) => {
                let error = anyhow::Error::new(error);
                return Err(error
                    .context(format!("opening netns {}", path.display()))
                    .into());
            }
        };
        let looking = || format!("looking at {}", path.display());
        let fs_type = fstatfs(&file).with_context(looking)?.filesystem_type();
        // namespaces(7): the kernel's name of what a descriptor leads to, or its path.
        let target = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let target = target.with_context(looking)?;
        let of_other_kind = target.is_relative() && !target.to_string_lossy().starts_with("net:[");
        if fs_type != NSFS || of_other_kind {
            return Err(other(path));
        }
        Ok(Some(Self { file }))
    }

    /// The same where a path that leads to something else is none: such a file is left when the
    /// mount of a namespace is taken away, as by `ip netns`.
    pub fn open_mounted(path: &Path) -> Result<Option<Self>> {
        match Self::open(path) {
            Err(NetnsError::Other(_)) => Ok(None),
            other => Ok(other?),
        }
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        let file = File::open(CURRENT);
        let file = file.with_context(|| format!("opening {CURRENT}; is /proc mounted?"))?;
        Ok(Self { file })
    }

    /// Makes a new namespace.
    pub fn create() -> Result<Self> {
        // A thread may leave its namespace and end; the descriptor holds the new one.
        let thread = thread::Builder::new().spawn(|| {
            match unshare(CloneFlags::CLONE_NEWNET) {
                Err(Errno::EPERM) => bail!(NOT_PERMITTED),
                Err(Errno::ENOSPC) => bail!(
                    "there are as many network namespaces as \
                     /proc/sys/user/max_net_namespaces allows"
                ),
                other => other.context("creating a network namespace")?,
            }
            Self::current()
        });
        match thread.context("starting a thread")?.join() {
            Ok(netns) => netns,
            Err(_) => bail!("the thread that makes a network namespace panicked"),
        }
    }

    /// Whether it is a network namespace indeed. [`Self::open`] does not know the kind of one
    /// that is mounted; entering it shows (`setns(2)`).
    pub fn is_network(&self) -> Result<bool> {
        let home = Self::current()?;
        match setns(&self.file, CloneFlags::CLONE_NEWNET) {
            Err(Errno::EINVAL) => return Ok(false),
            entered => entered.context("entering a network namespace")?,
        }
        enter(&home.file).context("coming back from a network namespace")?;
        Ok(true)
    }

    /// Device and inode, by which a namespace is known while it exists (`namespaces(7)`).
    pub fn identity(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata();
        let metadata = metadata.context("looking at a network namespace")?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> Result<bool> {
        Ok(self.identity()? == other.identity()?)
    }

    /// A netlink socket that belongs to this namespace.
    pub fn socket(&self) -> Result<netlink::Socket> {
        self.run(|| Ok(netlink::Socket::open()?))
    }

    /// Runs `work` with the calling thread in this namespace, and brings the
    /// thread back. For what the kernel binds to the thread that asks: opening
    /// sockets, `/proc/sys/net`, starting processes.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let home = Self::current()?;
        enter(&self.file)?;
        let outcome = work();
        enter(&home.file).context("coming back from a network namespace")?;
        outcome
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where container runtimes and iproute2 keep network namespaces.
pub const NAMED: &str = "/run/netns";

/// Paths of the network namespaces with a name, then of those of processes; each once. One that
/// only a descriptor holds has no path here.
pub fn all() -> impl Iterator<Item = PathBuf> {
    let of_processes = entries(Path::new("/proc")).map(|process| process.join("ns/net"));
    let paths = entries(Path::new(NAMED)).chain(of_processes);
    each_once(paths).map(|(path, _)| path)
}

/// Of paths of network namespaces those that exist, each namespace once, with its
/// [`identity`](Netns::identity).
pub fn each_once(
    paths: impl Iterator<Item = PathBuf>,
) -> impl Iterator<Item = (PathBuf, (u64, u64))> {
    let mut seen = BTreeSet::new();
    paths.filter_map(move |path| {
        let found = fs::metadata(&path).ok()?;
        let identity = (found.dev(), found.ino());
        seen.insert(identity).then_some((path, identity))
    })
}

/// Paths of what is in a directory; of one that cannot be read, none.
pub fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

fn is_absent(error: &io::Error) -> bool {
    // ENXIO and ESRCH: a path in /proc of a process that is gone.
    let codes = [Errno::ENOENT, Errno::ENOTDIR, Errno::ENXIO, Errno::ESRCH];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(*code as i32))
}

/// Whether the system says that no file can be at a path.
fn is_no_path(error: &io::Error) -> bool {
    let codes = [Errno::ENAMETOOLONG, Errno::ELOOP];
    codes
        .iter()
        .any(|code| error.raw_os_error() == Some(*code as i32))
}

fn other(path: &Path) -> NetnsError {
    NetnsError::Other(path.display().to_string())
}

fn enter(file: &File) -> Result<()> {
    match setns(file, CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => bail!("entering a network namespace needs CAP_SYS_ADMIN"),
        other => other.context("entering a network namespace"),
    }
}
