//! The real kubectl and `scripts/uninstall` in a cluster where others have objects as well.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use kit::netns::skipped;
use macvtap::deviceplugin::config::{self, Context};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use super::{
    api_server::{self, Objects, path_of},
    check_runs, command_line, containers, manifest, pod,
    render::{Copy, kubectl},
    root, words,
};

struct Cluster {
    objects: Arc<Mutex<Objects>>,
    /// kubectl's configuration and cache.
    home: TempDir,
}

impl Cluster {
    /// A cluster with the original in it, and with what its users have.
    fn new() -> Self {
        let (home, objects) = (tempdir().unwrap(), Arc::default());
        let server = api_server::start(Arc::clone(&objects));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{server}")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": "none"}}],
        });
        fs::write(home.path().join("config"), config.to_string()).unwrap();
        let cluster = Self { objects, home };
        cluster.add_foreign();
        cluster
    }

    fn add_foreign(&self) {
        for namespace in ["default", "macvtap"] {
            let mut map = manifest("examples/configmap.yaml");
            map["metadata"]["namespace"] = namespace.into();
            self.add(map);
        }
        self.add(manifest("original/macvtap.yaml"));
        for (name, plugin) in [("direct", "macvtap"), ("bridged", "bridge")] {
            let mut network = manifest("examples/network-attachment-definition-nri.yaml");
            network["metadata"] = json!({"name": name, "namespace": "vms"});
            let config = network["spec"]["config"].as_str().unwrap();
            network["spec"]["config"] = config
                .replace("\"macvtap\"", &format!("\"{plugin}\""))
                .into();
            self.add(network);
        }
        self.add(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
        // A user's own objects with our label, or our name.
        let label = json!({"app.kubernetes.io/name": "macvtap"});
        let monitor = json!({"name": "own", "namespace": "default", "labels": label});
        self.add(json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": monitor}));
        let role = json!({"name": "macvtap-scc", "namespace": "default"});
        self.add(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": role}));
    }

    fn add(&self, object: Value) {
        let path = path_of(&object);
        self.objects.lock().unwrap().insert(path, object);
    }

    /// Gives the device plugin a seccomp profile of the node, as components/seccomp does.
    fn set_profile(&self, name: &str) {
        let mut objects = self.objects.lock().unwrap();
        let template = &mut objects.get_mut(IN_DEFAULT).unwrap()["spec"]["template"]["spec"];
        template["containers"][0]["securityContext"]["seccompProfile"] =
            json!({"type": "Localhost", "localhostProfile": name});
    }

    fn objects(&self) -> Objects {
        self.objects.lock().unwrap().clone()
    }

    /// Runs a command with this cluster's kubectl.
    fn run(&self, mut command: Command) -> Output {
        let program = kubectl().unwrap().get_program().to_owned();
        let dir = Path::new(&program).parent().unwrap().to_owned();
        let path = format!("{}:{}", dir.display(), env::var("PATH").unwrap());
        command.env("PATH", path).env("HOME", self.home.path());
        command.env("KUBECONFIG", self.home.path().join("config"));
        command.output().unwrap()
    }

    fn kubectl(&self, words: &[&str]) -> String {
        let mut command = kubectl().unwrap();
        command.args(words).current_dir(root());
        succeeded(&self.run(command))
    }

    fn uninstall(&self, words: &[&str]) -> Output {
        let mut command = Command::new(root().join("scripts/uninstall"));
        command.args(words);
        self.run(command)
    }
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the DaemonSet controller would report once the pods of so many nodes of two are ready.
fn roll_out(cluster: &Cluster, ready: u32) {
    let mut objects = cluster.objects.lock().unwrap();
    objects.get_mut(IN_DEFAULT).unwrap()["status"] = json!({
        "observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
        "updatedNumberScheduled": 2, "numberAvailable": ready, "numberReady": ready,
    });
}

const IN_DEFAULT: &str = "/apis/apps/v1/namespaces/default/daemonsets/macvtap";

fn no_kubectl() -> bool {
    if kubectl().is_none() {
        skipped("no kubectl with kustomize 5 on this machine");
    }
    kubectl().is_none()
}

#[test]
fn applying_twice_and_deleting_leaves_other_objects_alone() {
    if no_kubectl() {
        return;
    }
    let cluster = Cluster::new();
    let before = cluster.objects();
    let apply = ["apply", "--validate=false", "-k", "manifests/replace"];
    assert!(
        cluster
            .kubectl(&apply)
            .contains("daemonset.apps/macvtap created")
    );
    let applied = cluster.objects();
    assert_eq!(applied.len(), before.len() + 2);
    assert!(
        cluster
            .kubectl(&apply)
            .contains("daemonset.apps/macvtap unchanged")
    );
    assert_eq!(cluster.objects(), applied);
    cluster.kubectl(&["delete", "--wait=false", "-k", "manifests/replace"]);
    assert_eq!(cluster.objects(), before);
}

#[test]
fn uninstalling_cleans_the_nodes_and_leaves_other_objects_alone() {
    if no_kubectl() {
        return;
    }
    let cluster = Cluster::new();
    let before = cluster.objects();
    cluster.kubectl(&["apply", "--validate=false", "-k", "manifests/replace"]);
    roll_out(&cluster, 2);
    let text = failed(&cluster.uninstall(&[]));
    assert!(
        text.contains("namespace macvtap has no DaemonSet macvtap; use -n with one of: default"),
        "{text}"
    );
    let limits = json!({"macvtap.network.kubevirt.io/dataplane": "1"});
    let vm = |phase: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "vm", "namespace": "vms"},
            "spec": {"containers": [{"name": "a", "resources": {}}, {"name": "compute", "resources": {"limits": limits}}]},
            "status": {"phase": phase},
        })
    };
    cluster.add(vm("Running"));
    let text = failed(&cluster.uninstall(&["-n", "default"]));
    assert!(
        text.contains("vms/vm\n") && text.contains("stop them first"),
        "{text}"
    );
    assert_eq!(
        cluster.objects()[IN_DEFAULT]["spec"]["template"]["spec"]["initContainers"][0]["args"][0],
        "install"
    );
    cluster.add(vm("Succeeded"));
    let text = succeeded(&cluster.uninstall(&["--namespace=default", "--timeout", "10s"]));
    assert!(text.contains("removed from every node"), "{text}");
    let mut after = cluster.objects();
    after.retain(|path, _| !path.ends_with("/pods/vm"));
    assert_eq!(after, before);
}

