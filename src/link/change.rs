//! `link add`, `delete` and `set`: macvtaps only, whatever else has the name.

use std::{os::fd::AsFd, path::Path};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cli::{LinkChange, Switch},
    host::{netns::Netns, stdout::print, tap},
    netlink::{Change, Create, Link, Socket},
    types::mode::Mode,
};

/// Makes a macvtap on a lower device, in a mode, with a tap of this number.
pub fn add(name: &str, on: (&str, Mode, Option<u32>), wanted: &LinkChange) -> Result<()> {
    let (lower, mode, index) = on;
    let mut socket = Socket::open()?;
    let netns = netns(wanted.netns.as_deref())?;
    let lower_link = socket.link_by_name(lower)?;
    let lower_link =
        lower_link.with_context(|| format!("lower device {lower:?} does not exist"))?;
    if let Some(number) = index {
        let free = tap::devices(number)?.is_empty();
        ensure!(free, "the machine has a tap {number} already");
    }
    let create = Create {
        name,
        index,
        lower: lower_link.index,
        mode,
        mac: wanted.mac,
        mtu: wanted.mtu,
        queue_length: tap::queue_length(&lower_link),
        group: 0,
        netns: netns.as_ref().map(AsFd::as_fd),
    };
    let outcome = socket.create(&create);
    outcome.with_context(|| format!("making macvtap {name:?} on {lower:?}"))?;
    let mut there = socket_in(netns.as_ref())?;
    let link = find(&mut there, name)?;
    let change = change(
        None,
        &LinkChange {
            mac: None,
            mtu: None,
            ..wanted.clone()
        },
    );
    if let Err(error) = there.change(link.index, &change) {
        there.delete(link.index)?;
        return Err(error.context(format!("setting macvtap {name:?}")));
    }
    print(&format!("{}\n", tap::path(link.index).display()))
}

/// Deletes a macvtap.
pub fn delete(name: &str, path: Option<&Path>) -> Result<()> {
    let mut socket = socket_in(netns(path)?.as_ref())?;
    let link = find(&mut socket, name)?;
    let deleted = socket.delete(link.index);
    deleted.with_context(|| format!("deleting macvtap {name:?}"))?;
    tap::remove_stale(link.index)?;
    Ok(())
}

/// Changes a macvtap.
pub fn set(name: &str, mode: Option<Mode>, wanted: &LinkChange) -> Result<()> {
    let mut socket = socket_in(netns(wanted.netns.as_deref())?.as_ref())?;
    let link = find(&mut socket, name)?;
    let changed = socket.change(link.index, &change(mode, wanted));
    changed.with_context(|| format!("changing macvtap {name:?}"))
}

fn change(mode: Option<Mode>, wanted: &LinkChange) -> Change<'static> {
    let on = |switch: Option<Switch>| switch.map(|switch| switch == Switch::On);
    Change {
        mac: wanted.mac,
        mtu: wanted.mtu,
        mode,
        up: on(wanted.up),
        promiscuous: on(wanted.promisc_mode),
        all_multicast: on(wanted.all_multicast),
        ..Change::default()
    }
}

fn netns(path: Option<&Path>) -> Result<Option<Netns>> {
    let Some(path) = path else { return Ok(None) };
    let netns = Netns::open(path)?;
    let netns = netns.with_context(|| format!("netns {} does not exist", path.display()))?;
    Ok(Some(netns))
}

fn socket_in(netns: Option<&Netns>) -> Result<Socket> {
    netns.map_or_else(Socket::open, Netns::socket)
}

fn find(socket: &mut Socket, name: &str) -> Result<Link> {
    let link = socket.link_by_name(name)?;
    match link.with_context(|| format!("there is no interface {name:?}"))? {
        link if link.is_macvtap() => Ok(link),
        link => {
            let kind = link.kind.as_deref().unwrap_or("physical");
            bail!("{name:?} is a {kind} interface and no macvtap")
        }
    }
}
