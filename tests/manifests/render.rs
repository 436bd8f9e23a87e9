//! What `kubectl apply -k` would apply, for every combination of components.

use std::{fs, path::Path, process::Command, thread};

use kit::netns::skipped;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use super::{
    check_runs, check_schemas, command_line, containers, files, list, manifest, parse, pod, root,
    words,
};

/// Components of which a cluster needs one at most, for each of these.
const CHOICES: [&[&str]; 4] = [
    &["", "selinux", "openshift"],
    &["", "seccomp"],
    &["", "net-admin-only", "nri"],
    &["", "metrics", "prometheus-operator"],
];

/// CNI directories other than `/opt/cni/bin`, by component.
pub const DIRECTORIES: [(&str, &str); 4] = [
    ("openshift", "/var/lib/cni/bin"),
    ("k3s", "/var/lib/rancher/k3s/data/cni"),
    ("microk8s", "/var/snap/microk8s/current/opt/cni/bin"),
    ("gke", "/home/kubernetes/bin"),
];

/// A kubectl with kustomize 5: the one that `scripts/test` installs, or this machine's.
pub fn kubectl() -> Option<Command> {
    let ours = root().join("target/python/bin/kubectl");
    ["kubectl".into(), ours].into_iter().rev().find_map(|path| {
        let mut command = Command::new(&path);
        let version = command.args(["version", "--client"]).output().ok()?;
        let text = String::from_utf8_lossy(&version.stdout).into_owned();
        text.contains("Kustomize Version: v5")
            .then(|| Command::new(path))
    })
}

/// What kubectl makes of a directory.
pub fn render(dir: &Path) -> Vec<Value> {
    let mut command = kubectl().unwrap();
    let output = command.arg("kustomize").arg(dir).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split("\n---\n").map(parse).collect()
}

/// A copy of `manifests/` in which components can be uncommented, as a user does it.
pub struct Copy(TempDir);

