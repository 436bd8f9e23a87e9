//! The binary as such: static, small, and polite on the command line.

use std::{
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Output, Stdio},
};

use kit::{
    binary,
    netns::{names, wait_until},
};
use macvtap::types::mode::Mode;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(words).env_remove("CNI_COMMAND");
    command
}

fn run(words: &[&str]) -> Output {
    command(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A number in an ELF file of this machine.
fn number(elf: &[u8], at: usize, length: usize) -> usize {
    let bytes = elf[at..at + length].iter();
    let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
    if cfg!(target_endian = "little") {
        bytes.rev().fold(0, add)
    } else {
        bytes.fold(0, add)
    }
}

/// The types of the ELF file's program headers.
fn program_headers(elf: &[u8]) -> Vec<u32> {
    let number = |at, length| number(elf, at, length);
    let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let types = (0..count).map(|index| number(start + index * size, 4));
    types.map(|number| u32::try_from(number).unwrap()).collect()
}

#[test]
fn is_static_and_position_independent() {
    let elf = fs::read(binary()).unwrap();
    assert_eq!(&elf[..5], b"\x7fELF\x02", "64 bits");
    // Rust has static PIE for x86_64 alone: elsewhere it is ET_EXEC instead of ET_DYN.
    let expected = if cfg!(target_arch = "x86_64") { 3 } else { 2 };
    assert_eq!(number(&elf, 16, 2), expected);
    let headers = program_headers(&elf);
    assert!(headers.contains(&1), "PT_LOAD");
    assert!(!headers.contains(&3), "PT_INTERP: it needs a loader");
}

#[test]
fn is_small() {
    // What cargo builds for tests is not what is shipped.
    if std::env::var_os("MACVTAP_BINARY").is_some() {
        let size = fs::metadata(binary()).unwrap().len();
        assert!(size < 4 << 20, "{size} bytes");
    }
}

/// Ends the device plugin and shells as kubevirt/macvtap-cni's binary and its image's shell end.
#[test]
fn exit_statuses_are_those_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = format!("{}/macvtap.network.kubevirt.io*", dir.path().display());
    for (name, words, expected) in [
        // The configuration is broken, so that 1 is right where the flags are.
        ("macvtap-deviceplugin", &["-v", "3", "-logtostderr"][..], 1),
        (
            "macvtap-deviceplugin",
            &["--logtostderr=T", "-vmodule=a=1"],
            1,
        ),
        ("macvtap-deviceplugin", &["-logtostderr=banana"], 2),
        ("macvtap-deviceplugin", &["-stderrthreshold", "WARN"], 2),
        ("macvtap-deviceplugin", &["-help", "-v", "x"], 0),
        ("sh", &["-c", &format!("ls {sockets}")], 1),
        ("sh", &["-c", &format!("ls {sockets} || true")], 0),
        ("sh", &["-ec", &format!("ls {sockets}; echo up")], 1),
    ] {
        let mut command = Command::new(binary());
        command.arg0(name).args(words).env("DP_MACVTAP_CONF", "{");
        let output = command.env_remove("CNI_COMMAND").output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(expected),
            "{words:?}: {output:?}"
        );
    }
}

/// A release has no tables by which a stack could be walked.
#[test]
fn errors_print_where_backtraces_are_asked_for() {
    let mut command = Command::new(binary());
    command.args(["install", "--dir", "/nonexistent/dir"]);
    let output = command.env("RUST_BACKTRACE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("/nonexistent/dir"));
}

#[test]
fn helps() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for applet in macvtap::dispatch::APPLETS {
        assert!(help.contains(applet), "{applet} is not in {help}");
    }
    let output = run(&["--version"]);
    let expected = format!("macvtap {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(text(&output.stdout), expected);
    let output = run(&["doktor"]);
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("similar subcommand exists: 'doctor'"),
        "{stderr}"
    );
    let help = text(&run(&["link", "add", "--help"]).stdout);
    for mode in Mode::ALL {
        assert!(
            help.contains(&format!("- {mode}: ")),
            "{mode} is not in {help}"
        );
    }
}

#[test]
fn completes_for_the_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("selftest"), "{shell}");
    }
}

/// Every command that prints, but the device plugin, whose log is on standard error.
#[test]
fn what_cannot_be_written_is_an_error_and_a_closed_pipe_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let mut commands = vec![
        vec!["--help"],
        vec!["--version"],
        vec!["help", "link"],
        vec!["deviceplugin", "--help"],
        vec!["link", "list"],
        vec!["link", "list", "--json"],
        vec!["link", "top", "--count", "1"],
        vec!["link", "top", "--count", "1", "--json"],
        vec!["install", "--dir", dir],
        vec!["uninstall", "--dir", dir],
    ];
    let shells = ["bash", "fish", "zsh"];
    commands.extend(shells.map(|shell| vec!["completions", shell]));
    for words in commands {
        writes(&mut command(&words), &words);
    }
    let link = std::path::Path::new(dir).join("kubectl-macvtap");
    std::os::unix::fs::symlink(binary(), &link).unwrap();
    for words in [["--help"], ["--version"]] {
        writes(Command::new(&link).args(words), &words);
    }
}

