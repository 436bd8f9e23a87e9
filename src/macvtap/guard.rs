//! A macvtap that is being attached: prepared, set up, and undone if anything fails.

use std::{
    cell::OnceCell,
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, anyhow};
use log::error;
use nix::errno::Errno;

use super::{
    addressing,
    bandwidth::Bandwidth,
    error::{AttachError, Kind},
    inventory,
    origin::Origin,
    port_security::{Interface, remove_security},
    security::Security,
    shaping,
};
use crate::{
    host::{devnode, netns::Netns, tap, userns},
    netlink::{Change, Link, NO_IPV6_ADDRESSES, NetlinkError, Socket, Uevents},
    types::{
        device_number::DeviceNumber,
        errors::together,
        ip_config::IpConfig,
        mac::MacAddr,
        mode::Mode,
        owner::{Access, Owner},
    },
};

/// The poll interval for something in the way.
const POLL: Duration = Duration::from_millis(2);

/// A macvtap in the network namespace where it belongs, not yet in use. Dropped without
/// [`Self::keep`], it is undone.
pub struct NewMacvtap<'a> {
    /// The network namespace that it is in; our own if none.
    netns: Option<&'a Netns>,
    socket: Socket,
    name: String,
    index: u32,
    device: Option<DeviceNumber>,
    /// The root of the user namespace that owns the network namespace.
    root: Owner,
    /// Who may open its tap, in our own numbers.
    access: OnceCell<Access>,
    /// Whether it has its lower device to itself.
    is_alone: bool,
    /// What the kernel does not remove with it: the table of its filter, the device of its rate.
    is_secured: bool,
    is_shaped: bool,
    undo: Undo,
}

/// How to take back what was done.
pub(super) enum Undo {
    /// The macvtap was made: delete it.
    Delete,
    /// It existed on the host: put it back.
    Restore(Box<Origin>),
    /// It is attached: leave it.
    Keep,
}

/// What a macvtap is like before its first frame.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Leave ARP and IPv6 of the network namespace's own IP stack on: the interface is used by
    /// more than the tap.
    pub host_stack: bool,
    /// Receive frames to all addresses, as far as a macvlan can.
    pub promiscuous: bool,
    /// Receive every multicast frame.
    pub all_multicast: bool,
}

/// What is open in the network namespace where a macvtap comes to be.
pub(super) struct Place<'a> {
    pub(super) netns: Option<&'a Netns>,
    pub(super) socket: Socket,
    pub(super) uevents: Uevents,
    root: Owner,
}

impl<'a> Place<'a> {
    /// Opens what is needed there, before the macvtap comes: its uevent must not be missed.
    pub(super) fn open(netns: Option<&'a Netns>) -> Result<Self, AttachError> {
        let open = || Ok((Socket::open()?, Uevents::open()?, userns::root()));
        let (socket, uevents, root) = match netns {
            Some(netns) => netns.run(open)?,
            None => open()?,
        };
        Ok(Self {
            netns,
            socket,
            uevents,
            root,
        })
    }
}

impl<'a> NewMacvtap<'a> {
    /// A macvtap that came to be in `place`, as the interface `name` with this index.
    pub(super) fn new(place: Place<'a>, name: &str, index: u32, undo: Undo) -> Self {
        Self {
            device: place.uevents.tap_added(index),
            netns: place.netns,
            socket: place.socket,
            root: place.root,
            access: OnceCell::new(),
            name: name.to_owned(),
            index,
            is_alone: false,
            is_secured: false,
            is_shaped: false,
            undo,
        }
    }

    /// Notes the mode that it has.
    pub(super) fn in_mode(mut self, mode: Option<Mode>) -> Self {
        self.is_alone = mode.is_some_and(Mode::is_alone);
        self
    }

    /// Its interface index, which is the number of its tap.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Who may open its tap, where `access` has the numbers of the pod's user namespace and
    /// `netns` is the path by which the runtime names the pod's network namespace.
    pub fn access(&self, access: Access, netns: &Path) -> Result<Access, AttachError> {
        if let Some(known) = self.access.get() {
            return Ok(*known);
        }
        let mapped = userns::map(access, self.root, netns)?;
        Ok(*self.access.get_or_init(|| mapped))
    }

    /// Does `work` with it. If that fails, the macvtap is undone; if undoing fails too, the error
    /// has both.
    pub fn attach<T>(
        mut self,
        work: impl FnOnce(&mut Self) -> Result<T, AttachError>,
    ) -> Result<(T, Self), AttachError> {
        match work(&mut self) {
            Ok(done) => Ok((done, self)),
            Err(error) => Err(self.undo(error)),
        }
    }

    /// Leaves it where it is.
    pub fn keep(mut self) {
        self.undo = Undo::Keep;
    }

    /// Undoes it because of `error`, which is returned.
    #[must_use]
    pub fn undo(mut self, error: AttachError) -> AttachError {
        match self.try_undo() {
            Ok(()) => error,
            Err(second) => error.context(format!("could not be undone ({second:#})")),
        }
    }

