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
        let candidates = links.iter().filter(|link| tap_only::is_candidate(link));
        let candidates: Vec<&Link> = candidates.collect();
        let exists = |index: &u32| candidates.iter().any(|link| link.index == *index);
        self.unknown.retain(exists);
        self.warned.retain(exists);
        let mut found = Vec::new();
        for link in candidates {
            if held.at(link.index).is_some() || self.unknown.contains(&link.index) {
                continue;
            }
            let lower = links
                .iter()
                .find(|lower| Some(lower.index) == link.lower_here());
            match lower.and_then(|lower| resources.device_of(link, lower)) {
                Some(device) => {
                    info!(device:%, interface = link.name; "found the macvtap of a former list");
                    found.push(device);
                }
                None => self.note_unknown(link),
            }
        }
        found
    }

    /// Looks at all of them again: there are other resources.
    pub fn forget_unknown(&mut self) {
        self.unknown.clear();
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
