//! The installer, on real file systems.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use kit::{binary, netns::names};
use tempfile::{TempDir, tempdir};

const OTHER: &str = "#!/bin/sh\necho another program\n";

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, verb: &str) -> Output {
        let mut command = Command::new(binary());
        command.arg(verb).arg("--dir").arg(self.0.path());
        command.output().unwrap()
    }

    /// Installs, which has to succeed; what it said.
    fn install(&self) -> String {
        succeeded(&self.run("install"))
    }

    fn names(&self) -> Vec<String> {
        names(self.0.path())
    }

    fn check(&self) {
        let path = self.path("macvtap");
        assert_eq!(fs::read(&path).unwrap(), fs::read(binary()).unwrap());
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file());
        assert_eq!(found.mode() & 0o7777, 0o755);
        assert_eq!((found.uid(), found.gid()), (0, 0));
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn into_an_empty_directory_and_again() {
    let dir = Dir::new();
    assert!(dir.install().contains("installed"));
    dir.check();
    let inode = fs::metadata(dir.path("macvtap")).unwrap().ino();
    assert!(dir.install().contains("up to date"));
    assert_eq!(fs::metadata(dir.path("macvtap")).unwrap().ino(), inode);
    assert_eq!(dir.names(), ["macvtap"]);
    fs::set_permissions(dir.path("macvtap"), fs::Permissions::from_mode(0o700)).unwrap();
    dir.install();
    dir.check();
}

#[test]
fn what_a_killed_installation_left_is_removed() {
    let dir = Dir::new();
    fs::write(dir.path(".macvtap.tmp.123"), "half").unwrap();
    fs::write(dir.path("bridge"), "another plugin").unwrap();
    dir.install();
    assert_eq!(dir.names(), ["bridge", "macvtap"]);
}

#[test]
fn another_program_is_kept_and_comes_back() {
    let dir = Dir::new();
    fs::write(dir.path("macvtap"), OTHER).unwrap();
    let text = dir.install();
    assert!(
        text.contains("other program") && text.contains(".macvtap.prev"),
        "{text}"
    );
    dir.check();
    dir.install();
    assert_eq!(dir.names(), [".macvtap.prev", "macvtap"]);
    let text = succeeded(&dir.run("uninstall"));
    assert!(text.contains("what it replaced is back"), "{text}");
    assert_eq!(fs::read_to_string(dir.path("macvtap")).unwrap(), OTHER);
    assert_eq!(dir.names(), ["macvtap"]);
    let text = succeeded(&dir.run("uninstall"));
    assert!(text.contains("left alone"), "{text}");
    assert_eq!(dir.names(), ["macvtap"]);
}

/// As containers that start together: each of these is process 1, with the same names to choose.
#[test]
fn installers_at_the_same_time_all_succeed() {
    let dir = Dir::new();
    fs::write(dir.path("macvtap"), OTHER).unwrap();
    let mut install = Command::new("unshare");
    install.args(["--pid", "--fork"]).arg(binary());
    install.arg("install").arg("--dir").arg(dir.0.path());
    install.stdout(Stdio::null()).stderr(Stdio::piped());
    let started: Vec<_> = (0..6).map(|_| install.spawn().unwrap()).collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    dir.check();
    assert_eq!(dir.names(), [".macvtap.prev", "macvtap"]);
    let kept = fs::read_to_string(dir.path(".macvtap.prev")).unwrap();
    assert_eq!(kept, OTHER);
}

/// Back to the program that was there before, by its own installer.
#[test]
fn the_kept_copy_of_a_program_that_is_back_is_removed() {
    let dir = Dir::new();
    fs::write(dir.path("macvtap"), OTHER).unwrap();
    dir.install();
    fs::write(dir.path("macvtap"), "#!/bin/sh\nnewer\n").unwrap();
    let text = succeeded(&dir.run("uninstall"));
    assert!(text.contains(".macvtap.prev is the program"), "{text}");
    assert_eq!(dir.names(), [".macvtap.prev", "macvtap"]);
    fs::write(dir.path("macvtap"), OTHER).unwrap();
    let text = succeeded(&dir.run("uninstall"));
    assert!(text.contains("is removed"), "{text}");
    assert_eq!(dir.names(), ["macvtap"]);
    assert_eq!(fs::read_to_string(dir.path("macvtap")).unwrap(), OTHER);
}

