//! The nodes of taps in `/dev`.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind},
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{self, SFlag},
    unistd::{Gid, Uid, fchownat},
};

use super::{
    char_device::Found,
    files,
    tap::{self, Tap},
};
use crate::types::{
    device_id::is_made_here,
    device_number::DeviceNumber,
    owner::{Access, Owner},
};

/// Whom a node belongs to, and its permission bits.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// Its owner.
    pub owner: Owner,
    /// Its permission bits.
    pub mode: u32,
}

impl From<Access> for Rights {
    fn from(access: Access) -> Self {
        Self {
            owner: access.owner,
            mode: access.mode(),
        }
    }
}

/// How often a node is made that a DEL at the same time removes.
const MKNOD_ATTEMPTS: u32 = 8;

/// What stands at the path of the node of tap `number`.
pub fn find(number: u32) -> Result<Found> {
    Found::at(&tap::path(number))
}

/// Makes `/dev/tap<number>` the node of `device`, if it is not yet, and gives `access` to it.
/// False if the node of a devtmpfs is not, or not yet, that of this device: then
/// another tap has the same name, and the link has to be made again. The
/// kernel would not remove a node that we put there.
pub fn claim(number: u32, device: DeviceNumber, access: Access) -> Result<bool> {
    give(number, device, access.into())
}

