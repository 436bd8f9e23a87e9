//! The taps of a pod, as the kernel knows them.

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result};

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

/// Why the taps of a pod cannot be given.
#[derive(Debug)]
pub enum TapsError {
    /// The pod has taps: a container without them would not work.
    OfPod(Error),
    /// Whether the pod has any is not known. Most pods have none.
    Unknown(Error),
}

/// The taps of the pod with this UID and the network namespace at `netns`.
///
/// The numbers of a pod's taps derive from its UID and the interfaces, so that the network
/// namespace of a pod without taps need not be opened.
pub fn of_pod(uid: &str, netns: &str) -> Result<Vec<Tap>, TapsError> {
    let (candidates, error) = candidates(uid);
    if candidates.is_empty() && error.is_none() {
        return Ok(Vec::new());
    }
    match (own_numbers(uid, netns), error) {
        (Ok(own), error) => taps(&own, &candidates, error),
        (Err(_), Some(error)) if candidates.is_empty() => Err(TapsError::Unknown(error)),
        (Err(error), _) => Err(TapsError::OfPod(error)),
    }
}

/// The taps with these numbers; `error` is why candidates may be missing.
fn taps(
    own: &[u32],
    candidates: &[(u32, DeviceNumber)],
    error: Option<Error>,
) -> Result<Vec<Tap>, TapsError> {
    let found: Vec<_> = candidates
        .iter()
        .filter(|(number, _)| own.contains(number))
        .collect();
    match error {
        Some(error) if found.len() < own.len() => Err(TapsError::OfPod(error)),
        _ => Ok(found
            .into_iter()
            .map(|(number, device)| Tap {
                path: tap::path(*number).to_string_lossy().into_owned(),
                device: *device,
            })
            .collect()),
    }
}

/// The numbers of the taps that the macvtaps of a pod have.
fn own_numbers(uid: &str, netns: &str) -> Result<Vec<u32>> {
    let path = path_in_container(netns);
    let shown = path.display();
    let netns = Netns::open(&path)?;
    let netns = netns.with_context(|| format!("the pod's network namespace {shown} is gone"))?;
    let links = netns.socket()?.links().context("listing the pod's links")?;
    let macvtaps = links.iter().filter(|link| Link::is_macvtap(link));
    let own = macvtaps.filter(|link| is_of_pod(uid, &link.name, link.index));
    Ok(own.map(|link| link.index).collect())
}

fn is_of_pod(uid: &str, interface: &str, number: u32) -> bool {
    standalone_taps(uid, interface).any(|own| own == number)
}

/// Those of the machine's taps whose number and interface a pod may have; why some may be missing.
fn candidates(uid: &str) -> (Vec<(u32, DeviceNumber)>, Option<Error>) {
    let (mut candidates, mut error) = (Vec::new(), None);
    let taps = tap::by_number().unwrap_or_else(|failed| {
        error = Some(failed);
        BTreeMap::new()
    });
    let taps = taps
        .into_iter()
        .filter(|(number, _)| STANDALONE_TAPS.contains(number));
    for (number, devices) in taps {
        for device in devices {
            match tap::of(device) {
                Ok(Some(tap)) if is_of_pod(uid, &tap.interface, number) => {
                    candidates.push((number, device));
                }
                Ok(_) => {}
                Err(failed) => error = Some(failed),
            }
        }
    }
    (candidates, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_cannot_be_read_fails_its_pod_alone() {
        let device = |minor| DeviceNumber { major: 240, minor };
        let candidates = [(7, device(1)), (8, device(2))];
        let error = || Some(Error::msg("too many open files"));
        let paths = |taps: Vec<Tap>| taps.into_iter().map(|tap| tap.path).collect::<Vec<_>>();
        let found = taps(&[8], &candidates, error()).unwrap();
        assert_eq!(paths(found), ["/dev/tap8"]);
        assert!(taps(&[], &[], error()).unwrap().is_empty());
        let missing = taps(&[8, 9], &candidates, error());
        assert!(matches!(missing, Err(TapsError::OfPod(_))));
        assert_eq!(taps(&[8, 9], &candidates, None).unwrap().len(), 1);
    }
}
