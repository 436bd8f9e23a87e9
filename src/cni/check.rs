//! CHECK: compares what ADD set up with the kernel. Pure but for asking the kernel.

use std::os::fd::AsFd;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::{
    config::{Config, Source},
    environment::Environment,
    error::{self, CniError, code},
    ipam_result::IpamResult,
    policy, result,
};
use crate::{
    host::{
        devnode,
        netns::Netns,
        tap::{self, Tap},
        userns,
    },
    learning,
    macvtap::{
        addressing, lower::LowerDevice, port_security::Interface, security::Security, shaping,
    },
    netlink::{Link, Socket},
    types::{mac::MacAddr, mode::Mode, owner::Access, port_options::PortOptions},
};

/// Fails with the first thing that is not as ADD left it. Later plugins of the chain, the tuning
/// plugin for one, may have changed MAC, MTU, queue length, promiscuity and all-multicast: the MAC
/// is compared with the chain's result, and of the rest only what is possible is insisted upon.
pub fn check(environment: &Environment, config: &Config, netns: &Netns) -> error::Result<()> {
    let missing = || CniError::new(code::CONFIG, "required prevResult missing");
    let prev = config.prev_result.as_ref().ok_or_else(missing)?;
    let (ifname, sandbox) = (&environment.ifname, &environment.netns);
    let reported = result::find(prev, ifname, sandbox).with_context(|| {
        format!("prevResult has no interface {ifname:?} with sandbox {sandbox:?}")
    })?;
    let (mut pod, root) = netns.run(|| Ok((Socket::open()?, userns::root())))?;
    let link = pod
        .link_by_name(ifname)?
        .with_context(|| format!("interface {ifname:?} does not exist in netns {sandbox}"))?;
    check_link(&link, reported)?;
    check_lower(&link, config, netns)?;
    let ipam = ipam(config, prev, environment)?;
    if config.ipam.as_ref().is_some_and(|ipam| ipam.assign) {
        addressing::check(&mut pod, link.index, &ipam.ip_config())?;
    }
    check_limits(&link, config, netns, &ipam)?;
    let access = userns::map(config.access, root, Path::new(sandbox))?;
    Ok(check_tap(&link, access)?)
}

fn check_link(link: &Link, reported: &Value) -> Result<()> {
    let name = &link.name;
    if !link.is_macvtap() {
        let kind = link.kind_name();
        bail!("interface {name:?} is a {kind} interface, not a macvtap");
    }
    ensure!(link.up, "interface {name:?} is down");
    let mac = reported.get("mac").and_then(Value::as_str);
    if let Some(mac) = mac.filter(|mac| !mac.is_empty()) {
        let mac: MacAddr = mac.parse().context("prevResult has a wrong mac")?;
        ensure!(
            link.mac == Some(mac),
            "interface {name:?} has MAC {}, prevResult says {mac}",
            link.mac
                .map_or_else(|| "none".to_owned(), |mac| mac.to_string())
        );
    }
    Ok(())
}

/// What the chain's result says of the interface's addresses; nothing if they are not ours to give.
fn ipam(config: &Config, prev: &Value, environment: &Environment) -> error::Result<IpamResult> {
    if config.ipam.is_none() {
        return Ok(IpamResult::default());
    }
    let ipam = IpamResult::of_chain(prev, &environment.ifname, &environment.netns);
    ipam.map_err(|flaw| {
        CniError::new(
            code::DECODING,
            format!("could not parse prevResult: {flaw}"),
        )
    })
}

/// What the guest may send and receive.
fn check_limits(link: &Link, config: &Config, netns: &Netns, ipam: &IpamResult) -> Result<()> {
    let name = &link.name;
    if let Some(security) = &config.security {
        let security = &policy::with_addresses(security, ipam.hosts())?;
        let mac = link.mac.context("the macvtap has no hardware address")?;
        check_security(&Interface::of(link, Some(netns)), security, mac)?;
    }
    if let Some(bandwidth) = &config.bandwidth {
        let shaped = shaping::is_shaped(&mut netns.socket()?, link, bandwidth)?;
        ensure!(
            shaped,
            "interface {name:?} does not have the rates of bandwidth"
        );
    }
    Ok(())
}

