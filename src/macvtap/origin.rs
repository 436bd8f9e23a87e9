//! What a macvtap of the host was like before it was moved into a pod, and how it is put back.

use std::{net::IpAddr, os::fd::AsFd};

use anyhow::{Context, Error, Result, ensure};

use crate::{
    host::{
        char_device::Found,
        devnode::{self, Rights},
        netns::Netns,
        tap,
    },
    netlink::{Change, Link, Socket},
    types::{errors::together, mac::MacAddr, prefix::is_ipv6_link_local},
};

/// A macvtap of the host, our own network namespace, before it was changed.
pub(super) struct Origin {
    home: Netns,
    link: Link,
    /// The MAC that it is to have in the pod.
    new_mac: Option<MacAddr>,
    node: Found,
    /// The addresses that a move takes from it: the kernel removes them, and the routes by them.
    addresses: Vec<IpAddr>,
}

impl Origin {
    /// Looks at `link` of `host`.
    pub(super) fn of(host: &mut Socket, link: &Link, new_mac: Option<MacAddr>) -> Result<Self> {
        let all = host.addresses_of(link.index)?.into_iter();
        let all = all.map(|found| found.address.ip);
        Ok(Self {
            // By now: where a thread does not come back from a pod's netns, it is not the host's.
            home: Netns::current()?,
            link: link.clone(),
            new_mac,
            node: devnode::find(link.index)?,
            addresses: all.filter(|ip| !is_ipv6_link_local(*ip)).collect(),
        })
    }

    /// Puts it back from the pod that the socket `pod` is in, where it may be called `name`, and
    /// makes it what it was. It existed before, so it is not deleted, whatever fails.
    pub(super) fn restore(&self, pod: &mut Socket, name: &str) -> Result<()> {
        let mut host = self.home.socket()?;
        let there = host.link(self.link.index)?;
        let stayed = there.filter(|link| link.is_macvtap() && link.name == self.link.name);
        let is_moved = stayed.is_none();
        let link = match stayed {
            Some(link) => link,
            None => self.move_back(&mut host, pod, name)?,
        };
        let mut errors = Vec::new();
        errors.extend(self.reset(&mut host, &link).err());
        if is_moved {
            errors.extend(self.reset_node(link.index).err());
        }
        together(&errors)?;
        ensure!(
            !is_moved || self.addresses.is_empty(),
            "macvtap {:?} is on the host again, but without its addresses {}",
            link.name,
            list(&self.addresses)
        );
        Ok(())
    }

    /// The kernel leaves a half-done move where it is: under the old name or the new one.
    fn move_back(&self, host: &mut Socket, pod: &mut Socket, name: &str) -> Result<Link> {
        let nsid = pod.nsid(self.home.as_fd())?;
        let old = self.link.name.as_str();
        let mut found = None;
        for name in [name, old] {
            let link = pod.link_by_name(name)?;
            found = found.or(link.filter(|link| self.is(link, nsid)));
        }
        let found = found.with_context(|| format!("macvtap {old:?} is gone"))?;
        let change = Change {
            netns: Some(self.home.as_fd()),
            name: Some(old),
            up: Some(false),
            ..Change::default()
        };
        if let Err(error) = pod.change(found.index, &change) {
            // The kernel moves it before it gives it its name.
            let now = host.link_by_name(&found.name)?;
            let is_back = now.is_some_and(|link| link.is_macvtap() && link.mac == found.mac);
            let place = if is_back { "on the host" } else { "in the pod" };
            let now = &found.name;
            let text = format!("macvtap {old:?} is {place} now, as {now:?}: moving it back failed");
            return Err(Error::from(error).context(text));
        }
        let back = host.link_by_name(old)?;
        back.with_context(|| format!("macvtap {old:?} is gone"))
    }

    /// Whether this link of the pod is it. The pod may have macvtaps of its own.
    fn is(&self, link: &Link, nsid_of_home: Option<i32>) -> bool {
        let has_mac = [self.link.mac, self.new_mac].contains(&link.mac);
        let on_same = link.lower == self.link.lower
            && (self.link.lower_nsid.is_some() || link.lower_nsid == nsid_of_home);
        link.is_macvtap() && on_same && has_mac
    }

    /// Sets it to what it was: flags and IPv6 while it is down, and up at the end.
    fn reset(&self, host: &mut Socket, now: &Link) -> Result<()> {
        let old = &self.link;
        let change = Change {
            mac: old.mac.filter(|mac| now.mac != Some(*mac)),
            mtu: Some(old.mtu).filter(|mtu| now.mtu != *mtu),
            promiscuous: Some(old.promiscuous),
            all_multicast: Some(old.all_multicast),
            arp: Some(old.arp),
            address_mode: old
                .address_mode
                .filter(|_| now.address_mode != old.address_mode),
            ..Change::default()
        };
        let doing = || format!("restoring macvtap {:?}", old.name);
        host.change(now.index, &change).with_context(doing)?;
        if old.up {
            let up = Change {
                up: Some(true),
                ..Change::default()
            };
            host.change(now.index, &up).with_context(doing)?;
        }
        Ok(())
    }

    /// Gives the node of its tap back to whom it belonged: the kernel made a new one.
    fn reset_node(&self, index: u32) -> Result<()> {
        let Found::Device(_, owner, mode) = self.node else {
            return devnode::remove_stale(index).map(|_| ());
        };
        let devices = tap::devices(index)?;
        let device = devices.first().context("its tap is gone")?;
        let restored = devnode::give(index, *device, Rights { owner, mode })?;
        let path = tap::path(index);
        ensure!(restored, "{} is not the macvtap's own", path.display());
        Ok::<_, Error>(())
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(", ")
}
