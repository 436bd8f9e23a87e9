//! Tests that need what this kernel may lack, in a guest: Debian's kernel with its modules.

use std::{
    env,
    process::{Command, Stdio},
};

use crate::{
    binary,
    guest::{APPEND, can_run, file, initramfs_of},
    netns::{LOWER, Node, skipped},
};

/// The programs that run a guest.
const PROGRAMS: [&str; 3] = ["cpio", "gzip", "qemu-system-x86_64"];

/// Whether this kernel has links of a kind. Where it has not, [`run_tests`] shows what they do.
pub fn has(kind: &str) -> bool {
    let node = Node::new();
    let options = if kind == "vlan" { "id 5" } else { "" };
    let words = format!("link add link {LOWER} name probe type {kind} {options}");
    node.host.try_ip(&words).status.success()
}

/// Runs those tests of this test binary in a guest whose names contain one of `filters`. The test
/// that calls it is not among them: its name ends with `under_debians_kernel`.
pub fn run_tests(filters: &[&str]) {
    if !can_run(&PROGRAMS) || !has_modules() {
        return;
    }
    let (tests, program) = (env::current_exe().unwrap(), binary());
    let programs = [("tests", tests.as_path()), ("macvtap", program.as_path())];
    let initramfs = initramfs_of("initramfs-tests", &programs);
    let arguments = [&["--", "--skip", "under_debians_kernel"], filters].concat();
    let mut command = Command::new("setpriv");
    // A test run that is killed takes its guest with it.
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args("-no-user-config -nodefaults -display none -no-reboot -nic none".split(' '));
    command.args("-machine q35,accel=tcg -cpu max -m 512 -smp 2 -serial stdio".split(' '));
    command.arg("-kernel").arg(file("vmlinuz"));
    command
        .arg("-initrd")
        .arg(initramfs.path().join("initramfs"));
    command.arg("-append");
    command.arg(format!("{APPEND} {}", arguments.join(" ")));
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let passed = text.contains("test result: ok. ") && !text.contains("test result: ok. 0 passed");
    assert!(
        passed && text.contains("\nstatus=0\n") && !text.contains("SKIPPED"),
        "in the guest: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Says so if not: an earlier `scripts/guest` made none of them.
fn has_modules() -> bool {
    let has = file("initramfs-tests").exists();
    if !has {
        skipped("there is no guest for tests; scripts/guest makes it");
    }
    has
}
