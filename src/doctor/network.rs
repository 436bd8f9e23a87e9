//! Whether the network answers a MAC that it has not seen before.

use std::{
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    host::{
        netns::Netns,
        packet::PacketSocket,
        tap::{self, VNET_HEADER},
    },
    macvtap::{
        create::{Spec, create},
        guard::Settings,
        lower::LowerDevice,
    },
    netlink::Socket,
    types::{mac::MacAddr, mode::Mode, port_options::NO_OPTIONS},
};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(500);
/// Ethernet header and ARP packet.
const FRAME: usize = 42;

/// Whom an address answers.
pub enum Answer {
    /// A MAC that the network has not seen before.
    ToAny,
    /// The MAC of the lower device alone.
    ToLowerDevice,
    None,
}

/// Asks by ARP for an address: from a new MAC, and if that gets no answer, from the lower device's.
pub fn probe(lower: &str, address: Ipv4Addr) -> Result<Answer> {
    let mut host = Socket::open()?;
    let lower = LowerDevice::eligible(&mut host, lower)?;
    if answers_new_mac(&mut host, &lower, address)? {
        return Ok(Answer::ToAny);
    }
    let Some(mac) = lower.link.mac else {
        return Ok(Answer::None);
    };
    let socket = PacketSocket::of_interface(lower.link.index, &[])?;
    let mut exchange = PacketExchange(&socket);
    Ok(if ask(&mut exchange, mac, address)? {
        Answer::ToLowerDevice
    } else {
        Answer::None
    })
}

/// From a macvtap that is made for it in a network namespace of its own, and goes with that.
fn answers_new_mac(host: &mut Socket, lower: &LowerDevice, address: Ipv4Addr) -> Result<bool> {
    let netns = Netns::create()?;
    let number = tap::free_number(&format!("doctor-{}", std::process::id()))?;
    let mac = MacAddr::random()?;
    let spec = Spec {
        name: "doctor",
        index: Some(number),
        lower,
        mode: Mode::Bridge,
        mac: Some(mac),
        mtu: None,
        group: 0,
        options: &NO_OPTIONS,
    };
    let settings = Settings {
        host_stack: false,
        promiscuous: false,
        all_multicast: false,
    };
    let created = create(host, Some(&netns), &spec)?;
    let (outcome, macvtap) = created.attach(|macvtap| {
        macvtap.prepare(settings)?;
        macvtap.set_up(None, None, Instant::now())?;
        Ok(ask(&mut TapExchange(&macvtap.open_tap()?), mac, address)?)
    })?;
    macvtap.remove()?;
    Ok(outcome)
}

/// By what frames are sent and received, without waiting.
trait Exchange {
    fn send(&mut self, frame: &[u8]) -> Result<()>;
    /// The next frame, if there is one.
    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]>;
}

struct TapExchange<'a>(&'a File);

impl Exchange for TapExchange<'_> {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let headed = [&[0; VNET_HEADER], frame].concat();
        Ok(self.0.write_all(&headed)?)
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let length = self.0.read(buffer).ok()?;
        buffer.get(VNET_HEADER..length)
    }
}

struct PacketExchange<'a>(&'a PacketSocket);

impl Exchange for PacketExchange<'_> {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.0.send(frame)
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let received = self.0.receive(buffer)?;
        buffer.get(..received.length)
    }
}

fn ask(wire: &mut impl Exchange, mac: MacAddr, address: Ipv4Addr) -> Result<bool> {
    let (start, mut asked) = (Instant::now(), None::<Instant>);
    while start.elapsed() < ANSWER_TIMEOUT {
        if asked.is_none_or(|time| time.elapsed() > AGAIN) {
            asked = Some(Instant::now());
            wire.send(&question(mac, address))
                .context("asking by ARP")?;
        }
        let mut buffer = [0; 2048];
        match wire.receive(&mut buffer) {
            Some(frame) if is_answer(frame, mac, address) => return Ok(true),
            Some(_) => {}
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(false)
}

/// An ARP probe (RFC 5227): its sender has no address, so no table changes by it.
fn question(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend([0; 10]);
    frame.extend(address.octets());
    frame.resize(60, 0);
    frame
}

fn is_answer(frame: &[u8], mac: MacAddr, address: Ipv4Addr) -> bool {
    frame.len() >= FRAME
        && frame[..6] == mac.0
        && frame[12..14] == [8, 6]
        && frame[20..22] == [0, 2]
        && frame[28..32] == address.octets()
}
