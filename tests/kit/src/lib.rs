//! What the tests and benchmarks have in common: nodes and pods in network namespaces, the device
//! plugin as a process, guests in QEMU, a switch between nodes.

#![expect(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::needless_pass_by_value,
    clippy::new_without_default,
    reason = "in a test a panic is how to fail, and convenience counts"
)]

pub mod guest;
pub mod http;
pub mod kernel;
pub mod kubelet;
pub mod man;
pub mod netns;
pub mod pod_resources;
pub mod source;
pub mod switch;
pub mod traffic;
pub mod wire;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The repository.
pub fn root() -> &'static Path {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.ancestors().nth(2).unwrap()
}

/// For tests that leave stale nodes in /dev, or look at all of it: one at a time on the machine,
/// as long as this is held.
pub fn lock_dev() -> File {
    let dev = File::open("/dev").unwrap();
    dev.lock().unwrap();
    dev
}

/// Lets this thread, and what it starts from now on, run before other programs: for tests whose times
/// are what is tested, beside tests that compute. Says so where it may not.
pub fn run_first() {
    let thread = fs::read_link("/proc/thread-self").unwrap();
    let mut renice = Command::new("renice");
    let output = renice
        .args(["-n", "-5", "-p"])
        .arg(thread.file_name().unwrap());
    let output = output.output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        netns::skipped(&format!("no priority for tests of times: {}", why.trim()));
    }
}

/// The binary under test: what `scripts/test` built for shipping, or else what cargo built for
/// the test that runs.
pub fn binary() -> PathBuf {
    let named = env::var_os("MACVTAP_BINARY").or_else(|| env::var_os("CARGO_BIN_EXE_macvtap"));
    named.map_or_else(beside_the_test, PathBuf::from)
}

/// Where cargo puts the binary, for a test that is started without cargo.
fn beside_the_test() -> PathBuf {
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent);
    profile.unwrap().join("macvtap")
}