#[test]
fn uninstalling_refuses_while_pods_have_taps_without_a_resource() {
    if no_kubectl() {
        return;
    }
    let cluster = Cluster::new();
    cluster.kubectl(&["apply", "--validate=false", "-k", "manifests/replace"]);
    roll_out(&cluster, 2);
    cluster.add(by_nri("blue", "Running"));
    cluster.add(by_nri("green", "Succeeded"));
    let text = failed(&cluster.uninstall(&["-n", "default"]));
    assert!(
        text.contains("vms/blue\nscripts/uninstall: these pods use macvtaps; stop them first"),
        "{text}"
    );
    assert!(!text.contains("vms/green"), "{text}");
    cluster.add(by_nri("blue", "Failed"));
    succeeded(&cluster.uninstall(&["-n", "default"]));
}

/// On GKE there is a quota as well, and the API of metrics is down in every one of these clusters.
#[test]
fn uninstalling_deletes_what_a_component_brought() {
    if no_kubectl() {
        return;
    }
    let cluster = Cluster::new();
    let before = cluster.objects();
    let copy = Copy::new();
    for object in copy.render("replace", &["gke"]) {
        cluster.add(object);
    }
    assert_eq!(cluster.objects().len(), before.len() + 3);
    roll_out(&cluster, 2);
    succeeded(&cluster.uninstall(&["-n", "default"]));
    assert_eq!(cluster.objects(), before);
}

/// A pod that Multus has attached to a network without a resource, and to one of another plugin.
fn by_nri(name: &str, phase: &str) -> Value {
    let status = json!([
        {"name": "cbr0", "interface": "eth0"},
        {"name": "vms/bridged", "interface": "net1"},
        {"name": "vms/direct", "interface": "net2"},
    ]);
    let status = serde_json::to_string_pretty(&status).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "vms",
            "annotations": {"a": "b", "k8s.v1.cni.cncf.io/network-status": status},
        },
        "spec": {"containers": [{"name": "a"}]}, "status": {"phase": phase},
    })
}

/// The pods that clean the nodes run what the image has, in the directories of the installation.
#[test]
fn uninstalling_runs_the_other_verb_in_the_same_directories() {
    if no_kubectl() {
        return;
    }
    let cluster = Cluster::new();
    cluster.kubectl(&["apply", "--validate=false", "-k", "manifests/replace"]);
    cluster.set_profile("macvtap-deviceplugin.json");
    // One node does not become clean, so the DaemonSet stays.
    roll_out(&cluster, 1);
    let text = failed(&cluster.uninstall(&["-n", "default", "--timeout", "1s"]));
    assert!(text.contains("not every node is clean"), "{text}");
    let daemonset = cluster.objects()[IN_DEFAULT].clone();
    let [install, main] = containers(pod(&daemonset))[..] else {
        panic!("{daemonset}");
    };
    assert_eq!(
        words(&install["args"]),
        ["uninstall", "--dir", "/host/opt/cni/bin"]
    );
    assert_eq!(words(&main["args"]), ["deviceplugin"]);
    let env = main["env"].as_array().unwrap();
    let text = env.iter().find(|one| one["name"] == "DP_MACVTAP_CONF");
    let text = text.unwrap()["value"].as_str().unwrap();
    let (configuration, warnings) = config::parse(text, Context::default()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(
        (configuration.entries.len(), configuration.for_others),
        (0, 1)
    );
    assert!(main["readinessProbe"].is_null() && main["livenessProbe"].is_null());
    // The init container removes the profile of components/seccomp.
    assert_eq!(
        main["securityContext"]["seccompProfile"],
        json!({"type": "RuntimeDefault"})
    );
    for container in [install, main] {
        check_runs(&command_line(container));
    }
    // Once the node is repaired, the same command goes on.
    roll_out(&cluster, 2);
    succeeded(&cluster.uninstall(&["-n", "default"]));
    assert!(!cluster.objects().contains_key(IN_DEFAULT));
}
