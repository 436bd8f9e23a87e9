//! The network namespace of a port's pod.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::{
    host::{
        netns::Netns,
        packet::{self, PacketSocket},
    },
    netlink::{Change, Link, Socket},
    types::mode::Mode,
};

/// Where processes are.
pub const PROC: &str = "/proc";

/// The netns of a pod. It is opened when it is needed and closed at once: a descriptor would
/// keep the pod's netns alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetns {
    /// Its path, as seen here.
    pub path: PathBuf,
    /// Device and inode, to know it again.
    pub identity: (u64, u64),
}

impl PodNetns {
    /// Opens it; none if it is gone, or another one is at the path.
    pub fn open(&self) -> Result<Option<Netns>> {
        let Some(netns) = Netns::open_mounted(&self.path)? else {
            return Ok(None);
        };
        let same = netns.identity()? == self.identity;
        Ok(Some(netns).filter(|_| same))
    }

    /// A netlink socket in it; none if it is gone.
    pub fn socket(&self) -> Result<Option<Socket>> {
        self.open()?.map(|netns| netns.socket()).transpose()
    }

    /// The link with this index in it; none if link or netns is gone.
    pub fn link(&self, index: u32) -> Result<Option<Link>> {
        let link = self
            .socket()?
            .map(|mut socket| socket.link_with_stats(index));
        Ok(link.transpose()?.flatten())
    }

    /// Sets the mode of the macvtap with this index in it. False if link or netns is gone.
    pub fn set_mode(&self, index: u32, mode: Mode) -> Result<bool> {
        let change = Change {
            mode: Some(mode),
            ..Change::default()
        };
        let outcome = self.change(index, &change);
        outcome.with_context(|| format!("setting {mode} mode"))
    }

    /// Sets the group of the link with this index in it. False if link or netns is gone.
    pub fn set_group(&self, index: u32, group: u32) -> Result<bool> {
        let change = Change {
            group: Some(group),
            ..Change::default()
        };
        self.change(index, &change)
            .context("setting the link group")
    }

    fn change(&self, index: u32, change: &Change<'_>) -> Result<bool> {
        let Some(mut socket) = self.socket()? else {
            return Ok(false);
        };
        match socket.change(index, change) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// Whether only a process is known to be in it, which may end before the pod.
    pub fn is_of_process(&self) -> bool {
        self.path.starts_with(PROC)
    }

    /// Sends a frame from the interface with this index in it. Returns the socket, which is to be
    /// closed elsewhere; none if the netns is gone.
    pub fn send(&self, index: u32, frame: &[u8]) -> Result<Option<PacketSocket>> {
        let netns = self.open()?;
        netns
            .map(|netns| netns.run(|| packet::send(index, frame)))
            .transpose()
    }
}
