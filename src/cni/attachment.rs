//! An attachment: a macvtap in the pod with its tap's node, made ready for a guest.

use std::{path::Path, time::Instant};

use log::info;

use super::{
    config::Config,
    environment::Environment,
    error::{CniError, Result},
    result::{self, Interface},
};
use crate::{
    host::netns::Netns,
    macvtap::{
        error::AttachError,
        guard::{NewMacvtap, Settings},
    },
    netlink::Link,
    types::{mac::MacAddr, mode::Mode, owner::Access},
};

/// What ADD is asked for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Who asks, and for which interface.
    pub environment: &'a Environment,
    /// What the network is like.
    pub config: &'a Config,
    /// The pod's network namespace.
    pub netns: &'a Netns,
    /// Until when something in the way is waited for.
    pub deadline: Instant,
}

impl Request<'_> {
    /// Who may open the tap of a macvtap in the pod, in our own numbers.
    pub fn access(&self, macvtap: &NewMacvtap<'_>) -> std::result::Result<Access, AttachError> {
        macvtap.access(self.config.access, Path::new(&self.environment.netns))
    }
}

/// An attachment just made: the result to print, and how to take it back.
pub struct Attachment<'a> {
    /// The result document.
    pub result: String,
    macvtap: NewMacvtap<'a>,
}

impl<'a> Attachment<'a> {
    /// Sets a macvtap up that is in the pod and has its tap's node. `mode` says at the last
    /// moment which mode it starts in, if not in the one that it has.
    pub fn finish(
        macvtap: NewMacvtap<'a>,
        request: Request<'a>,
        mode: impl FnOnce() -> Option<Mode>,
    ) -> Result<Self> {
        let Request {
            environment,
            config,
            ..
        } = request;
        let ((link, mac), macvtap) = macvtap.attach(|macvtap| {
            macvtap.prepare(Settings {
                host_stack: config.host_stack,
                promiscuous: config.promiscuous,
                all_multicast: config.all_multicast,
            })?;
            if let Some(security) = &config.security {
                macvtap.secure(security, config.mac)?;
            }
            if let Some(bandwidth) = &config.bandwidth {
                macvtap.shape(bandwidth)?;
            }
            macvtap.set_up(mode(), config.mac, request.deadline)?;
            let link = macvtap.read_back()?;
            let mac = mac_of(&link)?;
            macvtap.verify_node(request.access(macvtap)?)?;
            Ok((link, mac))
        })?;
        info!(tap = link.index, mac:%, mtu = link.mtu; "attached");
        let interface = Interface {
            name: &environment.ifname,
            mac,
            mtu: link.mtu,
            sandbox: &environment.netns,
        };
        Ok(Self {
            result: result::print(config.version, config.prev_result.as_ref(), &interface),
            macvtap,
        })
    }

    /// Leaves the attachment to the pod.
    pub fn keep(self) {
        self.macvtap.keep();
    }

    /// Takes the attachment back because of `error`, which is returned.
    #[must_use]
    pub fn undo(self, error: CniError) -> CniError {
        match self.macvtap.remove() {
            Ok(()) => error,
            Err(second) => error.context(&format!("could not be undone ({second:#})")),
        }
    }
}

fn mac_of(link: &Link) -> std::result::Result<MacAddr, AttachError> {
    let none = || anyhow::anyhow!("the macvtap has no hardware address");
    Ok(link.mac.ok_or_else(none)?)
}
