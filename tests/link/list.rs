//! `link list`, `watch` and `top`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio, id},
    sync::atomic::{AtomicBool, Ordering},
    thread::scope,
};

use kit::{
    binary,
    netns::{Case, FAR_END, Host, IFNAME, LOWER, Node, device_id_in, tap, tap_number, taps},
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
        (&lower["macvtaps"], &lower["eligible"]),
        (&json!(12), &json!(true))
    );
    assert_eq!(lower["carrier"], true);
    let text = succeed(&node.host, &["link", "list"]);
    assert!(text.starts_with("TAP  "), "{text}");
    assert!(!text.contains("without carrier"), "{text}");
    node.wire.ip(&format!("link set {FAR_END} down"));
    let without = succeed(&node.host, &["link", "list"]);
    assert!(without.contains("yes, without carrier"), "{without}");
    node.wire.ip(&format!("link set {FAR_END} up"));
    assert!(text.contains("bridge (parked)"), "{text}");
    // From elsewhere the lower device of that name is another one.
    let elsewhere = Node::new();
    let list = listed(&elsewhere.host);
    assert_eq!(find(&list, pods[0].2).unwrap()["lowerDevice"], Value::Null);
    // Of one whose pod has no process any more, only the tap is visible.
    let (resident, _pod, number, ..) = pods.remove(0);
    drop(resident);
    let list = listed(&node.host);
    assert!(find(&list, number).is_none());
    let unseen = list["unseenTaps"].as_array().unwrap();
    assert!(unseen.contains(&json!(number)), "{list}");
}

#[test]
fn says_why_a_lower_device_is_ineligible() {
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
    assert!(line("br0 ").contains("no: is down"), "{text}");
    assert!(line("other ").contains("no: "), "{text}");
    assert!(line(LOWER).ends_with("yes"), "{text}");
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
    assert!(text.contains("Hidden columns: "), "{text:?}");
    for line in text.lines() {
        let shown = line.replace("\u{1b}[1m", "").replace("\u{1b}[0m", "");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert!(shown.trim_end().chars().count() <= 40, "{shown:?}");
    }
    let on_terminal = |before: &str, options: &str| {
        let script = format!(
            "stty cols 40; {before} {} link list {options}",
            binary().display()
        );
        let mut command = Command::new("script");
        command
            .args(["-qec", &script, "/dev/null"])
            .env("TERM", "xterm");
        String::from_utf8(case.node.host.output(&mut command).stdout).unwrap()
    };
    assert!(on_terminal("", "").contains("\u{1b}[1m"));
    for plain in ["TERM=dumb", "NO_COLOR=1"] {
        let text = on_terminal(plain, "");
        assert!(!text.contains('\u{1b}'), "{plain}: {text:?}");
    }
    let text = on_terminal("", "--wide");
    assert!(
        text.contains("SENT") && !text.contains("Hidden"),
        "{text:?}"
    );
    let text = on_terminal("COLUMNS=60", "");
    assert!(
        text.lines()
            .any(|line| line.trim_end().chars().count() > 40),
        "{text:?}"
    );
}

#[test]
fn lists_what_is_asked_for() {
    let _alone = alone();
    let node = Node::new();
    let pods = [tap_number(), tap_number()].map(|number| {
        let pod = Host::new();
        node.allocated(&pod, number).add();
        (Resident::new(&pod), pod, number)
    });
    let [first, second] = [&pods[0], &pods[1]].map(|(_, _, number)| number.to_string());
    let lines = |words: &[&str]| {
        let text = succeed(&node.host, &[&["link", "ls"], words].concat());
        let taps = [&first, &second].map(|tap| text.contains(tap.as_str()));
        (taps, text)
    };
    assert_eq!(lines(&[]).0, [true, true]);
    assert_eq!(lines(&[&first]).0, [true, false]);
    assert_eq!(lines(&[IFNAME, "--lower-device", LOWER]).0, [true, true]);
    let (_, text) = lines(&["no-such"]);
    assert_eq!(text, "No macvtaps found.\n");
    for words in [
        &["no-such"][..],
        &["--pod", "vms/a"],
        &["--lower-device", "eth7"],
    ] {
        let (taps, text) = lines(words);
        assert_eq!(taps, [false, false], "{text}");
        assert!(!text.starts_with("TAP "), "{text}");
    }
}

