//! Taps as files: what a guest's QEMU does with one, and the far end of a node's wire.

use std::{
    fs::File,
    io::{Read, Write},
    time::{Duration, Instant},
};

use macvtap::host::{devnode, tap::VNET_HEADER};

use super::{FAR_END, Node, tap_number};

/// Opens tap `number`; reading does not wait.
pub fn open(number: u32) -> File {
    devnode::open(number).unwrap()
}

/// A tap at the far end of the wire: whatever is written there arrives at the node.
pub fn far_tap(node: &Node) -> File {
    let number = tap_number();
    let words = format!("link add far index {number} link {FAR_END} type macvtap mode passthru");
    node.wire.ip(&words);
    node.wire.ip("link set far up");
    open(number)
}

/// Writes a frame to a tap.
pub fn send(mut tap: &File, frame: &[u8]) {
    let bytes = [&[0; VNET_HEADER], frame].concat();
    assert_eq!(tap.write(&bytes).unwrap(), bytes.len());
}

/// Whether `frame` can be read from the tap within `timeout`.
pub fn arrives(mut tap: &File, frame: &[u8], timeout: Duration) -> bool {
    let start = Instant::now();
    let mut buffer = [0; 4096];
    while start.elapsed() < timeout {
        match tap.read(&mut buffer) {
            Ok(length) if buffer[VNET_HEADER..length] == *frame => return true,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}