/// A reader of standard output that is gone.
#[test]
fn into_a_closed_pipe_it_installs_everywhere() {
    let dirs = [Dir::new(), Dir::new()];
    let mut install = Command::new(binary());
    install.arg("install");
    for dir in &dirs {
        install.arg("--dir").arg(dir.0.path());
    }
    let mut child = install
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    dirs.iter().for_each(Dir::check);
}

#[test]
fn uninstalls_only_what_is_ours() {
    let dir = Dir::new();
    succeeded(&dir.run("uninstall"));
    dir.install();
    fs::write(dir.path("bridge"), OTHER).unwrap();
    succeeded(&dir.run("uninstall"));
    assert_eq!(dir.names(), ["bridge"]);
}

#[test]
fn a_symbolic_link_is_replaced_and_not_followed() {
    let dir = Dir::new();
    fs::write(dir.path("victim"), OTHER).unwrap();
    symlink(dir.path("victim"), dir.path("macvtap")).unwrap();
    assert!(dir.install().contains("the symbolic link there is kept"));
    dir.check();
    assert_eq!(fs::read_to_string(dir.path("victim")).unwrap(), OTHER);
    assert!(succeeded(&dir.run("uninstall")).contains("what it replaced is back"));
    let back = fs::read_link(dir.path("macvtap")).unwrap();
    assert_eq!(back, dir.path("victim"));
    assert_eq!(dir.names(), ["macvtap", "victim"]);
}

/// A directory that others can read they can lock.
#[test]
fn another_user_cannot_keep_it_from_installing() {
    let dir = Dir::new();
    let directory = fs::File::open(dir.0.path()).unwrap();
    directory.lock().unwrap();
    dir.install();
    dir.check();
}

#[test]
fn a_seccomp_profile_that_cannot_be_written_keeps_no_plugin_out() {
    let dir = Dir::new();
    let mut command = Command::new(binary());
    command.args([
        "install",
        "--seccomp-profile",
        "/nowhere/profile.json",
        "--dir",
    ]);
    let text = failed(&command.arg(dir.0.path()).output().unwrap());
    assert!(
        text.contains("another path with --seccomp-profile"),
        "{text}"
    );
    assert_eq!(dir.names(), ["macvtap"]);
}

#[test]
fn a_directory_in_the_way_is_an_error() {
    let dir = Dir::new();
    fs::create_dir(dir.path("macvtap")).unwrap();
    let text = failed(&dir.run("install"));
    assert!(text.contains("is a directory"), "{text}");
    assert_eq!(dir.names(), ["macvtap"]);
}

#[test]
fn a_missing_directory_and_a_file_are_named() {
    let dir = Dir::new();
    fs::write(dir.path("file"), "").unwrap();
    for (name, part) in [("none", "--dir"), ("file", "not a directory")] {
        let mut command = Command::new(binary());
        command.arg("install").arg("--dir").arg(dir.path(name));
        let text = failed(&command.output().unwrap());
        assert!(text.contains(part) && text.contains(name), "{text}");
    }
}

#[test]
fn goes_on_with_the_next_directory() {
    let dir = Dir::new();
    let mut command = Command::new(binary());
    command.args([
        "install",
        "--name",
        "mv2",
        "--dir",
        "/nowhere/at/all",
        "--dir",
    ]);
    let text = failed(&command.arg(dir.0.path()).output().unwrap());
    assert!(text.contains("/nowhere/at/all"), "{text}");
    assert_eq!(dir.names(), ["mv2"]);
}