#[test]
fn top_leaves_the_screen_as_it_was_when_q_is_pressed() {
    let _alone = alone();
    let case = Case::new();
    case.call().add();
    let _resident = Resident::new(&case.pod);
    let script = format!(
        "{} link top --interval 0.1; echo status=$?",
        binary().display()
    );
    let mut command = Command::new("script");
    command
        .args(["-qec", &script, "/dev/null"])
        .env("TERM", "xterm");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = case.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = Vec::new();
    let tap = case.number.to_string();
    while !String::from_utf8_lossy(&text).contains(&tap) {
        assert!(stdout.read_until(b'\n', &mut text).unwrap() > 0);
    }
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"q").unwrap();
    stdout.read_to_end(&mut text).unwrap();
    child.wait().unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("\u{1b}[?1049h"), "{text:?}");
    let (_, after) = text.split_once("\u{1b}[?1049l").unwrap();
    assert_eq!(after.trim(), "status=0");
}

#[test]
fn top_and_watch_print_json() {
    let _alone = alone();
    let case = Case::new();
    case.call().add();
    let _resident = Resident::new(&case.pod);
    let words = ["link", "top", "--json", "--count", "2", "--interval", "0.1"];
    let text = succeed(&case.node.host, &words);
    assert_eq!(text.lines().count(), 2, "{text}");
    for line in text.lines() {
        let update: Value = serde_json::from_str(line).unwrap();
        assert!(update["time"].is_string(), "{line}");
        let taps = update["macvtaps"].as_array().unwrap();
        assert!(taps.iter().any(|each| each["tap"] == case.number), "{line}");
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(binary())
        .args(["link", "watch", "--json"]);
    command.stdout(Stdio::piped());
    let mut child = case.node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut of_case = || loop {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if line["macvtap"]["tap"] == case.number {
            return line;
        }
    };
    assert_eq!(of_case()["event"], "is");
    case.call().succeed("DEL");
    assert_eq!(of_case()["event"], "gone");
    child.kill().unwrap();
    child.wait().unwrap();
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
    let list = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups"]);
        let output = case.node.host.output(command.arg(&program).args(words));
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let text = String::from_utf8(list(&["link", "list"])).unwrap();
    assert!(!text.contains("No macvtaps"), "{text}");
    assert!(text.contains("not visible from here: "), "{text}");
    let all: Value = serde_json::from_slice(&list(&["link", "list", "--json"])).unwrap();
    let unseen = all["unseenTaps"].as_array().unwrap();
    assert!(unseen.contains(&json!(case.number)), "{all}");
    // Those in its own network namespace it does see, but not by what they are filtered.
    let number = tap_number();
    let words = format!("link add m0 index {number} link {LOWER} type macvtap mode bridge");
    case.node.host.ip(&words);
    let own = list(&["link", "list", "--json", "m0"]);
    let own: Value = serde_json::from_slice(&own).unwrap();
    assert_eq!(own["macvtaps"][0]["tap"], number, "{own}");
    let security = own["macvtaps"][0]["security"].as_str().unwrap();
    assert!(security.contains("CAP_NET_ADMIN"), "{own}");
    let table = String::from_utf8(list(&["link", "list"])).unwrap();
    assert!(table.contains("m0 "), "{table}");
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
                output.status.success() && !text.contains("could not be read"),
                "{output:?}"
            );
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn watch_prints_what_changes() {
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
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{line}");
        assert!(rest.starts_with(what), "{line}, not {what}");
        line.clone()
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
    let heads: Vec<_> = lines
        .iter()
        .filter(|line| line.ends_with(" macvtaps"))
        .collect();
    assert_eq!(heads.len(), 2, "{text}");
    let of = |number: u32| {
        let tap = number.to_string();
        lines
            .iter()
            .position(|line| line.starts_with(&tap))
            .unwrap()
    };
    assert!(lines[of(busy)].contains("kB"), "{text}");
    let idle = pods.iter().filter(|pod| pod.2 != busy);
    assert!(idle.clone().all(|pod| of(pod.2) > of(busy)), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
