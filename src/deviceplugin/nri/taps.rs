//! The taps of a pod, as the kernel knows them.

use anyhow::{Context, Result};

use super::container::Tap;
use crate::{
    host::{netns::Netns, tap},
    learning::path_in_container,
    netlink::Link,
    types::{
        device_id::{STANDALONE_TAPS, standalone_taps},
        device_number::DeviceNumber,
    },
};

/// The taps of the pod with this UID and the network namespace at `netns`.
///
/// The numbers of a pod's taps derive from its UID and the interfaces, so that the network
/// namespace of a pod without taps need not be opened.
pub fn of_pod(uid: &str, netns: &str) -> Result<Vec<Tap>> {
    let candidates = candidates(uid)?;
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let path = path_in_container(netns);
    let shown = path.display();
    let netns = Netns::open(&path)?;
    let netns = netns.with_context(|| format!("the pod's network namespace {shown} is gone"))?;
    let links = netns.socket()?.links().context("listing the pod's links")?;
    let macvtaps = links.iter().filter(|link| Link::is_macvtap(link));
    let indexes: Vec<u32> = macvtaps.map(|link| link.index).collect();
    let of_pod = candidates
        .into_iter()
        .filter(|(number, _)| indexes.contains(number));
    let taps = of_pod.map(|(number, device)| Tap {
        path: tap::path(number).to_string_lossy().into_owned(),
        device,
    });
    Ok(taps.collect())
}

/// Those of the machine's taps whose number and interface a pod may have.
fn candidates(uid: &str) -> Result<Vec<(u32, DeviceNumber)>> {
    let mut candidates = Vec::new();
    for (number, devices) in tap::by_number()? {
        if !STANDALONE_TAPS.contains(&number) {
            continue;
        }
        for device in devices {
            let tap = tap::of(device)?;
            let of_pod =
                |tap: tap::Tap| standalone_taps(uid, &tap.interface).any(|own| own == number);
            if tap.is_some_and(of_pod) {
                candidates.push((number, device));
            }
        }
    }
    Ok(candidates)
}