/// Installs after `mounts`; the error. The previous file must stay.
fn refused(mounts: &str) -> String {
    let dir = Dir::new();
    let path = dir.0.path().display();
    let script = format!(
        "{}; echo former > {path}/macvtap; {}; {} install --dir {path}; status=$?; \
         cat {path}/macvtap; ls -A {path}; exit $status",
        mounts
            .split('|')
            .next()
            .unwrap()
            .replace('D', &path.to_string()),
        mounts
            .split('|')
            .nth(1)
            .unwrap()
            .replace('D', &path.to_string()),
        binary().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(stdout, "former\nmacvtap\n", "{output:?}");
    failed(&output)
}

#[test]
fn a_read_only_file_system_is_named() {
    let text = refused("mount -t tmpfs none D|mount -o remount,ro D");
    assert!(
        text.contains("read-only file system") && text.contains("OpenShift"),
        "{text}"
    );
}

#[test]
fn a_full_file_system_is_named() {
    let text = refused("mount -t tmpfs -o size=1m none D|true");
    assert!(text.contains("no space left"), "{text}");
}

#[test]
fn a_file_system_without_execution_is_named() {
    let text = refused("mount -t tmpfs -o noexec none D|true");
    assert!(text.contains("noexec"), "{text}");
}

#[test]
fn the_seccomp_profile_is_placed_beside_on_request() {
    let (dir, profiles) = (Dir::new(), Dir::new());
    let path = profiles.path("macvtap.json");
    fs::write(&path, "of a former version").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077 && exec \"$@\"", "sh"]);
    command.arg(binary()).arg("install").arg("--dir");
    command
        .arg(dir.0.path())
        .arg("--seccomp-profile")
        .arg(&path);
    let text = succeeded(&command.output().unwrap());
    assert!(
        text.starts_with(&format!("{} installed\n", path.display())),
        "{text}"
    );
    let profile: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(profiles.names(), ["macvtap.json"]);
    dir.check();
    let mut command = Command::new(binary());
    command.args(["install", "--seccomp-profile", "/nowhere/macvtap.json"]);
    let text = failed(&command.output().unwrap());
    assert!(text.contains("/nowhere"), "{text}");
}

#[test]
fn only_the_seccomp_profile_of_this_version_is_removed() {
    let (dir, profiles) = (Dir::new(), Dir::new());
    let path = profiles.path("macvtap.json");
    let run = |verb: &str| {
        let mut command = Command::new(binary());
        command.arg(verb).arg("--dir").arg(dir.0.path());
        command.arg("--seccomp-profile").arg(&path);
        succeeded(&command.output().unwrap())
    };
    run("install");
    assert!(run("uninstall").contains("macvtap.json removed"));
    assert!(dir.names().is_empty() && profiles.names().is_empty());
    assert!(run("uninstall").contains("macvtap.json does not exist"));
    run("install");
    fs::write(&path, "another's").unwrap();
    assert!(run("uninstall").contains("macvtap.json is another profile"));
    assert!(dir.names().is_empty());
    assert_eq!(fs::read(&path).unwrap(), b"another's");
}

fn cp(arguments: &[&Path]) -> Output {
    let dir = Dir::new();
    let link = dir.path("cp");
    symlink(binary(), &link).unwrap();
    Command::new(link).args(arguments).output().unwrap()
}

#[test]
fn cp_of_existing_manifests_does_the_same() {
    let dir = Dir::new();
    let link = dir.path("macvtap-cni");
    symlink(binary(), &link).unwrap();
    let bin = Dir::new();
    succeeded(&cp(&[&link, &bin.path("macvtap")]));
    bin.check();
    let other = Dir::new();
    succeeded(&cp(&[&link, other.0.path()]));
    assert_eq!(other.names(), ["macvtap-cni"]);
}

#[test]
fn what_is_no_plugin_is_not_placed() {
    let dir = Dir::new();
    fs::write(dir.path("broken"), "\x7fELF nonsense").unwrap();
    dir.install();
    let text = failed(&cp(&[&dir.path("broken"), &dir.path("macvtap")]));
    assert!(text.contains("installing"), "{text}");
    dir.check();
    assert_eq!(dir.names(), ["broken", "macvtap"]);
}

#[test]
fn a_runtime_finds_a_whole_plugin_during_a_hundred_installations() {
    // Cargo's own binary is 25 times as large, and slow.
    let shipped = std::env::var_os("MACVTAP_BINARY").is_some();
    let rounds = if shipped { 100 } else { 2 };
    let dir = Dir::new();
    dir.install();
    let stop = AtomicBool::new(false);
    let path = dir.path("macvtap");
    let count = std::thread::scope(|scope| {
        let executing = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut command = Command::new(&path);
                let output = command.env("CNI_COMMAND", "VERSION").output().unwrap();
                assert!(output.stdout.starts_with(b"{\"cniVersion\""), "{output:?}");
                count += 1;
            }
            count
        });
        for _ in 0..rounds {
            // As an update: it is another file each time.
            let mode = fs::Permissions::from_mode(0o755 ^ 0o001);
            fs::set_permissions(&path, mode).unwrap();
            assert!(dir.install().contains("installed"));
        }
        stop.store(true, Ordering::Relaxed);
        executing.join().unwrap()
    });
    assert!(count > rounds / 2, "executed only {count} times");
    dir.check();
}