impl Copy {
    pub fn new() -> Self {
        let (copy, from) = (tempdir().unwrap(), root().join("manifests"));
        let mut paths = Vec::new();
        files(&from, &mut paths);
        for path in paths {
            let to = copy.path().join(path.strip_prefix(&from).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(&path, to).unwrap();
        }
        Self(copy)
    }

    pub fn render(&self, installation: &str, components: &[&str]) -> Vec<Value> {
        self.choose(installation, components);
        render(&self.0.path().join(installation))
    }

    /// Why kubectl makes nothing of it.
    fn refused(&self, components: &[&str]) -> String {
        self.choose("", components);
        let mut command = kubectl().unwrap();
        let output = command.arg("kustomize").arg(self.0.path()).output();
        let output = output.unwrap();
        assert!(!output.status.success(), "{components:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn choose(&self, installation: &str, components: &[&str]) {
        let within = Path::new(installation).join("kustomization.yaml");
        let original = root().join("manifests").join(&within);
        let mut text = fs::read_to_string(original).unwrap();
        if !components.is_empty() {
            uncomment(&mut text, "# components:\n");
        }
        for name in components {
            let up = if installation.is_empty() { "" } else { "../" };
            uncomment(&mut text, &format!("#   - {up}components/{name}\n"));
        }
        fs::write(self.0.path().join(within), text).unwrap();
    }
}

fn uncomment(text: &mut String, line: &str) {
    assert_eq!(text.matches(line).count(), 1, "{line} in {text}");
    *text = text.replace(line, line.strip_prefix("# ").unwrap());
}

/// All combinations, each with some CNI directory.
fn combinations() -> Vec<Vec<&'static str>> {
    let mut all: Vec<Vec<&str>> = vec![vec![]];
    for choice in CHOICES {
        let with = |some: &Vec<&'static str>| {
            let some = some.clone();
            let with = move |name: &&'static str| [some.clone(), vec![*name]].concat();
            choice.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    for (index, combination) in all.iter_mut().enumerate() {
        let directory = DIRECTORIES.get(1 + index % DIRECTORIES.len());
        if !combination.contains(&"openshift") {
            combination.extend(directory.map(|(name, _)| *name));
        }
        combination.retain(|name| !name.is_empty());
    }
    all
}

#[test]
fn every_combination_touches_what_is_ours_and_nothing_else() {
    if kubectl().is_none() {
        skipped("no kubectl with kustomize 5 on this machine");
        return;
    }
    let combinations = combinations();
    assert_eq!(combinations.len(), 54);
    thread::scope(|scope| {
        for installation in ["", "replace"] {
            let combinations = &combinations;
            scope.spawn(move || {
                let copy = Copy::new();
                for components in combinations {
                    let objects = copy.render(installation, components);
                    check(installation, components, &objects);
                }
            });
        }
    });
}

/// The last one would win without a word.
#[test]
fn components_that_exclude_each_other_do_not_build() {
    if kubectl().is_none() {
        skipped("no kubectl with kustomize 5 on this machine");
        return;
    }
    let copy = Copy::new();
    let names = DIRECTORIES.map(|(name, _)| name);
    for (at, first) in names.iter().enumerate() {
        for second in &names[at + 1..] {
            let text = copy.refused(&[first, second]);
            assert!(text.contains("OneComponentOf"), "{text}");
            assert!(text.contains("openshift-k3s-microk8s-gke"), "{text}");
        }
    }
    let text = copy.refused(&["nri", "net-admin-only"]);
    assert!(text.contains("nri-net-admin-only"), "{text}");
}

fn check(installation: &str, components: &[&str], objects: &[Value]) {
    let shown = format!("manifests/{installation} with {components:?}");
    let namespace = ["macvtap", "default"][usize::from(installation == "replace")];
    check_objects(namespace, installation.is_empty(), objects).unwrap_or_else(|wrong| {
        panic!("{shown}: {wrong}");
    });
    let daemonset = of_kind(objects, "DaemonSet").unwrap();
    let pod = pod(daemonset);
    check_containers(pod);
    check_volumes(pod, components);
    check_rights(pod, components);
    check_metrics(daemonset, components);
    check_default_container(daemonset);
    if components.contains(&"openshift") {
        check_admitted(objects, pod);
    }
    if components.contains(&"seccomp") {
        check_profile(pod);
    }
    let quota = of_kind(objects, "ResourceQuota");
    assert_eq!(quota.is_some(), components.contains(&"gke"), "{shown}");
    if let Some(quota) = quota {
        check_quota(quota, pod);
    }
    let monitored = of_kind(objects, "PodMonitor").is_some();
    assert_eq!(
        monitored,
        components.contains(&"prometheus-operator"),
        "{shown}"
    );
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind)
}

/// Applying or deleting these leaves objects of others alone: all have our label and our names,
/// none is the user's configuration, and the namespace is only brought by a first installation.
fn check_objects(namespace: &str, first: bool, objects: &[Value]) -> Result<(), String> {
    let namespaces = objects
        .iter()
        .filter(|object| object["kind"] == "Namespace");
    if namespaces.count() != usize::from(first) {
        return Err("the namespace is for a first installation alone".to_owned());
    }
    for object in objects {
        let (kind, metadata) = (&object["kind"], &object["metadata"]);
        let name = metadata["name"].as_str().unwrap();
        let ours = metadata["labels"]["app.kubernetes.io/name"] == "macvtap";
        if kind == "ConfigMap" || !["macvtap", "macvtap-scc"].contains(&name) || !ours {
            return Err(format!("{kind} {name} is not ours"));
        }
        if kind != "Namespace" && metadata["namespace"] != namespace {
            return Err(format!("{kind} {name} is in {}", metadata["namespace"]));
        }
    }
    Ok(())
}

fn check_containers(pod: &Value) {
    assert_eq!(pod["hostNetwork"], true);
    assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null());
    assert_eq!(pod["automountServiceAccountToken"], false);
    let image = format!("localhost/macvtap:v{}", env!("CARGO_PKG_VERSION"));
    let all = containers(pod);
    assert_eq!(all.len(), 2);
    for container in all {
        assert_eq!(container["image"], image);
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert!(container["resources"]["limits"]["memory"].is_string());
        assert!(container["resources"]["limits"]["cpu"].is_null());
        assert!(container["resources"]["requests"]["memory"].is_string());
        let mut line = command_line(container);
        check_runs(&line);
        if line[1] == "install" {
            // What scripts/uninstall makes of it.
            line[1] = "uninstall".into();
            check_runs(&line);
        }
        for probe in ["readinessProbe", "livenessProbe"] {
            let command = words(&container[probe]["exec"]["command"]);
            if !command.is_empty() {
                check_runs(&command);
            }
        }
    }
}

