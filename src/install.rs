//! Copies the binary into a CNI directory, such that whoever executes a plugin there finds the
//! former one or the new one, whole, at every moment.

use std::{
    fs::{self, File, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::{errno::Errno, fcntl::OFlag};
use sha2::{Digest, Sha256};

use crate::{
    cli,
    host::files,
    types::errors::{io_error, together},
};

/// Who runs in a container finds the host's directory here.
const MOUNTED: &str = "/host/opt/cni/bin";
/// Where container runtimes look for plugins.
const USUAL: &str = "/opt/cni/bin";
/// The running binary.
const SELF: &str = "/proc/self/exe";
/// What every version of this binary has in it, and no other program.
const MARKER: &[u8] = b"this file is macvtap, a CNI plugin and device plugin; marker 8c1f6a3e";
/// No plugin's name begins with a dot, so no runtime takes these for one.
const UNFINISHED: &str = ".macvtap.tmp.";
const MODE: u32 = 0o755;
/// The system calls of the device plugin, in the form that the kubelet reads.
const PROFILE: &[u8] = include_bytes!("../manifests/components/seccomp/macvtap-deviceplugin.json");

/// What to install where.
#[derive(Clone, Debug)]
pub struct Target {
    /// The directories; the usual one if there is none.
    pub dirs: Vec<PathBuf>,
    /// The name of the file.
    pub name: String,
}

impl From<&cli::InstallTarget> for Target {
    fn from(options: &cli::InstallTarget) -> Self {
        Self {
            dirs: options.dir.clone(),
            name: options.name.clone(),
        }
    }
}

impl Target {
    fn paths(&self) -> Result<Vec<PathBuf>> {
        let name = &self.name;
        ensure!(
            !name.is_empty() && !name.starts_with('.') && !name.contains('/'),
            "{name:?} is not the name of a plugin"
        );
        if !self.dirs.is_empty() {
            return Ok(self.dirs.iter().map(|dir| dir.join(name)).collect());
        }
        let mounted = Path::new(MOUNTED);
        let dir = if mounted.is_dir() {
            mounted
        } else {
            Path::new(USUAL)
        };
        Ok(vec![dir.join(name)])
    }
}

/// Installs this binary in every directory. Goes on after a failure, and reports all. First, if
/// it is wanted, the device plugin's seccomp profile.
pub fn install(target: &Target, seccomp_profile: Option<&Path>) -> Result<ExitCode> {
    if let Some(path) = seccomp_profile {
        writeln!(io::stdout(), "{}", place_profile(path)?)?;
    }
    each(target, |path| copy(Path::new(SELF), path))
}

/// Removes this program from every directory, whichever version it is, and nothing else.
pub fn uninstall(target: &Target) -> Result<ExitCode> {
    each(target, remove)
}

/// What `cp SOURCE TARGET` of existing manifests means here.
pub fn cp(source: &Path, target: &Path) -> Result<ExitCode> {
    let target = match (target.is_dir(), source.file_name()) {
        (true, Some(name)) => target.join(name),
        _ => target.to_owned(),
    };
    writeln!(io::stdout(), "{}", copy(source, &target)?)?;
    Ok(ExitCode::SUCCESS)
}

fn each(target: &Target, work: impl Fn(&Path) -> Result<String>) -> Result<ExitCode> {
    let mut failures = Vec::new();
    for path in target.paths()? {
        match work(&path) {
            Ok(done) => writeln!(io::stdout(), "{done}")?,
            Err(error) => failures.push(error),
        }
    }
    together(&failures)?;
    Ok(ExitCode::SUCCESS)
}

fn copy(source: &Path, target: &Path) -> Result<String> {
    let shown = target.display();
    let dir = directory(target)?;
    clear(dir)?;
    let new = digest(source)?;
    let former = former(target)?;
    if former == Former::File(new.clone(), true) && is_as_installed(target)? {
        return Ok(format!("{shown} is up to date, sha256 {new}"));
    }
    let unfinished = unfinished(dir);
    let placed = copy_to(source, &unfinished)
        .and_then(|()| try_out(&unfinished))
        .and_then(|()| keep(&former, target))
        .and_then(|()| place(&unfinished, target));
    placed.map_err(|error| given_up(error, &unfinished, target))?;
    let found = digest(target)?;
    ensure!(
        found == new,
        "{shown} has sha256 {found}, not {new}: somebody else wrote it"
    );
    Ok(match former {
        Former::None => format!("{shown} installed, sha256 {new}"),
        Former::Link => format!("{shown} installed in place of a symbolic link, sha256 {new}"),
        Former::File(old, true) => format!("{shown} installed, sha256 {new}, former {old}"),
        Former::File(old, false) => {
            let kept = kept(target);
            let kept = kept.display();
            format!("{shown} installed, sha256 {new}; another program, {old}, is kept as {kept}")
        }
    })
}

/// What stood at the target before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Former {
    None,
    /// A symbolic link. It is replaced, not what it leads to.
    Link,
    /// A file with this digest, and whether it is this program.
    File(String, bool),
}

fn former(target: &Path) -> Result<Former> {
    let shown = target.display();
    let found = match fs::symlink_metadata(target) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Former::None),
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}")),
    };
    if found.is_symlink() {
        return Ok(Former::Link);
    }
    ensure!(
        !found.is_dir(),
        "{shown} is a directory; remove it, or give another --name"
    );
    ensure!(
        found.is_file(),
        "{shown} is not a file; remove it, or give another --name"
    );
    Ok(Former::File(digest(target)?, is_ours(target)?))
}