/// The same with any rights.
pub fn give(number: u32, device: DeviceNumber, rights: Rights) -> Result<bool> {
    if chown_checked(&tap::path(number), device, rights)? {
        return Ok(true);
    }
    // No kernel decides there between two that claim one path at a time, so what it says of all
    // taps does: with two of the number alive neither gets the node. The search is what that
    // takes, and it grows with the number of taps; a /dev that is no devtmpfs is a container's.
    if dev_is_devtmpfs()? || tap::devices(number)? != [device] {
        return Ok(false);
    }
    for _ in 0..MKNOD_ATTEMPTS {
        if mknod_atomic(number, device, rights)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens the node of tap `number`; reading does not wait.
pub fn open(number: u32) -> Result<File> {
    let path = tap::path(number);
    File::options()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Fails if the node of tap `number` is not as [`claim`] leaves it.
pub fn verify(number: u32, device: DeviceNumber, access: Access) -> Result<()> {
    verify_as(number, access, |found| {
        let path = tap::path(number);
        let path = path.display();
        ensure!(
            found == device,
            "{path} is device {found}, the macvtap's tap is {device}"
        );
        Ok(())
    })
}

/// The same for who knows `tap`, but not its device number.
///
/// Two network namespaces may have a tap of one number and interface name. [`claim`] gave the
/// node away after the kernel had shown whose it is, and it stays that tap's while that exists: a
/// devtmpfs keeps it, and elsewhere [`claim`] and [`remove_stale`] touch no living tap's node. The
/// node of any other tap is root's.
pub fn verify_of(tap: &Tap, access: Access) -> Result<()> {
    verify_as(tap.number, access, |found| {
        let path = tap::path(tap.number);
        let (path, interface) = (path.display(), &tap.interface);
        ensure!(
            tap::of(found)?.as_ref() == Some(tap),
            "{path} is device {found}, which is not the tap of interface {interface:?}"
        );
        Ok(())
    })
}

/// Fails if the node of tap `number` is missing, not the device that `is_right` accepts, or open
/// to others than `access` says.
fn verify_as(
    number: u32,
    access: Access,
    is_right: impl FnOnce(DeviceNumber) -> Result<()>,
) -> Result<()> {
    let found = find(number)?;
    let path = tap::path(number);
    let path = path.display();
    let (device, owner, mode) = match found {
        Found::Nothing => bail!("{path} does not exist"),
        Found::Foreign => bail!("{path} is not a character device"),
        Found::Device(device, owner, mode) => (device, owner, mode),
    };
    is_right(device)?;
    let expected = access.owner;
    ensure!(
        owner == expected,
        "{path} belongs to {owner}, not to {expected}"
    );
    let expected = access.mode();
    ensure!(
        mode == expected,
        "{path} has mode {mode:04o}, not {expected:04o}"
    );
    Ok(())
}

/// Removes the node of tap `number` if it is ours to remove: on a /dev that is no
/// devtmpfs nodes stay when their device goes, and would open the next
/// device that gets the number. True if there was one.
pub fn remove_stale(number: u32) -> Result<bool> {
    let path = tap::path(number);
    let temporary = [unfinished(number), removed(number)];
    let mut all = temporary.iter().chain([&path]).map(|path| Found::at(path));
    if all.all(|found| matches!(found, Ok(Found::Nothing))) || dev_is_devtmpfs()? {
        return Ok(false);
    }
    files::remove(&unfinished(number))?;
    // Another DEL is at work, or was killed.
    settle_removed(number)?;
    if !is_stale(&path, number)? {
        return Ok(false);
    }
    // ADD may put another node there in this moment, so what is removed is looked at once more,
    // where nothing is put in its place.
    match fs::rename(&path, removed(number)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        moved => moved.with_context(|| format!("removing {}", path.display()))?,
    }
    settle_removed(number)
}

/// Removes the node that was moved away if it is stale, and puts any other back. Of several
/// calls the first one does it. True if it was stale.
fn settle_removed(number: u32) -> Result<bool> {
    let (path, removed) = (tap::path(number), removed(number));
    if is_stale(&removed, number)? {
        files::remove(&removed)?;
        return Ok(true);
    }
    match fs::rename(&removed, &path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        restored => restored
            .with_context(|| format!("restoring {}", path.display()))
            .map(|()| false),
    }
}

/// Whether what is at `path` is the node of a macvtap's tap `number` that is gone. A device that
/// sysfs knows by this name is alive; one of another major number is not ours. Without macvtap in
/// the kernel it does not show whose a node is. Others may have given a number that is none of ours
/// to the node of a tap that is alive.
fn is_stale(path: &Path, number: u32) -> Result<bool> {
    let Some(device) = Found::at(path)?.number() else {
        return Ok(false);
    };
    let found = tap::number_of(device)?;
    let alive = found.is_some_and(|found| found == number || !is_made_here(number));
    Ok(!alive && tap::major()? == Some(device.major))
}

/// The tap numbers of which /dev has a node.
pub fn numbers() -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/dev").context("listing /dev")? {
        let name = entry.context("listing /dev")?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("tap"));
        numbers.extend(digits.and_then(|digits| digits.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Changes owner and mode of the node at `path` by a descriptor whose device number
/// was compared first, so that no other file can be put in between.
fn chown_checked(path: &Path, device: DeviceNumber, rights: Rights) -> Result<bool> {
    let file = match files::open_with(path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let metadata = file.metadata().context("looking at an open node")?;
    if Found::of(&metadata).number() != Some(device) {
        return Ok(false);
    }
    let owner = rights.owner;
    let (user, group) = (Uid::from_raw(owner.user), Gid::from_raw(owner.group));
    let given = fchownat(&file, "", Some(user), Some(group), AtFlags::AT_EMPTY_PATH);
    let given = match given {
        Err(Errno::EINVAL) => Err(anyhow!(
            "one of these is not mapped in the user namespace of this process, see \
             /proc/self/uid_map and gid_map"
        )),
        other => permitted(other.map_err(io::Error::from), "CAP_CHOWN"),
    };
    given.with_context(|| format!("giving {} to {owner}", path.display()))?;
    // fchmod refuses descriptors that were opened with O_PATH.
    let by_descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let set = fs::set_permissions(by_descriptor, Permissions::from_mode(rights.mode));
    permitted(set, "CAP_FOWNER")
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    Ok(true)
}

/// Makes the node under another name first: at its path there is the right one or none. False if
/// a DEL at the same time took it for what a killed ADD left.
fn mknod_atomic(number: u32, device: DeviceNumber, rights: Rights) -> Result<bool> {
    let (path, unfinished) = (tap::path(number), unfinished(number));
    files::remove(&unfinished)?;
    let rdev = stat::makedev(device.major, device.minor);
    let root_only = stat::Mode::S_IRUSR | stat::Mode::S_IWUSR;
    let made = stat::mknod(&unfinished, SFlag::S_IFCHR, root_only, rdev);
    permitted(made.map_err(io::Error::from), "CAP_MKNOD")
        .with_context(|| format!("making the node {}", path.display()))?;
    let placed = chown_checked(&unfinished, device, rights).and_then(|there| {
        match fs::rename(&unfinished, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            renamed => {
                renamed.with_context(|| format!("making {}", path.display()))?;
                Ok(there)
            }
        }
    });
    if placed.is_err() {
        files::remove(&unfinished)?;
    }
    placed
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

/// Where a node is prepared.
fn unfinished(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/.tap{number}.macvtap"))
}

/// Where a node is removed.
fn removed(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/.tap{number}.macvtap.old"))
}

/// Whether the kernel keeps the nodes in /dev itself. Not so in a node that is a
/// container, as in `KinD`. The file system's magic number does not show it: a
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
}
