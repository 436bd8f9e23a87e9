//! Copies the binary into a CNI directory, so that a runtime that executes a plugin there finds
//! the previous one or the new one, complete, at every moment.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::{errno::Errno, fcntl::OFlag};
use sha2::{Digest, Sha256};
use tempfile::{Builder, TempPath};

use crate::{
    cli,
    host::{
        files,
        program::{self, Bounds, ProgramError},
        stdout::print,
    },
    types::errors::{io_error, together},
};

/// The host's CNI directory as containers mount it.
const MOUNTED: &str = "/host/opt/cni/bin";
/// Where container runtimes look for plugins.
const USUAL: &str = "/opt/cni/bin";
/// The running binary.
const SELF: &str = "/proc/self/exe";
/// What every version of this binary has in it, and no other program.
const MARKER: &[u8] = b"this file is macvtap, a CNI plugin and device plugin; marker 8c1f6a3e";
/// Names of files that are not complete yet. No plugin's name begins with a dot, so no runtime
/// takes these for one.
const TEMPORARY: &str = ".macvtap.tmp.";
/// What is locked in a directory. The directory itself could be locked by every user.
const LOCK: &str = ".macvtap.lock";
/// How long another installation in the same directory may take.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
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
            "{name:?} is not a valid plugin name: it must not be empty, start with a dot or \
             contain a slash"
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

/// Installs this binary in every directory; before that, the device plugin's seccomp profile if
/// a path is given. Continues after a failure, and reports all.
pub fn install(target: &Target, seccomp_profile: Option<&Path>) -> Result<ExitCode> {
    let paths = target.paths()?;
    let profile = seccomp_profile.map(write_profile);
    each(&paths, profile, |path| copy(Path::new(SELF), path))
}

/// Removes this program from every directory, whichever version it is, and nothing else; before
/// that, the device plugin's seccomp profile if a path is given.
pub fn uninstall(target: &Target, seccomp_profile: Option<&Path>) -> Result<ExitCode> {
    let paths = target.paths()?;
    let profile = seccomp_profile.map(remove_profile);
    each(&paths, profile, remove)
}

/// What `cp SOURCE TARGET` of existing manifests means here.
pub fn cp(source: &Path, target: &Path) -> Result<ExitCode> {
    let target = match (target.is_dir(), source.file_name()) {
        (true, Some(name)) => target.join(name),
        _ => target.to_owned(),
    };
    print(&format!("{}\n", copy(source, &target)?))?;
    Ok(ExitCode::SUCCESS)
}

/// Works on each path, and only then prints: a reader that is gone stops no installation.
fn each(
    paths: &[PathBuf],
    profile: Option<Result<String>>,
    work: impl Fn(&Path) -> Result<String>,
) -> Result<ExitCode> {
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let outcomes = paths.iter().map(|path| work(path));
    for outcome in profile.into_iter().chain(outcomes) {
        match outcome {
            Ok(line) => lines.push(format!("{line}\n")),
            Err(error) => failures.push(error),
        }
    }
    let printed = print(&lines.concat());
    together(&failures).and(printed)?;
    Ok(ExitCode::SUCCESS)
}

fn copy(source: &Path, target: &Path) -> Result<String> {
    let shown = target.display();
    let dir = cni_directory(target)?;
    let new = sha256(source)?;
    let is_done =
        |previous: &Previous| Ok::<_, Error>(previous.is(&new) && is_as_installed(target)?);
    let done = || format!("{shown} is up to date, sha256 {new}");
    // Where nothing is to be done the directory need not be writable.
    if is_done(&previous(target)?)? && !has_leftovers(dir)? {
        return Ok(done());
    }
    let _lock = lock(dir)?;
    let previous = previous(target)?;
    if is_done(&previous)? {
        return Ok(done());
    }
    replace(source, target, &previous)
        .map_err(|error| explain(error, dir).context(format!("installing {shown}")))?;
    let found = sha256(target)?;
    ensure!(
        found == new,
        "{shown} has sha256 {found} instead of {new}: another process replaced it meanwhile"
    );
    Ok(match previous {
        Previous::None => format!("{shown} installed, sha256 {new}"),
        Previous::SymbolicLink => {
            let kept = kept(target);
            let kept = kept.display();
            format!("{shown} installed, sha256 {new}; the symbolic link there is kept as {kept}")
        }
        Previous::File(old) if old.ours => {
            format!("{shown} installed, sha256 {new}, previously {}", old.sha256)
        }
        Previous::File(old) => format!(
            "{shown} installed, sha256 {new}; the other program there, sha256 {}, is kept as {}",
            old.sha256,
            kept(target).display()
        ),
    })
}

fn replace(source: &Path, target: &Path, previous: &Previous) -> Result<()> {
    let dir = target.parent().unwrap_or(Path::new("/"));
    let complete = write(File::open(source)?, dir, MODE)?;
    try_out(&complete)?;
    if previous.is_others() {
        keep(target)?;
    }
    place(complete, target)
}

/// A program in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Program {
    sha256: String,
    /// Whether it is a version of this program.
    ours: bool,
}

