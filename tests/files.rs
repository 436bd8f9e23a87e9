//! Files: no descriptor is inherited by accident, no mode depends on a umask, no symbolic link
//! that another user planted is followed.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use kit::kubelet::{Plugin, RESOURCE, SOCKET, command, connected};
use kit::{
    binary,
    netns::{Case, Host, Node, dev::Dev, mounted::Mounted, names, owner, tap},
};
use macvtap::selftest::kubelet::Kubelet;

/// System calls that make descriptors.
const MAKERS: &str = "trace=open,openat,creat,socket,socketpair,pipe,pipe2,accept,accept4,dup,\
    epoll_create,epoll_create1,eventfd,eventfd2,inotify_init,inotify_init1,fcntl,timerfd_create,\
    signalfd,signalfd4,memfd_create";

/// Reads the traces in a directory, one of each thread.
fn assert_all_closed_at_exec(dir: &Path) {
    let read = |name: &String| fs::read_to_string(dir.join(name)).unwrap();
    let text: String = names(dir).iter().map(read).collect();
    // What a descriptor that is not close-on-exec is made by; fcntl does much else.
    let makes = |line: &&str| !line.contains("fcntl(") || line.contains("F_DUPFD");
    let made: Vec<&str> = text
        .lines()
        .filter(|line| line.contains('('))
        .filter(makes)
        .filter(|line| !line.contains("= -1 "))
        .collect();
    assert!(made.len() > 4, "{text}");
    for line in made {
        assert!(line.contains("CLOEXEC"), "{line}");
    }
}

fn traced(dir: &Path) -> [String; 6] {
    let log = dir.join("trace");
    ["strace", "-ff", "-o", log.to_str().unwrap(), "-e", MAKERS].map(str::to_owned)
}

#[test]
fn every_descriptor_is_closed_at_exec() {
    let log = tempfile::tempdir().unwrap();
    let words = traced(log.path());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (case, logs) = (Case::new(), Mounted::on("/var/log"));
    let call = case.call().with("logFile", "/var/log/macvtap/lan.log");
    let call = call.with("logLevel", "debug");
    let call = call.by(&[&logs.words()[..], &words[..]].concat()).added();
    assert_all_closed_at_exec(log.path());
    for verb in ["CHECK", "STATUS", "GC", "DEL"] {
        call.succeed(verb);
        if verb != "GC" && verb != "STATUS" {
            assert_all_closed_at_exec(log.path());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(binary()).arg("install");
    assert!(
        command
            .arg("--dir")
            .arg(dir.path())
            .status()
            .unwrap()
            .success()
    );
    assert_all_closed_at_exec(log.path());
}

#[test]
fn every_descriptor_of_the_device_plugin_is_closed_at_exec() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let log = tempfile::tempdir().unwrap();
    let words = traced(log.path());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut command = command(&[&words[..], &["-D"]].concat(), dir.path());
    command.args(["--status-address", "127.0.0.1:0"]);
    let mut plugin = Plugin::spawn(&node.host, command);
    let id = connected(&kubelet).healthy()[93].clone();
    kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    kubelet.allocate(RESOURCE, &[id]).unwrap();
    plugin.signal("TERM");
    assert_eq!(plugin.end().0, Some(0));
    assert_all_closed_at_exec(log.path());
}

#[test]
fn modes_do_not_depend_on_a_umask() {
    for umask in ["000", "077", "777"] {
        let script = format!("umask {umask} && exec \"$@\"");
        let (case, logs) = (Case::new(), Mounted::on("/var/log"));
        let dir = tempfile::tempdir().unwrap();
        let call = case.call().with("logFile", "/var/log/macvtap/lan.log");
        let words = ["sh", "-c", &script, "sh"];
        call.with("logLevel", "info")
            .by(&[&logs.words()[..], &words[..]].concat())
            .add();
        assert_eq!(owner(&tap(case.number)), (107, 107, 0o600), "{umask}");
        let mode = fs::metadata(logs.path("macvtap/lan.log")).unwrap().mode();
        assert_eq!(mode & 0o177, 0, "{umask}: others can read the log");
        let (dev, number) = (Dev::new(), case.number);
        case.call().succeed("DEL");
        let [nsenter, mount] = dev.words();
        let words = [&nsenter, &mount, "sh", "-c", &script, "sh"];
        case.call().by(&words).add();
        assert_eq!(owner(&dev.path(&format!("tap{number}"))), (107, 107, 0o600));
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let command = command(&["sh", "-c", &script, "sh"], dir.path());
        let _plugin = Plugin::spawn(&case.node.host, command);
        connected(&kubelet);
        assert_eq!(owner(&dir.path().join(SOCKET)), (0, 0, 0o600), "{umask}");
    }
}

/// A file that is not ours to touch.
fn victim(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("victim");
    fs::write(&path, "untouched").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    path
}

fn assert_untouched(path: &Path) {
    assert_eq!(fs::read_to_string(path).unwrap(), "untouched");
    assert_eq!(owner(path), (0, 0, 0o604));
}

#[test]
fn planted_links_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = victim(dir.path());
    let (case, dev) = (Case::new(), Dev::new());
    let number = case.number;
    for name in [format!("tap{number}"), format!(".tap{number}.macvtap")] {
        symlink(&victim, dev.path(&name)).unwrap();
        let call = dev.enter(&case.call());
        // Whether it takes the link's place or fails, it leaves alone where that leads.
        call.call("ADD");
        assert_untouched(&victim);
        call.succeed("DEL");
        assert_untouched(&victim);
        let _ = fs::remove_file(dev.path(&name));
    }
    let logs = Mounted::on("/var/log");
    symlink(&victim, logs.path("macvtap.log")).unwrap();
    let call = case.call().with("logFile", "/var/log/macvtap.log");
    logs.enter(&call.with("logLevel", "debug")).add();
    assert_untouched(&victim);
}

#[test]
fn planted_links_in_the_kubelets_directory_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let victim = victim(dir.path());
    let kubelet_dir = dir.path().join("kubelet");
    fs::create_dir(&kubelet_dir).unwrap();
    let kubelet = Kubelet::start(&kubelet_dir).unwrap();
    symlink(&victim, kubelet_dir.join(SOCKET)).unwrap();
    let node = Node::new();
    let mut plugin = Plugin::start(&node.host, &kubelet_dir);
    connected(&kubelet);
    plugin.signal("TERM");
    assert_eq!(plugin.end().0, Some(0));
    assert_untouched(&victim);
}

#[test]
fn planted_links_in_the_cni_directory_are_not_followed() {
    let (dir, bin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let victim = victim(dir.path());
    for name in ["macvtap", ".macvtap.prev", ".macvtap.tmp.1"] {
        symlink(&victim, bin.path().join(name)).unwrap();
    }
    let profile = bin.path().join("profile.json");
    symlink(&victim, &profile).unwrap();
    let mut command = Command::new(binary());
    command.arg("install").arg("--dir").arg(bin.path());
    command.arg("--seccomp-profile").arg(&profile);
    let output = Host::new().output(&mut command);
    assert!(output.status.success(), "{output:?}");
    assert_untouched(&victim);
    for path in [bin.path().join("macvtap"), profile] {
        assert!(fs::symlink_metadata(path).unwrap().is_file());
    }
}
