//! Packets with a sequence number at a steady pace, and a receiver that notes when they arrive. Used
//! by the tests on the nodes, and by the program that runs in the guest.

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    time::{Duration, Instant},
};

/// Packets a second.
pub const RATE: u32 = 25;

/// Sends to `target` until `stop` says so; the number and time of each.
pub fn send(socket: &UdpSocket, target: &str, mut stop: impl FnMut() -> bool) -> Vec<Instant> {
    let mut sent = Vec::new();
    let start = Instant::now();
    while !stop() {
        let number = u32::try_from(sent.len()).unwrap_or(u32::MAX);
        // A neighbour that cannot be resolved is a packet lost, not the end.
        let _ = socket.send_to(&number.to_be_bytes(), target);
        sent.push(Instant::now());
        let next = start + Duration::from_secs(1) * (number + 1) / RATE;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Receives until `stop` says so; by sender's address, the numbers and when each first came.
pub fn receive(
    socket: &UdpSocket,
    mut stop: impl FnMut() -> bool,
) -> BTreeMap<String, BTreeMap<u32, Instant>> {
    let mut arrivals: BTreeMap<String, BTreeMap<u32, Instant>> = BTreeMap::new();
    let timeout = Some(Duration::from_millis(100));
    let _ = socket.set_read_timeout(timeout);
    while !stop() {
        let mut buffer = [0; 4];
        if let Ok((4, sender)) = socket.recv_from(&mut buffer) {
            let numbers = arrivals.entry(sender.ip().to_string()).or_default();
            let number = u32::from_be_bytes(buffer);
            numbers.entry(number).or_insert_with(Instant::now);
        }
    }
    arrivals
}

/// Payload and length of a full frame of TCP with time stamps: rates count frames.
const PAYLOAD: f64 = 1448.0;
const FRAME: f64 = 1514.0;
/// What a rate may be off by.
const TOLERANCE: f64 = 0.03;

/// Megabits of frames per second that TCP makes of what `pass` lets pass each time.
pub fn measure(mut pass: impl FnMut() -> usize, time: Duration) -> f64 {
    let (start, mut bytes) = (Instant::now(), 0_usize);
    while start.elapsed() < time {
        bytes += pass();
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let payload = 8.0 * bytes as f64 / start.elapsed().as_secs_f64();
    payload / 1e6 * FRAME / PAYLOAD
}

/// Whether a measured rate is the wanted one.
#[must_use]
pub fn is_close(found: f64, wanted: f64) -> bool {
    (found / wanted - 1.0).abs() <= TOLERANCE
}
