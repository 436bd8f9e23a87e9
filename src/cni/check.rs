//! CHECK: compares what ADD set up with the kernel. Pure but for asking the kernel.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    Call,
    config::{Config, Source},
    error::{CniError, code},
    result,
};
use crate::{
    host::{netns::Netns, tap},
    learning,
    netlink::{Link, Socket},
    types::{mac::MacAddr, mode::Mode},
};

/// Fails with the first thing that is not as ADD left it. Later plugins of the chain may
/// have changed addresses, routes and the MAC: the MAC is compared with the
/// chain's result, and only what the configuration itself asks for is insisted upon.
pub fn check(call: &Call<'_>, config: &Config, netns: &Netns) -> Result<()> {
    let prev = config
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::new(code::CONFIG, "required prevResult missing"))?;
    let (ifname, sandbox) = (&call.environment.ifname, &call.environment.netns);
    let reported = result::find(prev, ifname, sandbox).with_context(|| {
        format!("prevResult has no interface {ifname:?} with sandbox {sandbox:?}")
    })?;
    let link = netns
        .socket()?
        .link_by_name(ifname)?
        .with_context(|| format!("interface {ifname:?} does not exist in netns {sandbox}"))?;
    check_link(&link, config, reported)?;
    check_lower(&link, &config.source)?;
    check_tap(&link, config)
}

fn check_link(link: &Link, config: &Config, reported: &Value) -> Result<()> {
    let name = &link.name;
    if !link.is_macvtap() {
        let kind = link.kind.as_deref().unwrap_or("physical");
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
    if let Some(mtu) = config.mtu {
        ensure!(
            link.mtu == mtu,
            "interface {name:?} has MTU {}, the configuration says {mtu}",
            link.mtu
        );
    }
    let wanted = config.promiscuous;
    ensure!(
        !wanted || link.promiscuous,
        "interface {name:?} is not promiscuous"
    );
    let wanted = config.all_multicast;
    ensure!(
        !wanted || link.all_multicast,
        "interface {name:?} does not receive all multicast"
    );
    Ok(())
}

/// Mode and lower device, as far as the configuration says what they are to be.
fn check_lower(link: &Link, source: &Source) -> Result<()> {
    let (lower, mode) = match source {
        Source::Allocated(id) => (Some(id.lower.as_str()), Some(id.mode)),
        Source::Configured { lower, mode } => (Some(lower.as_str()), Some(*mode)),
        Source::Existing(existing) => (existing.lower.as_deref(), existing.mode),
    };
    if let Some(mode) = mode {
        // A parked port of a bridge is as it should be.
        let parked = mode == Mode::Bridge && learning::is_parked(link);
        ensure!(
            link.mode == Some(mode) || parked,
            "interface {:?} is in mode {}, not {mode}",
            link.name,
            link.mode.map_or("unknown", Mode::name)
        );
    }
    if let Some(name) = lower {
        let lower = Socket::open()?.link_by_name(name)?;
        let lower = lower.with_context(|| format!("lower device {name:?} does not exist"))?;
        ensure!(
            link.lower == Some(lower.index),
            "interface {:?} is not on lower device {name:?}",
            link.name
        );
    }
    if let Source::Allocated(id) = source {
        ensure!(
            link.index == id.tap,
            "interface {:?} has index {}, so its tap is not the promised {}",
            link.name,
            link.index,
            tap::path(id.tap).display()
        );
    }
    Ok(())
}

fn check_tap(link: &Link, config: &Config) -> Result<()> {
    let number = link.index;
    match *tap::devices(number)? {
        [device] => tap::verify(number, device, config.owner),
        [] => bail!(
            "the kernel has no tap {number} for interface {:?}",
            link.name
        ),
        _ => bail!(
            "more than one macvtap of this machine has interface index {number}; \
             which one {} opens is left to chance",
            tap::path(number).display()
        ),
    }
}
