//! The one way to create a macvtap: directly where it belongs, down, under a guard.

use std::os::fd::AsFd;

use anyhow::Context;
use nix::errno::Errno;

use super::{
    error::{AttachError, Kind},
    guard::{NewMacvtap, Place, Undo},
    inventory,
    lower::{LowerDevice, Reason},
};
use crate::{
    host::netns::Netns,
    netlink::{Create, Link, NetlinkError, Socket},
    types::{link_name::LinkName, mac::MacAddr, mode::Mode, port_options::PortOptions},
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
        Some(link) => Err(name_taken(name, link.kind_name())),
    }
}

/// What stands in the way of a new macvtap, as far as the kernel shows it.
#[derive(Debug, Default)]
struct Obstacles {
    /// The kind of the interface in the pod that has the name.
    name: Option<String>,
    /// The interface in the pod that has the index.
    index_in_pod: Option<String>,
    /// The interface on the host that has it.
    index_on_host: Option<String>,
    /// What keeps macvtaps off the lower device.
    lower: Option<Reason>,
}

impl Obstacles {
    fn find(spec: &Spec<'_>, host: &mut Socket, there: &mut Socket) -> Self {
        let name = there.link_by_name(spec.name).ok().flatten();
        let with_index = |socket: &mut Socket| {
            let found = socket.link(spec.index?).ok().flatten();
            found.map(|link| link.name)
        };
        let links = host.links().unwrap_or_default();
        let ineligible = spec.lower.ineligible_among(&links);
        Self {
            name: name.map(|link| link.kind_name().to_owned()),
            index_in_pod: with_index(there),
            index_on_host: with_index(host),
            lower: ineligible.map(|found| found.reason),
        }
    }

    /// What EEXIST and EBUSY mean. Since Linux 6.15 EEXIST is about the name or the index in the
    /// pod, EBUSY about the lower device. Before, `register_netdevice` answers EBUSY where the
    /// index is taken in the pod, and `rtnl_newlink` EEXIST where it is taken on the host, for it
    /// looks the index up in the network namespace of the socket.
    fn explain(&self, errno: Errno, name: &str, index: u32) -> AttachError {
        if let Some(kind) = &self.name {
            return name_taken(name, kind);
        }
        let why = match self {
            Self {
                index_in_pod: Some(other),
                ..
            } => format!("interface index {index} is taken by {other:?}"),
            Self {
                index_on_host: Some(other),
                ..
            } if errno == Errno::EEXIST => format!(
                "interface index {index} is taken on the host by {other:?}, and this kernel looks \
                 for it there; Linux 6.15 and later do not"
            ),
            Self {
                lower: Some(reason),
                ..
            } if errno == Errno::EBUSY => format!("it {reason}"),
            _ if errno == Errno::EBUSY => {
                "it is in use by something else (a bridge, ipvlan, or passthru)".to_owned()
            }
            _ => "such an interface existed a moment ago".to_owned(),
        };
        AttachError::new(Kind::Failed, why)
    }
}

/// Says what the kernel's refusal means.
fn explain(
    error: NetlinkError,
    spec: &Spec<'_>,
    host: &mut Socket,
    there: &mut Socket,
) -> AttachError {
    let why = match error.errno() {
        Some(errno @ (Errno::EBUSY | Errno::EEXIST)) => {
            let index = spec.index.unwrap_or_default();
            let why = Obstacles::find(spec, host, there).explain(errno, spec.name, index);
            if why.kind == Kind::NameTaken {
                return why;
            }
            Some(why.to_string())
        }
        // With a text it is about something else, such as the MTU.
        Some(Errno::EINVAL) if error.text().is_none() => invalid(spec, host),
        Some(Errno::EOPNOTSUPP) => Some("the kernel has no macvtap; try: modprobe macvtap".into()),
        Some(Errno::ENODEV) => Some("the lower device is gone".into()),
        _ => None,
    };
    let name = &spec.lower.link.name;
    let doing = format!("creating a macvtap on lower device {name:?}");
    let error = AttachError::from(error);
    match why {
        Some(why) => error.context(format!("{doing}: {why}")),
        None => error.context(doing),
    }
}

/// What EINVAL means: the name, or a macvtap or macvlan in passthru mode beside another one.
fn invalid(spec: &Spec<'_>, host: &mut Socket) -> Option<String> {
    if LinkName::is_reserved(spec.name) {
        let name = spec.name;
        return Some(format!("the kernel has settings of the name {name:?}"));
    }
    let lower = &spec.lower.link;
    let macvlans = host.links().unwrap_or_default().into_iter().filter(|link| {
        link.kind.as_deref() == Some("macvlan") && link.lower_here() == Some(lower.index)
    });
    let macvlans = macvlans.map(|link| (link.mode, format!("macvlan {:?}", link.name)));
    let macvtaps = inventory::on(&lower.name).into_iter();
    let macvtaps = macvtaps.map(|macvtap| (macvtap.link.mode, macvtap.place()));
    let (modes, names): (Vec<_>, Vec<_>) = macvlans.chain(macvtaps).unzip();
    let mut modes = modes.into_iter().flatten().chain([spec.mode]);
    let beside = match names.as_slice() {
        [] => "another network namespace may have one".to_owned(),
        names if modes.any(Mode::is_alone) => {
            format!("there is {}", names.join(", "))
        }
        _ => return None,
    };
    Some(format!(
        "a passthru macvtap must be the only macvtap or macvlan of its lower device, and {beside}"
    ))
}

fn name_taken(name: &str, kind: &str) -> AttachError {
    let text = format!("interface {name:?} already exists (a {kind} interface)");
    AttachError::new(Kind::NameTaken, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_all_versions_are_understood() {
        let (exists, busy) = (Errno::EEXIST, Errno::EBUSY);
        let named = "\"net1\" already exists (a veth interface)";
        let in_pod = "interface index 9 is taken by \"other\"";
        let on_host = "interface index 9 is taken on the host by \"mvt1\"";
        let held = "it is in use by \"ipvl0\"";
        // What has the name in the pod, the index there, and on the host; what is on the lower
        // device.
        for (errno, name, pod, host, lower, expected) in [
            (exists, "veth", "", "", "", named),
            (busy, "veth", "other", "", "", named),
            (exists, "", "other", "mvt1", "", in_pod),
            (busy, "", "other", "", "ipvl0", in_pod),
            (exists, "", "", "mvt1", "ipvl0", on_host),
            (busy, "", "", "mvt1", "ipvl0", held),
            (busy, "", "", "mvt1", "", "in use by something else"),
            (exists, "", "", "", "ipvl0", "a moment ago"),
            (busy, "", "", "", "", "in use by something else"),
        ] {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            let obstacles = Obstacles {
                name: some(name),
                index_in_pod: some(pod),
                index_on_host: some(host),
                lower: some(lower).map(Reason::Held),
            };
            let found = obstacles.explain(errno, "net1", 9).to_string();
            assert!(found.contains(expected), "{errno} {obstacles:?}: {found}");
        }
    }
}
