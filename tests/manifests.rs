//! The manifests against the code: what they say has to be so.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser;
use kit::netns::{Host, IFNAME, Node, device_id, skipped, tap_number};
use macvtap::{
    cli::Cli,
    deviceplugin::config::{self, Configuration},
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

fn root() -> &'static Path {
    kit::root()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            files(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Every YAML file of `manifests/`, parsed.
fn manifests() -> Vec<(PathBuf, Value)> {
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

fn parse(text: &str) -> Value {
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
            Cli::try_parse_from(line).unwrap();
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
fn the_daemonset_has_the_least_privilege() {
    let daemonset = manifest("base/daemonset.yaml");
    let pod = pod(&daemonset);
    assert_eq!(pod["hostNetwork"], true);
    assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null());
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    for container in containers(pod) {
        let context = &container["securityContext"];
        assert_eq!(context["privileged"], false);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(words(&context["capabilities"]["drop"]), ["ALL"]);
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(container["image"], "macvtap");
        assert!(container["resources"]["requests"]["memory"].is_string());
        for mount in list(&container["volumeMounts"]) {
            let propagation = &mount["mountPropagation"];
            assert!(
                propagation.is_null() || propagation == "HostToContainer",
                "refused without privileges"
            );
            let volumes = list(&pod["volumes"]);
            assert!(volumes.iter().any(|volume| volume["name"] == mount["name"]));
        }
    }
    let rights = manifests();
    let rights = rights.iter().filter(|(_, value)| {
        value["kind"]
            .as_str()
            .is_some_and(|kind| kind.contains("Role"))
    });
    assert_eq!(rights.count(), 0, "nothing talks to the API");
}

#[test]
fn the_config_maps_are_accepted() {
    let of = |name: &str| {
        let text = manifest(name)["data"]["DP_MACVTAP_CONF"].clone();
        let (configuration, complaints) = config::parse(text.as_str().unwrap()).unwrap();
        assert!(complaints.is_empty(), "{complaints:?}");
        configuration
    };
    assert_eq!(of("base/configmap.yaml"), Configuration::Discover);
    let Configuration::Listed(resources) = of("examples/configmap.yaml") else {
        panic!("the example lists nothing");
    };
    // The other examples are about this resource.
    let name = format!("macvtap.network.kubevirt.io/{}", resources[0].name);
    let definition = manifest("examples/network-attachment-definition.yaml");
    let annotations = &definition["metadata"]["annotations"];
    assert_eq!(annotations["k8s.v1.cni.cncf.io/resourceName"], name);
    let pod = manifest("examples/pod.yaml");
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["limits"][&name],
        "1"
    );
    let network = &definition["metadata"]["name"];
    assert_eq!(
        &pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"],
        network
    );
}

#[test]
fn the_network_attachment_definition_attaches() {
    let definition = manifest("examples/network-attachment-definition.yaml");
    let config = definition["spec"]["config"].as_str().unwrap();
    let config: Value = serde_json::from_str(config).unwrap();
    let (node, pod) = (Node::new(), Host::new());
    let call = node
        .cni(&pod, config)
        .with("deviceID", device_id(tap_number()));
    call.added().succeed("CHECK");
    assert_eq!(pod.links(), [IFNAME]);
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
    let mac = interface["macAddress"].as_str().unwrap();
    assert!(
        mac.parse::<macvtap::types::mac::MacAddr>()
            .unwrap()
            .is_assignable()
    );
    assert_eq!(spec["networks"][0]["name"], interface["name"]);
    let definition = manifest("examples/network-attachment-definition.yaml");
    assert_eq!(
        spec["networks"][0]["multus"]["networkName"],
        definition["metadata"]["name"]
    );
}

#[test]
fn the_security_context_constraints_admit_the_pod() {
    let scc = manifest("openshift/scc.yaml");
    let daemonset = manifest("base/daemonset.yaml");
    let pod = pod(&daemonset);
    let account = &pod["serviceAccountName"].as_str().unwrap();
    let namespace = daemonset["metadata"]["namespace"].as_str().unwrap();
    let user = format!("system:serviceaccount:{namespace}:{account}");
    assert!(words(&scc["users"]).contains(&user));
    assert_eq!(scc["allowHostNetwork"], true);
    assert_eq!(scc["allowHostDirVolumePlugin"], true);
    assert_eq!(scc["allowHostPID"], false);
    let allowed: BTreeSet<String> = words(&scc["allowedCapabilities"]).into_iter().collect();
    for container in containers(pod) {
        let added = words(&container["securityContext"]["capabilities"]["add"]);
        assert!(added.iter().all(|name| allowed.contains(name)));
    }
    let volumes = words(&scc["volumes"]);
    for volume in list(&pod["volumes"]) {
        let mut kinds = volume.as_object().unwrap().keys();
        let kind = kinds.find(|key| *key != "name").unwrap();
        assert!(volumes.contains(kind), "{kind}");
    }
}

/// What `kubectl kustomize` makes of a directory; none if there is no kubectl that can.
fn kustomize(name: &str) -> Option<Vec<Value>> {
    let version = Command::new("kubectl")
        .args(["version", "--client"])
        .output()
        .ok()?;
    if !String::from_utf8_lossy(&version.stdout).contains("Kustomize Version: v5") {
        return None;
    }
    let mut command = Command::new("kubectl");
    let output = command
        .arg("kustomize")
        .arg(root().join(name))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.split("\n---\n").map(parse).collect())
}

#[test]
fn the_overlays_build_with_our_image() {
    for (name, count) in [
        ("manifests", 4),
        ("manifests/net-admin-only", 4),
        ("manifests/openshift", 5),
        ("manifests/original", 1),
        ("manifests/seccomp", 4),
    ] {
        let Some(built) = kustomize(name) else {
            skipped("no kubectl with kustomize 5 on this machine");
            return;
        };
        assert_eq!(built.len(), count, "{name}");
        let daemonset = built
            .iter()
            .find(|value| value["kind"] == "DaemonSet")
            .unwrap();
        for container in containers(pod(daemonset)) {
            assert_eq!(container["image"], "localhost/macvtap:latest", "{name}");
        }
        if name.ends_with("net-admin-only") {
            let pod = pod(daemonset);
            assert!(!pod.to_string().contains("netns"), "{pod}");
            let context = &containers(pod)[1]["securityContext"];
            assert_eq!(words(&context["capabilities"]["add"]), ["NET_ADMIN"]);
            assert_eq!(words(&context["capabilities"]["drop"]), ["ALL"]);
        }
        if name.ends_with("seccomp") {
            check_profile(pod(daemonset));
        }
        if name.ends_with("openshift") {
            let pod = pod(daemonset);
            assert_eq!(pod["securityContext"]["seLinuxOptions"]["type"], "spc_t");
            let text = pod["volumes"].to_string();
            assert!(
                text.contains("/var/lib/cni/bin") && !text.contains("/opt/cni/bin"),
                "{text}"
            );
        }
    }
}

/// The init container writes the profile that the other one asks for.
fn check_profile(pod: &Value) {
    let [install, deviceplugin] = containers(pod)[..] else {
        panic!("two containers");
    };
    let profile = &deviceplugin["securityContext"]["seccompProfile"];
    assert_eq!(profile["type"], "Localhost");
    let name = profile["localhostProfile"].as_str().unwrap();
    let written = words(&install["args"]).last().unwrap().clone();
    let mounts = list(&install["volumeMounts"]);
    let mount = mounts.iter().find(|mount| mount["name"] == "seccomp");
    let dir = mount.unwrap()["mountPath"].as_str().unwrap();
    assert_eq!(written, format!("{dir}/{name}"));
    let volumes = list(&pod["volumes"]);
    let volume = volumes.iter().find(|volume| volume["name"] == "seccomp");
    // Where the kubelet looks for profiles (kubernetes.io/docs/tutorials/security/seccomp).
    let path = &volume.unwrap()["hostPath"]["path"];
    assert_eq!(path, "/var/lib/kubelet/seccomp");
}

#[test]
fn kubernetes_own_schemas_accept_them() {
    let validator = root().join("target/python/bin/kubernetes-validate");
    if !validator.exists() {
        skipped("scripts/test could not install kubernetes-validate");
        return;
    }
    for (path, value) in manifests() {
        let group = value["apiVersion"].as_str().unwrap_or_default();
        if !["v1", "apps/v1"].contains(&group) || path.ends_with("daemonset-patch.yaml") {
            continue; // resources of others, and patches
        }
        let mut command = Command::new(&validator);
        let output = command.arg("--strict").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", path.display());
    }
}

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
