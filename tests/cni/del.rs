//! DEL: repeatable, content with whatever is gone, and careful with what is not ours.

use std::{os::unix::fs::symlink, time::Duration};

use kit::netns::{
    Host, IFNAME, LOWER, Node, device_id, tap_exists, tap_number,
    taps::{arrives, far_tap, open as open_tap, send},
    wait_until,
};
use macvtap::macvtap::port_security::Interface;
use serde_json::{Value, json};

#[test]
fn of_what_never_was_succeeds() {
    let (node, pod) = (Node::new(), Host::new());
    node.allocated(&pod, tap_number()).succeed("DEL");
    node.cni(&pod, json!({"lowerDevice": LOWER})).succeed("DEL");
    node.cni(&pod, json!({})).succeed("DEL");
}

#[test]
fn twice_succeeds() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    call.succeed("DEL");
    call.succeed("DEL");
    assert!(!tap_exists(number));
}

#[test]
fn without_a_netns_or_after_it_is_gone_succeeds() {
    let (node, number) = (Node::new(), tap_number());
    let pod = Host::new();
    let call = node.allocated(&pod, number).added();
    drop(pod);
    wait_until("the netns is destroyed", || !tap_exists(number));
    for path in [
        "",
        "/run/netns/there-is-none",
        "/proc/0/ns/net",
        "/etc/passwd/x",
    ] {
        call.clone().env("CNI_NETNS", path).succeed("DEL");
    }
    // The descriptor of before: closed, so that nothing is there.
    call.succeed("DEL");
}

#[test]
fn without_the_lower_device_succeeds() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    node.host.ip(&format!("link delete {LOWER}"));
    assert!(
        pod.links().is_empty(),
        "the kernel deletes it with its lower device"
    );
    call.succeed("DEL");
    let by_name = node.cni(&pod, json!({"lowerDevice": LOWER, "mode": "bridge"}));
    by_name.succeed("DEL");
}

#[test]
fn does_not_mind_what_is_wrong_with_the_configuration() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    let call = call.with("mtu", -1).with("owner", "x").with("mac", "x");
    let call = call.with("prevResult", "broken");
    call.env("CNI_ARGS", "nonsense").succeed("DEL");
    assert!(pod.links().is_empty());
}

/// A key of the wrong type was added later: ADD fails with it. Where the runtime gives no
/// previous result, the interface is the attachment all the same.
#[test]
fn with_a_device_id_of_a_wrong_type_removes_the_interface() {
    let (node, pod) = (Node::new(), Host::new());
    for key in ["deviceID", "runtimeConfig", "type"] {
        for value in [json!(7), json!([]), json!({}), json!(true)] {
            let call = node.allocated(&pod, tap_number()).added();
            let call = call.with("prevResult", json!(null));
            call.with(key, value.clone()).succeed("DEL");
            assert!(pod.links().is_empty(), "{key} {value}");
        }
    }
}

/// ADD fails without one, so that the interface may be another attachment's. Only what ADD
/// reported proves that it is this one.
#[test]
fn without_a_usable_device_id_deletes_what_add_reported() {
    let (node, pod) = (Node::new(), Host::new());
    for id in [json!("nonsense@"), json!("@"), json!(null)] {
        let call = node.allocated(&pod, tap_number()).added();
        let unclear = call.clone().with("deviceID", id.clone());
        for prev in [
            json!(null),
            json!("broken"),
            json!({"interfaces": [{"name": IFNAME, "sandbox": pod.path(), "mac": "02:00:00:00:00:01"}]}),
        ] {
            unclear.clone().with("prevResult", prev).succeed("DEL");
            assert_eq!(pod.links(), [IFNAME], "{id}");
        }
        unclear.succeed("DEL");
        assert!(pod.links().is_empty(), "{id}");
    }
    // Without the lower device the index tells.
    let call = node.cni(&pod, json!({"lowerDevice": LOWER})).added();
    let call = call
        .with("lowerDevice", json!(7))
        .with("prevResult", "broken");
    call.clone()
        .env("CNI_CONTAINERID", "another")
        .succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    call.succeed("DEL");
    assert!(pod.links().is_empty());
}

#[test]
fn leaves_what_is_no_macvtap_alone() {
    let (node, pod) = (Node::new(), Host::new());
    pod.ip(&format!("link add {IFNAME} type bridge"));
    node.allocated(&pod, tap_number()).succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
}

