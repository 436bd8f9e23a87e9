//! Which containers have which taps, by the kubelet and by the container runtime.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};

use super::{
    grpc::pod_resources::{self, api::ListPodResourcesResponse},
    status,
};
use crate::types::{device_id::DeviceId, status::ContainerName};

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

fn allocated(kubelet_dir: &Path) -> Result<BTreeMap<u32, ContainerName>> {
    let socket = pod_resources::socket(kubelet_dir);
    let socket = socket.context("the kubelet has no socket for pod resources")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(in_answer(&runtime.block_on(pod_resources::list(socket))?))
}

fn in_answer(answer: &ListPodResourcesResponse) -> BTreeMap<u32, ContainerName> {
    let pods = answer.pod_resources.iter();
    let containers = pods.flat_map(|pod| pod.containers.iter().map(move |each| (pod, each)));
    let taps = containers.flat_map(|(pod, container)| {
        let ids = container.devices.iter().flat_map(|each| &each.device_ids);
        let devices = ids.filter_map(|id| id.parse::<DeviceId>().ok());
        devices.map(move |device| {
            let name = ContainerName {
                pod: format!("{}/{}", pod.namespace, pod.name),
                container: container.name.clone(),
            };
            (device.tap, name)
        })
    });
    taps.collect()
}
