//! `link add`, `delete` and `set`: macvtaps only, whatever else has the name.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail, ensure};
use nix::errno::Errno;

use crate::{
    cli::{self, LinkChange, Rates, Switch},
    host::{devnode, netns::Netns, stdout::print, tap},
    macvtap::{
        bandwidth::Limit,
        create::{Spec, create},
        guard::{NewMacvtap, Settings},
        inventory::{Inventory, Macvtap},
        lower::{LowerDevice, Reason},
        shaping,
    },
    netlink::{Change, Link, NetlinkError, Socket},
    types::{errors::together, mode::Mode, port_options::NO_OPTIONS},
};

/// How long a MAC that is in use is waited for.
const MAC_TIMEOUT: Duration = Duration::from_secs(2);

/// Creates a macvtap on a lower device.
pub fn add(options: &cli::Add) -> Result<()> {
    let wanted = &options.change;
    let mut host = Socket::open()?;
    let netns = netns(wanted.netns.as_deref())?;
    let lower = lower(&mut host, options)?;
    let spec = Spec {
        name: &options.name,
        index: Some(free_tap(options)?),
        lower: &lower,
        mode: options.mode,
        mac: wanted.mac,
        mtu: wanted.mtu,
        group: 0,
        options: &NO_OPTIONS,
    };
    let created = create(&mut host, netns.as_ref(), &spec)?;
    let ((), macvtap) = created.attach(|macvtap| {
        macvtap.prepare(Settings {
            host_stack: true,
            promiscuous: is_on(wanted.promisc_mode),
            all_multicast: is_on(wanted.all_multicast),
        })?;
        match wanted.up {
            Some(Switch::On) => macvtap.set_up(None, None, Instant::now() + MAC_TIMEOUT),
            _ => Ok(()),
        }
    })?;
    report(macvtap)
}

/// The number of the tap. One that the kernel chooses is free in the network namespace alone, and
/// the node of that name may be another macvtap's.
fn free_tap(options: &cli::Add) -> Result<u32> {
    let Some(number) = options.tap else {
        return tap::free_number(&format!("{}-{}", options.name, std::process::id()));
    };
    let free = tap::devices(number)?.is_empty();
    ensure!(free, "tap {number} exists already on this machine");
    Ok(number)
}

/// The lower device, if the kernel could create the macvtap on it. It may be down.
fn lower(host: &mut Socket, options: &cli::Add) -> Result<LowerDevice> {
    let name = &options.lower_device;
    let lower = LowerDevice::find(host, name)?;
    if let Some(reason @ Reason::NotEthernet) = lower.ineligible() {
        bail!("lower device {name:?} {reason}");
    }
    let highest = lower.link.mtu;
    if let Some(mtu) = options.change.mtu.filter(|mtu| *mtu > highest) {
        bail!("MTU {mtu} is larger than that of lower device {name:?}, {highest}");
    }
    Ok(lower)
}

fn report(macvtap: NewMacvtap<'_>) -> Result<()> {
    let path = tap::path(macvtap.index());
    macvtap.keep();
    print(&format!("{}\n", path.display()))
}

/// Deletes macvtaps. Continues after a failure, and reports all.
pub fn delete(names: &[String], path: Option<&Path>) -> Result<()> {
    let mut socket = socket_in(netns(path)?.as_ref())?;
    let deleted = names.iter().map(|name| delete_one(&mut socket, name));
    let failures: Vec<Error> = deleted.filter_map(Result::err).collect();
    together(&failures)
}

fn delete_one(socket: &mut Socket, name: &str) -> Result<()> {
    let link = find(socket, name)?;
    let deleted = socket.delete(link.index);
    deleted.with_context(|| format!("deleting macvtap {name:?}"))?;
    devnode::remove_stale(link.index)?;
    Ok(())
}

