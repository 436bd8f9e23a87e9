//! The VLAN interfaces that resources are on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Error};
use log::warn;

use super::config::ResourceConfig;
use crate::{
    host::{control_socket, process_lock::ProcessLock},
    macvtap::sub_interface::{Maker, SubInterface, adopt, delete_unused, is_used},
    netlink::{Link, Socket},
};

/// The lock of the device plugin that makes them.
const LOCK: &str = "vlans.lock";

/// The VLAN interfaces of the resources, and those of former configurations while pods hold their
/// devices.
#[derive(Debug)]
pub struct Vlans {
    by_name: BTreeMap<String, SubInterface>,
    /// One device plugin of a node makes and removes them. Of two, each would remove what the
    /// other makes.
    lock: ProcessLock,
    /// Those that could not be removed, by index, until it is time to try again: trying causes
    /// link events, which would have us try again at once.
    postponed: BTreeSet<u32>,
    errors: Vec<String>,
    is_locked_out: bool,
}

impl Vlans {
    /// None yet, on the node with this kubelet's directory.
    #[must_use]
    pub fn new(kubelet_dir: &Path) -> Self {
        Self {
            by_name: BTreeMap::new(),
            lock: ProcessLock::new(control_socket::dir_in(kubelet_dir), LOCK),
            postponed: BTreeSet::new(),
            errors: Vec::new(),
            is_locked_out: false,
        }
    }

    /// Takes note of those of `resources`, and forgets those whose name is not in `used` any more.
    pub fn update<'a>(
        &mut self,
        resources: impl Iterator<Item = &'a ResourceConfig>,
        used: &BTreeSet<&str>,
    ) {
        let found = resources.filter_map(|resource| {
            let vlan = resource.vlan.clone()?;
            Some((resource.lower.to_string(), vlan))
        });
        self.by_name.extend(found);
        self.by_name.retain(|name, _| used.contains(name.as_str()));
    }

    /// Makes those that are missing, takes over those that networks without a device plugin made, and
    /// removes those that this program made whose name is not in `used` any more. Lists the links again
    /// after it made one.
    pub fn reconcile(&mut self, host: &mut Socket, links: &mut Vec<Link>, used: &BTreeSet<&str>) {
        let missing: Vec<SubInterface> = self.missing(links).cloned().collect();
        self.is_locked_out = false;
        let none_of_networks = of_networks(links, used).next().is_none();
        if missing.is_empty() && none_of_networks && self.unused(links, used).is_empty() {
            return self.report(&[]);
        }
        if let Err(error) = self.lock.take() {
            self.is_locked_out = true;
            let error = error.context("VLAN interfaces are left to another device plugin");
            let errors = (!missing.is_empty()).then_some(error);
            return self.report(errors.as_slice());
        }
        // Before the DEL of a network's last pod removes them.
        let adopted = of_networks(links, used).map(|link| adopt(host, link));
        let mut errors: Vec<Error> = adopted.filter_map(Result::err).collect();
        let failed = errors.len();
        for vlan in &missing {
            errors.extend(vlan.ensure(host, Maker::DevicePlugin).err());
        }
        if missing.len() + failed > errors.len() {
            match host.links().context("listing links") {
                Ok(listed) => *links = listed,
                Err(error) => errors.push(error),
            }
        }
        for link in self.unused(links, used) {
            let deleted = delete_unused(host, link, Maker::DevicePlugin);
            if !matches!(deleted, Ok(true)) {
                self.postponed.insert(link.index);
            }
            errors.extend(deleted.err());
        }
        self.report(&errors);
    }

    /// Those that this program made whose name is not in `used`, and on which nothing of this
    /// network namespace stands.
    fn unused<'a>(&self, links: &'a [Link], used: &BTreeSet<&str>) -> Vec<&'a Link> {
        let unused = links.iter().filter(|link| {
            Maker::DevicePlugin.made(link)
                && link.vlan.is_some()
                && !used.contains(link.name.as_str())
                && !self.postponed.contains(&link.index)
                && !is_used(links, link.index)
        });
        unused.collect()
    }

    /// Whether something is left to do that no event may announce.
    pub fn is_pending(&self) -> bool {
        self.is_locked_out || !self.errors.is_empty() || !self.postponed.is_empty()
    }

    /// It is time to try again what could not be removed.
    pub fn try_again(&mut self) {
        self.postponed.clear();
    }

    /// Logs what was no error before.
    fn report(&mut self, errors: &[Error]) {
        let errors = errors.iter().map(|error| format!("{error:#}"));
        let errors: Vec<String> = errors.collect();
        for error in &errors {
            if !self.errors.contains(error) {
                warn!("{error}");
            }
        }
        self.errors = errors;
    }

    /// What could not be made or removed at the last call, and why.
    pub fn errors(&self) -> &[String] {
        &self.errors
    }

    /// Those that do not exist or are not ready. One that had a name of the node's own is the node's
    /// to make again: under another name it would keep the node from that.
    fn missing(&self, links: &[Link]) -> impl Iterator<Item = &SubInterface> {
        let is_ready = |link: &Link| link.up || !Maker::DevicePlugin.made(link);
        let missing = self.by_name.iter().filter(move |(name, vlan)| {
            match vlan.among(links) {
                Some(link) => !is_ready(link),
                // Where the name is taken, making it says so.
                None => vlan.name_among(links).map_or(true, |own| *own == **name),
            }
        });
        missing.map(|(_, vlan)| vlan)
    }
}

