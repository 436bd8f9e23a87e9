//! The character device `/dev/tapN` of a macvtap: which taps this machine has,
//! and the node by which one is opened.
//!
//! N is an interface index, which is unique within a network namespace only,
//! while the name `/dev/tapN` is machine-wide. So a node is never trusted before
//! its device number was compared with what sysfs says about tap N.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{self, SFlag},
    unistd::{Gid, Uid, fchownat},
};

use super::files;
use crate::{netlink::Link, types::device_id};

/// Frames in a macvtap's queue where its lower device has none.
const QUEUE_LENGTH: u32 = 1000;
/// Who may open a tap beside root: everybody else is kept out.
const MODE: u32 = 0o660;

/// Bytes of `struct virtio_net_hdr`, which a tap has before each frame unless it is told
/// otherwise (`IFF_VNET_HDR` is a macvtap's default).
pub const VNET_HEADER: usize = 10;

/// The device number of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    major: u64,
    minor: u64,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// User and group of a tap's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
}

/// What stands at the path of a tap's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Nothing.
    Missing,
    /// A character device with this number, owner and permission bits.
    Device(Device, Owner, u32),
    /// A file of another type.
    Foreign,
}

/// Frames in the queue of a macvtap on `lower`: as many as there. The tap's ring is as long,
/// so it must not be none.
#[must_use]
pub fn queue_length(lower: &Link) -> u32 {
    match lower.queue_length {
        0 => QUEUE_LENGTH,
        length => length,
    }
}

/// The path of the node of tap `number`.
#[must_use]
pub fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/tap{number}"))
}

/// The devices that are called tap `number`, in all network namespaces of the
/// machine. More than one if two namespaces use the same interface index.
pub fn devices(number: u32) -> Result<Vec<Device>> {
    let major = match major_by_node(number)? {
        Some(major) => Some(major),
        None => major()?,
    };
    let taps = all(major)?
        .into_iter()
        .filter(|(_, found)| *found == number);
    Ok(taps.map(|(device, _)| device).collect())
}

/// The devices of all taps of the machine by their numbers, in whatever network namespace.
pub fn by_number() -> Result<BTreeMap<u32, Vec<Device>>> {
    let mut taps: BTreeMap<u32, Vec<Device>> = BTreeMap::new();
    for (device, number) in all(major()?)? {
        taps.entry(number).or_default().push(device);
    }
    Ok(taps)
}

/// The numbers of all taps of the machine.
pub fn numbers() -> Result<BTreeSet<u32>> {
    Ok(by_number()?.into_keys().collect())
}

/// A number that no tap has, drawn by `seed`, for a macvtap that nobody promised.
pub fn free_number(seed: &str) -> Result<u32> {
    let taken = numbers()?;
    let mut drawn = (0..16).map(|attempt| device_id::standalone_tap(seed, "tap", attempt));
    let free = drawn.find(|number| !taken.contains(number));
    free.context("16 tap numbers drawn at random are all in use")
}

/// Every tap of the machine with its number; `major` is macvtap's.
///
/// `/sys/dev/char` shows the devices of all network namespaces, whereas the
/// directories that its links point to are visible in one's own only.
fn all(major: Option<u64>) -> Result<Vec<(Device, u32)>> {
    let mut taps = Vec::new();
    let Some(major) = major else {
        return Ok(taps);
    };
    let prefix = format!("{major}:");
    for entry in fs::read_dir("/sys/dev/char").context("listing /sys/dev/char")? {
        let entry = entry.context("listing /sys/dev/char")?;
        let name = entry.file_name();
        let minor = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        let Some(minor) = minor.and_then(|minor| minor.parse().ok()) else {
            continue;
        };
        let device = Device { major, minor };
        taps.extend(number_of(device)?.map(|number| (device, number)));
    }
    Ok(taps)
}

/// The number of the tap that sysfs says this device is, if it is one.
fn number_of(device: Device) -> Result<Option<u32>> {
    let target = match fs::read_link(format!("/sys/dev/char/{device}")) {
        Ok(target) => target,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None), // gone meanwhile
        Err(error) => return Err(error).context("reading a link in /sys/dev/char"),
    };
    let text = target.to_string_lossy();
    let number = text.rsplit_once("/macvtap/tap").map(|(_, digits)| digits);
    Ok(number.and_then(|digits| digits.parse().ok()))
}