    /// Deletes it, or puts it back.
    pub fn remove(mut self) -> anyhow::Result<()> {
        self.try_undo()
    }

    /// Makes the node of its tap its own, and gives `access` to that. False if the node belongs to
    /// another tap of that name: the macvtap has to be made again.
    pub fn claim_node(&mut self, access: Access) -> Result<bool, AttachError> {
        let Some(device) = self.device()? else {
            return Ok(false);
        };
        Ok(devnode::claim(self.index, device, access)?)
    }

    /// Opens its tap for ourselves; reading does not wait.
    pub fn open_tap(&mut self) -> Result<File, AttachError> {
        if self.claim_node(Access::ROOT)? {
            return Ok(devnode::open(self.index)?);
        }
        let path = tap::path(self.index);
        Err(anyhow!("{} is not the tap just made", path.display()).into())
    }

    /// Sets what has to be set while it is down: no frame passes until [`Self::set_up`].
    ///
    /// In passthru mode the kernel counts all-multicast on the lower device when it changes while
    /// the macvtap is up, and not when that goes up or away (`macvlan_change_rx_flags`): whatever
    /// changes it later would leave a wrong count. Promiscuity lets the same frames in
    /// (`macvlan_compute_filter`), and is not counted there.
    ///
    /// The namespace's own IP stack is kept off the interface: the guest has the MAC, and each
    /// frame that the stack sends makes switches believe that the guest is here.
    pub fn prepare(&mut self, settings: Settings) -> Result<(), AttachError> {
        let quiet = !settings.host_stack;
        let groups_by_promiscuity = settings.all_multicast && self.is_alone;
        let promiscuous = settings.promiscuous || groups_by_promiscuity;
        let all_multicast = settings.all_multicast && !groups_by_promiscuity;
        let flags = Change {
            promiscuous: promiscuous.then_some(true),
            all_multicast: all_multicast.then_some(true),
            arp: quiet.then_some(false),
            ..Change::default()
        };
        let with_ipv6 = Change {
            address_mode: quiet.then_some(NO_IPV6_ADDRESSES),
            ..flags
        };
        match self.socket.change(self.index, &with_ipv6) {
            // There is no IPv6 in this kernel.
            Err(error) if quiet && error.errno() == Some(Errno::EAFNOSUPPORT) => {
                let set = self.socket.change(self.index, &flags);
                return Ok(set.context("preparing the macvtap")?);
            }
            other => other.context("preparing the macvtap")?,
        }
        if quiet { self.disable_ipv6() } else { Ok(()) }
    }

    /// `NO_IPV6_ADDRESSES` was against the link-local address. A router advertisement before QEMU
    /// opens the tap would still give the link an address, and make it send (net/ipv6/addrconf.c:
    /// `addr_gen_mode` "none" leaves autoconfiguration by prefix on).
    fn disable_ipv6(&self) -> Result<(), AttachError> {
        let sysctl = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        let write = || {
            if let Err(error) = fs::write(&sysctl, "1") {
                log::warn!(
                    path = sysctl.as_str(), error:%;
                    "cannot disable IPv6: router advertisements give the interface an address"
                );
            }
            Ok(())
        };
        match self.netns {
            Some(netns) => netns.run(write)?,
            None => write()?,
        }
        Ok(())
    }

    /// Puts `security` in force for what the guest sends. It has the MAC that the macvtap has, or
    /// `mac` if that is to be set.
    pub fn secure(&mut self, security: &Security, mac: Option<MacAddr>) -> Result<(), AttachError> {
        let mac = match mac {
            None => self.read_back()?.mac,
            given => given,
        };
        let mac = mac.context("the macvtap has no hardware address")?;
        self.is_secured = true;
        let mechanism = self.interface().secure(security, mac)?;
        log::info!(security:%, mechanism:%; "secured");
        Ok(())
    }

    /// Puts `bandwidth` in force for what the guest sends and receives.
    pub fn shape(&mut self, bandwidth: &Bandwidth) -> Result<(), AttachError> {
        let link = self.read_back()?;
        self.is_shaped = true;
        Ok(shaping::shape(&mut self.socket, &link, bandwidth)?)
    }

    /// Gives it IP addresses, which are announced by [`Self::set_up`].
    pub fn assign(&mut self, ip: &IpConfig) -> Result<(), AttachError> {
        let interface = Interface {
            netns: self.netns,
            name: &self.name,
            index: self.index,
        };
        addressing::assign(&mut self.socket, interface, ip)
    }

    /// Waits until its IP addresses can be used, and adds the routes. It has to be up.
    pub fn add_routes(&mut self, ip: &IpConfig) -> Result<(), AttachError> {
        addressing::add_routes(&mut self.socket, self.index, ip)
    }

