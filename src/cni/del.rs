//! DEL: removes the attachment as far as there is one. What is gone already is no error.

use anyhow::Result;
use log::{info, warn};
use serde_json::Value;

use super::{Call, config};
use crate::{
    host::{netns::Netns, tap},
    netlink::{Link, Socket},
    types::{
        device_id::{self, DeviceId},
        errors::together,
    },
};

/// Removes the interface and, where nobody else does, the tap's node.
///
/// Goes on after a failure, and reports all of them.
pub fn del(call: &Call<'_>, json: &Value, netns: Option<&Netns>) -> Result<()> {
    let id = config::device_id(json);
    let mut failures = Vec::new();
    let mut taps: Vec<u32> = id
        .and_then(|id| id.parse().ok())
        .map(|id: DeviceId| id.tap)
        .into_iter()
        .collect();
    if let Some(netns) = netns {
        let mut pod = netns.socket()?;
        for name in names(&call.environment.ifname, id) {
            match delete(&mut pod, &name) {
                Ok(number) => taps.extend(number),
                Err(error) => failures.push(error.context(format!("deleting {name:?}"))),
            }
        }
    } else {
        info!("the netns is gone, and with it the interface");
    }
    taps.dedup();
    for number in taps {
        match tap::remove_stale(number) {
            Ok(true) => info!("removed the node of tap={number}"),
            Ok(false) => {}
            Err(error) => failures.push(error.context("removing the tap's node")),
        }
    }
    together(&failures)
}

/// Where the interface may be: under its name or, if ADD was stopped in the
/// middle of a hand-over, under the one that it had on the host.
fn names(ifname: &str, id: Option<&str>) -> Vec<String> {
    let mut names = vec![ifname.to_owned()];
    if let Some(id) = id.filter(|id| !id.contains('@')) {
        names.push(device_id::original_link_name(id));
        if device_id::check_link_name(id).is_ok() {
            names.push(id.to_owned());
        }
    }
    names
}

/// Deletes the macvtap with this name, and tells the number of its tap.
fn delete(pod: &mut Socket, name: &str) -> Result<Option<u32>> {
    let Some(link) = pod.link_by_name(name)? else {
        return Ok(None);
    };
    if !link.is_macvtap() {
        warn!("{name:?} is no macvtap and not ours to delete");
        return Ok(None);
    }
    let Link { index, .. } = link;
    if pod.delete(index)? {
        info!("detached tap={index}");
    }
    Ok(Some(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_under_the_original_names_only_for_the_originals_ids() {
        assert_eq!(names("net1", None), ["net1"]);
        assert_eq!(names("net1", Some("aMvp0@eth0:bridge:16777301")), ["net1"]);
        let original = names("net1", Some("eth0Mvp0"));
        assert_eq!(original, ["net1", "mvtf2644cc3624e", "eth0Mvp0"]);
    }
}