fn writes(command: &mut Command, words: &[&str]) {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    let message = text(&output.stderr);
    assert!(message.contains("No space left"), "{words:?}: {message}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).output().unwrap();
    let outcome = (output.status.code(), text(&output.stderr));
    assert_eq!(outcome, (Some(0), String::new()), "{words:?}");
}

/// Of those whose exit status says what they found.
#[test]
fn a_report_that_cannot_be_written_keeps_its_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    for words in [
        &["doctor", "--kubelet-dir", dir][..],
        &["doctor", "--json", "--kubelet-dir", dir],
        &["probe", "--kubelet-dir", dir],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(words).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(words).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    }
}

/// libcni reports standard error where there is no document.
#[test]
fn a_document_that_cannot_be_written_is_named_on_standard_error() {
    for verb in ["VERSION", "NOPE"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(binary());
        command.env("CNI_COMMAND", verb).stdin(Stdio::null());
        let output = command.stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(text(&output.stderr).starts_with("macvtap: "), "{output:?}");
    }
}

/// Signals that the parent has blocked or ignored stay so through execve(2).
#[test]
fn inherited_signals_are_no_obstacle() {
    let mut command = Command::new("env");
    command.args(["--block-signal=TERM"]).arg(binary());
    command.args(["link", "watch"]).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let id = child.id();
    wait_until("it has unblocked SIGTERM", || {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        status.contains("Name:\tmacvtap") && status.contains("SigBlk:\t0000000000000000")
    });
    kill(Pid::from_raw(i32::try_from(id).unwrap()), Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(15), "{status:?}");
    // With SIGCHLD ignored the kernel keeps no exit status for the parent.
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("env");
    command.args(["--ignore-signal=CHLD"]).arg(binary());
    let output = command
        .arg("install")
        .arg("--dir")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_selftest_passes_and_prints_json() {
    let output = run(&["selftest", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{report:#}");
    assert_eq!(report["ok"], true);
    let steps = report["steps"].as_array().unwrap();
    assert!(steps.len() >= 10);
    for step in steps {
        assert_eq!(step["ok"], true);
        assert!(step["milliseconds"].is_number() && step["seen"].is_string());
    }
}

#[test]
fn the_selftest_prints_each_step_for_people() {
    let output = run(&["selftest"]);
    let text = text(&output.stdout);
    assert!(output.status.success(), "{text}");
    for step in ["ADD", "frame out", "frame in", "CHECK", "pod lost", "DEL"] {
        let line = text.lines().find(|line| line.contains(step));
        let line = line.unwrap_or_else(|| panic!("{step} is not in {text}"));
        assert!(line.starts_with("  ok ") && line.contains(" ms "), "{line}");
    }
    assert!(text.lines().last().unwrap().starts_with("All "), "{text}");
}

#[test]
fn the_selftest_names_the_limit_of_network_namespaces() {
    let mut command = Command::new("unshare");
    let script = "echo 0 >/proc/sys/user/max_net_namespaces && exec \"$0\" selftest";
    command.args(["--map-root-user", "--net", "sh", "-c", script]);
    let output = command.arg(binary()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stdout);
    assert!(text.contains("max_net_namespaces"), "{text}");
}

#[test]
fn an_interrupted_selftest_leaves_nothing_in_tmp() {
    let interrupted = || {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary());
        command.arg("selftest").env("TMPDIR", dir.path());
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        wait_until("it has a directory", || !names(dir.path()).is_empty());
        kill(
            Pid::from_raw(i32::try_from(child.id()).unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        let output = child.wait_with_output().unwrap();
        let none: [&str; 0] = [];
        assert_eq!(names(dir.path()), none);
        let stdout = text(&output.stdout);
        // On a busy machine it may have passed before.
        assert_eq!(
            output.status.code(),
            Some(i32::from(!stdout.contains("All "))),
            "{stdout}"
        );
        stdout.contains("interrupted by a signal") && stdout.contains("ok   clean-up")
    };
    wait_until("one is interrupted in time", interrupted);
}

#[test]
fn the_selftest_says_that_it_needs_root() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("macvtap");
    fs::copy(binary(), &copy).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--clear-groups"]);
    let output = command.arg(copy).arg("selftest").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stderr);
    assert!(text.contains("root"), "{text}");
}

#[test]
fn the_selftest_without_capabilities_says_which() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
    let output = command.arg(binary()).arg("selftest").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output.stdout);
    assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
    assert!(text.contains("  FAIL "), "{text}");
}
