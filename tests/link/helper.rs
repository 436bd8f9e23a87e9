//! `link add`, `set` and `delete`.

use std::{collections::BTreeSet, process::Command};

use kit::netns::{Host, LOWER, Node, tap_exists, tap_number, wait_until};

use super::{Resident, alone, fail, run, succeed};

#[test]
fn makes_changes_and_deletes_a_macvtap() {
    let _alone = alone();
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let (tap, netns) = (number.to_string(), pod.path());
    let words = [
        "link",
        "add",
        "m0",
        "--lower-device",
        LOWER,
        "--mode",
        "vepa",
        "--tap",
        &tap,
    ];
    let more = [
        "--netns",
        &netns,
        "--mac",
        "02:00:00:00:00:07",
        "--mtu",
        "1400",
        "--up",
        "on",
    ];
    let printed = succeed(&node.host, &[&words[..], &more].concat());
    assert_eq!(printed, format!("/dev/tap{number}\n"));
    let link = pod.link("m0").unwrap();
    assert_eq!(link["address"], "02:00:00:00:00:07");
    assert_eq!(
        (&link["mtu"], &link["ifindex"]),
        (&1400.into(), &number.into())
    );
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "vepa");
    assert!(link["flags"].to_string().contains("\"UP\""), "{link}");
    let words = [
        "link", "set", "m0", "--netns", &netns, "--mode", "bridge", "--mtu", "1300",
    ];
    succeed(
        &node.host,
        &[
            &words[..],
            &["--promisc-mode", "on", "--all-multicast", "on"],
        ]
        .concat(),
    );
    let link = pod.link("m0").unwrap();
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert_eq!(
        (&link["mtu"], &link["promiscuity"]),
        (&1300.into(), &1.into())
    );
    assert!(link["flags"].to_string().contains("ALLMULTI"), "{link}");
    succeed(&node.host, &["link", "delete", "m0", "--netns", &netns]);
    wait_until("it is gone", || !tap_exists(number));
}

/// Each has its own node, in whatever network namespaces they are.
#[test]
fn no_two_have_the_same_tap() {
    let _alone = alone();
    let node = Node::new();
    let pods = [Host::new(), Host::new()];
    let paths = pods.each_ref().map(|pod| {
        let path = pod.path();
        let words = [
            "link",
            "add",
            "m0",
            "--lower-device",
            LOWER,
            "--netns",
            &path,
        ];
        succeed(&node.host, &words)
    });
    assert_ne!(paths[0], paths[1]);
    let text = fail(&node.host, &["link", "set", "m0", "--mtu", "1400"]);
    assert!(
        text.contains("there is no interface \"m0\" in this network namespace"),
        "{text}"
    );
}

