//! Macvtaps of pods without the CNI plugin that an earlier device plugin made and this one does
//! not know: it had ended when their pods did, and its configuration was another one.

use std::collections::BTreeSet;

use log::{info, warn};

use super::held::Held;
use crate::{
    macvtap::tap_only::{self, Resources},
    netlink::Link,
    types::device_id::DeviceId,
};

/// Those that were found so far.
#[derive(Default)]
pub struct Orphans {
    /// The indexes of those whose device is not known.
    unknown: BTreeSet<u32>,
    /// Among the devices of these resources: the node, and their names.
    resources: (String, BTreeSet<String>),
    warned: BTreeSet<u32>,
}

impl Orphans {
    /// The devices of the macvtaps among `links` that no device in `held` has. One that is not
    /// that of a device of these resources is left alone, with a warning.
    pub fn find(
        &mut self,
        links: &[Link],
        held: &Held,
        resources: &Resources<'_>,
    ) -> Vec<DeviceId> {
        self.search_among(resources);
        let candidates = links.iter().filter(|link| tap_only::is_candidate(link));
        let candidates: Vec<&Link> = candidates.collect();
        let indexes: BTreeSet<u32> = candidates.iter().map(|link| link.index).collect();
        self.unknown.retain(|index| indexes.contains(index));
        self.warned.retain(|index| indexes.contains(index));
        let is_new =
            |link: &&Link| held.at(link.index).is_none() && !self.unknown.contains(&link.index);
        let new: Vec<&Link> = candidates.into_iter().filter(is_new).collect();
        let with_lower = new.iter().filter_map(|&link| {
            let lower = links
                .iter()
                .find(|lower| Some(lower.index) == link.lower_here());
            Some((link, lower?))
        });
        let found = resources.devices_of(&with_lower.collect::<Vec<_>>());
        for link in new {
            match found.iter().find(|device| device.tap == link.index) {
                Some(device) => {
                    info!(device:%, interface = link.name; "found the macvtap of a former list");
                }
                None => self.note_unknown(link),
            }
        }
        found
    }

    /// Looks at all of them again where there are other resources.
    fn search_among(&mut self, resources: &Resources<'_>) {
        let names = resources.names.iter().map(|name| (*name).to_owned());
        let searched = (resources.node.to_owned(), names.collect());
        if self.resources != searched {
            self.resources = searched;
            self.unknown.clear();
        }
    }

    fn note_unknown(&mut self, link: &Link) {
        self.unknown.insert(link.index);
        if self.warned.insert(link.index) {
            warn!(
                interface = link.name;
                "a macvtap of no resource that is known here; if no container uses its tap, remove \
                 it with: ip link delete {}", link.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        device_id::{Devices, original_link_name},
        mode::Mode,
        resource_options::NO_RESOURCE_OPTIONS,
    };

    const LOWER: u32 = 2;

    fn lower() -> Link {
        Link {
            index: LOWER,
            name: "eth0".into(),
            ..Link::default()
        }
    }

    /// The macvtaps of the first devices of a resource, as an earlier device plugin made them.
    fn macvtaps(resource: &str, count: usize) -> Vec<(DeviceId, Link)> {
        let (lower, mut taken) = ("eth0".parse().unwrap(), BTreeSet::new());
        let devices = Devices {
            node: "node",
            resource,
            lower: &lower,
            mode: Mode::Bridge,
            options: &NO_RESOURCE_OPTIONS,
        };
        let with_link = devices.iter(&mut taken).take(count).map(|device| {
            let link = Link {
                index: device.tap,
                name: original_link_name(&device.to_string()),
                kind: Some("macvtap".into()),
                lower: Some(LOWER),
                mode: Some(Mode::Bridge),
                ..Link::default()
            };
            (device, link)
        });
        with_link.collect()
    }

    fn resources<'a>(names: &[&'a str]) -> Resources<'a> {
        Resources {
            node: "node",
            names: names.iter().copied().collect(),
        }
    }

    #[test]
    fn finds_the_devices_of_many_macvtaps_among_many_resources() {
        let (devices, mut links): (Vec<_>, Vec<_>) = macvtaps("r7", 300).into_iter().unzip();
        links.push(lower());
        let names: Vec<String> = (0..8).map(|number| format!("r{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut orphans = Orphans::default();
        let found = orphans.find(&links, &Held::default(), &resources(&names));
        assert_eq!(found, devices);
        assert!(orphans.unknown.is_empty());
    }

    #[test]
    fn leaves_alone_what_is_held_and_looks_again_among_other_resources() {
        let (devices, mut links): (Vec<_>, Vec<_>) = macvtaps("a", 2).into_iter().unzip();
        links.push(lower());
        let (mut orphans, mut held) = (Orphans::default(), Held::default());
        held.hold(&devices[..1]);
        for _ in 0..2 {
            assert!(orphans.find(&links, &held, &resources(&["b"])).is_empty());
            assert_eq!(orphans.unknown, [devices[1].tap].into());
        }
        let found = orphans.find(&links, &held, &resources(&["a", "b"]));
        assert_eq!(found, [devices[1].clone()]);
    }
}
