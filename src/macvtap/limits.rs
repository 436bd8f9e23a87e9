//! The limits of an interface as the kernel has them: what its guest may send, what was dropped,
//! and the rates.

use anyhow::Result;

use super::{port_security::Interface, security::Description, shaping};
use crate::netlink::{Counter, Qdisc, Socket};

/// The limits in force for an interface.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// The security in force, if any is.
    pub security: Option<Description>,
    /// What the guest sent and security dropped, by reason.
    pub dropped: Vec<Counter>,
    /// The queue of what the guest receives, if that has a rate.
    pub ingress: Option<Qdisc>,
    /// The queue of what the guest sends, if that has a rate.
    pub egress: Option<Qdisc>,
}

impl Limits {
    /// Reads those of an interface, by a socket of its network namespace.
    pub fn read(interface: &Interface<'_>, socket: &mut Socket) -> Result<Self> {
        let qdiscs = socket.qdiscs()?;
        let [ingress, egress] = shaping::shapes(&qdiscs, interface.index).map(Option::<&_>::cloned);
        let (security, dropped) = match interface.visible_security()? {
            Some((description, counters)) => (Some(description), counters),
            None => by_program(&qdiscs, interface, socket)?,
        };
        Ok(Self {
            security,
            dropped,
            ingress,
            egress,
        })
    }
}

/// Security that a classic BPF program enforces has no name, no MACs, and no reasons: all that the
/// device dropped is counted together.
fn by_program(
    qdiscs: &[Qdisc],
    interface: &Interface<'_>,
    socket: &mut Socket,
) -> Result<(Option<Description>, Vec<Counter>)> {
    let clsact = |qdisc: &&Qdisc| qdisc.index == interface.index && qdisc.kind == "clsact";
    let Some(clsact) = qdiscs.iter().find(clsact) else {
        return Ok((None, Vec::new()));
    };
    if socket.egress_programs(interface.index)?.is_empty() {
        return Ok((None, Vec::new()));
    }
    let counter = Counter {
        name: "any".to_owned(),
        frames: clsact.dropped_frames.into(),
        bytes: 0,
    };
    let description = Description::parse("classic BPF");
    Ok((Some(description), vec![counter]))
}