/// The rules are for the MAC that ADD made them for; it may have become another one that they
/// allow as well.
fn check_security(interface: &Interface<'_>, security: &Security, mac: MacAddr) -> Result<()> {
    if interface.secured(security, mac)?.is_some() {
        return Ok(());
    }
    let name = interface.name;
    if let Some((found, _)) = interface.security()? {
        ensure!(
            found.allows(mac),
            "interface {name:?} has MAC {mac} now, and drops its guest's frames: security is \
             {found}; give ADD the MAC, or list it in security.mac"
        );
        let first = found.macs.first().copied().unwrap_or(mac);
        if interface.secured(security, first)?.is_some() {
            return Ok(());
        }
    }
    bail!(
        "what interface {name:?} sends is not filtered as security {security} with MAC {mac} \
         says; delete the pod"
    )
}

/// Mode, lower device and index, as far as the configuration says what they are.
fn check_lower(link: &Link, config: &Config, netns: &Netns) -> Result<()> {
    let (lower, mode, in_pod, vlan) = match &config.source {
        Source::Allocated(id) => (&id.lower, id.mode, false, None),
        Source::Configured {
            lower,
            mode,
            in_pod,
            vlan,
        } => (lower, *mode, *in_pod, vlan.as_ref()),
        Source::Existing(_) => return Ok(()),
    };
    let name = &link.name;
    // A parked port of a bridge is as it should be.
    let parked = mode == Mode::Bridge && learning::is_parked(link);
    ensure!(
        link.mode == Some(mode) || parked,
        "interface {name:?} is in mode {}, not {mode}",
        link.mode.map_or("unknown", Mode::name)
    );
    check_options(link, &config.options)?;
    let mut place = if in_pod {
        netns.socket()?
    } else {
        Socket::open()?
    };
    let lower = match vlan {
        None => lower,
        Some(vlan) => &vlan.name_among(&place.links()?)?,
    };
    let found = LowerDevice::find(&mut place, lower)?;
    ensure!(
        stands_on(link, &found, netns, in_pod)?,
        "interface {name:?} is not on lower device \"{lower}\""
    );
    check_index(link, &config.source)
}

/// Whether `link` of the pod stands on this lower device, of the pod or of the host.
pub(super) fn stands_on(
    link: &Link,
    lower: &LowerDevice,
    netns: &Netns,
    in_pod: bool,
) -> Result<bool> {
    let host = Netns::current()?;
    if in_pod || netns.is(&host)? {
        return Ok(lower.carries(link, false));
    }
    // An index is one device's within a network namespace only.
    let is_here = lower.is_foreign() || link.lower_nsid == netns.socket()?.nsid(host.as_fd())?;
    Ok(is_here && lower.carries(link, true))
}

fn check_options(link: &Link, options: &PortOptions) -> Result<()> {
    let options = PortOptions {
        // One number for the lower device, which other pods set as well; kernels before 6.4 have
        // none.
        broadcast_cutoff: None,
        // The tuning plugin's txQLen.
        queue_length: None,
        ..options.clone()
    };
    if let Some(difference) = options.difference(&link.options) {
        let name = &link.name;
        bail!("interface {name:?} is not as ADD left it: {difference}");
    }
    Ok(())
}

fn check_index(link: &Link, source: &Source) -> Result<()> {
    match source {
        Source::Allocated(id) if id.tap != link.index => Err(anyhow!(
            "interface {:?} has index {}, so its tap is not the allocated {}",
            link.name,
            link.index,
            tap::path(id.tap).display()
        )),
        _ => Ok(()),
    }
}

fn check_tap(link: &Link, access: Access) -> Result<()> {
    let tap = Tap {
        number: link.index,
        interface: link.name.clone(),
    };
    devnode::verify_of(&tap, access)
}
