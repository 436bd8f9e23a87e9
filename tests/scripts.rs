//! The scripts: each says what it is for, and every wrong argument is answered by what to type.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

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

/// The names of all that can be run.
fn all() -> Vec<String> {
    let files = fs::read_dir(root().join("scripts"))
        .unwrap()
        .map(Result::unwrap);
    let files = files.filter(|file| file.metadata().unwrap().permissions().mode() & 0o111 != 0);
    files
        .map(|file| file.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn each_says_what_it_is_for_and_does_nothing_else() {
    let scripts = all();
    assert!(scripts.len() > 10, "{scripts:?}");
    for script in &scripts {
        let text = help(script);
        assert!(text.contains(&format!("scripts/{script}")), "{text}");
        assert!(!text.contains('#'), "{text}");
    }
}

#[test]
fn each_refuses_options_that_it_does_not_have() {
    for script in all() {
        // What these do not know is for cargo.
        if ["test", "tool"].contains(&&*script) {
            continue;
        }
        let text = refused(&script, &["--no-such-option"]);
        assert!(text.contains("--no-such-option"), "{text}");
    }
}

#[test]
fn numbers_and_names_are_checked_before_anything_is_built() {
    for (script, words, expected) in [
        ("soak", &["long"][..], "'long' is not a number of minutes"),
        ("soak", &["0"], "'0' is not a number of minutes"),
        ("fuzz", &["1m"], "'1m' is not a number of seconds"),
        ("fuzz", &["60", "cny"], "there is no target 'cny'"),
        ("tool", &["denny"], "use scripts/tool deny, or nextest"),
        ("tool", &[], "use scripts/tool deny, or nextest"),
    ] {
        let text = refused(script, words);
        assert!(text.contains(expected), "{text}");
    }
}
