//! The admission policy that requests the macvtaps of a pod: evaluated on pods as KubeVirt and
//! people write them, and held against Kubernetes' schemas.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use kit::{netns::skipped, root};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::manifests::render::{kubectl, render};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";
const INJECTED: &str = "macvtap.network.kubevirt.io/injected";

const BLUE: &str = "macvtap.network.kubevirt.io/blue";
const RED: &str = "macvtap.network.kubevirt.io/red";

/// What is tried, the networks, and how many of each resource the first container gets.
type Row = (&'static str, &'static str, &'static [(&'static str, u32)]);

/// A pod of the namespace `lab`, and the limits that its containers have to get.
struct Case {
    about: &'static str,
    pod: Value,
    namespace: &'static str,
    limits: Value,
}

fn case(about: &'static str, pod: Value, limits: Value) -> Case {
    let namespace = "lab";
    Case {
        about,
        pod,
        namespace,
        limits,
    }
}

/// A pod with the containers `app` and `sidecar`.
fn pod(networks: &str) -> Value {
    json!({
        "metadata": {"name": "pod", "annotations": {NETWORKS: networks}},
        "spec": {"containers": [
            {"name": "app", "resources": {}},
            {"name": "sidecar", "resources": {"limits": {"cpu": "1"}}},
        ]},
    })
}

/// A pod with a value somewhere.
fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    *pod.pointer_mut(pointer).unwrap() = value;
    pod
}

/// What `pod` has in the end, with these limits of `app`.
fn app(limits: impl Into<Value>) -> Value {
    let limits: Value = limits.into();
    json!({"app": limits, "sidecar": {"cpu": "1"}})
}

fn blue(count: &str) -> Value {
    app(json!({BLUE: count}))
}

fn definition(namespace: &str, name: &str, resource: &str) -> Value {
    json!({"metadata": {
        "namespace": namespace, "name": name, "annotations": {RESOURCE_NAME: resource},
    }})
}

/// The definitions of the cluster.
fn definitions() -> Vec<Value> {
    vec![
        definition("lab", "net", BLUE),
        definition("lab", "net1", BLUE),
        definition("lab", "net.1", RED),
        definition("lab", "red", RED),
        definition("lab", "sriov", "intel.com/sriov"),
        definition("lab", "invalid", "macvtap.network.kubevirt.io/not/valid"),
        definition("lab", "empty", ""),
        json!({"metadata": {"namespace": "lab", "name": "bare"}}),
        definition("default", "net", BLUE),
        definition("default", "shared", RED),
        definition("private", "net", BLUE),
        definition("private", "secret", BLUE),
    ]
}

/// Networks in the short form, and what `app` gets for them.
const SHORT_FORMS: [Row; 22] = [
    ("one network", "net", &[(BLUE, 1)]),
    ("a name that is a prefix", "net1", &[(BLUE, 1)]),
    ("the same one twice", "net,net", &[(BLUE, 2)]),
    ("two networks of one resource", "net, net1", &[(BLUE, 2)]),
    ("two resources", "net,red", &[(BLUE, 1), (RED, 1)]),
    ("an interface name", "net@eth1", &[(BLUE, 1)]),
    ("its own namespace", "lab/net", &[(BLUE, 1)]),
    ("white space", " lab/net1 @eth1 ,\tnet ", &[(BLUE, 2)]),
    ("of default", "default/net", &[(BLUE, 1)]),
    ("one of each", "net,default/net@a", &[(BLUE, 2)]),
    ("of default, namespace not given", "shared", &[]),
    ("of a namespace without a binding", "private/secret", &[]),
    ("empty elements", "net,,", &[(BLUE, 1)]),
    ("too many slashes", "a/lab/net", &[]),
    ("a dot", "net.1", &[(RED, 1)]),
    ("a dot is no wildcard", "netx1", &[]),
    ("nothing", "", &[]),
    ("a resource of others", "sriov", &[]),
    ("an invalid resource", "invalid,net", &[(BLUE, 1)]),
    ("an empty resource", "empty", &[]),
    ("no resource", "bare,net", &[(BLUE, 1)]),
    ("an unknown network", "unknown", &[]),
];