fn check_volumes(pod: &Value, components: &[&str]) {
    let volumes = list(&pod["volumes"]);
    let mounts = containers(pod)
        .into_iter()
        .flat_map(|container| list(&container["volumeMounts"]));
    let mounts: Vec<&Value> = mounts.collect();
    for mount in &mounts {
        let propagation = &mount["mountPropagation"];
        assert!(
            propagation.is_null() || propagation == "HostToContainer",
            "refused without privileges"
        );
    }
    let mut mounted: Vec<&Value> = mounts.iter().map(|mount| &mount["name"]).collect();
    let mut named: Vec<&Value> = volumes.iter().map(|volume| &volume["name"]).collect();
    mounted.sort_by_key(|name| name.as_str());
    named.sort_by_key(|name| name.as_str());
    assert_eq!(mounted, named, "each volume is mounted once");
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name);
    let netns = volume("netns").is_some();
    assert_eq!(netns, !components.contains(&"net-admin-only"));
    assert_eq!(volume("config").unwrap()["configMap"]["optional"], true);
    let mut directories = DIRECTORIES.iter();
    let directory = directories.find(|(name, _)| components.contains(name));
    let expected = directory.map_or("/opt/cni/bin", |(_, path)| path);
    assert_eq!(volume("cni-bin").unwrap()["hostPath"]["path"], expected);
}

fn check_rights(pod: &Value, components: &[&str]) {
    let selinux = ["selinux", "openshift"];
    let selinux = selinux.iter().any(|name| components.contains(name));
    assert!(pod["securityContext"]["seLinuxOptions"].is_null());
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
        assert_eq!(context["seLinuxOptions"]["type"] == "spc_t", selinux);
    }
    let added = |index: usize| {
        let context = &containers(pod)[index]["securityContext"];
        words(&context["capabilities"]["add"])
    };
    let all = ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"];
    let learning = !components.contains(&"net-admin-only");
    let expected = if learning { &all[..] } else { &all[..1] };
    assert_eq!(
        (added(0).len(), added(1)),
        (0, expected.iter().map(|&s| s.to_owned()).collect())
    );
    let args = words(&containers(pod)[1]["args"]);
    assert_eq!(args.contains(&"--learning=off".to_owned()), !learning);
    // A process with the runtime's socket is root on the node.
    let nri = components.contains(&"nri");
    assert_eq!(args.contains(&"--nri=auto".to_owned()), nri);
    assert_eq!(pod.to_string().contains("/var/run/nri"), nri);
}

/// kubectl finds the container of the device plugin by itself, whatever other annotations there are.
fn check_default_container(daemonset: &Value) {
    let template = &daemonset["spec"]["template"];
    let default = &template["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"];
    assert_eq!(default, &containers(pod(daemonset))[1]["name"]);
}