/// Nothing of ours can be there, and an error would keep the pod in Terminating.
#[test]
fn of_a_path_that_is_no_netns_succeeds_with_a_warning() {
    let (node, pod) = (Node::new(), Host::new());
    let own = format!("/proc/{}/ns/net", std::process::id());
    let long = format!("/run/{}", "x".repeat(5000));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("loop", path("loop")).unwrap();
    for path in [
        "/etc/passwd",
        "/dev/null",
        "/dev/full",
        "/run",
        ".",
        "/proc/self/exe",
        "/proc/self/ns/mnt",
        "/proc/self/ns/uts",
        "/proc/self/ns/net",
        &path("fifo"),
        &path("loop"),
        &own,
        &long,
    ] {
        let call = node.allocated(&pod, tap_number()).env("CNI_NETNS", path);
        let answer = call.call("DEL");
        assert_eq!((answer.status, answer.stdout.as_str()), (0, ""), "{path}");
        let warned = answer.stderr.contains("level=warn") || path == own;
        assert!(warned, "{path}: {}", answer.stderr);
        let own = path == own || path == "/proc/self/ns/net";
        assert!(own || call.fail("ADD").0 == 8, "{path}");
    }
}

/// As runtimes mount them, where the path does not say of which kind they are.
#[test]
fn of_a_mounted_namespace_of_another_kind_succeeds_with_a_warning_and_add_refuses() {
    let (node, pod) = (Node::new(), Host::new());
    let mounted = tempfile::NamedTempFile::new().unwrap();
    let mounted = mounted.path().to_str().unwrap();
    for kind in ["uts", "user", "cgroup", "pid", "time", "ipc"] {
        let script = format!("mount --bind /proc/self/ns/{kind} {mounted} && exec \"$@\"");
        let private = ["unshare", "-m", "sh", "-c", &script, "sh"];
        let call = node.allocated(&pod, tap_number());
        let call = call.env("CNI_NETNS", mounted).by(&private);
        let answer = call.call("DEL");
        assert_eq!((answer.status, answer.stdout.as_str()), (0, ""), "{kind}");
        assert!(answer.stderr.contains("another kind"), "{kind}: {answer:?}");
        let prev = json!({"interfaces": [{"name": IFNAME, "sandbox": mounted}]});
        let call = call.with("prevResult", prev);
        for verb in ["ADD", "CHECK"] {
            let (code, msg) = call.fail(verb);
            assert_eq!(code, 8, "{verb} {kind}: {msg}");
            assert!(msg.contains("is not a network namespace"), "{kind}: {msg}");
        }
    }
}

#[test]
fn of_any_configuration_removes_the_interface() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number);
    for key in [
        "mtu",
        "mac",
        "mode",
        "owner",
        "group",
        "logLevel",
        "logFile",
        "hostStack",
        "hostIPv6",
        "promiscMode",
        "allMulticast",
        "lowerDevice",
        "master",
        "args",
        "prevResult",
        "ipam",
    ] {
        for wrong in [json!(-1.5), json!("trace"), json!([7]), json!({"x": 1})] {
            call.add();
            call.clone().with(key, wrong.clone()).succeed("DEL");
            assert!(pod.links().is_empty(), "{key} {wrong}");
        }
    }
}

#[test]
fn with_a_device_id_deletes_that_tap_alone() {
    let (node, pod) = (Node::new(), Host::new());
    let (ours, other) = (tap_number(), tap_number());
    let attached = node.allocated(&pod, ours).added();
    // A second ADD failed, or the path of the netns belongs to another pod by now.
    node.allocated(&pod, other).succeed("DEL");
    node.cni(&pod, json!({"deviceID": "eth0Mvp3"}))
        .succeed("DEL");
    let standalone = node.cni(&pod, json!({"lowerDevice": LOWER}));
    standalone.succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    attached.succeed("CHECK");
    attached.succeed("DEL");
    let call = standalone.added();
    node.allocated(&pod, ours).succeed("DEL");
    let other_container = call.clone().env("CNI_CONTAINERID", "other");
    other_container.succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    call.succeed("DEL");
    assert!(pod.links().is_empty());
}