/// Changes a macvtap.
pub fn set(name: &str, with: (Option<Mode>, &Rates), wanted: &LinkChange) -> Result<()> {
    let (mode, rates) = with;
    let mut socket = socket_in(netns(wanted.netns.as_deref())?.as_ref())?;
    let link = find(&mut socket, name)?;
    // macvlan_changelink of drivers/net/macvlan.c.
    let alone = link.mode.is_some_and(Mode::is_alone);
    ensure!(
        mode.is_none_or(|mode| mode.is_alone() == alone),
        "changing macvtap {name:?}: passthru mode cannot be entered or left; delete the macvtap \
         and create it again"
    );
    let on = |switch: Option<Switch>| switch.map(|switch| switch == Switch::On);
    let change = Change {
        mac: wanted.mac,
        mtu: wanted.mtu,
        mode,
        up: on(wanted.up),
        promiscuous: on(wanted.promisc_mode),
        all_multicast: on(wanted.all_multicast),
        ..Change::default()
    };
    let changed = socket.change(link.index, &change);
    changed.map_err(|error| explain(error, name, wanted))?;
    set_rates(&mut socket, &link, rates)
}

/// Says what the kernel's refusal means.
fn explain(error: NetlinkError, name: &str, wanted: &LinkChange) -> Error {
    let reason = match (error.errno(), wanted.mtu) {
        (Some(Errno::EINVAL), Some(mtu)) if error.text().is_none() => {
            Some(format!("MTU {mtu} is larger than that of the lower device"))
        }
        (Some(Errno::EADDRINUSE | Errno::EBUSY), _) => Some(
            "the MAC is in use on the lower device, by the device itself or by another macvtap \
             or macvlan on it"
                .to_owned(),
        ),
        _ => None,
    };
    let error = Error::new(error);
    let error = match reason {
        Some(reason) => error.context(reason),
        None => error,
    };
    error.context(format!("changing macvtap {name:?}"))
}

/// Changes the rates that are given. What waits goes on waiting.
fn set_rates(socket: &mut Socket, link: &Link, rates: &Rates) -> Result<()> {
    let limit = |rate| (rate > 0).then_some(Limit { rate, burst: None });
    if let Some(rate) = rates.egress_rate.or(rates.rate) {
        shaping::shape_egress(socket, link, limit(rate))?;
    }
    if let Some(rate) = rates.ingress_rate.or(rates.rate) {
        shaping::shape_ingress(socket, link, limit(rate))?;
    }
    Ok(())
}

/// Says that there is no such interface here, and where a macvtap has that name or number.
fn absent(name: &str) -> String {
    let text = format!("there is no interface {name:?} in this network namespace");
    let found = Inventory::new().map(|inventory| inventory.macvtaps);
    let named =
        |macvtap: &Macvtap| macvtap.link.name == name || macvtap.link.index.to_string() == name;
    let mut others = found.into_iter().flatten().filter(named);
    match others.next() {
        Some(Macvtap { link, netns, .. }) if !netns.is_empty() => {
            format!("{text}; {:?} is in netns {netns}: use --netns", link.name)
        }
        Some(Macvtap { link, .. }) => {
            format!("{text}; {:?} is in that of this process", link.name)
        }
        None => text,
    }
}

fn is_on(switch: Option<Switch>) -> bool {
    switch == Some(Switch::On)
}

fn netns(path: Option<&Path>) -> Result<Option<Netns>> {
    let Some(path) = path else { return Ok(None) };
    let netns = Netns::open(path)?;
    let netns = netns.with_context(|| format!("netns {} does not exist", path.display()))?;
    Ok(Some(netns))
}

fn socket_in(netns: Option<&Netns>) -> Result<Socket> {
    match netns {
        Some(netns) => netns.socket(),
        None => Ok(Socket::open()?),
    }
}

fn find(socket: &mut Socket, name: &str) -> Result<Link> {
    let link = socket.link_by_name(name)?;
    match link.with_context(|| absent(name))? {
        link if link.is_macvtap() => Ok(link),
        link => bail!(
            "{name:?} is a {} interface, not a macvtap",
            link.kind_name()
        ),
    }
}
