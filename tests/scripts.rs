//! The scripts: every wrong argument is answered by what to type.

use std::process::{Command, Output};

use kit::root;

fn run(script: &str, words: &[&str]) -> Output {
    let mut command = Command::new(root().join("scripts").join(script));
    command.args(words).output().unwrap()
}

fn refused(script: &str, words: &[&str]) -> String {
    let output = run(script, words);
    assert_eq!(output.status.code(), Some(2), "{script} {words:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn help(script: &str) -> String {
    let output = run(script, &["--help"]);
    assert!(output.status.success() && output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn uninstall() {
    for (words, expected) in [
        (&["-n"][..], "-n needs a value"),
        (&["--timeout"], "--timeout needs a value"),
        (&["--namespace", ""], "--namespace needs a value"),
        (&["--now"], "unexpected argument '--now'"),
        (&["macvtap"], "unexpected argument 'macvtap'"),
    ] {
        let text = refused("uninstall", words);
        assert!(text.contains(expected) && text.contains("--help"), "{text}");
    }
    assert!(help("uninstall").contains("--timeout DURATION"));
}

#[test]
fn cross() {
    for (words, expected) in [
        (&[][..], "use scripts/cross [--test] aarch64, or s390x"),
        (&["--test"], "use scripts/cross [--test] aarch64, or s390x"),
        (
            &["--selftest", "s390x"],
            "unknown option '--selftest'; use scripts/cross [--test] ARCH",
        ),
        (&["mips"], "'mips' is not aarch64 or s390x"),
        (
            &["aarch64", "s390x"],
            "one architecture at a time: aarch64 or s390x",
        ),
    ] {
        let text = refused("cross", words);
        assert!(text.contains(expected), "{text}");
    }
    assert!(help("cross").contains("scripts/cross [--test] ARCH"));
}
