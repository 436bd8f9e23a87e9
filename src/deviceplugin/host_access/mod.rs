//! Host access: the node and its VMs reach each other, which a macvtap alone does not allow.
//!
//! On each lower device of a resource with `hostAccess` the node gets a macvlan in bridge mode,
//! which the kernel connects with the macvtaps there. It has the node's addresses on the lower
//! device, by which the node answers guests, and routes to the addresses of guests; the node's own
//! addresses and routes stay as they are. All of it is in the kernel: a device plugin that starts
//! adopts it, and with the macvlan it is gone.

mod access;
mod barrier;
mod claim;
mod frames;
mod guests;
mod interface;
mod node;
mod sockets;
mod thread;

use std::{
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use anyhow::{Context, Result};
use log::warn;

use self::{
    interface::is_ours,
    thread::{Shared, Work},
};
use crate::{
    host::{control_socket, process_lock::ProcessLock, worker::Worker},
    netlink::Link,
    types::status::HostAccessStatus,
};

pub use guests::Port;
pub use thread::{Plan, Ports};

/// The lock of the device plugin that makes the macvlans.
const LOCK: &str = "host-access.lock";

/// Host access of a node. Its thread runs once there is something to do.
pub struct HostAccess {
    kubelet_dir: PathBuf,
    shared: Arc<Shared>,
    worker: Option<(Worker, UnixStream)>,
}

impl HostAccess {
    /// None yet, on the node with this kubelet's directory.
    #[must_use]
    pub fn new(kubelet_dir: &Path) -> Self {
        Self {
            kubelet_dir: kubelet_dir.to_owned(),
            shared: Arc::default(),
            worker: None,
        }
    }

    /// Takes over another plan, or that links, addresses or routes changed; `node` is the node's
    /// name.
    pub fn update(&mut self, plan: Plan, links: &[Link], node: &str) {
        let is_needed = !plan.lowers.is_empty() || links.iter().any(is_ours);
        let planned = self.shared.plan.lock();
        *planned.unwrap_or_else(PoisonError::into_inner) = plan;
        let is_running = |(worker, _): &(Worker, UnixStream)| worker.is_running();
        if !self.worker.as_ref().is_some_and(is_running) && is_needed {
            self.worker = match self.start(node) {
                Ok(worker) => Some(worker),
                Err(error) => return warn!(error:% = format!("{error:#}"); "no host access"),
            };
        }
        if let Some((_, changes)) = &mut self.worker {
            // One that cannot be written to is full: the thread is about to look.
            let _ = changes.write(&[0]);
        }
    }

    fn start(&self, node: &str) -> Result<(Worker, UnixStream)> {
        let (changes, reported) = UnixStream::pair().context("making a pair of sockets")?;
        for socket in [&changes, &reported] {
            socket
                .set_nonblocking(true)
                .context("setting up a socket")?;
        }
        let lock = ProcessLock::new(control_socket::dir_in(&self.kubelet_dir), LOCK);
        let work = Work::new(Arc::clone(&self.shared), node.to_owned(), (reported, lock));
        let worker = Worker::start("host-access", move |waiter| work.run(waiter))?;
        Ok((worker, changes))
    }

    /// Published status, by lower device.
    #[must_use]
    pub fn status(&self) -> Vec<HostAccessStatus> {
        let published = self.shared.status.lock();
        published.unwrap_or_else(PoisonError::into_inner).clone()
    }
}
