//! The thread for what takes the kernel up to 20 ms: closing packet sockets waits until no
//! processor looks at them any more (`synchronize_net`).

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context, Result};
use log::debug;

use super::{frame, netns::PodNetns};
use crate::host::packet::{self, PacketSocket};

/// Work for the thread.
pub enum Job {
    /// Send a port's first frame from the port again.
    Replay {
        /// Its pod's netns.
        netns: PodNetns,
        /// Its tap, which is its interface index there.
        tap: u32,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Close a socket.
    Close(PacketSocket),
}

/// The thread, which ends when this is dropped and its work is done.
pub struct Worker(Sender<Job>);

impl Worker {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let (sender, jobs) = channel();
        let builder = thread::Builder::new().name("learning-worker".into());
        let started = builder.spawn(move || run(&jobs));
        started.context("starting a thread")?;
        Ok(Self(sender))
    }

    /// Hands work to the thread.
    pub fn give(&self, job: Job) {
        // Fails if the thread is gone: then a socket is closed here, which takes longer.
        let _ = self.0.send(job);
    }
}

fn run(jobs: &Receiver<Job>) {
    for job in jobs {
        match job {
            Job::Close(socket) => drop(socket),
            Job::Replay { netns, tap, frame } => {
                if let Err(error) = replay(&netns, tap, frame) {
                    debug!(tap, error = format!("{error:#}"); "first frame not replayed");
                }
            }
        }
    }
}

fn replay(netns: &PodNetns, tap: u32, mut frame: Vec<u8>) -> Result<()> {
    frame::complete_checksum(&mut frame);
    let netns = netns.open()?.context("its netns is gone")?;
    netns.run(|| packet::send(tap, &frame))
}