impl Program {
    fn read(path: &Path) -> Result<Self> {
        let bytes = read(path)?;
        Ok(Self {
            sha256: hex::encode(Sha256::digest(&bytes)),
            ours: bytes.windows(MARKER.len()).any(|window| window == MARKER),
        })
    }
}

fn sha256(path: &Path) -> Result<String> {
    Ok(hex::encode(Sha256::digest(read(path)?)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// What stood at the target before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Previous {
    None,
    /// It is replaced, not the file that it leads to.
    SymbolicLink,
    File(Program),
}

impl Previous {
    /// Whether it is kept when it is replaced.
    fn is_others(&self) -> bool {
        match self {
            Self::None => false,
            Self::SymbolicLink => true,
            Self::File(program) => !program.ours,
        }
    }

    /// Whether it is this program, in the version with this digest.
    fn is(&self, sha256: &str) -> bool {
        matches!(self, Self::File(program) if program.ours && program.sha256 == sha256)
    }
}

fn previous(target: &Path) -> Result<Previous> {
    let shown = target.display();
    let found = match fs::symlink_metadata(target) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Previous::None),
        Err(error) => return Err(error).with_context(|| format!("reading {shown}")),
    };
    if found.is_symlink() {
        return Ok(Previous::SymbolicLink);
    }
    ensure!(
        !found.is_dir(),
        "{shown} is a directory; remove it, or give another --name"
    );
    ensure!(
        found.is_file(),
        "{shown} is not a regular file; remove it, or give another --name"
    );
    Ok(Previous::File(Program::read(target)?))
}

fn cni_directory(target: &Path) -> Result<&Path> {
    directory(target, "give another CNI directory with --dir")
}

/// The directory of a file; fails with what to do if there is none.
fn directory<'a>(target: &'a Path, fix: &str) -> Result<&'a Path> {
    let dir = target.parent().filter(|dir| *dir != Path::new(""));
    let dir = dir.unwrap_or(Path::new("."));
    let shown = dir.display();
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => Ok(dir),
        Ok(_) => bail!("{shown} is not a directory"),
        Err(error) => Err(error).with_context(|| {
            format!(
                "reading {shown}: it must exist, and in a container be mounted from the host; {fix}"
            )
        }),
    }
}

/// Keeps other installers out of a directory until it is dropped, those in other containers too.
struct Lock {
    path: PathBuf,
    /// What is locked, as long as it is open.
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It stays where the file system refuses that, and harms nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Locks a directory. Temporary files that are there then are of installations that were killed.
fn lock(dir: &Path) -> Result<Lock> {
    let path = dir.join(LOCK);
    let shown = path.display();
    let start = Instant::now();
    let file = loop {
        let file = open_lock(&path).with_context(|| format!("opening {shown}"));
        let file = file.map_err(|error| explain(error, dir))?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => break file,
            // The former installer removed the file.
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIMEOUT => {
                sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                bail!("another process has locked {shown} for {LOCK_TIMEOUT:?}; try again")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("locking {shown}"));
            }
        }
    };
    let lock = Lock { path, _file: file };
    remove_leftovers(dir).map_err(|error| explain(error, dir))?;
    Ok(lock)
}

/// Opens the file that is locked, which no other user can.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path)
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let there = fs::symlink_metadata(path).map(identity);
    let ours = file.metadata().map(identity);
    matches!((ours, there), (Ok(ours), Ok(there)) if ours == there)
}

fn has_leftovers(dir: &Path) -> Result<bool> {
    Ok(!leftovers(dir)?.is_empty() || dir.join(LOCK).exists())
}

fn remove_leftovers(dir: &Path) -> Result<()> {
    leftovers(dir)?
        .iter()
        .try_for_each(|path| files::remove(path))
}

/// Temporary files of installations.
fn leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    let listing = || format!("listing {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn write_profile(path: &Path) -> Result<String> {
    let dir = directory(path, "give another path with --seccomp-profile")?;
    let _lock = lock(dir)?;
    let placed = write(PROFILE, dir, 0o644).and_then(|complete| place(complete, path));
    placed
        .map_err(|error| explain(error, dir).context(format!("installing {}", path.display())))?;
    Ok(format!("{} installed", path.display()))
}

/// Removes the profile if it is the one that this version writes.
fn remove_profile(path: &Path) -> Result<String> {
    let shown = path.display();
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(format!("{shown} does not exist")),
        Ok(text) if text == PROFILE && !path.is_symlink() => {
            fs::remove_file(path).with_context(|| format!("removing {shown}"))?;
            Ok(format!("{shown} removed"))
        }
        Ok(_) => Ok(format!("{shown} is another profile; it is left alone")),
        Err(error) => Err(error).with_context(|| format!("reading {shown}")),
    }
}

/// Writes a temporary file that is root's, and to the disk. It is removed when dropped.
fn write(mut from: impl Read, dir: &Path, mode: u32) -> Result<TempPath> {
    let mut file = Builder::new().prefix(TEMPORARY).tempfile_in(dir)?;
    // From file to file the kernel copies by itself.
    io::copy(&mut from, file.as_file_mut())?;
    let to = file.as_file();
    fchown(to, Some(0), Some(0)).context("changing its owner to root")?;
    to.set_permissions(Permissions::from_mode(mode))?;
    to.sync_all()?;
    // Closed: the kernel executes no file that is open for writing.
    Ok(file.into_temp_path())
}