#[test]
fn without_a_thread_removes_the_rules_after_the_interface() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).with("security", "mac").added();
    let fault = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=clone,clone3",
        "-e",
        "inject=clone,clone3:error=EAGAIN",
    ];
    call.clone().by(&fault).succeed("DEL");
    assert!(pod.links().is_empty());
    let interface = Interface {
        netns: Some(&pod.0),
        name: IFNAME,
        index: number,
    };
    assert!(interface.security().unwrap().is_none());
}

/// Its rules go with it, and not before: a guest may be sending.
#[test]
fn of_another_attachment_leaves_the_rules_for_the_guest() {
    let (node, pod) = (Node::new(), Host::new());
    let (ours, other) = (tap_number(), tap_number());
    let attached = node.allocated(&pod, ours).with("security", "mac").added();
    node.allocated(&pod, other)
        .with("security", "mac")
        .succeed("DEL");
    let standalone = node.cni(&pod, json!({"lowerDevice": LOWER, "macspoofchk": true}));
    standalone.succeed("DEL");
    attached.succeed("CHECK");
    // The network lost its key since ADD.
    node.allocated(&pod, ours).succeed("DEL");
    assert!(pod.links().is_empty());
    let open = node.allocated(&pod, ours).with("mac", "02:00:00:00:00:ab");
    open.add();
    let (near, far) = (open_tap(ours), far_tap(&node));
    let mut frame = [2, 0, 0, 0, 0, 0xff, 2, 0, 0, 0, 0, 0xcd, 0x88, 0xb5].to_vec();
    frame.resize(80, 7);
    send(&near, &frame);
    assert!(
        arrives(&far, &frame, Duration::from_secs(5)),
        "rules are left"
    );
}

#[test]
fn of_an_id_of_the_original_leaves_the_pods_own_macvtaps_alone() {
    let (node, pod) = (Node::new(), Host::new());
    pod.ip("link add inner type veth peer name other");
    pod.ip(&format!(
        "link add {IFNAME} link inner type macvtap mode bridge"
    ));
    for id in ["bMvp5", "macvtap0"] {
        node.cni(&pod, json!({"deviceID": id})).succeed("DEL");
        assert!(pod.link(IFNAME).is_some(), "{id}");
    }
}

#[test]
fn of_an_interface_with_many_names_succeeds() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.allocated(&pod, number).added();
    let filler = "x".repeat(119);
    let batched: Vec<String> = (100..400)
        .map(|n| format!("link property add dev {IFNAME} altname a{n}{filler}"))
        .collect();
    let batch = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(batch.path(), batched.join("\n")).unwrap();
    pod.ip(&format!("-batch {}", batch.path().display()));
    let links = pod.0.socket().unwrap().links().unwrap();
    assert_eq!(links.len(), 2, "loopback and one more");
    assert_eq!(links[1].alt_names.len(), 300);
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(pod.links().is_empty() && !tap_exists(number));
}

#[test]
fn deletes_one_of_two_attachments() {
    let (node, pod) = (Node::new(), Host::new());
    let (one, two) = (tap_number(), tap_number());
    node.allocated(&pod, one).add();
    let second = node.cni(&pod, json!({"deviceID": device_id(two)}));
    let second = second.env("CNI_IFNAME", "net2");
    second.add();
    second.succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    assert!(tap_exists(one) && !tap_exists(two));
}

/// Other networks of a pod; names and MAC tell those of a pod `of_kubernetes` apart.
fn others_of_the_pod(of_kubernetes: bool) -> Vec<Value> {
    let mut others = vec![
        json!({"lowerDevice": "eth1", "mode": "vepa"}),
        json!({"lowerDevice": "eth1"}),
        json!({"lowerDevice": LOWER, "mode": "vepa"}),
        json!({"lowerDevice": LOWER, "mode": "loud"}),
        json!({"lowerDevice": "gone0"}),
        json!({"lowerDevice": LOWER, "vlan": 7}),
        json!({"lowerDevice": LOWER, "linkInContainer": true}),
        json!({}),
    ];
    if of_kubernetes {
        others.push(json!({"lowerDevice": LOWER, "name": "other"}));
        others.push(json!({"lowerDevice": LOWER, "mac": "02:00:00:00:00:01"}));
        others.push(json!({"lowerDevice": 7, "name": "other"}));
    }
    others
}

