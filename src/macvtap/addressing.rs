//! IP addresses and routes on a macvtap that a pod uses as a NIC.

use std::{
    fs,
    io::ErrorKind,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use log::warn;

use super::{error::AttachError, port_security::Interface};
use crate::{
    netlink::{AssignedAddress, Change, Socket},
    types::ip_config::IpConfig,
};

/// How long the kernel is waited for to find out whether another host has an IPv6 address. By
/// default it takes up to 2 s (RFC 4862).
const DAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The poll interval for that.
const DAD_POLL: Duration = Duration::from_millis(20);

/// Gives an interface its addresses. It is down afterwards: when it goes up, the kernel announces
/// them by ARP and neighbour discovery.
pub(super) fn assign(
    socket: &mut Socket,
    interface: Interface<'_>,
    ip: &IpConfig,
) -> Result<(), AttachError> {
    // A DHCP client has set it up.
    let down = Change {
        up: Some(false),
        ..Change::default()
    };
    let changed = socket.change(interface.index, &down);
    changed.context("setting the interface down for its addresses")?;
    let has_ipv6 = ip.addresses.iter().any(|address| address.ip.is_ipv6());
    interface.inside(|| set_sysctls(interface.name, has_ipv6))??;
    for address in &ip.addresses {
        let added = socket.add_address(interface.index, address);
        added.with_context(|| format!("adding address {address}"))?;
    }
    Ok(())
}

/// What the reference plugins set for an interface with addresses.
fn set_sysctls(name: &str, has_ipv6: bool) -> Result<()> {
    let path = |family, name, key| format!("/proc/sys/net/{family}/conf/{name}/{key}");
    let announcing = [
        path("ipv4", name, "arp_notify"),
        path("ipv6", name, "ndisc_notify"),
    ];
    for path in announcing {
        match fs::write(&path, "1") {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                warn!(path = path.as_str(), error:%; "new addresses are not announced");
            }
            _ => {}
        }
    }
    let needed = [
        (path("ipv6", "lo", "disable_ipv6"), "0"),
        (path("ipv6", name, "disable_ipv6"), "0"),
        (path("ipv6", name, "keep_addr_on_down"), "1"),
    ];
    for (path, value) in needed.iter().filter(|_| has_ipv6) {
        let written = fs::write(path, value);
        written.with_context(|| format!("writing {value} to {path} for IPv6 addresses"))?;
    }
    Ok(())
}

/// Waits until the addresses of an interface that is up can be used, and adds its routes.
pub(super) fn add_routes(
    socket: &mut Socket,
    index: u32,
    ip: &IpConfig,
) -> Result<(), AttachError> {
    if ip.addresses.iter().any(|address| address.ip.is_ipv6()) {
        wait_for_ipv6(socket, index, ip)?;
    }
    for route in &ip.routes {
        let added = socket.add_route(index, route);
        added.with_context(|| format!("adding route {route}"))?;
    }
    Ok(())
}

fn wait_for_ipv6(socket: &mut Socket, index: u32, ip: &IpConfig) -> Result<(), AttachError> {
    let start = Instant::now();
    loop {
        let mut found = socket.addresses_of(index).context("looking at addresses")?;
        found.retain(|found| ip.addresses.contains(&found.address));
        if let Some(duplicate) = found.iter().find(|found| found.duplicate) {
            let address = duplicate.address;
            return Err(anyhow!("another host of the network has address {address}").into());
        }
        let is_tentative = |found: &AssignedAddress| found.tentative;
        if !found.iter().any(is_tentative) {
            return Ok(());
        }
        if start.elapsed() > DAD_TIMEOUT {
            // Without a carrier the kernel cannot find out.
            warn!(timeout:? = DAD_TIMEOUT; "it is not known whether another host has the IPv6 addresses");
            return Ok(());
        }
        sleep(DAD_POLL);
    }
}

/// Fails if an interface lacks one of these addresses, or if one of these routes is nowhere. Later
/// plugins of a chain may have moved routes to other tables and interfaces.
pub fn check(socket: &mut Socket, index: u32, ip: &IpConfig) -> Result<()> {
    let assigned = socket.addresses_of(index).context("looking at addresses")?;
    for address in &ip.addresses {
        let found = assigned.iter().find(|found| found.address == *address);
        found.with_context(|| format!("the interface has no address {address}"))?;
    }
    if ip.routes.is_empty() {
        return Ok(());
    }
    let installed = socket.routes(|_| true).context("looking at routes")?;
    for route in &ip.routes {
        let found = installed.iter().find(|found| {
            let same = |wanted: Option<u32>, found| wanted.is_none_or(|wanted| wanted == found);
            found.destination == route.destination
                && (route.gateway.is_none() || found.gateway == route.gateway)
                && same(route.table, found.table)
                && same(route.priority, found.priority)
        });
        found.with_context(|| format!("there is no route {route}"))?;
    }
    Ok(())
}
