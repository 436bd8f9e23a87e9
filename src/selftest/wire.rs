//! The node's lower device, and what is wired to it: the place from which the
//! selftest looks at frames.
//!
//! The far end carries a macvtap in passthru mode, whose tap reads and writes
//! every frame of the wire. Both ends are then files.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    host::{
        devnode,
        netns::Netns,
        tap::{self, VNET_HEADER},
    },
    macvtap::{
        create::{Spec, create},
        lower::LowerDevice,
    },
    netlink::{Change, Socket},
    types::{mac::MacAddr, mode::Mode, port_options::NO_OPTIONS},
};

/// The name of the lower device.
pub const LOWER: &str = "lower0";
const FAR_END: &str = "wire0";
const FAR_MAC: MacAddr = MacAddr([0x02, 0, 0, 0, 0, 0xfe]);
/// The ethertype for local experiments (IEEE 802, 0x88b5): nothing else on the wire has it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const LONGEST_FRAME: usize = 2048;
/// The far end is quiet when nothing came for so long, in milliseconds.
const QUIET: u8 = 20;
const FRAME_TIMEOUT: Duration = Duration::from_secs(2);

/// A node's network namespace with the lower device, and the wire behind it.
pub struct Wire {
    /// The node's network namespace.
    pub node: Netns,
    /// The number of the tap at the far end.
    pub tap_number: u32,
    far_end: File,
    // What holds the far end's links.
    _far: Netns,
}

impl Wire {
    /// Makes the namespaces, the veth pair between them, and the tap at the far end.
    pub fn lay() -> Result<Self> {
        let (node, far) = (Netns::create()?, Netns::create()?);
        let mut socket = node.socket()?;
        socket.create_veth(LOWER, FAR_END, far.as_fd())?;
        set_up(&mut socket, LOWER)?;
        let mut socket = far.socket()?;
        set_up(&mut socket, FAR_END)?;
        let number = tap::free_number(&format!("selftest-{}", std::process::id()))?;
        let spec = Spec {
            name: "tap",
            index: Some(number),
            lower: &LowerDevice::eligible(&mut socket, FAR_END)?,
            mode: Mode::Passthru,
            mac: None,
            mtu: None,
            group: 0,
            options: &NO_OPTIONS,
        };
        let created = create(&mut socket, Some(&far), &spec)?;
        let (far_end, macvtap) = created.attach(|macvtap| {
            macvtap.set_up(None, None, Instant::now())?;
            macvtap.open_tap()
        })?;
        macvtap.keep();
        Ok(Self {
            node,
            tap_number: number,
            far_end,
            _far: far,
        })
    }

    /// Writes a frame into the tap `number` and expects it on the wire.
    pub fn frame_out(&self, number: u32, mac: MacAddr) -> Result<()> {
        transmit(&devnode::open(number)?, &self.far_end, (mac, FAR_MAC))
    }

    /// Sends a frame on the wire and expects it in the tap `number`.
    pub fn frame_in(&self, number: u32, mac: MacAddr) -> Result<()> {
        transmit(&self.far_end, &devnode::open(number)?, (FAR_MAC, mac))
    }

    /// Reads what is left at the far end. A frame that waits there holds the netns that it was
    /// sent in; a guest reads on, and so holds none.
    pub fn drain(&self) -> Result<()> {
        loop {
            let mut polled = [PollFd::new(self.far_end.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(QUIET)).context("waiting for frames")? == 0 {
                return Ok(());
            }
            let read = (&self.far_end).read(&mut [0; LONGEST_FRAME]);
            read.context("reading a frame from a tap")?;
        }
    }
}

fn set_up(socket: &mut Socket, name: &str) -> Result<()> {
    let link = socket.link_by_name(name)?;
    let index = link.with_context(|| format!("{name} is not there"))?.index;
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    Ok(socket.change(index, &up)?)
}

/// Writes a frame to one tap and waits for it at the other. `macs` are its source and destination.
fn transmit(from: &File, to: &File, macs: (MacAddr, MacAddr)) -> Result<()> {
    let frame = frame(macs);
    let written = (&*from).write(&frame).context("writing a frame to a tap")?;
    ensure!(
        written == frame.len(),
        "the tap took {written} bytes of {}",
        frame.len()
    );
    let deadline = Instant::now() + FRAME_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(to.as_fd(), PollFlags::POLLIN)];
        let ready =
            poll(&mut polled, PollTimeout::try_from(left)?).context("waiting for a frame")?;
        ensure!(
            ready > 0,
            "the frame did not arrive within {FRAME_TIMEOUT:?}"
        );
        let mut buffer = [0; LONGEST_FRAME];
        let length = (&*to)
            .read(&mut buffer)
            .context("reading a frame from a tap")?;
        // Others send as well, IPv6 for one.
        if buffer.get(VNET_HEADER..length) == Some(&frame[VNET_HEADER..]) {
            return Ok(());
        }
    }
}

fn frame((source, destination): (MacAddr, MacAddr)) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend(destination.0);
    frame.extend(source.0);
    frame.extend(ETHERTYPE);
    frame.extend(std::process::id().to_be_bytes());
    frame.extend(b"a frame of macvtap selftest, longer than the shortest frame there is");
    frame
}
