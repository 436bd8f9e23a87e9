//! The control sockets: they are served while a device plugin runs, whatever ran before it and
//! whatever happens to their files.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use kit::{
    kubelet::{Plugin, command},
    netns::{Host, Node, tap_number, wait_until},
    switch::{Learner, VM, broadcast},
};
use macvtap::{
    deviceplugin::status,
    host::control_socket::{Connection, KUBELET_DIR},
};

const RUN_DIR: &str = "/run/macvtap";

fn learning_socket(host: &Host) -> String {
    let (_, inode) = host.0.identity().unwrap();
    format!("learning-{inode}.sock")
}

/// The sockets of a learner: of both directories in which ADD and `probe` look.
fn sockets(learner: &Learner) -> [PathBuf; 3] {
    let name = learning_socket(&learner.node.host);
    let dir = learner.kubelet_dir().join(".macvtap");
    [
        Path::new(RUN_DIR).join(&name),
        dir.join(&name),
        dir.join("status.sock"),
    ]
}

fn is_served(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    Connection::open(path.parent().unwrap(), name).is_ok()
}

#[test]
fn their_directories_are_closed_to_others() {
    let learner = Learner::new();
    // As kubelet makes what a hostPath names.
    let dir = learner.kubelet_dir().join(".macvtap");
    for dir in [Path::new(RUN_DIR), &dir] {
        let metadata = fs::metadata(dir).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
        assert_eq!(metadata.uid(), 0);
    }
    let mut other = Learner::without_plugin();
    let dir = other.kubelet_dir().join(".macvtap");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    other.start();
    wait_until("status is served", || {
        status::query(&other.kubelet_dir()).is_ok()
    });
    assert_eq!(
        fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

/// Another user could answer in the device plugin's place there.
#[test]
fn a_directory_of_another_user_is_not_used() {
    let mut learner = Learner::without_plugin();
    let dir = learner.kubelet_dir().join(".macvtap");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(1000), None).unwrap();
    learner.start();
    let plugin = learner.plugin.as_ref().unwrap();
    plugin.wait_for_log("belongs to uid 1000, not to root; remove it");
    let error = status::query(&learner.kubelet_dir()).unwrap_err();
    assert!(
        error.to_string().contains("not a directory of root alone"),
        "{error}"
    );
    let warnings = plugin
        .log()
        .matches("cannot serve probe and doctor")
        .count();
    assert_eq!(warnings, 1, "{}", plugin.log());
    // The other directory serves all the same.
    assert_eq!(learner.attach_parked().mode(), "vepa");
    fs::remove_dir(&dir).unwrap();
    wait_until("it is made again", || {
        status::query(&learner.kubelet_dir()).is_ok()
    });
}

#[test]
fn what_was_killed_leaves_nothing() {
    let mut learner = Learner::new();
    let before = sockets(&learner);
    assert!(before.iter().all(|path| is_served(path)));
    learner.kill();
    assert!(before[1].exists() && !is_served(&before[1]));
    // Whichever starts next in the directory: here that may be another test's as well.
    let other = Learner::new();
    assert!(!before[0].exists(), "nothing serves it");
    assert!(before[1].exists(), "in a directory of its own");
    drop(other);
    learner.start();
    assert!(sockets(&learner).iter().all(|path| is_served(path)));
    // What is no socket is not ours, and a socket that is served is in use.
    let (file, served) = (
        Path::new(RUN_DIR).join("file"),
        learner.kubelet_dir().join(".macvtap/other"),
    );
    fs::write(&file, "").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&served).unwrap();
    learner.kill();
    learner.start();
    assert!(file.exists() && fs::metadata(&served).unwrap().file_type().is_socket());
    fs::remove_file(file).unwrap();
    drop(listener);
}

#[test]
fn what_ends_in_order_removes_its_sockets() {
    let mut learner = Learner::new();
    let sockets = sockets(&learner);
    let plugin = learner.plugin.as_mut().unwrap();
    plugin.signal("TERM");
    assert_eq!(plugin.end().0, Some(0));
    assert!(sockets.iter().all(|path| !path.exists()));
}

#[test]
fn a_socket_that_was_removed_is_made_again() {
    let learner = Learner::new();
    fs::remove_dir_all(learner.kubelet_dir().join(".macvtap")).unwrap();
    fs::remove_file(&sockets(&learner)[0]).unwrap();
    wait_until("all are served", || {
        sockets(&learner).iter().all(|path| is_served(path))
    });
    let port = learner.attach_parked();
    port.send(&broadcast(VM));
    port.becomes("bridge");
}