/// Health and metrics are for the node alone, or for a Prometheus in the cluster.
fn check_metrics(daemonset: &Value, components: &[&str]) {
    let metrics = ["metrics", "prometheus-operator"];
    let metrics = metrics.iter().any(|name| components.contains(name));
    let deviceplugin = containers(pod(daemonset))[1];
    let env = list(&deviceplugin["env"]).iter();
    let address = env.clone().find(|entry| entry["name"] == "STATUS_ADDRESS");
    let address = address.unwrap();
    let annotations = &daemonset["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"] == "9403", metrics);
    if metrics {
        assert!(address["value"].is_null());
        let field = &address["valueFrom"]["fieldRef"]["fieldPath"];
        assert_eq!(field, "status.hostIP");
        assert_eq!(deviceplugin["ports"][0]["name"], "metrics");
        assert_eq!(deviceplugin["ports"][0]["containerPort"], 9403);
    } else {
        assert_eq!(address["value"], "127.0.0.1");
        assert!(deviceplugin["ports"].is_null());
    }
    let mut names = env.filter(|entry| entry["name"] == "NODE_NAME");
    let field = &names.next().unwrap()["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(field, "spec.nodeName");
}

/// The `SecurityContextConstraints` admit the pod, and its service account may use them.
fn check_admitted(objects: &[Value], pod: &Value) {
    let scc = of_kind(objects, "SecurityContextConstraints").unwrap();
    // As OpenShift's CustomResourceDefinition requires (openshift/api, security/v1), beside what is
    // looked at below.
    for key in [
        "priority",
        "defaultAddCapabilities",
        "requiredDropCapabilities",
    ] {
        assert!(!scc[key].is_null(), "{key}");
    }
    assert_eq!(scc["readOnlyRootFilesystem"], true);
    for right in [
        "allowHostNetwork",
        "allowHostDirVolumePlugin",
        "allowHostPorts",
    ] {
        assert_eq!(scc[right], true);
    }
    for right in ["allowHostPID", "allowHostIPC", "allowPrivilegedContainer"] {
        assert_eq!(scc[right], false);
    }
    let (allowed, profiles) = (
        words(&scc["allowedCapabilities"]),
        words(&scc["seccompProfiles"]),
    );
    for container in containers(pod) {
        let context = &container["securityContext"];
        let added = words(&context["capabilities"]["add"]);
        assert!(added.iter().all(|name| allowed.contains(name)));
        let profile = context["seccompProfile"]["localhostProfile"].as_str();
        let profile = profile.map_or("runtime/default".into(), |name| format!("localhost/{name}"));
        assert!(profiles.contains(&profile));
    }
    let kinds = words(&scc["volumes"]);
    for volume in list(&pod["volumes"]) {
        let mut keys = volume.as_object().unwrap().keys();
        assert!(kinds.contains(keys.find(|key| *key != "name").unwrap()));
    }
    check_binding(objects, pod);
}

/// The service account may use the constraints, in whatever namespace it is.
fn check_binding(objects: &[Value], pod: &Value) {
    let scc = of_kind(objects, "SecurityContextConstraints").unwrap();
    let binding = of_kind(objects, "RoleBinding").unwrap();
    let account = of_kind(objects, "ServiceAccount").unwrap();
    let subject = &binding["subjects"][0];
    assert_eq!(subject["name"], pod["serviceAccountName"]);
    for key in ["kind", "name", "namespace"] {
        let expected = if key == "kind" {
            &account[key]
        } else {
            &account["metadata"][key]
        };
        assert_eq!(&subject[key], expected, "{key}");
    }
    let role = of_kind(objects, "Role").unwrap();
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(words(&role["rules"][0]["verbs"]), ["use"]);
    assert_eq!(
        role["rules"][0]["resourceNames"][0],
        scc["metadata"]["name"]
    );
}

/// The quota is for the priority class of the pod.
fn check_quota(quota: &Value, pod: &Value) {
    let scope = &quota["spec"]["scopeSelector"]["matchExpressions"][0];
    assert_eq!(scope["scopeName"], "PriorityClass");
    assert_eq!(scope["operator"], "In");
    assert_eq!(scope["values"][0], pod["priorityClassName"]);
}

/// The init container writes the profile that the other one uses.
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

