//! `link list`, `watch` and `top`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, Stdio, id},
    sync::atomic::{AtomicBool, Ordering},
    thread::scope,
};

use kit::{
    binary,
    netns::{Case, Host, IFNAME, LOWER, Node, device_id_in, tap, tap_number, taps},
};
use serde_json::{Value, json};

use super::{Resident, alone, run, succeed};

fn listed(host: &Host) -> Value {
    serde_json::from_str(&succeed(host, &["link", "list", "--json"])).unwrap()
}

fn find(list: &Value, number: u32) -> Option<&Value> {
    let macvtaps = list["macvtaps"].as_array().unwrap();
    macvtaps.iter().find(|macvtap| macvtap["tap"] == number)
}

#[test]
fn finds_macvtaps_wherever_they_are() {
    let _alone = alone();
    let node = Node::new();
    let mut pods = Vec::new();
    for mode in ["bridge", "vepa", "private"] {
        for mtu in [1500, 1400, 1300, 576] {
            let (pod, number) = (Host::new(), tap_number());
            let call = node.cni(&pod, json!({"deviceID": device_id_in(mode, number)}));
            call.with("mtu", mtu).add();
            pods.push((Resident::new(&pod), pod, number, mode, mtu));
        }
    }
    let open = File::open(tap(pods[0].2)).unwrap();
    pods[1].1.ip(&format!("link set {IFNAME} down"));
    pods[2]
        .1
        .ip(&format!("link set {IFNAME} type macvtap mode vepa"));
    let list = listed(&node.host);
    for (resident, _, number, mode, mtu) in &pods {
        let found = find(&list, *number).unwrap_or_else(|| panic!("{number} is not in {list}"));
        assert_eq!(found["interface"], IFNAME);
        assert_eq!((&found["mode"], &found["mtu"]), (&json!(mode), &json!(mtu)));
        assert_eq!(found["lowerDevice"], LOWER);
        assert_eq!(found["owner"], json!({"user": 107, "group": 107}));
        let netns = format!("sleep ({})", resident.0.id());
        assert_eq!(found["netns"], netns);
    }
    let of = |index: usize| find(&list, pods[index].2).unwrap();
    let holder = of(0)["holders"][0].as_str().unwrap();
    assert!(holder.ends_with(&format!("({})", id())), "{holder}");
    assert_eq!((&of(0)["up"], &of(1)["up"]), (&json!(true), &json!(false)));
    assert_eq!(of(2)["parked"], true);
    drop(open);
    let lower = list["lowerDevices"].as_array().unwrap();
    let lower = lower.iter().find(|lower| lower["name"] == LOWER).unwrap();
    assert_eq!(
        (&lower["macvtaps"], &lower["fit"]),
        (&json!(12), &json!(true))
    );
    let text = succeed(&node.host, &["link", "list"]);
    assert!(text.starts_with("TAP  "), "{text}");
    assert!(text.contains("bridge (parked)"), "{text}");
    // From elsewhere the lower device of that name is another one.
    let elsewhere = Node::new();
    let list = listed(&elsewhere.host);
    assert_eq!(find(&list, pods[0].2).unwrap()["lowerDevice"], Value::Null);
    // One whose pod nobody is in any more is told by its tap alone.
    let (resident, _pod, number, ..) = pods.remove(0);
    drop(resident);
    let list = listed(&node.host);
    assert!(find(&list, number).is_none());
    let unseen = list["unseenTaps"].as_array().unwrap();
    assert!(unseen.contains(&json!(number)), "{list}");
}

#[test]
fn says_why_a_lower_device_is_unfit() {
    let _alone = alone();
    let node = Node::new();
    node.host.ip("link add br0 type bridge");
    node.host.ip("link add other type veth peer name otherpeer");
    node.host.ip("link set other master br0 up");
    let text = succeed(&node.host, &["link", "list"]);
    let line = |name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(
        line("br0 ").contains("no: down; ip link set br0 up"),
        "{text}"
    );
    assert!(line("other ").contains("no: "), "{text}");
    assert!(line(LOWER).ends_with("yes"), "{text}");
    assert!(text.contains("there is no macvtap"), "{text}");
}

