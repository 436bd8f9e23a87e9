//! The thread that closes packet sockets. That takes the kernel up to 20 ms, for it waits until no
//! processor uses them any more (`synchronize_net`).

use std::{
    sync::mpsc::{Sender, channel},
    thread,
};

use anyhow::{Context, Result};

use crate::host::packet::PacketSocket;

/// The thread, which ends when this is dropped and all sockets are closed.
pub struct Closer(Sender<PacketSocket>);

impl Closer {
    /// Starts the thread.
    pub fn start() -> Result<Self> {
        let (sender, sockets) = channel();
        let builder = thread::Builder::new().name("learning-close".into());
        let started = builder.spawn(move || sockets.into_iter().for_each(drop));
        started.context("starting a thread")?;
        Ok(Self(sender))
    }

    /// Closes a socket.
    pub fn close(&self, socket: PacketSocket) {
        // Without the thread it is closed here.
        let _ = self.0.send(socket);
    }
}
