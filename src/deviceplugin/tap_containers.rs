//! Which containers have which taps, by the kubelet and by the container runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};

use super::{
    grpc::pod_resources::{
        self,
        api::{ContainerDevices, ListPodResourcesResponse},
    },
    status,
};
use crate::{
    host::files,
    types::{
        checkpoint::{self, Allocation},
        device_id::{DeviceId, NAMESPACE, is_original},
        status::ContainerName,
    },
};

/// By tap, the container that has it, as far as the kubelet of this directory and the device
/// plugin can be queried.
#[must_use]
pub fn by_tap(kubelet_dir: &Path) -> BTreeMap<u32, ContainerName> {
    let by_kubelet = allocated(kubelet_dir).unwrap_or_default();
    let nri = status::query(kubelet_dir)
        .ok()
        .and_then(|status| status.nri);
    let mut containers = nri.map(|nri| nri.taps).unwrap_or_default();
    containers.extend(by_kubelet);
    containers
}

/// Namespace and name of the pods in an answer of the kubelet.
#[must_use]
pub fn pods_in(answer: &ListPodResourcesResponse) -> BTreeSet<String> {
    let pods = answer.pod_resources.iter();
    pods.map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect()
}

fn allocated(kubelet_dir: &Path) -> Result<BTreeMap<u32, ContainerName>> {
    let socket = pod_resources::socket(kubelet_dir);
    let socket = socket.context("the kubelet has no socket for pod resources")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(pod_resources::list(socket))?;
    // What cannot be read tells of no tap.
    let checkpoint = files::read(&kubelet_dir.join(checkpoint::FILE)).unwrap_or_default();
    let allocations = checkpoint::allocations(&checkpoint, NAMESPACE).unwrap_or_default();
    Ok(in_answer(&answer, &allocations))
}

/// The same by an answer of the kubelet, and the allocations in its checkpoint.
#[must_use]
pub fn in_answer(
    answer: &ListPodResourcesResponse,
    allocations: &[Allocation],
) -> BTreeMap<u32, ContainerName> {
    let pods = answer.pod_resources.iter();
    let containers = pods.flat_map(|pod| pod.containers.iter().map(move |each| (pod, each)));
    let taps = containers.flat_map(|(pod, container)| {
        let devices = container.devices.iter();
        let taps = devices.flat_map(|devices| taps(devices, allocations));
        taps.map(move |tap| {
            let name = ContainerName {
                pod: format!("{}/{}", pod.namespace, pod.name),
                container: container.name.clone(),
            };
            (tap, name)
        })
    });
    taps.collect()
}

/// The taps of a container's devices. A device ID of kubevirt/macvtap-cni does not say which it is:
/// the checkpoint has what that answered.
fn taps(devices: &ContainerDevices, allocations: &[Allocation]) -> BTreeSet<u32> {
    let ids = devices.device_ids.iter();
    let ours = ids.filter_map(|id| Some(id.parse::<DeviceId>().ok()?.tap));
    let is_of_original = |allocation: &&Allocation| {
        let mut ids = devices.device_ids.iter().filter(|id| is_original(id));
        allocation.resource == devices.resource_name
            && ids.any(|id| allocation.devices.contains(id))
    };
    let originals = allocations.iter().filter(is_of_original);
    ours.chain(originals.flat_map(|allocation| allocation.taps.iter().copied()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deviceplugin::grpc::pod_resources::api::{ContainerResources, PodResources};

    #[test]
    fn taps_are_those_of_device_ids_and_of_the_checkpoint() {
        let resource = format!("{NAMESPACE}/a");
        let devices = |name: &str, ids: &[&str]| ContainerDevices {
            resource_name: name.to_owned(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let pod = |name: &str, devices| PodResources {
            name: name.to_owned(),
            namespace: "vms".to_owned(),
            containers: vec![ContainerResources {
                name: "compute".to_owned(),
                devices: vec![devices],
            }],
        };
        let answer = ListPodResourcesResponse {
            pod_resources: vec![
                pod("new", devices(&resource, &["aMvp0@eth0:bridge:16777300"])),
                pod("old", devices(&resource, &["aMvp12"])),
                pod("other", devices("example.com/a", &["aMvp12", "aMvp13"])),
            ],
        };
        let allocation = |id: &str, tap| Allocation {
            pod_uid: "1".to_owned(),
            resource: resource.clone(),
            devices: [id.to_owned()].into(),
            taps: [tap].into(),
        };
        let allocations = [allocation("aMvp12", 42), allocation("aMvp13", 43)];
        let taps = in_answer(&answer, &allocations).into_iter();
        let taps: Vec<(u32, String)> = taps.map(|(tap, name)| (tap, name.pod)).collect();
        let expected = [
            (42, "vms/old".to_owned()),
            (16_777_300, "vms/new".to_owned()),
        ];
        assert_eq!(taps, expected);
    }
}
