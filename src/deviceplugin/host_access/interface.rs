//! The macvlan of the node on a lower device: what it has in the kernel, and how it gets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result};
use log::info;
use nix::errno::Errno;

use super::{barrier, claim::Claim, frames, node::Node};
use crate::{
    host::packet::PacketSocket,
    learning::filter,
    macvtap::sub_interface::{Maker, SubInterface},
    netlink::{AddressRoute, Change, InstalledRoute, Link, Neighbor, ROUTE_PROTOCOL, Socket},
    types::{link_name::LinkName, mac::MacAddr, prefix::is_ipv6_link_local},
};

/// The macvlan on a lower device.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: LinkName,
    /// Its index.
    pub index: u32,
    mac: MacAddr,
    up: bool,
}

/// A guest that the node reaches since a moment ago, and the address that the node has for it.
type NewGuest = (Neighbor, IpAddr);

/// Whether it is the macvlan of a node on a lower device.
#[must_use]
pub fn is_ours(link: &Link) -> bool {
    Maker::DevicePlugin.made(link) && link.kind.as_deref() == Some("macvlan")
}

impl Interface {
    /// Makes it where there is none, down: with the MTU of the lower device, and a MAC that it gets
    /// again whenever it is made.
    pub fn ensure(host: &mut Socket, lower: &Link, node: &str) -> Result<Self> {
        let macvlan = SubInterface::macvlan(lower.name.parse()?);
        let links = host.links().context("listing links")?;
        let name = macvlan.name_among(&links)?;
        if macvlan.among(&links).is_none() {
            macvlan.create(host, &links, Maker::DevicePlugin)?;
        }
        let link = host.link_by_name(&name)?.context("it is gone already")?;
        let mac = MacAddr::of_names(&["host access", node, &lower.name]);
        // What guests say to others than the node is heard too.
        let change = Change {
            mac: Some(mac).filter(|mac| link.mac != Some(*mac)),
            mtu: Some(lower.mtu).filter(|mtu| link.mtu != *mtu),
            all_multicast: Some(true).filter(|_| !link.all_multicast),
            ..Change::default()
        };
        if change.mac.is_some() || change.mtu.is_some() || change.all_multicast.is_some() {
            let changed = host.change(link.index, &change);
            changed.with_context(|| format!("setting MAC, MTU and flags of {name:?}"))?;
        }
        Ok(Self {
            name,
            index: link.index,
            mac,
            up: link.up,
        })
    }

    /// Lets pass what comes from `guests` and goes to them, and only then sets it up.
    pub fn open_to(&self, host: &mut Socket, guests: &BTreeSet<MacAddr>) -> Result<()> {
        let doing = || {
            format!(
                "filtering the frames of {:?} by clsact with cls_bpf",
                &*self.name
            )
        };
        host.add_clsact(self.index).with_context(doing)?;
        for (direction, program) in barrier::programs(guests)? {
            let installed = host.programs(self.index, direction).with_context(doing)?;
            if installed != [program.clone()] {
                let set = host.set_program(self.index, direction, &program);
                set.with_context(doing)?;
            }
        }
        if !self.up {
            let up = host.set_up_without_addresses(self.index);
            up.with_context(|| format!("setting {:?} up", self.name))?;
        }
        Ok(())
    }

    /// Gives it the addresses that the node has on the lower device, and takes away others: by them
    /// the node answers guests. What cannot be added, and why.
    pub fn sync_addresses(&self, host: &mut Socket, node: &Node) -> Result<Vec<String>> {
        let wanted: BTreeSet<IpAddr> = node.addresses.iter().map(|own| own.ip).collect();
        let found = host.addresses_of(self.index)?.into_iter();
        let found: BTreeSet<IpAddr> = found.map(|found| found.address.ip).collect();
        // The kernel sets that of the link by itself.
        let others = found
            .difference(&wanted)
            .filter(|ip| !is_ipv6_link_local(**ip));
        for ip in others {
            let deleted = host.delete_single_address(self.index, *ip);
            deleted.with_context(|| format!("deleting {ip} from {:?}", self.name))?;
        }
        let missing = wanted.difference(&found);
        let errors = missing.filter_map(|ip| {
            let added = host.add_single_address(self.index, *ip);
            added
                .err()
                .map(|error| format!("adding {ip} to {:?}: {error}", self.name))
        });
        Ok(errors.collect())
    }