/// The major device number of macvtap as the tap's own node has it: the kernel takes 0.1 ms to
/// print /proc/devices, a fifth of what an ADD costs.
fn major_by_node(number: u32) -> Result<Option<u64>> {
    match node(&path(number))? {
        Node::Device(device, ..) if number_of(device)? == Some(number) => Ok(Some(device.major)),
        _ => Ok(None),
    }
}

/// The major device number of macvtap; none while the kernel has not loaded it.
fn major() -> Result<Option<u64>> {
    let devices = fs::read_to_string("/proc/devices").context("reading /proc/devices")?;
    Ok(devices.lines().find_map(|line| {
        let (number, name) = line.trim_start().split_once(' ')?;
        (name == "macvtap").then(|| number.parse().ok()).flatten()
    }))
}

/// Looks at the node at `path`, without following a symbolic link.
pub fn node(path: &Path) -> Result<Node> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(describe(&metadata)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Node::Missing),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}

fn describe(metadata: &fs::Metadata) -> Node {
    if !metadata.file_type().is_char_device() {
        return Node::Foreign;
    }
    let device = Device {
        major: stat::major(metadata.rdev()),
        minor: stat::minor(metadata.rdev()),
    };
    let owner = Owner {
        user: metadata.uid(),
        group: metadata.gid(),
    };
    Node::Device(device, owner, metadata.mode() & 0o7777)
}

/// Sees to it that `/dev/tap<number>` is `device` and belongs to `owner`.
/// False if the node of a devtmpfs is not, or not yet, that of this device: then
/// another tap has the same name, and the link has to be made again. The
/// kernel would not remove a node that we put there.
pub fn claim_node(number: u32, device: Device, owner: Owner) -> Result<bool> {
    let path = path(number);
    if chown_checked(&path, device, owner)? {
        return Ok(true);
    }
    if dev_is_devtmpfs()? {
        return Ok(false);
    }
    mknod_atomic(number, device, owner)?;
    Ok(true)
}

/// Opens tap `number`, which was just made, for ourselves; reading does not wait.
pub fn open_new(number: u32) -> Result<File> {
    let root = Owner { user: 0, group: 0 };
    match *devices(number)? {
        [device] if claim_node(number, device, root)? => open(number),
        _ => bail!("{} is not the tap just made", path(number).display()),
    }
}

