//! The alert rules, by Prometheus' own tool.

use std::{fs, process::Command};

use kit::{netns::skipped, root};
use tempfile::tempdir;

use super::manifest;

#[test]
fn each_alert_fires_when_it_should_and_on_no_healthy_node() {
    let promtool = root().join("target/promtool");
    if !promtool.exists() {
        skipped("scripts/promtool could not unpack promtool");
        return;
    }
    let (dir, rules) = (
        tempdir().unwrap(),
        manifest("components/prometheus-operator/prometheusrule.yaml"),
    );
    fs::write(dir.path().join("rules.yaml"), rules["spec"].to_string()).unwrap();
    let cases = root().join("tests/manifests/alerts.yaml");
    fs::copy(&cases, dir.path().join("cases.yaml")).unwrap();
    for (verb, file) in [("check", "rules.yaml"), ("test", "cases.yaml")] {
        let mut command = Command::new(&promtool);
        command.args([verb, "rules", file]).current_dir(&dir);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let groups = rules["spec"]["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let cases = fs::read_to_string(cases).unwrap();
    for rule in rules {
        let name = format!("alertname={}", rule["alert"]);
        assert!(cases.contains(&name), "no case of {name}");
    }
}
