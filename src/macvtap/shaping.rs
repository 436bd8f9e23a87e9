//! The rates of an attachment in force: token buckets in its pod's network namespace.
//!
//! What a guest sends waits in the interface's own queue. What it receives goes by an `ifb`
//! device beside the interface, in whose queue it waits, and which gives it back.

use anyhow::{Context, Result};

use nix::errno::Errno;

use super::bandwidth::{Bandwidth, Limit, RATES};
use crate::{
    host::netns::Netns,
    netlink::{Change, Link, NetlinkError, Qdisc, Socket, Tbf},
};

/// What an `ifb` device's index is above that of its interface: out of the way of every tap.
const IFB_INDEX: u32 = 1 << 30;

/// Puts `bandwidth` in force for the interface `link` of the socket's network namespace: a rate
/// that is there is changed, or removed.
pub fn shape(pod: &mut Socket, link: &Link, bandwidth: &Bandwidth) -> Result<()> {
    shape_egress(pod, link, bandwidth.egress)?;
    shape_ingress(pod, link, bandwidth.ingress)
}

/// Limits what the guest sends, or no longer.
pub fn shape_egress(pod: &mut Socket, link: &Link, limit: Option<Limit>) -> Result<()> {
    let sent = match limit {
        Some(limit) => pod.set_rate(link.index, &limit.from_guest(link.mtu)),
        None => pod.delete_rate(link.index).map(|_| ()),
    };
    sent.context("limiting what the guest sends, by the kernel's sch_tbf")
}

/// Limits what the guest receives, or no longer.
pub fn shape_ingress(pod: &mut Socket, link: &Link, limit: Option<Limit>) -> Result<()> {
    let received = match limit {
        Some(limit) => limit_received(pod, link.index, &limit.to_guest(link.mtu)),
        None => remove_ifb(pod, link.index),
    };
    received.context(
        "limiting what the guest receives, by the kernel's ifb, sch_tbf, cls_u32 and act_mirred",
    )
}

/// The limits in force for the interface with this index, by the queueing disciplines of its
/// network namespace: of what the guest receives, and of what it sends.
#[must_use]
pub fn shapes(qdiscs: &[Qdisc], index: u32) -> [Option<&Qdisc>; 2] {
    [index + IFB_INDEX, index].map(|index| {
        let of_device = |qdisc: &&Qdisc| qdisc.index == index && qdisc.tbf.is_some();
        qdiscs.iter().find(of_device)
    })
}

/// Whether `bandwidth` is in force for the interface `link`.
pub fn is_shaped(pod: &mut Socket, link: &Link, bandwidth: &Bandwidth) -> Result<bool> {
    let qdiscs = pod.qdiscs()?;
    let [received, sent] = shapes(&qdiscs, link.index).map(|qdisc| qdisc.and_then(|one| one.tbf));
    let redirected = bandwidth.ingress.is_none() || pod.redirects_ingress(link.index)?;
    let is = |found: Option<Tbf>, wanted: Option<Limit>| match (found, wanted) {
        (Some(found), Some(wanted)) => wanted.is(&found, link.mtu),
        (found, wanted) => found.is_none() && wanted.is_none(),
    };
    Ok(redirected && is(received, bandwidth.ingress) && is(sent, bandwidth.egress))
}

/// Removes the `ifb` device of the interface with this index, if there is one. What it gave back
/// then comes straight.
pub fn remove_ifb(pod: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    if let Some(ifb) = find_ifb(pod, index)? {
        pod.stop_redirecting(index)?;
        pod.delete(ifb)?;
    }
    Ok(())
}

/// Deletes the interface with this index and its `ifb` device, if there is one. False if there is
/// no such interface.
///
/// The kernel takes 20 ms to delete a link, and as long to delete a group of links; so both get a
/// group of their own.
pub fn delete_with_ifb(pod: &mut Socket, index: u32) -> Result<bool, NetlinkError> {
    let Some(ifb) = find_ifb(pod, index)? else {
        return pod.delete(index);
    };
    let own = Change {
        group: Some(ifb),
        ..Change::default()
    };
    pod.change(ifb, &own)?;
    match pod.change(index, &own) {
        Err(error) if error.errno() == Some(Errno::ENODEV) => {}
        other => other?,
    }
    pod.delete_group(ifb).map(|()| true)
}

/// The index of the `ifb` device of the interface with this index, if there is one.
fn find_ifb(pod: &mut Socket, index: u32) -> Result<Option<u32>, NetlinkError> {
    let ifb = pod.link_by_name(&ifb_name(index))?;
    let is_ours =
        |link: &Link| link.kind.as_deref() == Some("ifb") && link.index == index + IFB_INDEX;
    Ok(ifb.filter(is_ours).map(|link| link.index))
}

fn limit_received(pod: &mut Socket, index: u32, tbf: &Tbf) -> Result<(), NetlinkError> {
    let ifb = index + IFB_INDEX;
    let is_new = match pod.create_ifb(&ifb_name(index), ifb) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => false,
        other => other.map(|()| true)?,
    };
    // On a device that is down this costs nothing: it has no queue that has to run empty.
    pod.set_rate(ifb, tbf)?;
    if is_new {
        pod.set_up_without_addresses(ifb)?;
    }
    if is_new || !pod.redirects_ingress(index)? {
        pod.add_clsact(index)?;
        pod.redirect_ingress(index, ifb)?;
    }
    Ok(())
}

/// Fails if this kernel cannot limit rates. Tried out in a network namespace that is made for it.
pub fn probe() -> Result<()> {
    let netns = Netns::create()?;
    let mut socket = netns.socket()?;
    let lo = socket.link_by_name("lo")?.context("a netns without lo")?;
    let limit = Limit {
        rate: *RATES.end(),
        burst: None,
    };
    let bandwidth = Bandwidth {
        ingress: Some(limit),
        egress: Some(limit),
    };
    shape(&mut socket, &lo, &bandwidth)
}

fn ifb_name(index: u32) -> String {
    format!("ifb{index}")
}
