//! The hand-over of a macvtap that exists on the host, for device IDs of kubevirt/macvtap-cni:
//! it is moved into the pod.

use anyhow::anyhow;

use super::{
    attachment::Request,
    config::{Config, Existing},
    error::{CniError, Result, code},
};
use crate::{
    host::tap,
    macvtap::{
        create::check_name_free,
        guard::NewMacvtap,
        take_over::{Move, take_over},
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
    let Existing { id, any } = existing;
    let hashed = original_link_name(id);
    let mut found = host.link_by_name(&hashed)?;
    let mut refused = "";
    if found.is_none() && LinkName::flaw(id).is_none() {
        found = host.link_by_name(id)?;
        if found.is_some() && !is_original(id) && !any {
            refused = "; neither kubevirt/macvtap-cni nor this program made it, so it is taken over \
                       only if the network has \"takeOverByName\": true";
        }
    }
    let text = match found {
        Some(link) if link.is_macvtap() && refused.is_empty() => return Ok(link),
        Some(link) if link.is_macvtap() => {
            format!(
                "device ID {id:?} is the name of macvtap {:?}{refused}",
                link.name
            )
        }
        Some(link) => format!(
            "device ID {id:?} stands for {:?}, a {} interface and no macvtap",
            link.name,
            link.kind_name()
        ),
        None => format!(
            "device ID {id:?} is neither of the form <resource>Mvp<slot>@<lower \
             device>:<mode>:<tap>, nor does its macvtap exist on the host \
             (as {hashed:?} or {id:?}). If kubevirt/macvtap-cni allocated it, \
             it was created once, when the pod was admitted: delete the pod"
        ),
    };
    Err(CniError::new(code::CONFIG, text))
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
