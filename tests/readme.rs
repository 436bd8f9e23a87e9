//! The README against the code and the manifests: what it says has to be so.

use std::fs;

use macvtap::deviceplugin::config;
use serde_json::Value;

use crate::manifests::{manifests, parse, root};

/// What the README claims about security is shown by tests that exist.
#[test]
fn the_readmes_claims_name_tests() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let spans = readme.split('`').filter(|span| span.starts_with("tests/"));
    let named: Vec<(&str, &str)> = spans.filter_map(|span| span.split_once("::")).collect();
    assert!(named.len() > 15, "{named:?}");
    for (file, name) in named {
        let text = fs::read_to_string(root().join(file)).unwrap();
        assert!(
            text.contains(&format!("#[test]\nfn {name}()")),
            "{file}: {name}"
        );
    }
}

#[test]
fn the_readmes_blocks_are_those_of_the_manifests() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let known: Vec<Value> = manifests().into_iter().map(|(_, value)| value).collect();
    let mut count = 0;
    let mut blocks = readme.split("```").skip(1).step_by(2);
    for block in &mut blocks {
        let (kind, text) = block.split_once('\n').unwrap();
        match kind {
            "yaml" => {
                assert!(known.contains(&parse(text)), "not in manifests/: {text}");
                count += 1;
            }
            "json" => assert!(config::parse(text).unwrap().1.is_empty(), "{text}"),
            "sh" => check_shell(text),
            "text" => {}
            other => panic!("a block of kind {other:?}"),
        }
    }
    assert!(count >= 3, "{count} YAML blocks");
}

/// Commands have to be ones that a test runs, or to say that they need a cluster.
fn check_shell(text: &str) {
    let tested = [
        "cargo run --release -- selftest",
        "scripts/test",
        "scripts/bench",
        "scripts/image",
        "cargo build --release --locked",
    ];
    if text.contains("# needs a cluster") {
        return;
    }
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        assert!(
            tested.iter().any(|known| line.starts_with(known)),
            "untested: {line}"
        );
    }
}