fn directory(target: &Path) -> Result<&Path> {
    let dir = target.parent().filter(|dir| *dir != Path::new(""));
    let dir = dir.unwrap_or(Path::new("."));
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(dir),
        Ok(_) => bail!("{shown} is not a directory"),
        Err(error) => Err(error).with_context(|| {
            format!(
                "looking at {shown}; it is mounted from the host, the container runtime's CNI \
                 directory (another one is given by --dir) or the kubelet's for seccomp profiles"
            )
        }),
    }
}

/// Removes what installations left that were killed.
fn clear(dir: &Path) -> Result<()> {
    let listing = || format!("listing {}", dir.display());
    for entry in fs::read_dir(dir).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let removed = fs::remove_file(entry.path());
            let removed = removed.with_context(|| format!("removing {}", entry.path().display()));
            removed.map_err(|error| explain(error, dir))?;
        }
    }
    Ok(())
}

fn place_profile(path: &Path) -> Result<String> {
    let dir = directory(path)?;
    clear(dir)?;
    let unfinished = unfinished(dir);
    let placed = write(PROFILE, &unfinished, 0o644).and_then(|_| place(&unfinished, path));
    placed.map_err(|error| given_up(error, &unfinished, path))?;
    Ok(format!("{} installed", path.display()))
}

/// Takes away what was written until `error` came, which is returned with what was being done.
fn given_up(error: Error, unfinished: &Path, target: &Path) -> Error {
    // If that fails as well, the next installation clears it.
    let _ = fs::remove_file(unfinished);
    let dir = unfinished.parent().unwrap_or(unfinished);
    explain(error, dir).context(format!("installing {}", target.display()))
}

fn unfinished(dir: &Path) -> PathBuf {
    dir.join(format!("{UNFINISHED}{}", std::process::id()))
}

/// Copies the whole file under another name.
fn copy_to(source: &Path, unfinished: &Path) -> Result<()> {
    let from = File::open(source)?;
    let length = from.metadata()?.len();
    let copied = write(from, unfinished, MODE)?;
    ensure!(
        copied == length,
        "only {copied} of {length} bytes could be copied"
    );
    Ok(())
}

/// Writes a file that is root's, and to the disk; how many bytes.
fn write(mut from: impl Read, unfinished: &Path, mode: u32) -> Result<u64> {
    let mut to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o700)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(unfinished)?;
    let copied = io::copy(&mut from, &mut to)?;
    fchown(&to, Some(0), Some(0)).context("giving it to root")?;
    to.set_permissions(Permissions::from_mode(mode))?;
    to.sync_all()?;
    Ok(copied)
}

/// Runs the new file as a container runtime would, before anybody else can.
fn try_out(unfinished: &Path) -> Result<()> {
    let mut command = Command::new(unfinished);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("it cannot be executed there")?;
    let mut answer = Vec::new();
    let read = child
        .stdout
        .take()
        .map(|mut out| out.read_to_end(&mut answer));
    let status = child.wait().context("waiting for it")?;
    read.transpose().context("reading its answer")?;
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap_or_default();
    ensure!(
        status.success() && answer["supportedVersions"].is_array(),
        "executed there it is no CNI plugin: it ended with {status}"
    );
    Ok(())
}