/// Each kind of object once, with whatever components there are.
#[test]
fn kubernetes_own_schemas_accept_what_is_rendered() {
    if kubectl().is_none() {
        skipped("no kubectl with kustomize 5 on this machine");
        return;
    }
    let dir = tempdir().unwrap();
    let mut paths = Vec::new();
    let most = ["openshift", "seccomp", "prometheus-operator"];
    for components in [&most[..], &["net-admin-only", "gke"], &[]] {
        for object in Copy::new().render("", components) {
            let group = object["apiVersion"].as_str().unwrap();
            if group.contains("openshift.io") || group.contains("coreos.com") {
                continue; // not Kubernetes' own
            }
            paths.push(dir.path().join(format!("{}.json", paths.len())));
            fs::write(paths.last().unwrap(), object.to_string()).unwrap();
        }
    }
    assert_eq!(paths.len(), 5 + 4 + 3);
    check_schemas(&paths);
}

/// Both installations have the same image and list every component there is.
#[test]
fn the_installations_list_every_component() {
    let mut names: Vec<String> = fs::read_dir(root().join("manifests/components"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for (installation, up) in [
        ("kustomization.yaml", ""),
        ("replace/kustomization.yaml", "../"),
    ] {
        let text = fs::read_to_string(root().join("manifests").join(installation)).unwrap();
        let prefix = format!("#   - {up}components/");
        let listed = text.lines().filter_map(|line| line.strip_prefix(&prefix));
        let mut listed: Vec<&str> = listed.collect();
        listed.sort_unstable();
        assert_eq!(listed, names, "{installation}");
    }
    let images = |name: &str| manifest(name)["images"].clone();
    assert_eq!(
        images("kustomization.yaml"),
        images("replace/kustomization.yaml")
    );
}

/// While both are installed, each selects its own pods alone.
#[test]
fn nothing_collides_with_the_original() {
    let (ours, original) = (
        manifest("base/daemonset.yaml"),
        manifest("original/macvtap.yaml"),
    );
    assert_ne!(ours["metadata"]["name"], original["metadata"]["name"]);
    let selects = |one: &Value, other: &Value| {
        let selector = one["spec"]["selector"]["matchLabels"].as_object().unwrap();
        let labels = &other["spec"]["template"]["metadata"]["labels"];
        selector.iter().all(|(key, value)| labels[key] == *value)
    };
    assert!(selects(&ours, &ours) && selects(&original, &original));
    assert!(!selects(&ours, &original) && !selects(&original, &ours));
    let replace = manifest("replace/kustomization.yaml");
    assert_eq!(replace["namespace"], original["metadata"]["namespace"]);
    // The configuration of the original is ours, by the same name.
    let env = &pod(&original)["containers"][0]["envFrom"][0]["configMapRef"]["name"];
    let volumes = list(&pod(&ours)["volumes"]).iter();
    let mut maps = volumes.map(|volume| &volume["configMap"]["name"]);
    assert!(maps.any(|name| name == env));
}

#[test]
fn the_original_s_manifest_gets_our_image_and_no_other_change() {
    if kubectl().is_none() {
        skipped("no kubectl with kustomize 5 on this machine");
        return;
    }
    let built = render(&root().join("manifests/original"));
    let [built] = &built[..] else {
        panic!("{built:?}");
    };
    let mut expected = manifest("original/macvtap.yaml");
    let image = format!("localhost/macvtap:v{}", env!("CARGO_PKG_VERSION"));
    for kind in ["initContainers", "containers"] {
        let container = &mut expected["spec"]["template"]["spec"][kind][0];
        container["image"] = image.clone().into();
        // Always, as the original has it, would not find an image that was imported on the node.
        assert_eq!(container["imagePullPolicy"], "Always");
        container["imagePullPolicy"] = "IfNotPresent".into();
    }
    assert_eq!(*built, expected);
    let operator = manifest("original/cluster-network-addons-operator.yaml");
    let operator = &operator["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(operator["env"][0]["value"], image);
}