/// Networks in JSON.
const JSON_FORMS: [Row; 22] = [
    (
        "as KubeVirt writes it",
        r#"[{"name":"net","namespace":"lab","mac":"02:00:00:00:12:34","interface":"pod16477688c0e"}]"#,
        &[(BLUE, 1)],
    ),
    ("no namespace", r#"[{"name":"net"}]"#, &[(BLUE, 1)]),
    (
        "an empty namespace",
        r#"[{"namespace":"","name":"net"}]"#,
        &[(BLUE, 1)],
    ),
    (
        "a name that is a prefix",
        r#"[{"name":"net1"}]"#,
        &[(BLUE, 1)],
    ),
    (
        "white space and another order",
        "[\n  { \"namespace\" : \"lab\",\n    \"interface\": \"a b\",\t\"name\" : \"net\" } ,\n  {\"name\": \"net1\"}\n]\n",
        &[(BLUE, 2)],
    ),
    (
        "the same one twice",
        r#"[{"name":"net"},{"name":"net","namespace":"lab"}]"#,
        &[(BLUE, 2)],
    ),
    (
        "the same name in two namespaces",
        r#"[{"name":"net"},{"name":"net","namespace":"default"}]"#,
        &[(BLUE, 2)],
    ),
    (
        "of a namespace without a binding",
        r#"[{"name":"net","namespace":"private"}]"#,
        &[],
    ),
    (
        "objects inside",
        r#"[{"cni-args":{"name":"net1","a":[{"b":{"name":"red"}}]},"name":"net","ips":["192.0.2.1/24"]}]"#,
        &[(BLUE, 1)],
    ),
    (
        "brackets and escaped quotes in strings",
        r#"[{"name":"net","cni-args":{"note":"}] \" [{\"name\":\"net1\"}, \\"}},{"name":"red"}]"#,
        &[(BLUE, 1), (RED, 1)],
    ),
    (
        "objects that nest too deep to be understood",
        r#"[{"name":"net","cni-args":{"a":{"b":{"c":{"name":"net"}}}}}]"#,
        &[],
    ),
    ("an empty list", "[]", &[]),
    ("no list", r#"{"name":"net"}"#, &[]),
    ("strings", r#"["net"]"#, &[]),
    ("a string", r#""net""#, &[]),
    ("cut before the bracket", r#"[{"name":"net"}"#, &[]),
    ("cut in a string", r#"[{"name":"net"},{"name":"net"#, &[]),
    ("no comma", r#"[{"name":"net"}{"name":"net1"}]"#, &[]),
    ("a bracket too many", r#"[{"name":"net"}]]"#, &[]),
    ("two lists", r#"[{"name":"net"}][{"name":"net"}]"#, &[]),
    ("something behind", r#"[{"name":"net"}] net"#, &[]),
    ("something before", r#"net[{"name":"net"}]"#, &[]),
];

fn rows(rows: &[Row]) -> Vec<Case> {
    let case = |&(about, networks, counts): &Row| {
        let limits = counts.iter().map(|(resource, count)| {
            let resource: &str = resource;
            (resource.to_owned(), json!(count.to_string()))
        });
        case(about, pod(networks), app(Value::Object(limits.collect())))
    };
    rows.iter().map(case).collect()
}

/// A pod whose second container has this name.
fn second(name: &str) -> Value {
    with(pod("net"), "/spec/containers/1/name", json!(name))
}

fn of_kubevirt(mut pod: Value) -> Value {
    pod["metadata"]["labels"] = json!({"kubevirt.io": "virt-launcher"});
    pod
}

fn containers() -> Vec<Case> {
    let mut init = pod("net");
    init["spec"]["initContainers"] = json!([{"name": "init", "resources": {}}]);
    let mut no_resources = pod("net");
    no_resources["spec"]["containers"][0] = json!({"name": "app"});
    let mut host_network = pod("net");
    host_network["spec"]["hostNetwork"] = json!(true);
    let no_annotations = with(pod("net"), "/metadata", json!({"name": "pod"}));
    vec![
        case(
            "compute of a virt-launcher pod",
            of_kubevirt(second("compute")),
            json!({"app": {}, "compute": {"cpu": "1", BLUE: "1"}}),
        ),
        case(
            "compute of another pod",
            second("compute"),
            json!({"app": {BLUE: "1"}, "compute": {"cpu": "1"}}),
        ),
        case(
            "a virt-launcher pod without compute",
            of_kubevirt(second("compute-2")),
            json!({"app": {BLUE: "1"}, "compute-2": {"cpu": "1"}}),
        ),
        case("an init container", init, blue("1")),
        case("no resources", no_resources, blue("1")),
        case("the host's network", host_network, app(json!({}))),
        case("no annotations", no_annotations, app(json!({}))),
    ]
}

fn written_by_the_user() -> Vec<Case> {
    let limit = json!({"limits": {BLUE: "1"}});
    let request = json!({"requests": {BLUE: "1"}});
    let other = json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "10m"}});
    let of = |container: usize, resources: &Value| {
        let pointer = format!("/spec/containers/{container}/resources");
        with(pod("net,red"), &pointer, resources.clone())
    };
    let mut init = pod("net");
    init["spec"]["initContainers"] = json!([{"name": "init", "resources": limit}]);
    vec![
        case("a limit", of(0, &limit), app(json!({BLUE: "1", RED: "1"}))),
        case(
            "a limit of another container",
            of(1, &limit),
            json!({"app": {RED: "1"}, "sidecar": {BLUE: "1"}}),
        ),
        case("a limit of an init container", init, app(json!({}))),
        case("a request", of(0, &request), app(json!({RED: "1"}))),
        case(
            "other resources",
            of(0, &other),
            app(json!({"memory": "1Gi", BLUE: "1", RED: "1"})),
        ),
    ]
}

fn namespaces() -> Vec<Case> {
    let of = |namespace, about, networks, limits| Case {
        namespace,
        ..case(about, pod(networks), limits)
    };
    vec![
        of("default", "a pod of default", "net", blue("1")),
        of(
            "default",
            "a pod of default, namespace given",
            "default/net,shared",
            app(json!({BLUE: "1", RED: "1"})),
        ),
        of(
            "private",
            "only its own and those of default",
            "net,lab/net,default/shared",
            app(json!({BLUE: "1", RED: "1"})),
        ),
    ]
}

fn large() -> Vec<Case> {
    let element = json!({"name": "net", "cni-args": {"note": "{".repeat(650)}});
    let list = Value::from(vec![element; 100]).to_string();
    assert!(list.len() > 64 << 10);
    let short = vec!["lab/net@eth1"; 100].join(",");
    let names = (0..1_500).map(|number| format!("net{number}x,"));
    let many: String = names.collect::<String>() + "net1";
    assert!(many.len() > 10 << 10);
    vec![
        case("a list of 100 networks and 64 KiB", pod(&list), blue("100")),
        case("100 networks", pod(&short), blue("100")),
        case("a network behind 1,500 unknown ones", pod(&many), blue("1")),
        case(
            "64 KiB of brackets",
            pod(&"[{net".repeat(13 << 10)),
            app(json!({})),
        ),
    ]
}

fn table() -> Vec<Case> {
    let table = [
        rows(&SHORT_FORMS),
        rows(&JSON_FORMS),
        containers(),
        written_by_the_user(),
        namespaces(),
        large(),
    ];
    table.into_iter().flatten().collect()
}

fn manifest(name: &str) -> Value {
    let path = root().join("manifests/injection").join(name);
    serde_yaml_ng::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What the policy makes of pods; none if there is no CEL.
fn admit(cases: &[Case], definitions: &[Value]) -> Option<Vec<Value>> {
    let python = root().join("target/python/bin/python");
    let mut command = Command::new(&python);
    command.args(["-c", "import cel_expr_python, jsonpatch, re2"]);
    if !command
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        skipped("cel-expr-python is not installed; scripts/test does that");
        return None;
    }
    let cases = cases.iter().map(
        |case| json!({"pod": case.pod, "namespace": case.namespace, "definitions": definitions}),
    );
    let input = json!({
        "policy": manifest("policy.yaml"),
        "bindings": [manifest("binding.yaml"), manifest("binding-default.yaml")],
        "cases": cases.collect::<Vec<_>>(),
    });
    let mut command = Command::new(python);
    command.arg(root().join("tests/injection/policy.py"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The limits of each container.
fn limits(pod: &Value) -> Value {
    let containers = pod["spec"]["containers"].as_array().unwrap().iter();
    let limits = containers.map(|container| {
        let limits = container["resources"]["limits"].as_object();
        let name = container["name"].as_str().unwrap().to_owned();
        (name, Value::Object(limits.cloned().unwrap_or_default()))
    });
    Value::Object(limits.collect())
}

/// Drops what the policy may change.
fn without_injection(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for container in pod["spec"]["containers"].as_array_mut().unwrap() {
        let Some(resources) = container["resources"].as_object_mut() else {
            container["resources"] = json!({});
            continue;
        };
        for kind in resources.values_mut() {
            kind.as_object_mut()
                .unwrap()
                .retain(|key, _| ![BLUE, RED].contains(&key.as_str()));
        }
        resources.retain(|_, kind| kind != &json!({}));
    }
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.shift_remove(INJECTED);
    }
    pod
}

fn check(case: &Case, admitted: &Value) {
    let about = case.about;
    let pod = &admitted["pod"];
    assert_eq!(admitted["errors"], json!([]), "{about}");
    assert_eq!(limits(pod), case.limits, "{about}");
    assert_eq!(
        without_injection(pod),
        without_injection(&case.pod),
        "{about}"
    );
    let Some(injected) = pod["metadata"]["annotations"].get(INJECTED) else {
        assert_eq!(pod, &case.pod, "{about}");
        return;
    };
    // The API server demands that requests and limits of an extended resource be equal.
    for entry in injected.as_str().unwrap().split(',') {
        let (_, resource) = entry.split_once(':').unwrap();
        let mut containers = pod["spec"]["containers"].as_array().unwrap().iter();
        let equal = containers.any(|container| {
            let (limits, requests) = (
                &container["resources"]["limits"],
                &container["resources"]["requests"],
            );
            limits[resource].is_string() && limits[resource] == requests[resource]
        });
        assert!(equal, "{about}: {entry}");
    }
}

#[test]
fn a_pod_gets_the_resources_of_the_networks_that_it_names() {
    let cases = table();
    let Some(admitted) = admit(&cases, &definitions()) else {
        return;
    };
    assert_eq!(admitted.len(), cases.len());
    for (case, admitted) in cases.iter().zip(&admitted) {
        check(case, admitted);
    }
}

#[test]
fn the_order_of_the_definitions_does_not_matter() {
    let cases = table();
    let reversed: Vec<Value> = definitions().into_iter().rev().collect();
    for (case, admitted) in cases
        .iter()
        .zip(admit(&cases, &reversed).unwrap_or_default())
    {
        check(case, &admitted);
    }
}

/// A pod that was copied from a running one has the requests and the annotation.
#[test]
fn a_pod_that_has_its_resources_is_left_alone() {
    let cases = table();
    let Some(admitted) = admit(&cases, &definitions()) else {
        return;
    };
    let again = cases
        .into_iter()
        .zip(&admitted)
        .map(|(case, admitted)| Case {
            pod: admitted["pod"].clone(),
            ..case
        });
    let again: Vec<Case> = again.collect();
    for (case, admitted) in again.iter().zip(admit(&again, &definitions()).unwrap()) {
        assert_eq!(admitted["pod"], case.pod, "{}", case.about);
    }
}

#[test]
fn the_bindings_are_of_the_policy() {
    let policy = manifest("policy.yaml");
    for name in ["binding.yaml", "binding-default.yaml"] {
        let binding = manifest(name);
        assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
        assert_eq!(binding["apiVersion"], policy["apiVersion"]);
        // Without a definition there is nothing to add, and no reason to reject the pod.
        assert_eq!(
            binding["spec"]["paramRef"]["parameterNotFoundAction"],
            "Allow"
        );
    }
}

/// The schemas of the oldest release that each overlay is for, and of the newest.
#[test]
fn the_schemas_of_each_release_accept_the_overlays() {
    let validator = root().join("target/python/bin/kubernetes-validate");
    if !validator.exists() || kubectl().is_none() {
        skipped("scripts/test could not install kubernetes-validate or kubectl");
        return;
    }
    for (overlay, version, releases) in [
        ("injection", "v1", ["1.36", "1.37"]),
        ("injection-v1beta1", "v1beta1", ["1.34", "1.35"]),
    ] {
        let objects = render(&root().join("manifests").join(overlay));
        assert_eq!(objects.len(), 3);
        for object in objects {
            let group = format!("admissionregistration.k8s.io/{version}");
            assert_eq!(object["apiVersion"], group);
            let file = NamedTempFile::new().unwrap();
            fs::write(&file, object.to_string()).unwrap();
            for release in releases {
                let mut command = Command::new(&validator);
                command.args(["--strict", "-k", release]).arg(file.path());
                let output = command.output().unwrap();
                assert!(output.status.success(), "{release}: {output:?}");
            }
        }
    }
}
