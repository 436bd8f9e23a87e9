//! What every plugin has to do before it does anything: environment, standard
//! input, versions. After the reference implementation's `skel_test.go`.

use kit::netns::{Cni, Host, LOWER, Node, device_id, tap_number};
use serde_json::json;

fn with_call(test: impl Fn(Cni<'_>)) {
    let (node, pod) = (Node::new(), Host::new());
    test(node.allocated(&pod, tap_number()));
    assert!(pod.links().is_empty(), "something was done");
}

#[test]
fn missing_variables_are_named_together() {
    with_call(|call| {
        let call = call.env("CNI_NETNS", "").env("CNI_IFNAME", "");
        let call = call.env("CNI_PATH", "");
        let expected = "required env variables [CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        assert_eq!(call.fail("ADD"), (4, expected.into()));
        let expected = "required env variables [CNI_IFNAME,CNI_PATH] missing";
        assert_eq!(call.fail("DEL"), (4, expected.into()));
        let expected = "required env variables [CNI_PATH] missing";
        assert_eq!(call.fail("GC"), (4, expected.into()));
        assert_eq!(call.fail("STATUS"), (4, expected.into()));
    });
}

#[test]
fn wrong_container_ids_and_interface_names_are_refused() {
    with_call(|call| {
        for (name, value, msg) in [
            (
                "CNI_CONTAINERID",
                "a/b",
                "invalid characters in containerID",
            ),
            (
                "CNI_IFNAME",
                "sixteencharacter",
                "interface name is too long",
            ),
            ("CNI_IFNAME", "..", "interface name is . or .."),
            (
                "CNI_IFNAME",
                "a/b",
                "interface name contains / or : or whitespace characters",
            ),
        ] {
            for verb in ["ADD", "CHECK", "DEL"] {
                let answer = call.clone().env(name, value).fail(verb);
                assert_eq!(answer, (4, msg.into()), "{verb} {name}={value}");
            }
        }
    });
}

#[test]
fn version_needs_nothing_and_reads_nothing() {
    let (node, pod) = (Node::new(), Host::new());
    let mut call = node.allocated(&pod, 0).stdin("not JSON");
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"] {
        call = call.env(name, "");
    }
    let answer = call.call("VERSION");
    let expected = concat!(
        r#"{"cniVersion":"1.1.0","supportedVersions":"#,
        r#"["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#,
        "\n"
    );
    assert_eq!((answer.status, answer.stdout.as_str()), (0, expected));
    assert_eq!(answer.stderr, "");
}

#[test]
fn an_unknown_command_is_refused_after_stdin_was_checked() {
    with_call(|call| {
        assert_eq!(call.fail("NOPE"), (4, "unknown CNI_COMMAND: NOPE".into()));
        assert_eq!(call.fail("add"), (4, "unknown CNI_COMMAND: add".into()));
        assert_eq!(call.stdin("").fail("NOPE").0, 6);
    });
}

#[test]
fn broken_stdin_gets_the_references_answer() {
    let deep = format!("{{\"name\":\"x\",\"a\":{}", "[".repeat(100_000));
    let huge = format!("{{\"name\":\"x\",\"a\":\"{}\"}}", "a".repeat(5 << 20));
    let cases: [(&[u8], u64, &str); 12] = [
        (b"", 6, "error unmarshall network config: "),
        (b"{", 6, "error unmarshall network config: "),
        (b"{\"name\":\"x\",}", 6, "error unmarshall network config: "),
        // Go reads U+FFFD for it.
        (
            b"{\"name\":\"\xff\xfe\"}",
            7,
            "invalid characters found in network name",
        ),
        (b"[]", 6, "error unmarshall network config: "),
        (b"null", 6, "error unmarshall network config: "),
        (b"{\"name\":7}", 6, "error unmarshall network config: "),
        (deep.as_bytes(), 6, "error unmarshall network config: "),
        (huge.as_bytes(), 5, "error reading from stdin: "),
        (b"{}", 7, "missing network name"),
        (b"{\"name\":\"\"}", 7, "missing network name"),
        (
            b"{\"name\":\"a b\"}",
            7,
            "invalid characters found in network name",
        ),
    ];
    with_call(|call| {
        for (stdin, code, msg) in cases {
            for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
                let (found, text) = call.clone().stdin(stdin).fail(verb);
                let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(40)]);
                assert_eq!(found, code, "{verb} {shown}: {text}");
                assert!(text.starts_with(msg), "{verb} {shown}: {text}");
            }
        }
    });
}

#[test]
fn unreadable_stdin_is_an_io_error() {
    let (node, pod) = (Node::new(), Host::new());
    let call = node.allocated(&pod, tap_number());
    let mut command = call.command("ADD");
    // A directory opens for reading, and refuses to be read.
    command.stdin(std::fs::File::open("/").unwrap());
    let output = node.host.output(&mut command);
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 5);
    let msg = error["msg"].as_str().unwrap();
    assert!(msg.starts_with("error reading from stdin: "), "{msg}");
}

