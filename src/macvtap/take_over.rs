//! How a macvtap that exists on the host comes into a pod.

use std::os::fd::AsFd;

use anyhow::Context;

use super::{
    error::AttachError,
    guard::{NewMacvtap, Place, Undo},
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
}

/// Moves the macvtap `link` of `host`, our own network namespace, into `netns`, where it is down.
/// What fails is moved back.
pub fn take_over<'a>(
    host: &mut Socket,
    link: &Link,
    netns: &'a Netns,
    to: &Move<'_>,
) -> Result<NewMacvtap<'a>, AttachError> {
    let place = Place::open(Some(netns))?;
    // By now: where a thread does not come back from a pod's netns, it is not the host's.
    let undo = Undo::MoveBack(Netns::current()?, Box::new(link.clone()));
    let change = Change {
        netns: Some(netns.as_fd()),
        name: Some(to.name),
        mac: to.mac,
        mtu: to.mtu,
        // Up in the host's netns, it would come up in the pod with IPv6.
        up: Some(false),
        ..Change::default()
    };
    let moved = host.change(link.index, &change);
    let index = match moved {
        Ok(()) => place_of(netns, to.name),
        Err(error) => Err(AttachError::from(error)),
    };
    match index {
        Ok(index) => Ok(NewMacvtap::new(place, to.name, index, undo).in_mode(link.mode)),
        Err(error) => {
            let error = error.context(format!("moving macvtap {:?} into the pod", link.name));
            Err(NewMacvtap::new(place, to.name, link.index, undo).undo(error))
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