/// Keeps another program of the target's name under a name beside it.
fn keep(former: &Former, target: &Path) -> Result<()> {
    if !matches!(former, Former::File(_, false)) {
        return Ok(());
    }
    let kept = kept(target);
    files::remove(&kept)?;
    // A second name: the first one stays until the new file takes it.
    fs::hard_link(target, &kept).with_context(|| format!("keeping {}", kept.display()))
}

fn kept(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.prev"))
}

fn place(unfinished: &Path, target: &Path) -> Result<()> {
    fs::rename(unfinished, target)?;
    let dir = target.parent().unwrap_or(Path::new("/"));
    File::open(dir)?
        .sync_all()
        .context("writing the directory to the disk")
}

fn remove(target: &Path) -> Result<String> {
    let shown = target.display();
    let dir = directory(target)?;
    clear(dir)?;
    match former(target)? {
        Former::None => Ok(format!("{shown} is not there")),
        Former::Link => bail!("{shown} is a symbolic link, not ours to remove"),
        Former::File(digest, false) => {
            bail!("{shown} is another program, sha256 {digest}, not ours to remove")
        }
        Former::File(digest, true) => {
            let kept = kept(target);
            let again = kept.exists();
            let removed = if again {
                fs::rename(&kept, target)
            } else {
                fs::remove_file(target)
            };
            let removed = removed.with_context(|| format!("removing {shown}"));
            removed.map_err(|error| explain(error, dir))?;
            let former = if again {
                "; the former program is back"
            } else {
                ""
            };
            Ok(format!("{shown} removed, sha256 {digest}{former}"))
        }
    }
}

/// Whether the file is a version of this program.
fn is_ours(path: &Path) -> Result<bool> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.windows(MARKER.len()).any(|window| window == MARKER))
}

fn is_as_installed(path: &Path) -> Result<bool> {
    let found = fs::metadata(path)?;
    let owner = (found.uid(), found.gid());
    Ok(found.mode() & 0o7777 == MODE && owner == (0, 0))
}

fn digest(path: &Path) -> Result<String> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(reading)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    let octets: Vec<String> = hash
        .finalize()
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    Ok(octets.concat())
}

/// Adds what to do about it, where that is known.
fn explain(error: Error, dir: &Path) -> Error {
    let code = io_error(&error)
        .and_then(io::Error::raw_os_error)
        .map(Errno::from_raw);
    let dir = dir.display();
    let hint = match code {
        Some(Errno::EROFS) => format!(
            "{dir} is on a read-only file system; mount the runtime's CNI directory \
             writable, or give another one by --dir (/var/lib/cni/bin on OpenShift)"
        ),
        Some(Errno::EACCES | Errno::EPERM) => format!(
            "{dir} does not let us: it must be root's (else CAP_DAC_OVERRIDE is needed), \
             SELinux must allow it (spc_t), and it must not be mounted noexec"
        ),
        Some(Errno::ENOSPC | Errno::EDQUOT) => format!("there is no room in {dir}"),
        Some(Errno::ENOEXEC) => "it is built for another processor".to_owned(),
        _ => return error,
    };
    error.context(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_plugins_are_taken() {
        let target = |name: &str| Target {
            dirs: vec!["/d".into()],
            name: name.into(),
        };
        assert_eq!(
            target("macvtap").paths().unwrap(),
            [Path::new("/d/macvtap")]
        );
        for name in ["", ".", "..", ".hidden", "a/b", "../x"] {
            assert!(target(name).paths().is_err(), "{name}");
        }
    }

    #[test]
    fn another_program_is_kept_out_of_runtimes_sight() {
        assert_eq!(kept(Path::new("/d/macvtap")), Path::new("/d/.macvtap.prev"));
    }

    #[test]
    fn says_what_to_do_about_it() {
        let explained = |errno: Errno| {
            let error = Error::from(io::Error::from(errno)).context("writing");
            format!("{:#}", explain(error, Path::new("/d")))
        };
        assert!(explained(Errno::EROFS).contains("OpenShift"));
        assert!(explained(Errno::EACCES).contains("SELinux"));
        assert!(explained(Errno::ENOSPC).contains("no room"));
        assert!(explained(Errno::EIO).starts_with("writing"));
    }
}