    /// The addresses of guests that it leads to.
    pub fn neighbors(&self, host: &mut Socket) -> Result<BTreeMap<IpAddr, MacAddr>> {
        let neighbors = host.neighbors(self.index)?.into_iter();
        Ok(neighbors
            .map(|neighbor| (neighbor.address, neighbor.mac))
            .collect())
    }

    /// Leads to these guests, and to no others, and answers new ones. What cannot be added, and why.
    pub fn sync_guests(
        &self,
        host: &mut Socket,
        guests: &BTreeMap<IpAddr, MacAddr>,
        node: &Node,
    ) -> Result<Vec<String>> {
        let wanted = guests.iter().filter_map(|(address, mac)| {
            let source = node.source(*address)?;
            Some((*address, (*mac, source)))
        });
        let wanted: BTreeMap<IpAddr, (MacAddr, IpAddr)> = wanted.collect();
        let routes = self.routes(host)?;
        let neighbors = self.neighbors(host)?;
        for route in &routes {
            if wanted.get(&route.destination).map(|(_, source)| *source) != Some(route.source) {
                let deleted = host.delete_address_route(self.index, route);
                deleted.with_context(|| format!("deleting the route to {}", route.destination))?;
            }
        }
        for address in neighbors.keys().filter(|ip| !wanted.contains_key(ip)) {
            host.delete_neighbor(self.index, *address)?;
            info!(address:%, interface = &*self.name; "guest is not reachable any more");
        }
        let (mut errors, mut new) = (Vec::new(), Vec::new());
        for (address, (mac, source)) in wanted {
            if neighbors.get(&address) != Some(&mac) {
                let neighbor = Neighbor { address, mac };
                errors.extend(self.fix(host, neighbor).err());
                new.push((neighbor, source));
            }
            let route = AddressRoute {
                destination: address,
                source,
            };
            if !routes.contains(&route) {
                errors.extend(self.add(host, &route).err());
            }
        }
        errors.extend(self.answer(&new).err());
        Ok(errors.iter().map(|error| format!("{error:#}")).collect())
    }

    /// Answers what guests asked before the node had a route to them, which the kernel may not have
    /// answered, and guests that know the node by another hardware address, from another node.
    fn answer(&self, guests: &[NewGuest]) -> Result<()> {
        let frames = guests
            .iter()
            .filter_map(|(guest, source)| frames::answer(self.claim(*source), guest));
        let sent = self.send(&frames.collect::<Vec<_>>());
        sent.with_context(|| format!("answering guests by {:?}", self.name))
    }

    /// Asks the guests with these MACs for an address that the node looks for.
    pub fn ask(&self, macs: &BTreeSet<MacAddr>, address: IpAddr, node: &Node) -> Result<()> {
        let Some(source) = node.source(address) else {
            return Ok(());
        };
        let guests = macs.iter().map(|mac| Neighbor { address, mac: *mac });
        let frames = guests.filter_map(|guest| frames::question(self.claim(source), &guest));
        let sent = self.send(&frames.collect::<Vec<_>>());
        sent.with_context(|| format!("asking guests for {address} by {:?}", self.name))
    }

    fn claim(&self, address: IpAddr) -> Claim {
        let mac = self.mac;
        Claim { mac, address }
    }

    fn send(&self, frames: &[Vec<u8>]) -> Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        let receives_nothing = filter::from(&BTreeSet::new());
        let socket = PacketSocket::of_interface(self.index, &receives_nothing)?;
        frames.iter().try_for_each(|frame| socket.send(frame))
    }

    fn fix(&self, host: &mut Socket, neighbor: Neighbor) -> Result<()> {
        let Neighbor { address, mac } = neighbor;
        let set = host.set_neighbor(self.index, &neighbor);
        set.with_context(|| format!("fixing the MAC of {address} on {:?}", self.name))?;
        info!(address:%, mac:%, interface = &*self.name; "guest is reachable");
        Ok(())
    }

    fn add(&self, host: &mut Socket, route: &AddressRoute) -> Result<()> {
        match host.add_address_route(self.index, route) {
            // The node has one since a moment ago.
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            added => added.with_context(|| format!("adding the route to {}", route.destination)),
        }
    }

    fn routes(&self, host: &mut Socket) -> Result<Vec<AddressRoute>> {
        let is_ours = |route: &InstalledRoute| {
            route.interface == Some(self.index) && route.protocol == ROUTE_PROTOCOL
        };
        let routes = host.routes(is_ours)?.into_iter();
        let routes = routes.filter_map(|route| {
            Some(AddressRoute {
                destination: route.destination.single()?,
                source: route.source?,
            })
        });
        Ok(routes.collect())
    }
}
