//! `DP_MACVTAP_CONF`, `--config`, discovery.

use std::{
    collections::BTreeSet, fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration,
};

use kit::{
    binary, kernel,
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{Host, LOWER, Node, tap_of, wait_until},
};
use macvtap::{
    deviceplugin::status,
    host::netns::Netns,
    selftest::kubelet::{Kubelet, Resource},
};
use serde_json::Value;
use tempfile::tempdir;

use super::held::checkpoint;

fn resource(name: &str) -> String {
    format!("macvtap.network.kubevirt.io/{name}")
}

fn entry(name: &str, capacity: u32) -> String {
    format!(r#"{{"name": "{name}", "lowerDevice": "{LOWER}", "capacity": {capacity}}}"#)
}

/// Waits until a resource has this many healthy devices.
fn expect(kubelet: &Kubelet, name: &str, count: usize) {
    let wanted = |resource: &macvtap::selftest::kubelet::Resource| {
        resource.connected && resource.healthy().len() == count
    };
    kubelet
        .wait_for(&resource(name), WAIT_TIMEOUT, wanted)
        .unwrap();
}

fn run(configuration: Option<&str>) -> (Option<i32>, String) {
    let dir = tempdir().unwrap();
    let mut command = Command::new(binary());
    command
        .arg("deviceplugin")
        .arg("--kubelet-dir")
        .arg(dir.path());
    command.env_remove("DP_MACVTAP_CONF");
    command.envs(configuration.map(|text| ("DP_MACVTAP_CONF", text)));
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn without_the_variable_it_names_it() {
    let (status, text) = run(None);
    assert_eq!(status, Some(1));
    assert!(
        text.contains("DP_MACVTAP_CONF environment variable must be set"),
        "{text}"
    );
}

#[test]
fn text_that_cannot_be_parsed_ends_it_with_line_and_column() {
    for (text, place) in [
        ("[\n  {\"name\": }\n]", "line 2, column 12"),
        ("", "line 1"),
        ("{}", "list"),
    ] {
        let (status, message) = run(Some(text));
        assert_eq!(status, Some(1), "{text}");
        assert!(message.contains(place), "{message}");
        assert!(message.contains("DP_MACVTAP_CONF"), "{message}");
    }
}

#[test]
fn a_bad_entry_does_not_cost_the_others() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    // With the trailing commas and the comment that people write.
    let text = format!(
        "[ // the node's networks\n {}, {{\"name\": \"bad\", \"lowerDevice\": \"{LOWER}\", \
         \"mode\": \"hub\"}}, {}, ]",
        entry("one", 3),
        entry("two", 0)
    );
    let plugin = Plugin::configured(&node.host, dir.path(), &text);
    expect(&kubelet, "one", 3);
    expect(&kubelet, "two", 100);
    assert_eq!(kubelet.resources(), [resource("one"), resource("two")]);
    plugin.wait_for_log("it is left out (it is {");
}

/// What probe, doctor and metrics say of the configuration.
#[test]
fn mistakes_are_reported_until_they_are_corrected() {
    let (node, dir, config) = (Node::new(), tempdir().unwrap(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let file = config.path().join("DP_MACVTAP_CONF");
    let warnings = || status::query(dir.path()).unwrap().config_warnings;
    fs::write(
        &file,
        format!("[{}, {{\"name\": \"bad\"}}]", entry("one", 3)),
    )
    .unwrap();
    let _plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "one", 3);
    assert_eq!(warnings().len(), 1);
    for applet in ["probe", "doctor"] {
        let mut command = Command::new(binary());
        command.arg(applet).arg("--kubelet-dir").arg(dir.path());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines().filter(|line| line.contains("configuration"));
        assert!(lines.any(|line| line.contains("no lowerDevice")), "{text}");
        assert!(applet == "doctor" || output.status.success(), "{text}");
    }
    fs::write(&file, "[ broken").unwrap();
    wait_until("the broken text is reported", || {
        warnings()[0].contains("the former configuration stays in force")
    });
    fs::write(&file, format!("[{}]", entry("one", 3))).unwrap();
    wait_until("nothing is wrong", || warnings().is_empty());
}

#[test]
fn discovery_offers_what_ip_says_is_a_nic() {
    // The machine's own netns: only there are physical interfaces. Nothing is changed in it.
    let host = Host::of(Netns::current().unwrap());
    let links: Value = serde_json::from_str(&host.ip("-j -d link show")).unwrap();
    let fit = links.as_array().unwrap().iter().filter(|link| {
        let kind = link["linkinfo"]["info_kind"].as_str();
        link["link_type"] == "ether"
            && kind.is_none_or(|kind| kind == "bond")
            && link.get("master").is_none()
    });
    let fit: BTreeSet<String> = fit
        .map(|link| resource(link["ifname"].as_str().unwrap()))
        .collect();
    let dir = tempdir().unwrap();
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::configured(&host, dir.path(), "[]");
    for name in &fit {
        let wanted = |resource: &macvtap::selftest::kubelet::Resource| {
            resource.connected && resource.healthy().len() == 100
        };
        kubelet.wait_for(name, WAIT_TIMEOUT, wanted).unwrap();
    }
    plugin.wait_for_log("link=lo reason=\"is not an Ethernet device\"");
    let found: BTreeSet<String> = kubelet.resources().into_iter().collect();
    assert_eq!(found, fit);
}

#[test]
fn discovery_offers_no_virtual_links() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let plugin = Plugin::configured(&node.host, dir.path(), "null");
    plugin.wait_for_log(&format!("link={LOWER} reason=\"is a veth interface"));
    node.host.ip("link add br0 type bridge");
    plugin.wait_for_log("link=br0 reason=\"is a bridge interface");
    assert!(kubelet.resources().is_empty());
    assert_eq!(
        plugin
            .log()
            .matches("msg=\"link not offered\" link=lo")
            .count(),
        1
    );
}

#[test]
fn discovery_finds_a_bond_when_it_comes() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    if !kernel::has("bond") {
        return;
    }
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let _plugin = Plugin::configured(&node.host, dir.path(), "[]");
    node.host.ip("link add bond0 type bond");
    node.host.ip("link set bond0 up");
    expect(&kubelet, "bond0", 100);
    node.host.ip("link delete bond0");
    let resource = "macvtap.network.kubevirt.io/bond0";
    let forgotten = kubelet.wait_for(resource, WAIT_TIMEOUT, |resource| !resource.connected);
    forgotten.unwrap();
}

