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

/// Asks by ARP for an address, from a macvtap that is made for it in a network namespace of
/// its own, and goes with that.
pub fn answers(lower: &str, address: Ipv4Addr) -> Result<bool> {
    let mut host = Socket::open()?;
    let lower = LowerDevice::eligible(&mut host, lower)?;
    let netns = Netns::create()?;
    let number = tap::free_number(&format!("doctor-{}", std::process::id()))?;
    let mac = MacAddr::random()?;
    let spec = Spec {
        name: "doctor",
        index: Some(number),
        lower: &lower,
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
    let created = create(&mut host, Some(&netns), &spec)?;
    let (outcome, macvtap) = created.attach(|macvtap| {
        macvtap.prepare(settings)?;
        macvtap.set_up(None, None, Instant::now())?;
        Ok(ask(&macvtap.open_tap()?, mac, address)?)
    })?;
    macvtap.remove()?;
    Ok(outcome)
}

fn ask(mut tap: &File, mac: MacAddr, address: Ipv4Addr) -> Result<bool> {
    let (start, mut asked) = (Instant::now(), None::<Instant>);
    while start.elapsed() < ANSWER_TIMEOUT {
        if asked.is_none_or(|time| time.elapsed() > AGAIN) {
            asked = Some(Instant::now());
            tap.write_all(&question(mac, address))
                .context("asking by ARP")?;
        }
        let mut buffer = [0; 2048];
        match tap.read(&mut buffer) {
            Ok(length) if is_answer(&buffer[..length], mac, address) => return Ok(true),
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(false)
}

/// An ARP probe (RFC 5227): its sender has no address, so no table changes by it.
fn question(mac: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac.0);
    frame.extend([0; 10]);
    frame.extend(address.octets());
    frame.resize(VNET_HEADER + 60, 0);
    frame
}

fn is_answer(bytes: &[u8], mac: MacAddr, address: Ipv4Addr) -> bool {
    let Some(frame) = bytes
        .get(VNET_HEADER..)
        .filter(|frame| frame.len() >= FRAME)
    else {
        return false;
    };
    frame[..6] == mac.0
        && frame[12..14] == [8, 6]
        && frame[20..22] == [0, 2]
        && frame[28..32] == address.octets()
}