#[test]
fn fits_a_narrow_terminal_and_obeys_no_name() {
    let _alone = alone();
    let case = Case::new();
    case.call().add();
    let _resident = Resident::new(&case.pod);
    let netns = case.pod.path();
    let odd = "odd\u{1b}[2Jx";
    succeed(
        &case.node.host,
        &[
            "link",
            "add",
            odd,
            "--lower-device",
            LOWER,
            "--netns",
            &netns,
        ],
    );
    let script = format!("stty cols 40 rows 20; {} link list", binary().display());
    let mut command = Command::new("script");
    command.args(["-qec", &script, "/dev/null"]);
    let output = case.node.host.output(&mut command);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("odd?[2Jx"), "{text:?}");
    for line in text.lines() {
        let shown = line.replace("\u{1b}[1m", "").replace("\u{1b}[0m", "");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert!(shown.trim_end().chars().count() <= 40, "{shown:?}");
    }
}

#[test]
fn into_a_closed_pipe_is_no_error() {
    let _alone = alone();
    let case = Case::new();
    case.call().add();
    for words in [
        &["link", "list"][..],
        &["link", "list", "--json"],
        &["link", "top", "--count", "1", "--interval", "0.1"],
    ] {
        let mut command = Command::new(binary());
        command
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = case.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn without_root_it_says_what_it_could_not_see() {
    let _alone = alone();
    let case = Case::new();
    case.call().add();
    let _resident = Resident::new(&case.pod);
    let copy = tempfile::tempdir().unwrap();
    let program = copy.path().join("macvtap");
    std::fs::copy(binary(), &program).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(copy.path(), mode).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(&program)
        .args(["link", "list"]);
    let output = case.node.host.output(&mut command);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains(&format!("that cannot be found: {}", case.number)),
        "{text}"
    );
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(&program);
    command.args(["link", "add", "x", "--lower-device", LOWER]);
    let output = case.node.host.output(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("CAP_NET_ADMIN"), "{stderr}");
}

#[test]
fn namespaces_that_vanish_meanwhile_are_no_error() {
    let _alone = alone();
    let node = Node::new();
    let ended = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let pod = Host::new();
                node.allocated(&pod, tap_number()).add();
                drop(Resident::new(&pod));
            }
        });
        for _ in 0..40 {
            let output = run(&node.host, &["link", "list"]);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && !text.contains("not looked into"),
                "{output:?}"
            );
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn watch_tells_what_changes() {
    let _alone = alone();
    let case = Case::new();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(binary())
        .args(["link", "watch"]);
    command.stdout(Stdio::piped());
    let mut child = case.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let tap = format!("tap={} ", case.number);
    let mut expect = |what: &str| {
        let line = lines
            .find(|line| line.as_ref().unwrap().contains(&tap))
            .unwrap()
            .unwrap();
        assert!(line.starts_with(what), "{line}, not {what}");
        line
    };
    let _resident = Resident::new(&case.pod);
    std::thread::sleep(std::time::Duration::from_millis(400)); // it has looked once
    case.call().add();
    expect("new ");
    case.pod.ip(&format!("link set {IFNAME} mtu 1400"));
    let line = expect("changed ");
    assert!(line.contains(" mtu=1400 "), "{line}");
    case.call().succeed("DEL");
    expect("gone ");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn top_has_the_busiest_first() {
    let _alone = alone();
    let node = Node::new();
    let pods: Vec<_> = (0..3)
        .map(|_| {
            let (pod, number) = (Host::new(), tap_number());
            node.allocated(&pod, number).add();
            (Resident::new(&pod), pod, number)
        })
        .collect();
    let busy = pods[2].2;
    let tap = taps::open(busy);
    let ended = AtomicBool::new(false);
    let text = scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let addresses = [[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1]].concat();
                taps::send(&tap, &[addresses, vec![0x5a; 88]].concat());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let words = ["link", "top", "--count", "2", "--interval", "0.5"];
        let text = succeed(&node.host, &words);
        ended.store(true, Ordering::Relaxed);
        text
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 8, "{text}");
    assert!(
        lines[1].starts_with(&busy.to_string()) && lines[1].contains("kB"),
        "{text}"
    );
    assert!(!text.contains('\u{1b}'), "{text}");
}
