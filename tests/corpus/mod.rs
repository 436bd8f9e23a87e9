//! Manifests as people write them, each with the outcome that it has with kubevirt/macvtap-cni:
//! a file has that in its first document, and the manifest in its second.
//!
//! `original` is that outcome, and `ours` the one that is right here where it differs. A network
//! has `args`, the value of `CNI_ARGS`, and what is to be seen: `interface`, parts of warnings in
//! `warns`, and parts of the error in `says`.

use std::{
    collections::BTreeMap,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    thread,
};

use kit::{
    kubelet::{Plugin, WAIT_TIMEOUT},
    netns::{
        Cni, Host, IFNAME, LOWER, Node, device_id, foreign_tap_number, owner, tap, tap_exists,
        tap_number,
    },
};
use macvtap::selftest::kubelet::{Kubelet, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

/// How many samples are tried at a time: they wait for the kernel more than they compute.
const AT_A_TIME: usize = 8;

/// A file of the corpus: what is expected, and a manifest.
struct Sample {
    path: PathBuf,
    expected: Value,
    manifest: Value,
}

fn corpus(directory: &str) -> Vec<Sample> {
    let directory = kit::root().join("tests/corpus").join(directory);
    let files = fs::read_dir(&directory).unwrap().flatten();
    files.map(|file| Sample::read(&file.path())).collect()
}

impl Sample {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let documents = serde_yaml_ng::Deserializer::from_str(&text);
        let documents = documents.map(|document| Value::deserialize(document).unwrap());
        let documents: Vec<Value> = documents.collect();
        let [expected, manifest] = documents.try_into().unwrap();
        Self {
            path: path.to_owned(),
            expected,
            manifest,
        }
    }

    /// What happens: as with the original, unless the sample says that we do better.
    fn outcome(&self) -> &str {
        let ours = self.expected.get("ours");
        ours.unwrap_or(&self.expected["original"]).as_str().unwrap()
    }

    /// Fails unless `text` has all parts that the sample expects under `key`.
    fn check(&self, key: &str, text: &str) {
        let parts = self.expected[key].as_array().into_iter().flatten();
        for part in parts.map(|part| part.as_str().unwrap()) {
            assert!(text.contains(part), "{part:?} is not in {text:?}");
        }
    }
}

/// The configuration that Multus gives the plugin: of a list the first plugin's, with the list's
/// name and version, and a name if it has none.
fn configuration(manifest: &Value, id: &str) -> Vec<u8> {
    let text = manifest["spec"]["config"].as_str().unwrap();
    let Ok(Value::Object(mut config)) = serde_json::from_str(text) else {
        return text.as_bytes().to_vec();
    };
    if let Some(plugins) = config.remove("plugins") {
        let plugin = plugins[0].as_object().unwrap().clone();
        config.extend(plugin);
    }
    let name = &manifest["metadata"]["name"];
    config.entry("name").or_insert_with(|| name.clone());
    let annotations = &manifest["metadata"]["annotations"];
    if annotations["k8s.v1.cni.cncf.io/resourceName"].is_string() {
        config.insert("deviceID".to_owned(), id.into());
    }
    Value::Object(config).to_string().into_bytes()
}

/// What the kernel says of the interface, by the names of the corpus.
fn seen(pod: &Host, number: u32) -> Value {
    let link = pod.link(IFNAME).unwrap();
    let (user, group, _) = owner(&tap(number));
    json!({
        "mtu": link["mtu"],
        "mac": link["address"],
        "promiscuity": u8::from(link["flags"].to_string().contains("PROMISC")),
        "owner": [user, group],
    })
}

/// The way in which the device was allocated.
#[derive(Clone, Copy, Debug)]
enum Allocated {
    /// By our device plugin: ADD creates the macvtap.
    Here,
    /// By the original's, which created it: ADD takes it over.
    ByTheOriginal,
}

/// The original's device ID, and the name that it gives its macvtap.
const ORIGINAL: (&str, &str) = ("dataplaneMvp0", "mvtcc7b47d9091b");

fn allocate(node: &Node, allocated: Allocated, number: u32) -> String {
    let (id, name) = ORIGINAL;
    match allocated {
        Allocated::Here => device_id(number),
        Allocated::ByTheOriginal => {
            let words = format!("index {number} link {LOWER} type macvtap mode bridge");
            node.host.ip(&format!("link add {name} {words}"));
            id.to_owned()
        }
    }
}

