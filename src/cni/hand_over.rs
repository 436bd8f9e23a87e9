//! The hand-over of a macvtap that exists on the host, for device IDs of kubevirt/macvtap-cni:
//! it is moved into the pod.

use anyhow::anyhow;

use super::{
    allocation::{Holder, others_device},
    attachment::Request,
    config::{Config, Existing},
    error::{CniError, Result, code},
};
use crate::{
    host::tap,
    macvtap::{
        create::check_name_free,
        guard::NewMacvtap,
        inventory,
        take_over::{Move, take_over},
        tap_only,
    },
    netlink::{Link, Socket},
    types::{
        device_id::{is_original, original_link_name},
        link_name::LinkName,
    },
};

/// Moves the macvtap that `existing` stands for into the pod, and claims the node of its tap.
pub fn hand_over<'a>(
    host: &mut Socket,
    existing: &Existing,
    request: Request<'a>,
) -> Result<NewMacvtap<'a>> {
    let Request {
        environment,
        config,
        netns,
        ..
    } = request;
    let link = find(host, existing)?;
    match Holder::of_link(&link, config.pod_uid.as_deref()) {
        Holder::Own => {}
        Holder::Other(pod) => return Err(others_device(&existing.id, &pod)),
        Holder::Free | Holder::Unknown(_) => inventory::check_not_open(link.index)?,
    }
    let mut pod = netns.socket()?;
    check_name_free(&mut pod, &environment.ifname)?;
    check_mtu(host, &link, config)?;
    if link.name != existing.id {
        check_index_free(&mut pod, &link)?;
    }
    let to = Move {
        name: &environment.ifname,
        mac: config.mac,
        mtu: config.mtu,
        deadline: request.deadline,
    };
    let moved = take_over(host, &link, netns, &to)?;
    let ((), moved) = moved.attach(|macvtap| {
        if macvtap.claim_node(request.access(macvtap)?)? {
            return Ok(());
        }
        let path = tap::path(macvtap.index());
        Err(anyhow!("{} is not the macvtap's own, or not alone", path.display()).into())
    })?;
    Ok(moved)
}

/// The macvtap that an ID of the original stands for: under its hashed name, or, by versions up
/// to 0.13.1, the ID itself. Any other macvtap of the host may be in use by others.
fn find(host: &mut Socket, existing: &Existing) -> Result<Link> {
    let id = &existing.id;
    let hashed = original_link_name(id);
    let found = match host.link_by_name(&hashed)? {
        None if LinkName::flaw(id).is_none() => host.link_by_name(id)?,
        found => found,
    };
    let text = match found {
        Some(link) => match flaw(&link, existing, link.name == hashed) {
            None => return Ok(link),
            Some(flaw) => format!("device ID {id:?} stands for {flaw}"),
        },
        None => format!(
            "device ID {id:?} is neither of the form <resource>Mvp<slot>@<lower \
             device>:<mode>:<tap>, nor does its macvtap exist on the host \
             (as {hashed:?} or {id:?}). If kubevirt/macvtap-cni allocated it, \
             it was created once, when the pod was admitted: delete the pod"
        ),
    };
    Err(CniError::new(code::CONFIG, text))
}

/// Why a link of the host is not taken over.
fn flaw(link: &Link, existing: &Existing, is_hashed: bool) -> Option<String> {
    let (name, kind) = (&link.name, link.kind_name());
    if !link.is_macvtap() {
        return Some(format!("{name:?}, a {kind} interface and no macvtap"));
    }
    if tap_only::is_candidate(link) {
        return Some(format!(
            "macvtap {name:?}, which the device plugin made for a pod that uses the tap alone"
        ));
    }
    let is_ours = is_hashed || is_original(&existing.id) || existing.any;
    (!is_ours).then(|| {
        format!(
            "macvtap {name:?}; neither kubevirt/macvtap-cni nor this program made it, so it is \
             taken over only if the network has \"takeOverByName\": true"
        )
    })
}

fn check_mtu(host: &mut Socket, link: &Link, config: &Config) -> Result<()> {
    // An index that counts in another netns means nothing here.
    let below = link
        .lower_here()
        .map(|index| host.link(index))
        .transpose()?
        .flatten();
    below.map_or(Ok(()), |below| config.check_mtu(&below))
}

/// The kernel gives the macvtap another index if its own is taken in the pod, and
/// with it the tap another name than the one that was allocated.
fn check_index_free(pod: &mut Socket, link: &Link) -> Result<()> {
    let Some(other) = pod.link(link.index)? else {
        return Ok(());
    };
    let text = format!(
        "interface index {} of macvtap {:?} is taken in the pod by {:?}, so \
         {} would get another name than the pod was given; delete the pod",
        link.index,
        link.name,
        other.name,
        tap::path(link.index).display()
    );
    Err(CniError::new(code::INTERNAL, text))
}
