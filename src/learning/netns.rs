//! The network namespace of a port's pod.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::{
    host::netns::Netns,
    netlink::{Change, Link, NetlinkError, Socket},
    types::mode::Mode,
};

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
        let Some(netns) = Netns::open(&self.path)? else {
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

    /// Sets the mode of the macvtap with this index in it. The link as it is then; none if link
    /// or netns is gone.
    pub fn set_mode(&self, index: u32, mode: Mode) -> Result<Option<Link>> {
        let Some(mut socket) = self.socket()? else {
            return Ok(None);
        };
        let change = Change {
            mode: Some(mode),
            ..Change::default()
        };
        match exists(socket.change(index, &change)) {
            Ok(true) => Ok(socket.link_with_stats(index)?),
            Ok(false) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("setting {mode} mode")),
        }
    }

    /// Sets the group of the link with this index in it. False if link or netns is gone.
    pub fn set_group(&self, index: u32, group: u32) -> Result<bool> {
        let Some(mut socket) = self.socket()? else {
            return Ok(false);
        };
        let change = Change {
            group: Some(group),
            ..Change::default()
        };
        exists(socket.change(index, &change)).context("setting the link group")
    }
}

/// False where the kernel says that there is no such link.
fn exists(outcome: Result<(), NetlinkError>) -> Result<bool, NetlinkError> {
    match outcome {
        Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
        other => other.map(|()| true),
    }
}
