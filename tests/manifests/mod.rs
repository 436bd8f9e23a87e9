//! The manifests against the code: what they say has to be so.

mod alerts;
mod api_server;
mod cluster;
pub mod render;

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser;
use kit::netns::{Host, IFNAME, Node, device_id, skipped, tap_number};
use macvtap::{
    cli::Cli,
    deviceplugin::config,
    dispatch::{self, Call},
};
use serde_json::Value;

/// The names in the image, which `tests/image.rs` holds to be these.
const IN_IMAGE: [&str; 5] = [
    "/macvtap",
    "/macvtap-cni",
    "/macvtap-deviceplugin",
    "cp",
    "sh",
];

pub fn root() -> &'static Path {
    kit::root()
}

pub fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Every YAML file of `manifests/`, parsed.
pub fn manifests() -> Vec<(PathBuf, Value)> {
    let mut paths = Vec::new();
    files(&root().join("manifests"), &mut paths);
    let yaml = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    };
    paths.retain(yaml);
    assert!(paths.len() > 12);
    let read = |path: PathBuf| {
        let value = parse(&fs::read_to_string(&path).unwrap());
        (path, value)
    };
    paths.into_iter().map(read).collect()
}

pub fn parse(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn manifest(name: &str) -> Value {
    parse(&fs::read_to_string(root().join("manifests").join(name)).unwrap())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn words(value: &Value) -> Vec<String> {
    let words = list(value).iter();
    words
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// The command line that a container runs in our image.
fn command_line(container: &Value) -> Vec<String> {
    let command = words(&container["command"]);
    let entry = if command.is_empty() {
        vec!["/macvtap".to_owned()]
    } else {
        command
    };
    [entry, words(&container["args"])].concat()
}

/// Whether our image has the program, and the program takes the arguments.
fn check_runs(line: &[String]) {
    assert!(IN_IMAGE.contains(&line[0].as_str()), "{line:?}");
    let args: Vec<OsString> = line.iter().map(OsString::from).collect();
    match dispatch::read(&args, false) {
        Call::CommandLine(line) => {
            // The kubelet puts the values in; a node's address is one of either kind.
            for address in ["192.0.2.1", "2001:db8::1"] {
                let line = line.iter().map(|word| word.to_string_lossy());
                Cli::try_parse_from(line.map(|word| word.replace("$(STATUS_ADDRESS)", address)))
                    .unwrap();
            }
        }
        other => panic!("{line:?} is {other:?}"),
    }
}

fn pod(daemonset: &Value) -> &Value {
    &daemonset["spec"]["template"]["spec"]
}

fn containers(pod: &Value) -> Vec<&Value> {
    let init = list(&pod["initContainers"]).iter();
    init.chain(list(&pod["containers"])).collect()
}

#[test]
fn what_the_daemonsets_run_is_in_the_image_and_parses() {
    for name in ["base/daemonset.yaml", "original/macvtap.yaml"] {
        let daemonset = manifest(name);
        let all = containers(pod(&daemonset));
        assert_eq!(all.len(), 2, "{name}");
        for container in all {
            check_runs(&command_line(container));
            for probe in ["readinessProbe", "livenessProbe"] {
                let command = words(&container[probe]["exec"]["command"]);
                if !command.is_empty() {
                    check_runs(&command);
                }
            }
        }
    }
}

#[test]
fn no_right_in_the_api_is_given_but_to_use_the_constraints() {
    for (path, value) in manifests() {
        let kind = value["kind"].as_str().unwrap_or_default();
        if kind.contains("Role") {
            assert!(
                path.ends_with("openshift/role.yaml")
                    || path.ends_with("openshift/rolebinding.yaml")
            );
        }
    }
}

#[test]
fn the_examples_are_about_one_resource() {
    let map = manifest("examples/configmap.yaml");
    let text = map["data"]["DP_MACVTAP_CONF"].as_str().unwrap();
    let (configuration, warnings) = config::parse(text, config::Context::default()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let (resource, ..) = configuration.resources().next().unwrap();
    // The other examples are about this resource.
    let name = format!("macvtap.network.kubevirt.io/{resource}");
    let definition = manifest("examples/network-attachment-definition.yaml");
    let annotations = &definition["metadata"]["annotations"];
    assert_eq!(annotations["k8s.v1.cni.cncf.io/resourceName"], name);
    let pod = manifest("examples/pod.yaml");
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["limits"][&name],
        "1"
    );
    let network = manifest("examples/network-attachment-definition-pod.yaml");
    let annotations = &network["metadata"]["annotations"];
    assert_eq!(annotations["k8s.v1.cni.cncf.io/resourceName"], name);
    assert_eq!(
        pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"],
        network["metadata"]["name"]
    );
}

/// The configuration of an example.
fn config_of(name: &str) -> Value {
    let definition = manifest(name);
    let config = definition["spec"]["config"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    assert_eq!(config["name"], definition["metadata"]["name"]);
    config
}

#[test]
fn the_network_attachment_definitions_for_vms_attach() {
    for name in ["", "-vlan"] {
        let config = config_of(&format!(
            "examples/network-attachment-definition{name}.yaml"
        ));
        let (node, pod) = (Node::new(), Host::new());
        let call = node
            .cni(&pod, config)
            .with("deviceID", device_id(tap_number()));
        call.added().succeed("CHECK");
        assert_eq!(pod.links(), [IFNAME]);
    }
}

/// With a stand-in for the IPAM plugin, which answers as that does.
fn attached_with(name: &str, plugin: &str, check: impl Fn(&Host)) {
    let (node, pod, bin) = (Node::new(), Host::new(), tempfile::tempdir().unwrap());
    let file = bin.path().join(plugin);
    let answer = r#"{"cniVersion": "1.0.0", "ips": [{"interface": 0, "address": "192.0.2.2/24"}]}"#;
    let script = format!("#!/bin/sh\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n");
    fs::write(&file, script).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    let call = node.cni(&pod, config_of(name));
    let call = call.with("deviceID", device_id(tap_number()));
    let call = call.env("CNI_PATH", bin.path().to_str().unwrap());
    let result = call.add();
    assert_eq!(result["ips"][0]["address"], "192.0.2.2/24");
    let call = call.with("prevResult", result);
    call.succeed("CHECK");
    check(&pod);
    call.succeed("DEL");
}

#[test]
fn the_one_with_addresses_reports_them() {
    let name = "examples/network-attachment-definition-ipam.yaml";
    attached_with(name, "whereabouts", |pod| {
        assert_eq!(addresses(pod), "");
    });
}

#[test]
fn the_one_for_pods_has_its_address_and_answers_arp() {
    let name = "examples/network-attachment-definition-pod.yaml";
    attached_with(name, "static", |pod| {
        assert!(addresses(pod).contains("192.0.2.2/24"));
        let link = pod.ip(&format!("link show {IFNAME}"));
        assert!(!link.contains("NOARP"), "{link}");
    });
}

/// The IPv4 addresses of the pod's interface.
fn addresses(pod: &Host) -> String {
    pod.ip(&format!("-4 -o addr show {IFNAME}"))
}

#[test]
fn the_virtual_machine_uses_the_binding_and_the_network() {
    let binding = manifest("examples/kubevirt-binding.yaml");
    let bindings = &binding["spec"]["configuration"]["network"]["binding"];
    assert_eq!(bindings["macvtap"]["domainAttachmentType"], "tap");
    let machine = manifest("examples/virtual-machine.yaml");
    let spec = &machine["spec"]["template"]["spec"];
    let interface = &spec["domain"]["devices"]["interfaces"][0];
    let binding = interface["binding"]["name"].as_str().unwrap();
    assert!(bindings.get(binding).is_some());
    // Else all who try it on one LAN would have the same.
    assert!(interface["macAddress"].is_null());
    assert_eq!(spec["networks"][0]["name"], interface["name"]);
    let definition = manifest("examples/network-attachment-definition.yaml");
    assert_eq!(
        spec["networks"][0]["multus"]["networkName"],
        definition["metadata"]["name"]
    );
}

/// Whether Kubernetes' own schemas accept these files. Without a validator the test is skipped.
fn check_schemas(paths: &[PathBuf]) {
    let validator = root().join("target/python/bin/kubernetes-validate");
    if !validator.exists() {
        skipped("scripts/test could not install kubernetes-validate");
        return;
    }
    let mut command = Command::new(&validator);
    let output = command.arg("--strict").args(paths).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn kubernetes_own_schemas_accept_them() {
    let all = manifests().into_iter().filter(|(path, value)| {
        let group = value["apiVersion"].as_str().unwrap_or_default();
        ["v1", "apps/v1"].contains(&group) && !path.ends_with("daemonset-patch.yaml")
    });
    let paths: Vec<PathBuf> = all.map(|(path, _)| path).collect();
    assert!(paths.len() > 5);
    check_schemas(&paths);
}