/// Those whose name is in `used` that networks without a device plugin made.
fn of_networks<'a>(links: &'a [Link], used: &'a BTreeSet<&str>) -> impl Iterator<Item = &'a Link> {
    links.iter().filter(|link| {
        Maker::Cni.made(link) && link.vlan.is_some() && used.contains(link.name.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{mode::Mode, resource_options::ResourceOptions};

    fn link(index: u32, name: &str, vlan: Option<(u16, u32)>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: vlan.map(|_| "vlan".to_owned()),
            vlan: vlan.map(|(id, _)| id),
            lower: vlan.map(|(_, lower)| lower),
            up: true,
            ..Link::default()
        }
    }

    fn resource(lower: &str, id: u16) -> ResourceConfig {
        ResourceConfig {
            name: "lan".to_owned(),
            lower: lower.parse().unwrap(),
            selector: None,
            mode: Mode::Bridge,
            options: ResourceOptions::NONE,
            capacity: 1,
            volume_hotplug: false,
            host_access: false,
            vlan: Some(SubInterface::vlan("eth0".parse().unwrap(), id)),
        }
    }

    fn missing(vlans: &Vlans, links: &[Link]) -> Vec<String> {
        vlans.missing(links).map(ToString::to_string).collect()
    }

    #[test]
    fn one_is_made_again_while_a_pod_holds_a_device_on_it() {
        let mut vlans = Vlans::new(Path::new("/nonexistent"));
        let eth0 = [link(2, "eth0", None)];
        vlans.update([resource("eth0.100", 100)].iter(), &["eth0.100"].into());
        assert_eq!(missing(&vlans, &eth0), ["VLAN 100 of eth0"]);
        // The configuration changes, and a pod holds a device of before.
        let used = ["eth0.100", "eth0.200"].into();
        vlans.update([resource("eth0.200", 200)].iter(), &used);
        let expected = ["VLAN 100 of eth0", "VLAN 200 of eth0"];
        assert_eq!(missing(&vlans, &eth0), expected);
        let both = [
            link(2, "eth0", None),
            link(3, "eth0.100", Some((100, 2))),
            link(4, "eth0.200", Some((200, 2))),
        ];
        assert!(missing(&vlans, &both).is_empty());
        vlans.update([resource("eth0.200", 200)].iter(), &["eth0.200"].into());
        assert_eq!(missing(&vlans, &eth0), ["VLAN 200 of eth0"]);
    }

    #[test]
    fn one_with_a_name_of_the_nodes_own_is_waited_for() {
        let mut vlans = Vlans::new(Path::new("/nonexistent"));
        vlans.update([resource("storage", 100)].iter(), &["storage"].into());
        let eth0 = link(2, "eth0", None);
        assert!(missing(&vlans, std::slice::from_ref(&eth0)).is_empty());
        let storage = link(3, "storage", Some((100, 2)));
        assert!(missing(&vlans, &[eth0, storage]).is_empty());
    }
}
