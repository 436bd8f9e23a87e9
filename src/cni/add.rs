//! ADD: makes the macvtap in the pod's network namespace, or hands over one
//! that exists, and prepares its tap. Whatever fails, nothing is left behind.

use std::{
    fs,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail};
use log::{info, warn};
use nix::errno::Errno;

use super::{
    Call,
    config::{Config, Existing, Source},
    error::{CniError, code},
    result::{self, Interface},
};
use crate::{
    host::{
        netns::Netns,
        tap::{self, Device, Node},
    },
    learning::{
        self,
        query::{self, PendingReply, Query},
    },
    macvtap::holder,
    netlink::{Change, Create, Link, Socket, errno},
    types::{
        device_id::{self, DeviceId},
        mac::MacAddr,
        mode::Mode,
    },
};

/// How long ADD waits for a tap or a MAC that the previous holder still has. A netns takes
/// up to 0.1 s to be destroyed, a kubelet asks again after seconds.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(2);
/// How many numbers are tried for a tap that nobody promised.
const STANDALONE_ATTEMPTS: u32 = 16;

/// An attachment just made: the result to print, and how to take it back.
pub struct Attachment<'a> {
    /// The result document.
    pub result: String,
    work: Work<'a>,
    link: Link,
    undo: Undo,
}

/// How to take back what was done.
enum Undo {
    /// The macvtap was made: delete it.
    Delete,
    /// It existed in this netns, the host's, as this link: move it back.
    MoveBack(Netns, Box<Link>),
}

/// A macvtap to be made.
struct Plan {
    lower: Link,
    mode: Mode,
    number: u32,
}

/// A macvtap that is in the pod and down.
struct Made {
    link: Link,
    device: Device,
    undo: Undo,
    /// If a device plugin was asked whether it is to be parked. It is, until the answer.
    asked: Option<PendingReply>,
}

struct Work<'a> {
    call: &'a Call<'a>,
    config: &'a Config,
    host: Socket,
    netns: &'a Netns,
    pod: Socket,
    deadline: Instant,
}

/// Makes the attachment that `config` describes.
pub fn add<'a>(call: &'a Call<'a>, config: &'a Config, netns: &'a Netns) -> Result<Attachment<'a>> {
    result::check_printable(config.version, config.prev_result.as_ref())?;
    let mut work = Work {
        call,
        config,
        host: Socket::open()?,
        netns,
        pod: netns.socket()?,
        deadline: Instant::now() + PATIENCE,
    };
    let Made {
        link,
        device,
        undo,
        asked,
    } = match &config.source {
        Source::Allocated(id) => work.create_allocated(id)?,
        Source::Configured { lower, mode } => work.create_standalone(lower, *mode)?,
        Source::Existing(existing) => work.hand_over(existing)?,
    };
    match work.finish(&link, device, asked) {
        Ok((link, mac)) => {
            info!("attached tap={} mac={mac} mtu={}", link.index, link.mtu);
            let interface = Interface {
                name: &link.name,
                mac,
                mtu: link.mtu,
                sandbox: &call.environment.netns,
            };
            let result = result::print(config.version, config.prev_result.as_ref(), &interface);
            Ok(Attachment {
                result,
                work,
                link,
                undo,
            })
        }
        Err(error) => Err(work.undone(&link, &undo, error)),
    }
}

impl Attachment<'_> {
    /// Takes the attachment back because of `error`, which is returned.
    #[must_use]
    pub fn undo(mut self, error: Error) -> Error {
        self.work.undone(&self.link, &self.undo, error)
    }
}