/// Opens the node of tap `number`; reading does not wait.
pub fn open(number: u32) -> Result<File> {
    let path = path(number);
    File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Whether the node of tap `number` is as [`claim_node`] leaves it; else what is wrong.
pub fn verify(number: u32, device: Device, owner: Owner) -> Result<()> {
    let path = path(number);
    let found = node(&path)?;
    let path = path.display();
    match found {
        Node::Missing => bail!("{path} does not exist"),
        Node::Foreign => bail!("{path} is not a character device"),
        Node::Device(found, ..) if found != device => {
            bail!("{path} is device {found}, the macvtap's tap is {device}")
        }
        Node::Device(_, found, _) if found != owner => bail!(
            "{path} belongs to {}:{}, not to {}:{}",
            found.user,
            found.group,
            owner.user,
            owner.group
        ),
        Node::Device(.., mode) if mode != MODE => {
            bail!("{path} has mode {mode:04o}, not {MODE:04o}")
        }
        Node::Device(..) => Ok(()),
    }
}

/// Removes the node of tap `number` if it is ours to remove: on a /dev that is no
/// devtmpfs nodes stay when their device goes, and would open the next
/// device that gets the number. True if there was one.
pub fn remove_stale(number: u32) -> Result<bool> {
    let path = path(number);
    let unfinished = unfinished(number);
    if node(&path)? == Node::Missing && node(&unfinished)? == Node::Missing {
        return Ok(false);
    }
    if dev_is_devtmpfs()? {
        return Ok(false);
    }
    files::remove(&unfinished)?;
    let Node::Device(device, ..) = node(&path)? else {
        return Ok(false);
    };
    // A number in use by a tap of this name is alive; one of another major is not ours.
    if devices(number)?.contains(&device) || major()?.is_some_and(|major| major != device.major) {
        return Ok(false);
    }
    files::remove(&path)?;
    Ok(true)
}

/// The tap numbers of which /dev has a node.
pub fn nodes() -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/dev").context("listing /dev")? {
        let name = entry.context("listing /dev")?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("tap"));
        numbers.extend(digits.and_then(|digits| digits.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Changes owner and mode of the node at `path` by a descriptor whose device number
/// was compared first, so that nobody can put another file in between.
fn chown_checked(path: &Path, device: Device, owner: Owner) -> Result<bool> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let opened = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let metadata = file.metadata().context("looking at an open node")?;
    if !matches!(describe(&metadata), Node::Device(found, ..) if found == device) {
        return Ok(false);
    }
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    let given = fchownat(&file, "", Some(user), Some(group), AtFlags::AT_EMPTY_PATH);
    permitted(given.map_err(io::Error::from), "CAP_CHOWN").with_context(|| {
        let path = path.display();
        format!("giving {path} to {}:{}", owner.user, owner.group)
    })?;
    // fchmod refuses descriptors that were opened with O_PATH.
    let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let set = fs::set_permissions(by_descriptor, Permissions::from_mode(MODE));
    permitted(set, "CAP_FOWNER")
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    Ok(true)
}

/// Makes the node, whole under another name first: whoever looks sees the right one or none.
fn mknod_atomic(number: u32, device: Device, owner: Owner) -> Result<()> {
    let (path, unfinished) = (path(number), unfinished(number));
    files::remove(&unfinished)?;
    let rdev = stat::makedev(device.major, device.minor);
    let root_only = stat::Mode::S_IRUSR | stat::Mode::S_IWUSR;
    let made = stat::mknod(&unfinished, SFlag::S_IFCHR, root_only, rdev);
    permitted(made.map_err(io::Error::from), "CAP_MKNOD")
        .with_context(|| format!("making the node {}", path.display()))?;
    let made = chown_checked(&unfinished, device, owner).and_then(|ours| {
        anyhow::ensure!(ours, "{} is not what was made", unfinished.display());
        fs::rename(&unfinished, &path).with_context(|| format!("making {}", path.display()))
    });
    if made.is_err() {
        files::remove(&unfinished)?;
    }
    made
}

/// Names the capability that is missing where the kernel does not permit something.
fn permitted(outcome: io::Result<()>, capability: &str) -> Result<()> {
    match outcome {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
            Err(Error::new(error).context(format!("{capability} is needed")))
        }
        other => Ok(other?),
    }
}

fn unfinished(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/.tap{number}.macvtap"))
}

/// Whether the kernel keeps the nodes in /dev itself. Not so in a node that is a
/// container, as in `KinD`. The file system's magic number does not tell: a
/// devtmpfs has that of tmpfs.
fn dev_is_devtmpfs() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    Ok(fs_type_of(&mounts, "/dev") == Some("devtmpfs"))
}

/// The type of the file system mounted last on `mount_point`, by `proc_pid_mountinfo(5)`.
fn fs_type_of<'a>(mounts: &'a str, mount_point: &str) -> Option<&'a str> {
    let on_it = |line: &&str| line.split(' ').nth(4) == Some(mount_point);
    let line = mounts.lines().rfind(on_it)?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_type_of_the_upper_mount() {
        let mounts = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw,size=1k
24 23 0:22 / /dev/shm rw - tmpfs tmpfs rw
";
        assert_eq!(fs_type_of(mounts, "/dev"), Some("devtmpfs"));
        let covered = format!("{mounts}30 22 0:40 / /dev rw - tmpfs tmpfs rw\n");
        assert_eq!(fs_type_of(&covered, "/dev"), Some("tmpfs"));
        assert_eq!(fs_type_of("garbage\n", "/dev"), None);
        assert_eq!(fs_type_of("", "/dev"), None);
    }

    #[test]
    fn tells_nodes_apart() {
        assert_eq!(node(Path::new("/dev/nothing-here")).unwrap(), Node::Missing);
        assert_eq!(node(Path::new("/proc/self/stat")).unwrap(), Node::Foreign);
        let Node::Device(device, ..) = node(Path::new("/dev/null")).unwrap() else {
            panic!("/dev/null is no device");
        };
        assert_eq!(device.to_string(), "1:3");
    }
}