/// Both networks of the pod name the interface alike: the ADD of the second one fails, and its DEL
/// leaves the first one's.
#[test]
fn without_a_device_id_deletes_no_interface_of_another_network() {
    let (node, pod) = (Node::new(), Host::new());
    node.host.ip("link add eth1 type veth peer name far1");
    node.host.ip("link set eth1 up");
    let first = node.cni(&pod, json!({"lowerDevice": LOWER}));
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=vms;K8S_POD_NAME=vm-1;K8S_POD_UID=8a-b";
    for (args, of_kubernetes) in [("", false), (args, true)] {
        let first = first.clone().env("CNI_ARGS", args).added();
        for other in others_of_the_pod(of_kubernetes) {
            let second = node.cni(&pod, other.clone()).env("CNI_ARGS", args);
            second.fail("ADD");
            let answer = second.call("DEL");
            assert_eq!(
                (answer.status, answer.stdout.as_str()),
                (0, ""),
                "{answer:?}"
            );
            assert!(
                answer.stderr.contains("is not that of this attachment"),
                "{answer:?}"
            );
            assert_eq!(pod.links(), [IFNAME], "{other}");
        }
        first.succeed("CHECK");
        first.succeed("DEL");
        assert!(pod.links().is_empty());
    }
}

/// An ADD that was stopped reported nothing. Lower device and mode are what the kernel says.
#[test]
fn without_a_device_id_needs_no_result_of_add() {
    let (node, pod) = (Node::new(), Host::new());
    for mode in ["bridge", "vepa", "private", "passthru"] {
        let call = node.cni(&pod, json!({"lowerDevice": LOWER, "mode": mode}));
        call.add();
        call.succeed("DEL");
        assert!(pod.links().is_empty(), "{mode}");
    }
    // As learning leaves the port of a VM that is elsewhere.
    let call = node.cni(&pod, json!({"lowerDevice": LOWER}));
    call.add();
    pod.ip(&format!("link set {IFNAME} type macvtap mode vepa"));
    call.succeed("DEL");
    assert!(pod.links().is_empty());
    pod.ip("link add inner type veth peer name other");
    pod.ip("link set inner up");
    let inner = node.cni(
        &pod,
        json!({"lowerDevice": "inner", "linkInContainer": true}),
    );
    inner.add();
    inner.succeed("DEL");
    assert_eq!(pod.links(), ["other", "inner"]);
}

/// As Multus calls it for a VM that asks for a MAC: DEL gets neither that, nor a result before
/// version 0.4.0.
#[test]
fn without_a_device_id_and_a_result_another_mac_than_that_of_the_names_is_no_obstacle() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({"cniVersion": "0.3.1", "lowerDevice": LOWER}));
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=vms;K8S_POD_NAME=vm-1;K8S_POD_UID=8a-b";
    let with_mac = format!("{args};MAC=02:00:00:00:00:77");
    call.clone().env("CNI_ARGS", &with_mac).add();
    assert_eq!(pod.link(IFNAME).unwrap()["address"], "02:00:00:00:00:77");
    let call = call.env("CNI_ARGS", args);
    call.clone().with("mode", "vepa").succeed("DEL");
    assert_eq!(pod.links(), [IFNAME], "another network's");
    call.succeed("DEL");
    assert!(pod.links().is_empty());
}

/// What ADD reported shows whose the interface is, whatever became of the lower device's name and
/// of the configuration.
#[test]
fn without_a_device_id_the_reported_mac_decides() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.cni(&pod, json!({"lowerDevice": LOWER})).added();
    node.host.ip(&format!("link set {LOWER} down"));
    node.host.ip(&format!("link set {LOWER} name lan0"));
    let forged = json!([{"name": IFNAME, "sandbox": pod.path(), "mac": "02:00:00:00:00:01"}]);
    let other = call
        .clone()
        .with("prevResult", json!({"interfaces": forged}));
    other.succeed("DEL");
    assert_eq!(pod.links(), [IFNAME]);
    call.clone().with("prevResult", json!(null)).succeed("DEL");
    assert_eq!(pod.links(), [IFNAME], "nothing shows that it is ours");
    call.with("mode", "vepa").succeed("DEL");
    assert!(pod.links().is_empty());
}