#[test]
fn incompatible_and_broken_versions() {
    with_call(|call| {
        let error = call.clone().with("cniVersion", "9.9.9").call("ADD").error();
        assert_eq!(error["code"], 1);
        assert_eq!(error["msg"], "incompatible CNI versions");
        let expected = "config is \"9.9.9\", plugin supports \
            [\"0.1.0\" \"0.2.0\" \"0.3.0\" \"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]";
        assert_eq!(error["details"], expected);
        let broken = call.clone().with("cniVersion", json!([1]));
        for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
            let (code, msg) = broken.fail(verb);
            assert_eq!(code, 6, "{verb}");
            assert!(msg.starts_with("decoding version from network config: "));
        }
        for (verb, version) in [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0")] {
            let old = call.clone().with("cniVersion", version);
            let expected = format!("config version does not allow {verb}");
            assert_eq!(old.fail(verb), (1, expected));
            let odd = call.clone().with("cniVersion", "1.x");
            assert_eq!(odd.fail(verb).0, 6);
        }
        // No version means 0.1.0, whose results cannot hold interfaces.
        let none = call.clone().with("cniVersion", "");
        let (code, msg) = none.fail("ADD");
        let expected = "cannot convert: no valid IP addresses; a result of cniVersion 0.1.0";
        assert!(code == 999 && msg.starts_with(expected), "{msg}");
        assert!(msg.contains("set cniVersion to one of 0.3.0"), "{msg}");
    });
}

#[test]
fn cni_args_are_checked() {
    with_call(|call| {
        for args in ["K=V", "MAC", "MAC=a=b", "IgnoreUnknown=maybe"] {
            let (code, msg) = call.clone().env("CNI_ARGS", args).fail("ADD");
            assert_eq!(code, 4, "{args}");
            assert!(msg.contains("CNI_ARGS"), "{msg}");
        }
    });
}

#[test]
fn the_hosts_own_netns_is_refused_before_anything_is_done() {
    let (node, number) = (Node::new(), tap_number());
    let call = node.allocated(&node.host, number);
    let expected = "plugin's netns and netns from CNI_NETNS should not be the same";
    assert_eq!(call.fail("ADD"), (8, expected.into()));
    assert_eq!(node.host.links(), [LOWER]);
    node.host
        .ip(&format!("link add net1 link {LOWER} type macvtap"));
    assert_eq!(call.fail("CHECK"), (8, expected.into()));
    let answer = call.call("DEL");
    assert_eq!((answer.status, answer.stdout.as_str()), (0, ""));
    assert!(answer.stderr.contains(expected), "{answer:?}");
    assert!(node.host.link("net1").is_some(), "DEL deleted on the host");
    node.host.ip("link delete net1");
    // Unless the caller knows what it does.
    let call = call.env("CNI_NETNS_OVERRIDE", "true");
    call.add();
    assert!(node.host.link("net1").is_some());
    call.succeed("DEL");
    assert_eq!(node.host.links(), [LOWER]);
}

#[test]
fn called_by_hand_it_says_what_it_is() {
    let (node, pod) = (Node::new(), Host::new());
    let mut command = node.allocated(&pod, 0).command("ADD");
    command.env_remove("CNI_COMMAND");
    let output = node.host.output(&mut command);
    assert!(output.status.success());
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("CNI macvtap plugin v"), "{text}");
    let versions =
        "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
    assert_eq!(lines[1], versions);
    assert!(lines[2].contains("--help"), "{text}");
}

#[test]
fn it_answers_by_any_name_and_by_subcommand() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["macvtap", "macvtap-cni", "bridge2"] {
        std::os::unix::fs::symlink(kit::binary(), directory.path().join(name)).unwrap();
        let mut command = std::process::Command::new(directory.path().join(name));
        let output = command.env("CNI_COMMAND", "VERSION").output().unwrap();
        assert!(
            output.stdout.starts_with(b"{\"cniVersion\":\"1.1.0\""),
            "{name}"
        );
    }
    let mut command = std::process::Command::new(kit::binary());
    let output = command.arg("cni").env("CNI_COMMAND", "VERSION").output();
    assert!(
        output
            .unwrap()
            .stdout
            .starts_with(b"{\"cniVersion\":\"1.1.0\"")
    );
}

#[test]
fn stdout_that_is_closed_undoes_the_attachment() {
    let (node, pod, number) = (Node::new(), Host::new(), tap_number());
    let call = node.cni(&pod, json!({"deviceID": device_id(number)}));
    let mut command = call.command("ADD");
    let mut child = node.host.0.run(|| Ok(command.spawn()?)).unwrap();
    drop(child.stdout.take());
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), call.input()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(pod.links().is_empty());
    assert!(!kit::netns::tap_exists(number));
}
