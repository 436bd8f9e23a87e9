//! How a macvtap that exists on the host comes into a pod.

use std::{os::fd::AsFd, time::Instant};

use anyhow::Context;

use super::{
    error::AttachError,
    guard::{NewMacvtap, Place, Undo, is_mac_in_use, mac_in_use, pause},
    origin::Origin,
};
use crate::{
    host::netns::Netns,
    netlink::{Change, Link, Socket},
    types::mac::MacAddr,
};

/// What changes with the move.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// The name in the pod.
    pub name: &'a str,
    /// The hardware address; as it is if none.
    pub mac: Option<MacAddr>,
    /// The MTU in bytes; as it is if none.
    pub mtu: Option<u32>,
    /// Until when a MAC that is in use is waited for.
    pub deadline: Instant,
}

/// Moves the macvtap `link` of `host`, our own network namespace, into `netns`, where it is down.
/// After a failure it is put back.
pub fn take_over<'a>(
    host: &mut Socket,
    link: &Link,
    netns: &'a Netns,
    to: &Move<'_>,
) -> Result<NewMacvtap<'a>, AttachError> {
    let place = Place::open(Some(netns))?;
    let undo = Undo::Restore(Box::new(Origin::of(host, link, to.mac)?));
    let change = Change {
        netns: Some(netns.as_fd()),
        name: Some(to.name),
        mac: to.mac,
        mtu: to.mtu,
        // Up in the host's netns, it would come up in the pod with IPv6.
        up: Some(false),
        ..Change::default()
    };
    let moved = claim_mac(host, link, to).and_then(|()| Ok(host.change(link.index, &change)?));
    match moved.and_then(|()| place_of(netns, to.name)) {
        Ok(index) => Ok(NewMacvtap::new(place, to.name, index, undo).in_mode(link.mode)),
        Err(error) => {
            let error = error.context(format!("moving macvtap {:?} into the pod", link.name));
            Err(NewMacvtap::new(place, to.name, link.index, undo).undo(error))
        }
    }
}

/// Gives it its MAC before it is moved, if it is up: then the kernel says whether that is free on
/// the lower device, while nothing is lost yet. The former user may be going away.
fn claim_mac(host: &mut Socket, link: &Link, to: &Move<'_>) -> Result<(), AttachError> {
    let Some(mac) = to.mac.filter(|mac| link.up && link.mac != Some(*mac)) else {
        return Ok(());
    };
    let change = Change {
        mac: Some(mac),
        ..Change::default()
    };
    let with_mac = Link {
        mac: Some(mac),
        ..link.clone()
    };
    loop {
        match host.change(link.index, &change) {
            Err(error) if is_mac_in_use(&error) => pause(to.deadline, || mac_in_use(&with_mac))?,
            changed => return Ok(changed?),
        }
    }
}

/// The index that the kernel gave it there.
fn place_of(netns: &Netns, name: &str) -> Result<u32, AttachError> {
    let moved = netns.socket()?.link_by_name(name)?;
    Ok(moved
        .context("the macvtap is not where it was moved to")?
        .index)
}
