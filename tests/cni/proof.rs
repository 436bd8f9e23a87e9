//! Which tap is the macvtap's own: the kernel's announcement tells ADD, the node and one link in
//! sysfs tell CHECK, and nothing else is believed.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use kit::netns::{Case, Host, IFNAME, dev::Dev, owner, tap, tap_exists, tap_number};
use nix::sys::stat::{Mode, SFlag, mknod};
use tempfile::NamedTempFile;

/// What strace writes of an ADD by these further words.
fn trace(case: &Case, words: &[&str]) -> String {
    let log = NamedTempFile::new().unwrap();
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    case.call().by(&[&strace, words].concat()).add();
    fs::read_to_string(log.path()).unwrap()
}

/// The number of the call in `log` that receives the first uevent, among the calls of its name.
fn first_uevent(log: &str) -> usize {
    let mut received = log.lines().filter(|line| line.starts_with("recvfrom("));
    let uevent = received.position(|line| line.contains("nl_groups=0x000001"));
    uevent.expect("a uevent is received") + 1
}

/// A macvtap in another netns with the same number and name.
fn squatter(number: u32) -> Host {
    let squatter = Host::new();
    squatter.ip("link add v0 type veth peer name v1");
    squatter.ip(&format!(
        "link add {IFNAME} index {number} link v0 type macvtap"
    ));
    squatter
}

/// Puts the node of another device at `path`, as `like` is.
fn replace(path: &Path, device: u64, like: (u32, u32, u32)) {
    fs::remove_file(path).unwrap();
    let (user, group, mode) = like;
    let mode = Mode::from_bits(mode).unwrap();
    mknod(path, SFlag::S_IFCHR, mode, device).unwrap();
    std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
}

#[test]
fn add_and_check_search_nothing() {
    let case = Case::new();
    let log = trace(&case, &[]);
    assert!(!log.contains("getdents64("), "{log}");
    assert!(!log.contains("/sys/dev/char"), "{log}");
    case.call().succeed("DEL");
    let call = case.call().added();
    let log = NamedTempFile::new().unwrap();
    let strace = ["strace", "-o", log.path().to_str().unwrap()];
    call.by(&strace).succeed("CHECK");
    let log = fs::read_to_string(log.path()).unwrap();
    assert!(!log.contains("getdents64("), "{log}");
    assert_eq!(log.matches("/sys/dev/char/").count(), 1, "{log}");
}

#[test]
fn a_lost_announcement_is_made_up_for_by_a_search() {
    let case = Case::new();
    let first = first_uevent(&trace(&case, &[]));
    case.call().succeed("DEL");
    let lose = format!("--inject=recvfrom:error=EAGAIN:when={first}");
    let log = trace(&case, &[&lose]);
    assert!(log.contains("(INJECTED)"), "{log}");
    assert!(log.contains("getdents64("), "{log}");
    assert_eq!(owner(&tap(case.number)), (107, 107, 0o600));
    case.call().succeed("DEL");
    assert!(!tap_exists(case.number));
}

/// What the search finds then does not show which is whose.
#[test]
fn a_lost_announcement_and_a_second_tap_of_the_number_are_an_error() {
    let case = Case::new();
    let first = first_uevent(&trace(&case, &[]));
    case.call().succeed("DEL");
    let dev = Dev::new();
    let _squatter = squatter(case.number);
    let lose = format!("--inject=recvfrom:error=EAGAIN:when={first}");
    let [nsenter, mount] = dev.words();
    let words = [&nsenter, &mount, "strace", "-o", "/dev/null", &lose];
    let (code, msg) = case.call().by(&words).fail("ADD");
    assert_eq!(code, 11, "{msg}");
    assert!(case.pod.links().is_empty());
    assert!(dev.names().is_empty(), "{:?}", dev.names());
}

#[test]
fn add_succeeds_while_links_come_and_go_in_the_pod() {
    let case = Case::new();
    let mut batch = NamedTempFile::new().unwrap();
    for number in 0..200 {
        std::io::Write::write_fmt(&mut batch, format_args!("link add b{number} type bridge\n"))
            .unwrap();
    }
    let words = format!("-batch {}", batch.path().display());
    std::thread::scope(|scope| {
        scope.spawn(|| case.pod.ip(&words));
        case.call().added().succeed("CHECK");
    });
    case.call().succeed("DEL");
    assert_eq!(case.pod.links().len(), 200);
}

#[test]
fn without_sysfs_add_and_del_succeed_and_check_says_what_is_missing() {
    let case = Case::new();
    let script = "mount -t tmpfs tmpfs /sys && exec \"$@\"";
    let hide = ["unshare", "--mount", "--propagation", "private"];
    let words = [&hide[..], &["sh", "-c", script, "sh"]].concat();
    let call = case.call().by(&words).added();
    assert_eq!(owner(&tap(case.number)), (107, 107, 0o600));
    let (_, msg) = call.fail("CHECK");
    assert!(msg.contains("mount sysfs on /sys"), "{msg}");
    call.succeed("DEL");
    assert!(!tap_exists(case.number));
}

#[test]
fn check_is_not_misled_by_a_tap_of_the_same_number_and_name() {
    let case = Case::new();
    let call = case.call().added();
    let before = fs::metadata(tap(case.number)).unwrap().rdev();
    let squatter = squatter(case.number);
    call.succeed("CHECK");
    assert_eq!(fs::metadata(tap(case.number)).unwrap().rdev(), before);
    squatter.ip(&format!("link delete {IFNAME}"));
    call.succeed("CHECK");
}

#[test]
fn check_finds_the_node_of_another_tap() {
    let case = Case::new();
    let (other, number) = (Host::new(), tap_number());
    case.node.allocated(&other, number).add();
    let other = fs::metadata(tap(number)).unwrap().rdev();
    let dev = Dev::new();
    let call = dev.enter(&case.call()).added();
    let path = dev.path(&format!("tap{}", case.number));
    let right = owner(&path);
    let foreign = format!("which is not the tap of interface {IFNAME:?}");
    for (device, owner, expected) in [
        (other, right, foreign.as_str()),
        // The null device, and one that there is not.
        (nix::sys::stat::makedev(1, 3), right, &foreign),
        (nix::sys::stat::makedev(4095, 1), right, &foreign),
        (
            fs::metadata(tap(case.number)).unwrap().rdev(),
            (0, 0, 0o600),
            "belongs to 0:0",
        ),
    ] {
        replace(&path, device, owner);
        let (_, msg) = call.fail("CHECK");
        assert!(msg.contains(expected), "{msg}");
    }
    let real = fs::metadata(tap(case.number)).unwrap().rdev();
    replace(&path, real, right);
    call.succeed("CHECK");
}