#[test]
fn a_file_is_read_again_when_it_changes() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let config = tempdir().unwrap();
    let file = config.path().join("DP_MACVTAP_CONF");
    let write = |text: String| fs::write(&file, text).unwrap();
    write(format!("[{}, {}]", entry("stays", 5), entry("goes", 5)));
    let mut plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "stays", 5);
    expect(&kubelet, "goes", 5);
    write(format!("[{}, {}]", entry("stays", 5), entry("comes", 7)));
    expect(&kubelet, "comes", 7);
    kubelet
        .wait_for(&resource("goes"), WAIT_TIMEOUT, |resource| {
            !resource.connected
        })
        .unwrap();
    assert!(!dir.path().join("macvtap.network.kubevirt.io_goes").exists());
    write(format!("[{}, {}]", entry("stays", 5), entry("comes", 9)));
    expect(&kubelet, "comes", 9);
    write("[ broken".into());
    plugin.wait_for_log("the former configuration stays in force");
    plugin.wait_for_log("line 1, column");
    fs::remove_file(&file).unwrap();
    expect(&kubelet, "comes", 9);
    // What did not change was not touched.
    let stays = kubelet.resource(&resource("stays")).unwrap();
    assert_eq!((stays.registrations, stays.lists), (1, 1));
    assert!(stays.connected && plugin.is_alive());
}

/// A mistake costs nothing that was offered before, and keeps nothing new out.
#[test]
fn an_entry_that_became_wrong_stays_as_it_was() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let config = tempdir().unwrap();
    let file = config.path().join("DP_MACVTAP_CONF");
    fs::write(&file, format!("[{}]", entry("stays", 5))).unwrap();
    let mut plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "stays", 5);
    for (count, wrong) in (6..).zip([
        &br#"{"name": "stays", "lowerDevice": "eth0", "capacity": "100"}"#[..],
        br#"{"name": "stays", "lowerDevice": "eth0", "mode": "hub"}"#,
        br#"{"name": "stays"}"#,
        br#"{"nmae": "stays", "lowerDevice": "eth0"}"#,
        br#""stays""#,
        b"{\"name\": 7 /* \xe9 in Latin-1 */}",
    ]) {
        let new = entry(&format!("new{count}"), count);
        fs::write(&file, [b"[", wrong, b",", new.as_bytes(), b"]"].concat()).unwrap();
        expect(
            &kubelet,
            &format!("new{count}"),
            usize::try_from(count).unwrap(),
        );
        let stays = kubelet.resource(&resource("stays")).unwrap();
        assert_eq!((stays.registrations, stays.healthy().len()), (1, 5));
        assert!(stays.connected && plugin.is_alive());
    }
}

#[test]
fn a_mounted_config_map_swaps_a_symbolic_link() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let config = tempdir().unwrap();
    let swap = |version: &str, text: String| {
        let data = config.path().join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("DP_MACVTAP_CONF"), text).unwrap();
        symlink(version, config.path().join("..data_tmp")).unwrap();
        fs::rename(
            config.path().join("..data_tmp"),
            config.path().join("..data"),
        )
        .unwrap();
    };
    swap("..1", format!("[{}]", entry("one", 3)));
    let file = config.path().join("DP_MACVTAP_CONF");
    symlink(Path::new("..data/DP_MACVTAP_CONF"), &file).unwrap();
    let _plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "one", 3);
    swap("..2", format!("[{}]", entry("two", 4)));
    expect(&kubelet, "two", 4);
}