/// Where the kernel would only answer with a number.
#[test]
fn says_in_words_what_cannot_be() {
    let _alone = alone();
    let node = Node::new();
    let host = &node.host;
    let usage = |words: &[&str]| {
        let output = run(host, words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let add = |name: &str, more: &[&str]| {
        let words = ["link", "add", name, "--lower-device", LOWER];
        usage(&[&words[..], more].concat())
    };
    assert!(add("averyveryverylongname", &[]).contains("longer than 15 bytes"));
    assert!(add("a b", &[]).contains("white space"));
    assert!(add("net%d", &[]).contains("pattern"));
    assert!(add("m0", &["--mtu", "20"]).contains("68..=65535"));
    assert!(add("m0", &["--tap", "0"]).contains("1..=2147483647"));
    for mac in ["01:00:5e:00:00:01", "00:00:00:00:00:00"] {
        assert!(add("m0", &["--mac", mac]).contains("group address or zero"));
    }
    assert!(usage(&["link", "set", "m0"]).contains("required"));
    host.ip("link add br0 type bridge");
    host.ip("link add port0 type veth peer name port1");
    host.ip("link set port0 master br0");
    let mac = "02:00:00:00:00:07";
    for (name, more) in [
        ("m0", &["--mac", mac, "--up", "on"][..]),
        ("m1", &["--mtu", "1400"]),
    ] {
        let words = ["link", "add", name, "--lower-device", LOWER];
        succeed(host, &[&words[..], more].concat());
    }
    for (words, expected) in [
        (
            &["link", "add", "m1", "--lower-device", LOWER][..],
            "\"m1\" already exists",
        ),
        (
            &["link", "add", "m2", "--lower-device", "lo"],
            "is not an Ethernet device",
        ),
        (
            &[
                "link",
                "add",
                "m2",
                "--lower-device",
                LOWER,
                "--mtu",
                "9000",
            ],
            "MTU 9000 is larger than that of lower device",
        ),
        (
            &["link", "add", "m2", "--lower-device", LOWER, "--tap", "1"],
            "index 1 is taken by \"lo\"",
        ),
        (
            &["link", "add", "m2", "--lower-device", "port0"],
            "is a port of \"br0\"",
        ),
        (
            &[
                "link",
                "add",
                "m2",
                "--lower-device",
                LOWER,
                "--mode",
                "passthru",
            ],
            "must be the only macvtap or macvlan",
        ),
        (
            &["link", "set", "m1", "--mtu", "9000"],
            "larger than that of the lower device",
        ),
        (
            &["link", "set", "m1", "--mode", "passthru"],
            "cannot be entered or left",
        ),
        (
            &["link", "set", "m1", "--mac", mac, "--up", "on"],
            "the MAC is in use",
        ),
    ] {
        let stderr = fail(host, words);
        assert!(stderr.contains(expected), "{stderr}");
    }
    let mut names = host.links();
    names.sort();
    assert_eq!(names, ["br0", LOWER, "m0", "m1", "port0", "port1"]);
}

/// A network namespace with a name, as of `ip netns add`.
struct Named(String);

impl Named {
    fn new() -> Self {
        let name = format!("macvtap-test-{}", std::process::id());
        Self::ip("add", &name);
        Self(name)
    }

    fn ip(verb: &str, name: &str) {
        let done = Command::new("ip").args(["netns", verb, name]).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        Self::ip("delete", &self.0);
    }
}

#[test]
fn a_netns_has_a_name_and_several_are_deleted_at_once() {
    let _alone = alone();
    let (node, netns) = (Node::new(), Named::new());
    for name in ["m0", "m1"] {
        let words = [
            "link",
            "add",
            name,
            "--lower-device",
            LOWER,
            "--netns",
            &netns.0,
        ];
        succeed(&node.host, &words);
    }
    let names = || {
        let list = succeed(&node.host, &["link", "show", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        let macvtaps = list["macvtaps"].as_array().unwrap().clone();
        let here = macvtaps
            .iter()
            .filter(|each| each["netns"] == netns.0.as_str());
        here.map(|each| each["interface"].as_str().unwrap().to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(names(), ["m0", "m1"].map(str::to_owned).into());
    let path = format!("/run/netns/{}", netns.0);
    let stderr = fail(
        &node.host,
        &["link", "rm", "m0", "m7", "m1", "--netns", &path],
    );
    assert!(
        stderr.contains("\"m7\"") && !stderr.contains("\"m0\""),
        "{stderr}"
    );
    assert!(names().is_empty());
}

#[test]
fn touches_nothing_else_and_says_why() {
    let _alone = alone();
    let node = Node::new();
    let host = &node.host;
    for words in [
        &["link", "delete", LOWER][..],
        &["link", "set", LOWER, "--mtu", "1400"],
    ] {
        let stderr = fail(host, words);
        assert!(
            stderr.contains("is a veth interface, not a macvtap"),
            "{stderr}"
        );
    }
    let stderr = fail(host, &["link", "delete", "absent"]);
    assert!(
        stderr.contains("there is no interface \"absent\""),
        "{stderr}"
    );
    let stderr = fail(host, &["link", "add", "m0", "--lower-device", "eth7"]);
    assert!(
        stderr.contains("lower device \"eth7\" does not exist"),
        "{stderr}"
    );
    let stderr = fail(
        host,
        &[
            "link",
            "add",
            "m0",
            "--lower-device",
            LOWER,
            "--mode",
            "hairpin",
        ],
    );
    assert!(stderr.contains("hairpin"), "{stderr}");
    let stderr = fail(host, &["link", "delete", "m0", "--netns", "/nowhere"]);
    assert!(stderr.contains("netns /nowhere does not exist"), "{stderr}");
    let (pod, number) = (Host::new(), tap_number());
    node.allocated(&pod, number).add();
    let _resident = Resident::new(&pod);
    let tap = number.to_string();
    let stderr = fail(
        host,
        &["link", "add", "m0", "--lower-device", LOWER, "--tap", &tap],
    );
    assert!(stderr.contains("exists already"), "{stderr}");
    // What cannot be set leaves nothing behind.
    let words = [
        "link",
        "add",
        "m0",
        "--lower-device",
        LOWER,
        "--mtu",
        "9999",
    ];
    fail(host, &words);
    assert_eq!(host.links(), [LOWER]);
}