/// What ADD left, where the version has CHECK, as the runtime looks at it right away.
fn check(call: &Cni<'_>, result: &str) {
    let result: Value = serde_json::from_str(result).unwrap();
    let mut config: Value = serde_json::from_slice(call.input()).unwrap();
    if ["0.4.0", "1.0.0", "1.1.0"].contains(&config["cniVersion"].as_str().unwrap_or_default()) {
        config["prevResult"] = result;
        call.clone().stdin(config.to_string()).succeed("CHECK");
    }
}

fn attach_and_detach(sample: &Sample, allocated: Allocated) {
    let (node, pod) = (Node::new(), Host::new());
    let number = match allocated {
        Allocated::Here => tap_number(),
        Allocated::ByTheOriginal => foreign_tap_number(),
    };
    let id = allocate(&node, allocated, number);
    let call = node.cni(&pod, json!({}));
    let mut call = call.stdin(configuration(&sample.manifest, &id));
    if let Some(args) = sample.expected["args"].as_str() {
        call = call.env("CNI_ARGS", args);
    }
    match sample.outcome() {
        "attaches" => {
            let answer = call.call("ADD");
            assert_eq!(answer.status, 0, "{answer:?}");
            let seen = seen(&pod, number);
            let expected = sample.expected["interface"].as_object();
            for (key, value) in expected.into_iter().flatten() {
                assert_eq!(seen[key], *value, "{key}");
            }
            if let Allocated::Here = allocated {
                sample.check("warns", &answer.stderr.replace('\\', ""));
            }
            check(&call, &answer.stdout);
            call.succeed("DEL");
            assert!(!tap_exists(number));
        }
        "refuses" => {
            let error = call.call("ADD").error();
            sample.check("says", &error.to_string());
            let removed = call.call("DEL");
            // With what is no configuration at all no runtime can have attached.
            assert!(removed.status == 0 || removed.error()["code"] == error["code"]);
        }
        outcome => panic!("{outcome}"),
    }
    assert!(pod.links().is_empty(), "DEL left {:?}", pod.links());
}

/// Tries the samples, several at a time, and says of which the outcome is another.
fn each(samples: &[Sample], run: impl Fn(&Sample) + Sync) {
    let fails = |sample: &Sample| panic::catch_unwind(AssertUnwindSafe(|| run(sample))).is_err();
    let shares = samples.chunks(samples.len().div_ceil(AT_A_TIME));
    let failed: Vec<&Sample> = thread::scope(|scope| {
        let threads = shares.map(|share| {
            let tried = || {
                share
                    .iter()
                    .filter(|sample| fails(sample))
                    .collect::<Vec<_>>()
            };
            scope.spawn(tried)
        });
        let threads: Vec<_> = threads.collect();
        let failed = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        failed.collect()
    });
    let failed: Vec<_> = failed.iter().map(|sample| sample.path.display()).collect();
    assert!(failed.is_empty(), "the outcome is another of {failed:#?}");
}

#[test]
fn networks_attach_as_with_the_original() {
    let samples = corpus("networks");
    assert!(samples.len() > 100);
    each(&samples, |sample| {
        attach_and_detach(sample, Allocated::Here);
        attach_and_detach(sample, Allocated::ByTheOriginal);
    });
}

/// The resources of a kubelet, with the number of their healthy devices.
fn offered(kubelet: &Kubelet, expected: &Value) -> BTreeMap<String, usize> {
    let names = expected["resources"].as_object().unwrap().keys();
    let healthy = |name: &String| {
        let full = format!("macvtap.network.kubevirt.io/{name}");
        let listed = |resource: &Resource| resource.lists > 0;
        let resource = kubelet.wait_for(&full, WAIT_TIMEOUT, listed).unwrap();
        (name.clone(), resource.healthy().len())
    };
    names.map(healthy).collect()
}

fn start(sample: &Sample) {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let text = sample.manifest["data"]["DP_MACVTAP_CONF"].as_str().unwrap();
    let mut plugin = Plugin::configured(&node.host, dir.path(), text);
    match sample.outcome() {
        "offers" => {
            plugin.wait_for_log("DP_MACVTAP_CONF");
            let offered = offered(&kubelet, &sample.expected);
            assert_eq!(json!(offered), sample.expected["resources"]);
            assert!(plugin.is_alive(), "{}", plugin.log());
        }
        "exits" => assert_eq!(plugin.end().0, Some(1), "{}", plugin.log()),
        outcome => panic!("{outcome}"),
    }
}

#[test]
fn resources_are_offered_as_with_the_original() {
    let samples = corpus("resources");
    assert!(samples.len() > 40);
    each(&samples, start);
}
