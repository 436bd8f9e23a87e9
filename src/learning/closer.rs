//! The thread that closes packet sockets. That takes the kernel up to 20 ms, for it waits until no
//! processor uses them any more (`synchronize_net`).

use std::{
    io,
    sync::mpsc::{Sender, channel},
    thread,
};

use crate::host::packet::PacketSocket;

/// The thread, which starts with the first socket, and ends when this is dropped and all sockets
/// are closed.
#[derive(Default)]
pub struct Closer(Option<Sender<PacketSocket>>);

impl Closer {
    /// Closes a socket.
    pub fn close(&mut self, socket: PacketSocket) {
        if self.0.is_none() {
            self.0 = start().ok();
        }
        // Without the thread it is closed here.
        if let Some(sockets) = &self.0 {
            let _ = sockets.send(socket);
        }
    }
}

fn start() -> io::Result<Sender<PacketSocket>> {
    let (sender, sockets) = channel();
    let builder = thread::Builder::new().name("learning-close".into());
    builder.spawn(move || sockets.into_iter().for_each(drop))?;
    Ok(sender)
}