impl Work<'_> {
    fn ifname(&self) -> &str {
        &self.call.environment.ifname
    }

    fn check_name_free(&mut self) -> Result<()> {
        let (ifname, netns) = (self.ifname().to_owned(), &self.call.environment.netns);
        match self.pod.link_by_name(&ifname)? {
            None => Ok(()),
            Some(link) => {
                let kind = link.kind.as_deref().unwrap_or("physical");
                let text = format!(
                    "CNI_IFNAME {ifname:?} already exists in netns {netns} (a {kind} interface)"
                );
                Err(CniError::new(code::ENVIRONMENT, text).into())
            }
        }
    }

    // === creation ===

    fn create_allocated(&mut self, id: &DeviceId) -> Result<Made> {
        let plan = Plan {
            lower: self.lower(&id.lower)?,
            mode: id.mode,
            number: id.tap,
        };
        // A glance: the node of a holder that lives or is just going.
        if tap::node(&tap::path(id.tap))? != Node::Missing {
            self.check_name_free()?;
            self.wait_until_free(id.tap)?;
        }
        loop {
            if let Some(made) = self.try_create(&plan)? {
                return Ok(made);
            }
            self.pause(|| tap_held(id.tap))?;
            self.wait_until_free(id.tap)?;
        }
    }

    /// Without a device plugin there is no promise: any free number will do.
    fn create_standalone(&mut self, lower: &str, mode: Mode) -> Result<Made> {
        let mut plan = Plan {
            lower: self.lower(lower)?,
            mode,
            number: 0,
        };
        let container_id = &self.call.environment.container_id;
        for attempt in 0..STANDALONE_ATTEMPTS {
            plan.number = device_id::standalone_tap(container_id, self.ifname(), attempt);
            if !tap::devices(plan.number)?.is_empty() {
                continue;
            }
            if let Some(made) = self.try_create(&plan)? {
                return Ok(made);
            }
        }
        let text = format!("each of {STANDALONE_ATTEMPTS} tap numbers tried is in use");
        Err(CniError::new(code::TRY_AGAIN, text).into())
    }

    fn lower(&mut self, name: &str) -> Result<Link> {
        let lower = self.host.link_by_name(name)?.with_context(|| {
            format!("lower device {name:?} does not exist on this node; is it renamed or gone?")
        })?;
        if lower.loopback || !lower.ethernet {
            let text = format!("lower device {name:?} is not an Ethernet device");
            return Err(CniError::new(code::CONFIG, text).into());
        }
        if !lower.up {
            let text = format!(
                "lower device {name:?} is down, no frame would pass; \
                 set it up with: ip link set {name} up"
            );
            return Err(CniError::new(code::TRY_AGAIN, text).into());
        }
        self.check_mtu(&lower)?;
        Ok(lower)
    }

    fn check_mtu(&self, lower: &Link) -> Result<()> {
        match self.config.mtu {
            Some(mtu) if mtu > lower.mtu => {
                let text = format!(
                    "invalid mtu {mtu}: it is above the MTU {} of lower device {:?}",
                    lower.mtu, lower.name
                );
                Err(CniError::new(code::CONFIG, text).into())
            }
            _ => Ok(()),
        }
    }

    /// Waits until no tap of the machine is called `number`. A macvtap of that number in the
    /// host's own netns is one that the device plugin made for a pod of before.
    fn wait_until_free(&mut self, number: u32) -> Result<()> {
        while !tap::devices(number)?.is_empty() {
            if let Some(link) = self.host.link(number)?.filter(Link::is_macvtap) {
                warn!("deleting {:?}, a tap of a former pod", link.name);
                self.host.delete(number)?;
            } else {
                self.pause(|| tap_held(number))?;
            }
        }
        Ok(())
    }

    /// Makes the macvtap and makes sure of its tap. None if in the same
    /// moment another tap came by the same name: neither node can be trusted then.
    fn try_create(&mut self, plan: &Plan) -> Result<Option<Made>> {
        let (lower, number) = (&plan.lower, plan.number);
        let (mac, asked) = self.ask(plan)?;
        let create = Create {
            name: &self.call.environment.ifname,
            index: Some(number),
            lower: lower.index,
            mode: asked.as_ref().map_or(plan.mode, |_| Mode::Vepa),
            mac,
            mtu: self.config.mtu,
            queue_length: tap::queue_length(lower),
            group: learning::group(plan.mode),
            netns: Some(self.netns.as_fd()),
        };
        let outcome = self.host.create(&create);
        let link = Link {
            index: number,
            ..Link::default()
        };
        if let Err(error) = outcome {
            // Without an answer nobody knows whether the kernel made it.
            if errno(&error).is_none() && self.is_there(number) {
                return Err(self.undone(&link, &Undo::Delete, error));
            }
            return Err(self.explain_creation(error, plan));
        }
        match self.take_tap(number) {
            Ok(Some(device)) => Ok(Some(Made {
                link,
                device,
                undo: Undo::Delete,
                asked,
            })),
            Ok(None) => {
                self.pod.delete(number)?;
                Ok(None)
            }
            Err(error) => Err(self.undone(&link, &Undo::Delete, error)),
        }
    }

    /// Asks the device plugin, if one learns, whether a port of a bridge begins parked. The MAC
    /// has to be known for that. The answer is needed only before the macvtap is set up, for
    /// until then no frame passes: it comes while the kernel makes the macvtap.
    fn ask(&self, plan: &Plan) -> Result<(Option<MacAddr>, Option<PendingReply>)> {
        let device_plugin = (plan.mode == Mode::Bridge).then(query::find).flatten();
        let Some(device_plugin) = device_plugin else {
            return Ok((self.config.mac, None));
        };
        let mac = self.config.mac.unwrap_or_else(MacAddr::random);
        let asked = device_plugin.ask(&Query {
            netns: self.call.environment.netns.clone(),
            identity: self.netns.identity()?,
            tap: plan.number,
            ifname: self.ifname().to_owned(),
            mac,
            lower: plan.lower.index,
        });
        Ok((Some(mac), asked))
    }

    /// Whether what [`Self::try_create`] asked for is in the pod.
    fn is_there(&mut self, number: u32) -> bool {
        let found = self.pod.link(number).ok().flatten();
        found.is_some_and(|link| link.is_macvtap() && link.name == self.ifname())
    }

    fn take_tap(&self, number: u32) -> Result<Option<Device>> {
        match *tap::devices(number)? {
            [device] if tap::claim_node(number, device, self.config.owner)? => Ok(Some(device)),
            _ => Ok(None),
        }
    }

    fn explain_creation(&mut self, error: Error, plan: &Plan) -> Error {
        let Plan {
            lower,
            mode,
            number,
        } = plan;
        let name = &lower.name;
        let why = match errno(&error) {
            Some(Errno::EBUSY) => match lower.master {
                Some(master) => {
                    let master = self.host.link(master).ok().flatten();
                    let master = master.map_or_else(String::new, |link| format!(" {}", link.name));
                    format!("it is a port of{master}; name that one, or take it out")
                }
                None => "it is in use by something else (a bridge, ipvlan, or passthru)".into(),
            },
            Some(Errno::EEXIST) => match (self.check_name_free(), self.pod.link(*number)) {
                (Err(taken), _) => return taken,
                (_, Ok(Some(link))) => {
                    let name = link.name;
                    format!("interface index {number} is taken in the pod by {name:?}")
                }
                _ => "the pod had such an interface a moment ago".into(),
            },
            Some(Errno::EINVAL) => format!(
                "in {mode} mode it may not be possible: passthru must be the \
                 only macvtap or macvlan of its lower device"
            ),
            Some(Errno::EOPNOTSUPP) => "the kernel has no macvtap; try: modprobe macvtap".into(),
            Some(Errno::ENODEV) => "it is gone by now".into(),
            _ => "see the kernel's answer".into(),
        };
        error.context(format!("making a macvtap on lower device {name:?}: {why}"))
    }

    // === hand-over ===

    /// Moves a macvtap that waits on the host into the pod.
    fn hand_over(&mut self, existing: &Existing) -> Result<Made> {
        let link = self.existing(&existing.id)?;
        self.check_name_free()?;
        self.check_configured(&link, existing)?;
        if link.name != existing.id {
            self.check_index_free(&link)?;
        }
        let change = Change {
            netns: Some(self.netns.as_fd()),
            name: Some(&self.call.environment.ifname),
            mac: self.config.mac,
            mtu: self.config.mtu,
            // Up in the host's netns, it would come up in the pod with IPv6.
            up: Some(false),
            ..Change::default()
        };
        // By now: where a thread does not come back from a pod's netns, it is not the host's.
        let undo = Undo::MoveBack(Netns::current()?, Box::new(link.clone()));
        if let Err(error) = self.host.change(link.index, &change) {
            let error = error.context(format!("moving macvtap {:?} into the pod", link.name));
            return Err(self.undone(&link, &undo, error));
        }
        match self.handed_over() {
            Ok((link, device)) => Ok(Made {
                link,
                device,
                undo,
                asked: None,
            }),
            Err(error) => Err(self.undone(&link, &undo, error)),
        }
    }

    fn handed_over(&mut self) -> Result<(Link, Device)> {
        let ifname = self.ifname().to_owned();
        let moved = self.pod.link_by_name(&ifname)?;
        let moved = moved.context("the macvtap is not where it was moved to")?;
        let device = self.take_tap(moved.index)?.with_context(|| {
            let path = tap::path(moved.index);
            format!("{} is not the macvtap's own, or not alone", path.display())
        })?;
        Ok((moved, device))
    }

    /// The macvtap that an ID of the original stands for: under its hashed name, or the ID itself.
    fn existing(&mut self, id: &str) -> Result<Link> {
        let hashed = device_id::original_link_name(id);
        let mut found = self.host.link_by_name(&hashed)?;
        if found.is_none() && device_id::check_link_name(id).is_ok() {
            found = self.host.link_by_name(id)?;
        }
        let text = match found {
            Some(link) if link.is_macvtap() => return Ok(link),
            Some(link) => {
                let kind = link.kind.as_deref().unwrap_or("physical");
                let name = link.name;
                format!("device ID {id:?} stands for {name:?}, a {kind} interface and no macvtap")
            }
            None => format!(
                "device ID {id:?} is neither of the form <resource>Mvp<slot>@<lower \
                 device>:<mode>:<tap>, nor does its macvtap exist on the host \
                 (as {hashed:?} or {id:?}). If kubevirt/macvtap-cni allocated it, \
                 it was made once, when the pod was admitted: delete the pod"
            ),
        };
        Err(CniError::new(code::CONFIG, text).into())
    }

    /// Fails if the configuration says otherwise of the macvtap than it is.
    fn check_configured(&mut self, link: &Link, existing: &Existing) -> Result<()> {
        let contradiction = |key: &str, ours: &str, theirs: &str| {
            let text = format!(
                "{key} {ours:?} in the configuration contradicts {theirs:?} of macvtap {:?}",
                link.name
            );
            Err(CniError::new(code::CONFIG, text).into())
        };
        if let Some(mode) = existing.mode.filter(|mode| link.mode != Some(*mode)) {
            let theirs = link.mode.map_or("unknown", Mode::name);
            return contradiction("mode", mode.name(), theirs);
        }
        // An index that counts in another netns tells nothing here.
        let index = link.lower.filter(|_| link.lower_nsid.is_none());
        let below = index.map(|index| self.host.link(index)).transpose()?;
        let Some(below) = below.flatten() else {
            return Ok(());
        };
        self.check_mtu(&below)?;
        match &existing.lower {
            Some(lower) if *lower != below.name => contradiction("lowerDevice", lower, &below.name),
            _ => Ok(()),
        }
    }

    /// The kernel gives the macvtap another index if its own is taken in the pod, and
    /// with it the tap another name than the one that was promised.
    fn check_index_free(&mut self, link: &Link) -> Result<()> {
        let Some(other) = self.pod.link(link.index)? else {
            return Ok(());
        };
        bail!(
            "interface index {} of macvtap {:?} is taken in the pod by {:?}, so \
             {} would get another name than the pod was promised; delete the pod",
            link.index,
            link.name,
            other.name,
            tap::path(link.index).display()
        )
    }

    // === what both have in common ===

    /// Makes the link fit for a guest, and sets it up.
    fn finish(
        &mut self,
        link: &Link,
        device: Device,
        asked: Option<PendingReply>,
    ) -> Result<(Link, MacAddr)> {
        let index = link.index;
        if !self.config.host_ipv6 {
            self.silence_ipv6(index)?;
        }
        let live = asked.is_some_and(|asked| !asked.is_to_be_parked());
        self.set_up(index, live.then_some(Mode::Bridge))?;
        let link = self
            .pod
            .link(index)?
            .context("the macvtap is gone already")?;
        let mac = link.mac.context("the macvtap has no hardware address")?;
        tap::verify(index, device, self.config.owner)?;
        Ok((link, mac))
    }

    /// Keeps the pod kernel's IPv6 off the link. The guest owns the MAC; each frame that the
    /// pod kernel sends makes switches believe that the guest is here.
    fn silence_ipv6(&mut self, index: u32) -> Result<()> {
        let change = Change {
            no_ipv6_addresses: true,
            ..Change::default()
        };
        match self.pod.change(index, &change) {
            Err(error) if errno(&error) == Some(Errno::EAFNOSUPPORT) => return Ok(()), // no IPv6
            other => other.context("keeping IPv6 addresses off the macvtap")?,
        }
        // That was against the link-local address. A router advertisement before QEMU opens
        // the tap would still give the link an address, and make it send (net/ipv6/addrconf.c:
        // addr_gen_mode "none" leaves autoconfiguration by prefix on).
        let sysctl = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.ifname());
        self.netns.run(|| {
            if let Err(error) = fs::write(&sysctl, "1") {
                warn!("{sysctl} cannot be written, router advertisements have effect: {error}");
            }
            Ok(())
        })
    }

    /// Sets the link up. Only then the kernel looks whether the MAC is free on the
    /// lower device; its former holder may be going away just now.
    fn set_up(&mut self, index: u32, mode: Option<Mode>) -> Result<()> {
        let change = Change {
            mode,
            up: Some(true),
            promiscuous: self.config.promiscuous.then_some(true),
            all_multicast: self.config.all_multicast.then_some(true),
            // A passthru macvtap took over its lower device's address when it was made.
            mac: self.config.mac,
            ..Change::default()
        };
        loop {
            let error = match self.pod.change(index, &change) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !matches!(errno(&error), Some(Errno::EADDRINUSE | Errno::EBUSY)) {
                return Err(error.context("setting the macvtap up"));
            }
            let mac = self.config.mac;
            self.pause(|| mac_in_use(mac))?;
        }
    }

    /// Waits a moment, or fails with `why` if there was time enough.
    fn pause(&self, why: impl FnOnce() -> CniError) -> Result<()> {
        if Instant::now() >= self.deadline {
            return Err(why().into());
        }
        // Two that got into each other's way must not meet again at once.
        let jitter = Duration::from_micros(u64::from(std::process::id() % 16) * 250);
        std::thread::sleep(POLL + jitter);
        Ok(())
    }

    /// Takes back what was done to `link`. Returns `error`, with what went wrong now added.
    fn undone(&mut self, link: &Link, undo: &Undo, error: Error) -> Error {
        let outcome = match undo {
            // Its node, where the kernel does not make and remove it, was made by us as well.
            Undo::Delete => self
                .pod
                .delete(link.index)
                .and_then(|_| tap::remove_stale(link.index))
                .map(|_| ()),
            Undo::MoveBack(home, old) => self.move_back(home, old),
        };
        match outcome {
            Ok(()) => error,
            Err(second) => error.context(format!("could not be undone ({second:#})")),
        }
    }

    /// The kernel leaves a half-done move where it is: under the old name or the new one.
    fn move_back(&mut self, home: &Netns, old: &Link) -> Result<()> {
        for name in [self.ifname().to_owned(), old.name.clone()] {
            let Some(link) = self.pod.link_by_name(&name)?.filter(Link::is_macvtap) else {
                continue;
            };
            let change = Change {
                netns: Some(home.as_fd()),
                name: Some(&old.name),
                mac: old.mac,
                mtu: Some(old.mtu),
                up: Some(false),
                ..Change::default()
            };
            if let Err(error) = self.pod.change(link.index, &change) {
                self.pod.delete(link.index)?;
                return Err(error.context("it could not be moved back and was deleted"));
            }
        }
        Ok(())
    }
}

fn tap_held(number: u32) -> CniError {
    let path = tap::path(number);
    let path = path.display();
    let text = match tap::devices(number).as_deref() {
        Ok([]) => format!(
            "{path} is there, but is not the node of a macvtap, and keeps the kernel from making \
             that; remove it with: rm -r {path}"
        ),
        _ => format!("{path} is still held by {}", holder::describe(number)),
    };
    CniError::new(code::TRY_AGAIN, text)
}

fn mac_in_use(mac: Option<MacAddr>) -> CniError {
    let mac = mac.map_or_else(|| "the MAC".to_owned(), |mac| format!("MAC {mac}"));
    let text = format!(
        "{mac} is in use on the lower device already, \
         by the device itself or by another macvtap or macvlan on it"
    );
    CniError::new(code::TRY_AGAIN, text)
}
