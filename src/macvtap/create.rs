//! The one way to create a macvtap: directly where it belongs, down, under a guard.

use std::os::fd::AsFd;

use anyhow::Context;
use nix::errno::Errno;

use super::{
    error::{AttachError, Kind},
    guard::{NewMacvtap, Place, Undo},
    lower::{LowerDevice, Reason},
};
use crate::{
    host::netns::Netns,
    netlink::{Create, Link, NetlinkError, Socket},
    types::{mac::MacAddr, mode::Mode, port_options::PortOptions},
};

/// A macvtap to be created.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    /// The name of the interface.
    pub name: &'a str,
    /// The interface index, which is the number of the tap; the kernel's choice if none.
    pub index: Option<u32>,
    /// What it stands on.
    pub lower: &'a LowerDevice,
    /// The mode.
    pub mode: Mode,
    /// The hardware address; a random one if none.
    pub mac: Option<MacAddr>,
    /// The MTU in bytes; the lower device's if none.
    pub mtu: Option<u32>,
    /// The link group, by which learning finds its ports; 0 if none.
    pub group: u32,
    /// What else it is set to.
    pub options: &'a PortOptions,
}

/// Creates a macvtap on a lower device of `host`, in `netns` or in our own network namespace.
pub fn create<'a>(
    host: &mut Socket,
    netns: Option<&'a Netns>,
    spec: &Spec<'_>,
) -> Result<NewMacvtap<'a>, AttachError> {
    let mut place = Place::open(netns)?;
    let outcome = host.create(&Create {
        name: spec.name,
        index: spec.index,
        lower: spec.lower.link.index,
        mode: spec.mode,
        mac: spec.mac,
        mtu: spec.mtu,
        queue_length: spec.lower.queue_length(),
        group: spec.group,
        options: spec.options,
        netns: netns.map(AsFd::as_fd),
    });
    if let Err(error) = outcome {
        // Without an answer the kernel may have made it all the same.
        if error.errno().is_none()
            && let Some(index) = created(&mut place.socket, spec)
        {
            let made = NewMacvtap::new(place, spec.name, index, Undo::Delete);
            return Err(made.undo(error.into()));
        }
        return Err(explain(error, spec, host, &mut place.socket));
    }
    let index = match spec.index {
        Some(index) => index,
        None => created(&mut place.socket, spec).context("the macvtap is gone already")?,
    };
    let made = NewMacvtap::new(place, spec.name, index, Undo::Delete);
    Ok(made.in_mode(Some(spec.mode)))
}

/// The index of the macvtap that was asked for, if it is there.
fn created(there: &mut Socket, spec: &Spec<'_>) -> Option<u32> {
    let found = there.link_by_name(spec.name).ok().flatten();
    let found = found.filter(Link::is_macvtap);
    let index = found.map(|link| link.index)?;
    spec.index
        .is_none_or(|wanted| wanted == index)
        .then_some(index)
}

/// Fails if an interface has this name; `there` is a socket in its network namespace.
pub fn check_name_free(there: &mut Socket, name: &str) -> Result<(), AttachError> {
    match there.link_by_name(name)? {
        None => Ok(()),
        Some(link) => {
            let kind = link.kind_name();
            let text = format!("interface {name:?} already exists (a {kind} interface)");
            Err(AttachError::new(Kind::NameTaken, text))
        }
    }
}

/// Says what the kernel's refusal means.
fn explain(
    error: NetlinkError,
    spec: &Spec<'_>,
    host: &mut Socket,
    there: &mut Socket,
) -> AttachError {
    let name = &spec.lower.link.name;
    let why = match error.errno() {
        Some(Errno::EBUSY) => Some(busy(spec.lower, host)),
        Some(Errno::EEXIST) => match check_name_free(there, spec.name) {
            Err(taken) if taken.kind == Kind::NameTaken => return taken,
            _ => Some(index_taken(spec, there)),
        },
        // With a text it is about something else, such as the MTU.
        Some(Errno::EINVAL) if error.text().is_none() => Some(format!(
            "{} mode may not be possible: a passthru macvtap must be the only macvtap or macvlan \
             of its lower device",
            spec.mode
        )),
        Some(Errno::EOPNOTSUPP) => Some("the kernel has no macvtap; try: modprobe macvtap".into()),
        Some(Errno::ENODEV) => Some("the lower device is gone".into()),
        _ => None,
    };
    let doing = format!("creating a macvtap on lower device {name:?}");
    let error = AttachError::from(error);
    match why {
        Some(why) => error.context(format!("{doing}: {why}")),
        None => error.context(doing),
    }
}

fn busy(lower: &LowerDevice, host: &mut Socket) -> String {
    let links = host.links().unwrap_or_default();
    let ineligible = lower.ineligible_among(&links).map(|found| found.reason);
    ineligible.map_or_else(
        || "it is in use by something else (a bridge, ipvlan, or passthru)".to_owned(),
        |reason: Reason| format!("it {reason}"),
    )
}

fn index_taken(spec: &Spec<'_>, there: &mut Socket) -> String {
    let index = spec.index.unwrap_or_default();
    match there.link(index) {
        Ok(Some(Link { name, .. })) => {
            format!("interface index {index} is taken by {name:?}")
        }
        _ => "such an interface existed a moment ago".to_owned(),
    }
}
