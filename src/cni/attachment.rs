//! An attachment: a macvtap in the pod with its tap's node, made ready for a guest.

use std::{path::Path, time::Instant};

use anyhow::{Error, anyhow};
use log::{debug, info, warn};

use super::{
    config::Config,
    delegate::{Delegate, Lease},
    environment::Environment,
    error::{CniError, Result},
    ipam_result::IpamResult,
    policy,
    result::{self, Reported},
};
use crate::{
    host::netns::Netns,
    learning::{
        self,
        query::{self, Addresses},
    },
    macvtap::{
        error::AttachError,
        guard::{NewMacvtap, Settings},
    },
    netlink::Link,
    types::{mac::MacAddr, mode::Mode, owner::Access},
};

type AttachResult<T> = std::result::Result<T, AttachError>;

/// What ADD is asked for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// Who asks, and for which interface.
    pub environment: &'a Environment,
    /// What the network is like.
    pub config: &'a Config,
    /// The pod's network namespace.
    pub netns: &'a Netns,
    /// The configuration as the runtime wrote it.
    pub stdin: &'a [u8],
    /// Until when something in the way is waited for.
    pub deadline: Instant,
}

impl<'a> Request<'a> {
    /// Asks the IPAM plugin for addresses, if the network has one.
    fn lease(&self) -> Result<Option<Lease<'a>>> {
        let Some(ipam) = &self.config.ipam else {
            return Ok(None);
        };
        let delegate = Delegate {
            plugin: &ipam.plugin,
            environment: self.environment,
            stdin: self.stdin,
        };
        let mut lease = delegate.add(self.config.version)?;
        if ipam.dns.is_some() {
            lease.result.dns.clone_from(&ipam.dns);
        }
        Ok(Some(lease))
    }

    /// Who may open the tap of a macvtap in the pod, in our own numbers.
    pub fn access(&self, macvtap: &NewMacvtap<'_>) -> AttachResult<Access> {
        macvtap.access(self.config.access, Path::new(&self.environment.netns))
    }
}

/// An attachment just made: the result to print, and how to take it back.
pub struct Attachment<'a> {
    /// The result document.
    pub result: String,
    macvtap: NewMacvtap<'a>,
    lease: Option<Lease<'a>>,
}

impl<'a> Attachment<'a> {
    /// Sets a macvtap up that is in the pod and has its tap's node. `mode` says at the last
    /// moment which mode it starts in, if not in the one that it has.
    pub fn finish(
        macvtap: NewMacvtap<'a>,
        request: Request<'a>,
        mode: impl FnOnce() -> Option<Mode>,
    ) -> Result<Self> {
        let (environment, config) = (request.environment, request.config);
        let ((), macvtap) = macvtap.attach(|macvtap| prepare(macvtap, config))?;
        let asked = Instant::now();
        let lease = match request.lease() {
            Ok(lease) => lease,
            Err(error) => return Err(undo(macvtap, error)),
        };
        let deadline = request.deadline + asked.elapsed();
        let request = Request {
            deadline,
            ..request
        };
        let ipam = lease.as_ref().map(|lease| &lease.result);
        let ((link, mac), macvtap) = macvtap.attach(|macvtap| {
            let work = || set_up(macvtap, request, ipam, mode());
            match &lease {
                Some(lease) => lease.release_unless(work),
                None => work(),
            }
        })?;
        info!(tap = link.index, mac:%, mtu = link.mtu; "attached");
        if let Some(ipam) = ipam.filter(|_| learning::is_port(&link)) {
            report(link.index, ipam);
        }
        let reported = Reported {
            name: &environment.ifname,
            mac,
            mtu: link.mtu,
            sandbox: &environment.netns,
        };
        let prev_result = config.prev_result.as_ref();
        Ok(Self {
            result: result::print(config.version, prev_result, &reported, ipam),
            macvtap,
            lease,
        })
    }

    /// Leaves the attachment to the pod.
    pub fn keep(self) {
        self.macvtap.keep();
    }

    /// Takes the attachment back because of `error`, which is returned.
    #[must_use]
    pub fn undo(self, error: CniError) -> CniError {
        let error = match self.lease.map(|lease| lease.release()) {
            Some(Err(second)) => {
                error.context(&format!("addresses could not be released ({second})"))
            }
            _ => error,
        };
        undo(self.macvtap, error)
    }
}

/// Reports the addresses of a macvtap to the device plugin, if one learns. Without the report
/// learning finds them from the guest's frames.
fn report(tap: u32, ipam: &IpamResult) {
    let Some(learner) = query::find() else {
        return;
    };
    let addresses = ipam.addresses().collect();
    if let Err(error) = learner.report(Addresses { tap, addresses }) {
        debug!(tap, error = format!("{error:#}"); "addresses not reported to the device plugin");
    }
}

/// Removes the macvtap because of `error`, which is returned.
fn undo(macvtap: NewMacvtap<'_>, error: CniError) -> CniError {
    match macvtap.remove() {
        Ok(()) => error,
        Err(second) => error.context(&format!("could not be undone ({second:#})")),
    }
}

/// Prepares a macvtap, whose IPAM plugin may set it up, as dhcp does: without addresses it can send
/// what a DHCP client does.
fn prepare(macvtap: &mut NewMacvtap<'_>, config: &Config) -> AttachResult<()> {
    macvtap.prepare(Settings {
        host_stack: config.host_stack,
        promiscuous: config.promiscuous,
        all_multicast: config.all_multicast,
    })?;
    match &config.security {
        Some(security) if config.ipam.is_some() => macvtap.secure(security, config.mac),
        _ => Ok(()),
    }
}

/// Sets a macvtap up that has these addresses, if it has any; what the kernel then says of it.
fn set_up(
    macvtap: &mut NewMacvtap<'_>,
    request: Request<'_>,
    ipam: Option<&IpamResult>,
    mode: Option<Mode>,
) -> AttachResult<(Link, MacAddr)> {
    let config = request.config;
    let assign = config.ipam.as_ref().is_some_and(|ipam| ipam.assign);
    let ip = ipam.filter(|_| assign).map(IpamResult::ip_config);
    if let Some(ip) = &ip {
        macvtap.assign(ip)?;
    }
    if let Some(security) = &config.security {
        let addresses = ipam.into_iter().flat_map(IpamResult::hosts);
        let security = policy::with_addresses(security, addresses).map_err(Error::from)?;
        macvtap.secure(&security, config.mac)?;
    }
    if let Some(bandwidth) = &config.bandwidth {
        macvtap.shape(bandwidth)?;
    }
    macvtap.set_up(mode, config.mac, request.deadline)?;
    if let Some(ip) = &ip {
        macvtap.add_routes(ip)?;
    }
    let link = macvtap.read_back()?;
    if let Some(difference) = config.options.difference(&link.options) {
        warn!("this kernel does not take every option: {difference}");
    }
    let mac = mac_of(&link)?;
    macvtap.verify_node(request.access(macvtap)?)?;
    Ok((link, mac))
}

fn mac_of(link: &Link) -> AttachResult<MacAddr> {
    let none = || anyhow!("the macvtap has no hardware address");
    Ok(link.mac.ok_or_else(none)?)
}