#[test]
fn devices_of_a_resource_keep_their_identity_when_it_grows() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let config = tempdir().unwrap();
    let file = config.path().join("macvtap.json");
    fs::write(&file, format!("[{}]", entry("one", 10))).unwrap();
    let plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "one", 10);
    let before = kubelet.resource(&resource("one")).unwrap().healthy();
    fs::write(&file, format!("[{}]", entry("one", 20))).unwrap();
    plugin.signal("HUP");
    expect(&kubelet, "one", 20);
    let after = kubelet.resource(&resource("one")).unwrap();
    assert_eq!(after.healthy()[..10], before);
    assert_eq!(after.registrations, 1, "a new list is enough");
}

/// An optional `ConfigMap` is an empty directory until it is created.
#[test]
fn a_file_that_is_missing_at_the_start_is_an_empty_list_until_it_appears() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let config = tempdir().unwrap();
    let file = config.path().join("DP_MACVTAP_CONF");
    let plugin = Plugin::with_file(&node.host, dir.path(), &file);
    plugin.wait_for_log("does not exist: offering every NIC and bond");
    // Each signal is another look, as there is one every few seconds without.
    for _ in 0..3 {
        plugin.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
    }
    let warnings = || status::query(dir.path()).unwrap().config_warnings;
    assert!(warnings().is_empty(), "{:?}", warnings());
    assert!(!plugin.log().contains("level=error"), "{}", plugin.log());
    fs::write(&file, format!("[{}]", entry("one", 3))).unwrap();
    expect(&kubelet, "one", 3);
    // Once it existed, its absence is an error, which is logged once.
    fs::remove_file(&file).unwrap();
    wait_until("its absence is reported", || warnings().len() == 1);
    for _ in 0..3 {
        plugin.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
    }
    expect(&kubelet, "one", 3);
    assert_eq!(plugin.log().matches("level=error").count(), 1);
    // The same text again is no other configuration, and nothing is wrong any more.
    fs::write(&file, format!("[{}]", entry("one", 3))).unwrap();
    wait_until("nothing is wrong", || warnings().is_empty());
}

/// A NIC whose driver is loaded again, for example, while a pod has a device of it.
#[test]
fn an_edit_elsewhere_keeps_what_pods_have_of_what_discovery_found_before() {
    let (node, dir, config) = (Node::new(), tempdir().unwrap(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let file = config.path().join("DP_MACVTAP_CONF");
    let write = |capacity: u32| {
        let discover = r#"{"discover": {"kinds": ["veth"]}, "capacity": 4}"#;
        let text = format!("[{discover}, {}]", entry("one", capacity));
        fs::write(&file, text).unwrap();
    };
    write(3);
    node.host.ip("link add nic type veth peer name other");
    node.host.ip("link set nic up");
    let _plugin = Plugin::with_file(&node.host, dir.path(), &file);
    expect(&kubelet, "nic", 4);
    let id = kubelet.resource(&resource("nic")).unwrap().healthy()[0].clone();
    checkpoint(dir.path(), (&resource("nic"), &id), tap_of(&id));
    node.host.ip("link delete nic");
    let held_alone = |nic: &Resource| nic.connected && nic.devices.len() == 1;
    let wait = || kubelet.wait_for(&resource("nic"), WAIT_TIMEOUT, held_alone);
    wait().unwrap();
    write(5);
    expect(&kubelet, "one", 5);
    let nic = wait().unwrap();
    assert_eq!((nic.registrations, nic.healthy().len()), (1, 0));
    node.host.ip("link add nic type veth peer name other");
    node.host.ip("link set nic up");
    expect(&kubelet, "nic", 4);
}

#[test]
fn a_file_that_is_broken_or_in_no_directory_ends_it() {
    let dir = tempdir().unwrap();
    let broken = dir.path().join("macvtap.json");
    fs::write(&broken, "[ broken").unwrap();
    for file in [broken, dir.path().join("missing/macvtap.json")] {
        let mut command = Command::new(binary());
        command.arg("deviceplugin").arg("--config").arg(&file);
        let output = command
            .arg("--kubelet-dir")
            .arg(dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("macvtap.json"), "{text}");
    }
}

/// As labels of the node: with NRI the scheduler knows of no resource.
#[test]
fn the_lower_devices_are_written_for_node_feature_discovery() {
    let (node, kubelet_dir, features) = (Node::new(), tempdir().unwrap(), tempdir().unwrap());
    let mut command = kit::kubelet::command(&[], kubelet_dir.path());
    command.arg("--feature-dir").arg(features.path());
    let mut plugin = Plugin::spawn(&node.host, command);
    let file = features.path().join("macvtap");
    let is = |text: &str| fs::read_to_string(&file).is_ok_and(|found| found == text);
    let line = "macvtap.network.kubevirt.io/lower-device.eth0=true\n";
    wait_until("it is written", || is(line));
    node.host.ip(&format!("link set {LOWER} down"));
    wait_until("it is down", || is(""));
    node.host.ip(&format!("link set {LOWER} up"));
    wait_until("it is up", || is(line));
    std::fs::remove_file(&file).unwrap();
    wait_until("it is written again", || is(line));
    // Another device plugin takes over before this one ends.
    let own = features.path().join("own");
    fs::write(&own, line).unwrap();
    fs::rename(&own, &file).unwrap();
    plugin.signal("TERM");
    plugin.end();
    assert!(is(line));
}
