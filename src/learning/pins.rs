//! Descriptors of network namespaces, for ports that could not be reached without.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::{group, netns::PodNetns};
use crate::{host::netns::Netns, netlink::Change, types::mode::Mode};

/// The network namespaces of parked ports of which only a process is known. Should that end, as
/// one does that was there for a moment, a later device plugin would not find the port: it is made
/// active by the descriptor, which is closed then. Until then the descriptor keeps the netns alive.
#[derive(Default)]
pub struct Pins(BTreeMap<u32, Netns>);

impl Pins {
    /// Pins the netns of a port that is parked, or is about to be. False if the netns is gone.
    pub fn pin(&mut self, tap: u32, netns: &PodNetns) -> Result<bool> {
        if !netns.is_of_process() {
            self.unpin(tap);
            return Ok(true);
        }
        let pinned = self.0.get(&tap).map(Netns::identity).transpose()?;
        if pinned == Some(netns.identity) {
            return Ok(true);
        }
        self.unpin(tap);
        let opened = netns.open()?.map(|netns| self.0.insert(tap, netns));
        Ok(opened.is_some())
    }

    /// Lets go of the netns of a port.
    pub fn unpin(&mut self, tap: u32) {
        self.0.remove(&tap);
    }

    /// Makes the parked port of a tap active whose netns is pinned. False if there is none.
    pub fn unpark(&self, tap: u32) -> Result<bool> {
        let Some(netns) = self.0.get(&tap) else {
            return Ok(false);
        };
        let mut socket = netns.socket()?;
        let link = socket.link(tap)?;
        let parked = link.is_some_and(|link| link.is_macvtap() && group::is_parked(&link));
        if parked {
            let change = Change {
                mode: Some(Mode::Bridge),
                ..Change::default()
            };
            let changed = socket.change(tap, &change);
            changed.context("setting bridge mode")?;
        }
        Ok(parked)
    }
}
