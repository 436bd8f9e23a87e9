//! The kubelet's checkpoint of device plugins: which devices it has allocated to the containers
//! of the node's pods, and what the device plugin answered.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message;
use serde::Deserialize;

use super::device_id::DeviceId;

/// The name of the file in the device-plugins directory.
pub const FILE: &str = "kubelet_internal_checkpoint";

/// The devices of one resource that one container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The UID of the pod.
    pub pod_uid: String,
    /// The name of the resource, with its namespace.
    pub resource: String,
    /// The IDs of the devices.
    pub devices: BTreeSet<String>,
    /// The numbers of the taps among the device nodes that the container has for them.
    pub taps: BTreeSet<u32>,
}

// The format of pkg/kubelet/cm/devicemanager/checkpoint in Kubernetes.

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Checkpoint {
    data: Data,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    // Go writes an empty list as null.
    pod_device_entries: Option<Vec<PodDevicesEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PodDevicesEntry {
    #[serde(rename = "PodUID", default)]
    pod_uid: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: Option<DeviceIds>,
    alloc_resp: Option<String>,
}

/// By NUMA node since Kubernetes 1.20, a list before.
#[derive(Deserialize)]
#[serde(untagged)]
enum DeviceIds {
    ByNode(BTreeMap<String, Option<Vec<String>>>),
    List(Vec<String>),
}

/// `ContainerAllocateResponse` of the device plugin API, as far as it is of interest.
#[derive(Clone, PartialEq, Message)]
struct ContainerAllocateResponse {
    #[prost(message, repeated, tag = "3")]
    devices: Vec<DeviceSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct DeviceSpec {
    #[prost(string, tag = "2")]
    host_path: String,
}

/// Reads a checkpoint: the allocations of the resources in `namespace`.
pub fn allocations(bytes: &[u8], namespace: &str) -> Result<Vec<Allocation>> {
    let checkpoint: Checkpoint =
        serde_json::from_slice(bytes).context("decoding the kubelet's checkpoint")?;
    let entries = checkpoint.data.pod_device_entries.unwrap_or_default();
    let ours = entries.into_iter().filter(|entry| {
        let prefix = entry
            .resource_name
            .split_once('/')
            .map(|(prefix, _)| prefix);
        prefix == Some(namespace)
    });
    ours.map(Allocation::read).collect()
}

/// Whether the first device ID with this tap in a checkpoint is of a device of the pod with this
/// UID. False also where the text is written in another way than by the kubelet.
///
/// The kubelet writes a pod's UID before its devices, and the list of all devices that it knows at the
/// end. The text alone shows this, in a fraction of the time that decoding takes.
#[must_use]
pub fn is_first_of(text: &[u8], tap: u32, pod_uid: &str) -> bool {
    let text = str::from_utf8(text).unwrap_or_default();
    let before = text
        .split_once(&format!(":{tap}\""))
        .map(|(before, _)| before);
    let entry = before.and_then(|before| before.rsplit_once("\"PodUID\":"));
    entry.is_some_and(|(_, entry)| entry.starts_with(&format!("\"{pod_uid}\",")))
}

impl Allocation {
    /// Whether a device with this tap is among them.
    #[must_use]
    pub fn has_tap(&self, tap: u32) -> bool {
        let is_of = |id: &String| id.parse::<DeviceId>().is_ok_and(|id| id.tap == tap);
        self.taps.contains(&tap) || self.devices.iter().any(is_of)
    }

    fn read(entry: PodDevicesEntry) -> Result<Self> {
        let resource = entry.resource_name;
        let taps = taps(&entry.alloc_resp.unwrap_or_default());
        let taps = taps.with_context(|| format!("decoding an allocation of {resource}"))?;
        let devices = match entry.device_ids {
            Some(DeviceIds::ByNode(nodes)) => nodes.into_values().flatten().flatten().collect(),
            Some(DeviceIds::List(list)) => list.into_iter().collect(),
            None => BTreeSet::new(),
        };
        Ok(Self {
            pod_uid: entry.pod_uid,
            resource,
            devices,
            taps,
        })
    }
}

fn taps(response: &str) -> Result<BTreeSet<u32>> {
    let bytes = STANDARD.decode(response)?;
    let response = ContainerAllocateResponse::decode(&bytes[..])?;
    let numbers = response.devices.iter().filter_map(|device| {
        let number = device.host_path.strip_prefix("/dev/tap")?;
        number.parse().ok()
    });
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NAMESPACE: &str = "macvtap.network.kubevirt.io";

    fn checkpoint(entries: &Value) -> Vec<u8> {
        let data = json!({"PodDeviceEntries": entries, "RegisteredDevices": {}});
        json!({"Data": data, "Checksum": 1})
            .to_string()
            .into_bytes()
    }

    fn response(path: &str) -> String {
        let device = DeviceSpec {
            host_path: path.to_owned(),
        };
        let response = ContainerAllocateResponse {
            devices: vec![device],
        };
        STANDARD.encode(response.encode_to_vec())
    }

    #[test]
    fn reads_our_allocations() {
        let bytes = checkpoint(&json!([
            {"PodUID": "1", "ContainerName": "compute", "ResourceName": format!("{NAMESPACE}/a"),
             "DeviceIDs": {"-1": ["aMvp0"], "0": null}, "AllocResp": response("/dev/tap42")},
            {"PodUID": "1", "ContainerName": "compute", "ResourceName": "example.com/b",
             "DeviceIDs": {"-1": ["b"]}, "AllocResp": response("/dev/tap43")},
            {"PodUID": "2", "ContainerName": "compute", "ResourceName": format!("{NAMESPACE}/c"),
             "DeviceIDs": ["cMvp1"], "AllocResp": response("/dev/net/tun")},
        ]));
        let found = allocations(&bytes, NAMESPACE).unwrap();
        let expected = [("1", "a", "aMvp0", Some(42)), ("2", "c", "cMvp1", None)];
        let expected = expected.map(|(pod, resource, device, tap)| Allocation {
            pod_uid: pod.to_owned(),
            resource: format!("{NAMESPACE}/{resource}"),
            devices: [device.to_owned()].into(),
            taps: tap.into_iter().collect(),
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn the_text_shows_whose_the_first_device_with_a_tap_is() {
        let entry = |pod: &str, tap: u32| {
            let devices = format!(r#"{{"-1":["aMvp0@eth0:bridge:{tap}"]}}"#);
            format!(r#"{{"PodUID":"{pod}","ContainerName":"c","DeviceIDs":{devices}}}"#)
        };
        let entries = [entry("a", 42), entry("b", 420), entry("b", 43)].join(",");
        let registered = r#""RegisteredDevices":{"a":["aMvp0@eth0:bridge:44"]}"#;
        let text = format!(r#"{{"Data":{{"PodDeviceEntries":[{entries}],{registered}}}}}"#);
        for (tap, pod, expected) in [
            (42, "a", true),
            (42, "b", false),
            (42, "", false),
            (43, "b", true),
            (43, "a", false),
            (45, "b", false),
        ] {
            assert_eq!(
                is_first_of(text.as_bytes(), tap, pod),
                expected,
                "{tap} {pod}"
            );
        }
        assert!(!is_first_of(b":42\"", 42, "a"));
    }

    #[test]
    fn an_empty_checkpoint_has_none_and_a_broken_one_is_an_error() {
        let empty = checkpoint(&Value::Null);
        assert!(allocations(&empty, NAMESPACE).unwrap().is_empty());
        for broken in ["", "{}", "[]", r#"{"Data": 1}"#] {
            assert!(allocations(broken.as_bytes(), NAMESPACE).is_err());
        }
        let entry = json!([{"ResourceName": format!("{NAMESPACE}/a"), "AllocResp": "?"}]);
        assert!(allocations(&checkpoint(&entry), NAMESPACE).is_err());
    }
}