/// Runs the new file as a container runtime would, before one can.
fn try_out(program: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", "VERSION");
    let output = program::run(&mut command, b"", Bounds::SHORT).map_err(|error| match error {
        // Its kind says what to do.
        ProgramError::NotStarted(error) => Error::new(error),
        other => Error::new(other),
    });
    let output = output.context("executing the copy")?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let status = output.status;
    ensure!(
        status.success() && answer["supportedVersions"].is_array(),
        "the copy does not run as a CNI plugin: {status}"
    );
    Ok(())
}

/// Keeps another program under a name beside the target.
fn keep(target: &Path) -> Result<()> {
    let kept = kept(target);
    files::remove(&kept)?;
    // A second name: the first one stays until the new file takes it.
    fs::hard_link(target, &kept).with_context(|| format!("keeping {}", kept.display()))
}

fn kept(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.prev"))
}

fn place(complete: TempPath, target: &Path) -> Result<()> {
    complete.persist(target)?;
    let dir = target.parent().unwrap_or(Path::new("/"));
    File::open(dir)?
        .sync_all()
        .context("writing the directory to the disk")
}

fn remove(target: &Path) -> Result<String> {
    let shown = target.display();
    let dir = cni_directory(target)?;
    if previous(target)? == Previous::None && !has_leftovers(dir)? {
        return Ok(format!("{shown} does not exist"));
    }
    let _lock = lock(dir)?;
    match previous(target)? {
        Previous::None => Ok(format!("{shown} does not exist")),
        Previous::SymbolicLink => Ok(format!("{shown} is a symbolic link; it is left alone")),
        Previous::File(program) if program.ours => {
            let removed = remove_ours(target).with_context(|| format!("removing {shown}"));
            let note = removed.map_err(|error| explain(error, dir))?;
            Ok(format!("{shown} removed, sha256 {}{note}", program.sha256))
        }
        Previous::File(program) => {
            let note = remove_duplicate(target, &program)?;
            let digest = program.sha256;
            Ok(format!(
                "{shown} is another program, sha256 {digest}; it is left alone{note}"
            ))
        }
    }
}

/// Removes the program, and puts back the one that it replaced.
fn remove_ours(target: &Path) -> io::Result<&'static str> {
    match fs::rename(kept(target), target) {
        Ok(()) => Ok("; what it replaced is back"),
        Err(error) if error.kind() == ErrorKind::NotFound => fs::remove_file(target).map(|()| ""),
        Err(error) => Err(error),
    }
}

/// Removes the kept copy of a program that was installed again since.
fn remove_duplicate(target: &Path, program: &Program) -> Result<String> {
    let kept = kept(target);
    let shown = kept.display();
    match previous(&kept)? {
        Previous::File(copy) if copy == *program => {
            fs::remove_file(&kept).with_context(|| format!("removing {shown}"))?;
            Ok(format!(", its copy {shown} is removed"))
        }
        Previous::None => Ok(String::new()),
        _ => Ok(format!(
            "; {shown} is the program that macvtap replaced: remove it if it is not needed"
        )),
    }
}

fn is_as_installed(path: &Path) -> Result<bool> {
    let found = fs::metadata(path)?;
    let owner = (found.uid(), found.gid());
    Ok(found.mode() & 0o7777 == MODE && owner == (0, 0))
}

/// Adds what to do about it, where that is known.
fn explain(error: Error, dir: &Path) -> Error {
    let Some(cause) = io_error(&error) else {
        return error;
    };
    let dir = dir.display();
    let hint = match cause.kind() {
        ErrorKind::ReadOnlyFilesystem => format!(
            "{dir} is on a read-only file system; mount the runtime's CNI directory writable, or \
             give another one with --dir (OpenShift: /var/lib/cni/bin)"
        ),
        ErrorKind::PermissionDenied => format!(
            "no permission in {dir}: it must belong to root (or CAP_DAC_OVERRIDE is needed), \
             SELinux must allow it (type spc_t), and it must not be mounted noexec"
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("no space left in {dir}"),
        _ if cause.raw_os_error() == Some(Errno::ENOEXEC as i32) => {
            "the binary is built for another architecture".to_owned()
        }
        _ => return error,
    };
    error.context(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_plugin_names() {
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
    fn another_program_is_kept_where_no_runtime_finds_it() {
        assert_eq!(kept(Path::new("/d/macvtap")), Path::new("/d/.macvtap.prev"));
    }

    #[test]
    fn suggests_what_to_do() {
        let explained = |errno: Errno| {
            let error = Error::from(io::Error::from(errno)).context("writing");
            format!("{:#}", explain(error, Path::new("/d")))
        };
        assert!(explained(Errno::EROFS).contains("OpenShift"));
        assert!(explained(Errno::EACCES).contains("SELinux"));
        assert!(explained(Errno::ENOSPC).contains("no space left"));
        assert!(explained(Errno::EIO).starts_with("writing"));
    }
}