/// As when a new DaemonSet takes over from an old one on the node.
#[test]
fn a_second_device_plugin_serves_everything_when_the_first_has_ended() {
    for signal in ["TERM", "KILL"] {
        let mut learner = Learner::new();
        let mut command = command(&[], &learner.kubelet_dir());
        command.arg("--netns-dir").arg(learner.netns_dir());
        let second = Plugin::spawn(&learner.node.host, command);
        second.wait_for_log("learning is off");
        let first = learner.plugin.as_mut().unwrap();
        first.signal(signal);
        first.end();
        second.wait_for_log("learning ports=0");
        wait_until("all are served", || {
            sockets(&learner).iter().all(|path| is_served(path))
        });
        let learning = learner.stats();
        assert!(learning.running);
        let port = learner.attach_parked();
        port.send(&broadcast(VM));
        port.becomes("bridge");
    }
}

/// Where no descriptor is left, no connection can be accepted, and each wait ends at once.
#[test]
fn without_descriptors_it_waits() {
    let learner = Learner::new();
    let plugin = learner.plugin.as_ref().unwrap();
    learner.stats(); // It has started: what it opens once is open.
    let limit = |number: usize| {
        let mut command = Command::new("prlimit");
        command.args([
            "--pid",
            &plugin.id().to_string(),
            &format!("--nofile={number}:"),
        ]);
        assert!(command.status().unwrap().success());
    };
    limit(plugin.descriptors() - 2);
    let dir = learner.kubelet_dir().join(".macvtap");
    let _waiting = Connection::open(&dir, "status.sock").unwrap();
    let _queries = Connection::open(&dir, &learning_socket(&learner.node.host)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let before = plugin.processor_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = plugin.processor_time().saturating_sub(before);
    assert!(
        used < Duration::from_millis(300),
        "{used:?}: {}",
        plugin.log()
    );
    assert_eq!(learner.attach().mode(), "bridge");
    limit(1024);
    wait_until("it answers again", || {
        status::query(&learner.kubelet_dir()).is_ok()
    });
    assert_eq!(
        learner
            .attach_parked_as(macvtap::types::mac::MacAddr([2, 0, 0, 0, 0, 0xbb]))
            .mode(),
        "vepa"
    );
}

/// Where `/run/macvtap` is not mounted, ADD finds the device plugin in the kubelet's directory.
#[test]
fn add_finds_them_in_the_kubelets_directory() {
    let dir = KUBELET_DIR;
    let (node, pod) = (Node::new(), Host::named());
    let script = format!(
        "mkdir -p {RUN_DIR} && mount -t tmpfs -o ro none {RUN_DIR} && \
         mount -t tmpfs none /var && mkdir -p {dir}"
    );
    let plugin = Plugin::mounted(&node.host, Path::new(dir), &script);
    plugin.wait_for_log("learning ports=");
    let target = plugin.id().to_string();
    let inside = ["nsenter", "--mount", "--target", &target];
    let call = node.allocated(&pod, tap_number()).by(&inside);
    let call = call.with("mac", VM.to_string());
    wait_until("it begins parked", || {
        call.add();
        let parked = pod.mode() == "vepa";
        call.succeed("DEL");
        parked
    });
}

/// Until they follow, the port is watched. A filter of the MACs of all ports takes the kernel the
/// longer the more there are, on the processor that ADD runs on.
#[test]
fn announcements_follow_after_the_answer_to_add() {
    let learner = Learner::new();
    let id = learner.plugin.as_ref().unwrap().id().to_string();
    let log = tempfile::NamedTempFile::new().unwrap();
    let lines = || fs::read_to_string(log.path()).unwrap();
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-ttt",
        "-e",
        "trace=poll,sendto,setsockopt",
        "-p",
        &id,
    ]);
    let mut strace = command
        .arg("-o")
        .arg(log.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it is traced", || lines().contains("poll("));
    let _port = learner.attach_parked();
    wait_until("they follow", || after_answer(&lines()).is_some());
    strace.kill().unwrap();
    strace.wait().unwrap();
    let later = after_answer(&lines()).unwrap();
    assert!(later > 0.045, "{later} s after the answer: {}", lines());
}

/// How long after the answer to ADD a filter was attached. That of the watch comes before.
fn after_answer(log: &str) -> Option<f64> {
    let mut lines = log.lines().skip_while(|line| !line.contains("parked"));
    let answer = time_of(lines.next()?)?;
    let filter = lines.find(|line| line.contains("SO_ATTACH_FILTER"))?;
    Some(time_of(filter)? - answer)
}

/// The time that strace wrote behind the thread's number.
fn time_of(line: &str) -> Option<f64> {
    line.split_whitespace().nth(1)?.parse().ok()
}