    fn interface(&self) -> Interface<'_> {
        Interface {
            netns: self.netns,
            name: &self.name,
            index: self.index,
        }
    }

    /// Sets it up, in `mode` from then on if one is given.
    ///
    /// Only now the kernel looks whether the MAC is free on the lower device; its former user may
    /// be going away, which is waited for until `deadline`. A passthru macvtap took over its lower
    /// device's address when it was made, so `mac` is set again.
    pub fn set_up(
        &mut self,
        mode: Option<Mode>,
        mac: Option<MacAddr>,
        deadline: Instant,
    ) -> Result<(), AttachError> {
        let change = Change {
            mode,
            mac,
            up: Some(true),
            ..Change::default()
        };
        loop {
            let error = match self.socket.change(self.index, &change) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !is_mac_in_use(&error) {
                return Err(AttachError::from(error).context("setting the macvtap up"));
            }
            pause(deadline, || {
                mac_in_use(&self.read_back().unwrap_or_default())
            })?;
        }
    }

    /// What the kernel made of it.
    pub fn read_back(&mut self) -> Result<Link, AttachError> {
        let link = self.socket.link(self.index)?;
        Ok(link.context("the macvtap is gone already")?)
    }

    /// Fails if the node of its tap is not its own, or open to others than `access` says. Where
    /// the kernel does not keep the nodes, the DEL of a previous pod may have removed it with its
    /// own; it is made again then.
    pub fn verify_node(&mut self, access: Access) -> Result<(), AttachError> {
        let device = self.device()?;
        let device = device.context("the macvtap has no tap of its own")?;
        let verified = devnode::verify(self.index, device, access);
        if verified.is_err() && devnode::claim(self.index, device, access)? {
            return Ok(devnode::verify(self.index, device, access)?);
        }
        Ok(verified?)
    }

    /// Its tap's device number, by the kernel's announcement. Where that was lost, by a search in
    /// sysfs: none then if two taps have the number, for it does not show which is whose.
    fn device(&mut self) -> Result<Option<DeviceNumber>, AttachError> {
        if self.device.is_none() {
            self.device = match *tap::devices(self.index)? {
                [device] => Some(device),
                _ => None,
            };
        }
        Ok(self.device)
    }

    fn try_undo(&mut self) -> anyhow::Result<()> {
        let undo = std::mem::replace(&mut self.undo, Undo::Keep);
        if matches!(undo, Undo::Keep) {
            return Ok(());
        }
        let mut errors = Vec::new();
        if self.is_shaped {
            let removed = shaping::remove_ifb(&mut self.socket, self.index);
            errors.extend(removed.map_err(Error::from).err());
        }
        errors.extend(self.undo_link(undo).err());
        // The rules last: while there is a link, no frame may pass it unchecked.
        if self.is_secured {
            errors.extend(remove_security(self.netns, &self.name).err());
        }
        together(&errors)
    }

    fn undo_link(&mut self, undo: Undo) -> anyhow::Result<()> {
        match undo {
            // Its node, where the kernel does not make and remove it, was made by us as well.
            Undo::Delete => {
                self.socket.delete(self.index)?;
                devnode::remove_stale(self.index).map(|_| ())
            }
            Undo::Restore(origin) => origin.restore(&mut self.socket, &self.name),
            Undo::Keep => Ok(()),
        }
    }
}

impl Drop for NewMacvtap<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.try_undo() {
            error!(tap = self.index, error = format!("{error:#}").as_str(); "cannot remove the macvtap");
        }
    }
}

/// Whether the kernel refused a MAC because of another user of it: it lets no two up on one lower
/// device have one MAC (`macvlan_addr_busy`).
pub(super) fn is_mac_in_use(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(Errno::EADDRINUSE | Errno::EBUSY))
}

/// Says who has the MAC of `link` on its lower device.
pub(super) fn mac_in_use(link: &Link) -> AttachError {
    let mac = link.mac;
    let mac = mac.map_or_else(|| "the MAC".to_owned(), |mac| format!("MAC {mac}"));
    let holder = inventory::holder_of_mac(link)
        .unwrap_or_else(|| "the device itself or another macvtap or macvlan on it".to_owned());
    let text = format!("{mac} is in use on the lower device already, by {holder}");
    AttachError::new(Kind::TryAgain, text)
}

/// Waits a moment, or fails with `why` if `deadline` has passed.
pub fn pause(deadline: Instant, why: impl FnOnce() -> AttachError) -> Result<(), AttachError> {
    // Two that got into each other's way must not meet again at once.
    let jitter = Duration::from_micros(u64::from(std::process::id() % 16) * 250);
    pause_for(POLL + jitter, deadline, why)
}

/// Waits for this time, or fails with `why` if `deadline` has passed.
pub fn pause_for(
    time: Duration,
    deadline: Instant,
    why: impl FnOnce() -> AttachError,
) -> Result<(), AttachError> {
    if Instant::now() >= deadline {
        return Err(why());
    }
    std::thread::sleep(time);
    Ok(())
}
