//! ADD: creates the macvtap in the pod's network namespace and prepares its tap, or hands over
//! one that exists. Whatever fails, nothing is left behind.

use std::{
    thread,
    time::{Duration, Instant},
};

use log::warn;

use super::{
    allocation::{Holder, others_device},
    attachment::{Attachment, Request},
    config::{Config, Source},
    environment::Environment,
    error::{CniError, Result, code},
    hand_over::hand_over,
    result,
};
use crate::{
    host::{
        char_device::Found,
        devnode,
        netns::Netns,
        nri_query::{self, TapSource},
        tap,
    },
    learning::{
        self,
        query::{self, PendingReply, Query},
    },
    macvtap::{
        create::{Spec, check_name_free, create},
        error::{AttachError, Kind},
        guard::{NewMacvtap, pause, pause_for},
        inventory,
        lower::{Ineligible, LowerDevice, LowerError},
        sub_interface::{Maker, SubInterface},
        tap_only,
    },
    netlink::Socket,
    types::{
        device_id::{DeviceId, STANDALONE_ATTEMPTS, standalone_taps},
        mac::MacAddr,
        mode::Mode,
        owner::Access,
    },
};

/// How long ADD waits for a tap or a MAC that the previous pod still has. A netns takes
/// up to 0.1 s to be destroyed; a kubelet asks again after seconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long ADD waits for the tap of the same pod's former sandbox.
const FORMER_SANDBOX_TIMEOUT: Duration = Duration::from_secs(1);

/// The poll interval for processes that have a tap open: each of the machine is looked at.
const PROCESS_POLL: Duration = Duration::from_millis(100);

/// How long a DEL may take to remove a VLAN that it holds, and the poll interval for that.
const VLAN_REMOVAL_TIMEOUT: Duration = Duration::from_secs(1);
const VLAN_POLL: Duration = Duration::from_millis(2);

/// Makes the attachment that is asked for; `stdin` is the configuration as the runtime wrote it.
pub fn add<'a>(
    environment: &'a Environment,
    config: &'a Config,
    netns: &'a Netns,
    stdin: &'a [u8],
) -> Result<Attachment<'a>> {
    let has_ipam = config.ipam.is_some();
    result::check_printable(config.version, config.prev_result.as_ref(), has_ipam)?;
    let request = Request {
        environment,
        config,
        netns,
        stdin,
        deadline: Instant::now() + WAIT_TIMEOUT,
    };
    let in_pod = matches!(config.source, Source::Configured { in_pod: true, .. });
    let mut work = Work {
        request,
        host: if in_pod {
            netns.socket()?
        } else {
            Socket::open()?
        },
        in_pod,
    };
    match &config.source {
        Source::Allocated(device) => work.allocated(device),
        Source::Configured {
            vlan: Some(vlan),
            mode,
            ..
        } => work.on_vlan(vlan, *mode),
        Source::Configured { lower, mode, .. } => {
            let created = work.standalone(lower, *mode)?;
            work.finish(created)
        }
        Source::Existing(existing) => {
            let macvtap = hand_over(&mut work.host, existing, request)?;
            Attachment::finish(macvtap, request, || None)
        }
    }
}

struct Work<'a> {
    request: Request<'a>,
    /// A socket where the lower device is.
    host: Socket,
    /// Whether that is the pod, of whose lower devices the device plugin learns nothing.
    in_pod: bool,
}

/// A macvtap whose tap's node is its own, and the learner's reply that is on the way.
type Created<'a> = (NewMacvtap<'a>, Option<PendingReply>);

impl<'a> Work<'a> {
    /// With a device ID: its tap has to become free, if a previous pod still has it.
    fn allocated(&mut self, device: &DeviceId) -> Result<Attachment<'a>> {
        let lower = self.lower(&device.lower)?;
        let unknown = match Holder::of_tap(device.tap, self.request.config.pod_uid.as_deref()) {
            Holder::Own | Holder::Free => None,
            Holder::Other(pod) => return Err(others_device(&device.to_string(), &pod)),
            Holder::Unknown(why) => Some(why),
        };
        let unknown = unknown.as_deref();
        if devnode::find(device.tap)? != Found::Nothing {
            check_name_free(
                &mut self.request.netns.socket()?,
                &self.request.environment.ifname,
            )?;
            self.wait_until_free(device, unknown)?;
        }
        loop {
            if let Some(created) = self.try_create(&lower, device.mode, device.tap)? {
                return self.finish(created);
            }
            pause(self.request.deadline, || tap_held(device.tap))?;
            self.wait_until_free(device, unknown)?;
        }
    }

    /// Without a device ID any free tap will do. A pod of Kubernetes gets the same one whenever
    /// its sandbox is made again, and its containers get it by NRI.
    fn standalone(&mut self, lower: &str, mode: Mode) -> Result<Created<'a>> {
        let lower = self.lower(lower)?;
        let Environment {
            container_id,
            ifname,
            ..
        } = self.request.environment;
        let pod_uid = self.request.config.pod_uid.as_ref();
        if pod_uid.is_some() {
            self.wait_for_nri()?;
        }
        let taps = standalone_taps(pod_uid.unwrap_or(container_id), ifname);
        for (attempt, number) in taps.enumerate() {
            if attempt == 0 && pod_uid.is_some() {
                self.wait_for_former_sandbox(number)?;
            }
            if devnode::find(number)? != Found::Nothing {
                continue;
            }
            if let Some(created) = self.try_create(&lower, mode, number)? {
                return Ok(created);
            }
        }
        let text = format!("each of {STANDALONE_ATTEMPTS} tap numbers tried is in use");
        Err(CniError::new(code::TRY_AGAIN, text))
    }

    /// On a VLAN of the lower device, which is made for the first macvtap on it.
    fn on_vlan(&mut self, vlan: &SubInterface, mode: Mode) -> Result<Attachment<'a>> {
        let attached = self.create_on_vlan(vlan, mode);
        let attached = attached.and_then(|created| self.finish(created));
        attached.map_err(|error| self.undo_vlan(vlan, error))
    }

    /// The DEL of the last pod on a VLAN may remove it meanwhile: then it is made again. Once the
    /// macvtap is on it, no DEL does. A DEL that was killed holds it until that is removed.
    fn create_on_vlan(&mut self, vlan: &SubInterface, mode: Mode) -> Result<Created<'a>> {
        let overdue = Instant::now() + VLAN_REMOVAL_TIMEOUT;
        loop {
            if Instant::now() > overdue {
                vlan.remove_unused(&mut self.host, Maker::Cni)?;
            }
            let ensured = vlan.ensure(&mut self.host, Maker::Cni);
            let (name, index) = ensured.map_err(|error| self.in_place(lower_error(error)))?;
            let error = match self.standalone(&name, mode) {
                Ok(created) => return Ok(created),
                Err(error) => error,
            };
            match vlan.stays(&mut self.host, index) {
                Ok(false) if Instant::now() < self.request.deadline => thread::sleep(VLAN_POLL),
                Ok(false) => {
                    let error = error.context(&format!("{vlan} is being removed"));
                    let code = code::TRY_AGAIN;
                    return Err(CniError { code, ..error });
                }
                Ok(true) => return Err(error),
                Err(second) => {
                    return Err(error.context(&format!("could not be retried ({second:#})")));
                }
            }
        }
    }

    fn undo_vlan(&mut self, vlan: &SubInterface, error: CniError) -> CniError {
        match vlan.remove_unused(&mut self.host, Maker::Cni) {
            Ok(_) => error,
            Err(second) => error.context(&format!("could not be undone ({second:#})")),
        }
    }

    /// Where pods get their taps by NRI, waits until the runtime asks for them: it would start the
    /// containers without.
    fn wait_for_nri(&self) -> Result<()> {
        loop {
            match nri_query::tap_source() {
                TapSource::NotNri => return Ok(()),
                TapSource::Nri => return self.check_access(),
                TapSource::NoNri(why) => pause(self.request.deadline, || {
                    let text = format!("the pod's containers would start without a tap: {why}");
                    AttachError::new(Kind::TryAgain, text)
                })?,
            }
        }
    }

    /// The device plugin, which describes the node to the runtime, does not know the network's
    /// configuration.
    fn check_access(&self) -> Result<()> {
        if self.request.config.access == Access::QEMU {
            return Ok(());
        }
        let text = "owner and group need a device ID: without one the tap comes by NRI and belongs \
            to 107:107";
        Err(CniError::new(code::CONFIG, text))
    }

    /// The network namespace of a former sandbox takes up to 0.1 s to be destroyed. Should
    /// another pod have the number, the next one is taken.
    fn wait_for_former_sandbox(&self, number: u32) -> Result<()> {
        let deadline = Instant::now() + FORMER_SANDBOX_TIMEOUT;
        while is_in_use(number)? && Instant::now() < deadline {
            pause(self.request.deadline, || tap_held(number))?;
        }
        Ok(())
    }

    fn lower(&mut self, name: &str) -> Result<LowerDevice> {
        let lower = LowerDevice::eligible(&mut self.host, name);
        let lower = lower.map_err(|error| self.in_place(error.into()))?;
        self.request.config.check_mtu(&lower.link)?;
        Ok(lower)
    }

    /// An error of looking for the lower device, with where that is done.
    fn in_place(&self, error: CniError) -> CniError {
        if self.in_pod {
            return error.context("linkInContainer looks in the pod's network namespace");
        }
        error
    }

    /// Creates the macvtap and claims the node of its tap. None if another tap has the same name:
    /// neither node can be trusted then.
    fn try_create(
        &mut self,
        lower: &LowerDevice,
        mode: Mode,
        number: u32,
    ) -> Result<Option<Created<'a>>> {
        let (mac, reply) = self.ask(lower, mode, number)?;
        let spec = Spec {
            name: &self.request.environment.ifname,
            index: Some(number),
            lower,
            // Parked until the reply says otherwise.
            mode: reply.as_ref().map_or(mode, |_| Mode::Vepa),
            mac,
            mtu: self.request.config.mtu,
            group: if self.is_learned(lower) {
                learning::group(mode)
            } else {
                0
            },
            options: &self.request.config.options,
        };
        let created = create(&mut self.host, Some(self.request.netns), &spec)?;
        let (claimed, macvtap) =
            created.attach(|macvtap| macvtap.claim_node(self.request.access(macvtap)?))?;
        if claimed {
            return Ok(Some((macvtap, reply)));
        }
        macvtap.remove()?;
        Ok(None)
    }

    fn finish(&self, (macvtap, reply): Created<'a>) -> Result<Attachment<'a>> {
        let active = || reply.is_some_and(|reply| !reply.is_to_be_parked());
        let mode = || active().then_some(Mode::Bridge);
        Attachment::finish(macvtap, self.request, mode)
    }

    /// The MAC that it is made with; a random one if none. In passthru mode it is that of the lower
    /// device, unless another one is asked for.
    fn mac(&self, mode: Mode) -> Option<MacAddr> {
        let choice = self
            .request
            .config
            .mac_choice(&self.request.environment.ifname, mode);
        let mac = choice.mac();
        if let (None, true, Some(names)) = (mac, choice.is_stable(), choice.names) {
            warn!(pod = names.pod; "the VM's name is too long for a stable MAC; it is random");
        }
        mac
    }

    /// Whether the device plugin learns of ports on a lower device: it is the host's.
    fn is_learned(&self, lower: &LowerDevice) -> bool {
        !self.in_pod && !lower.is_foreign()
    }

    /// Asks the device plugin, if one learns, whether a port of a bridge starts parked. The MAC
    /// has to be known for that. The answer is needed only before the macvtap is set up, for
    /// until then no frame passes: it comes while the kernel creates the macvtap.
    fn ask(
        &self,
        lower: &LowerDevice,
        mode: Mode,
        number: u32,
    ) -> Result<(Option<MacAddr>, Option<PendingReply>)> {
        let mac = self.mac(mode);
        let is_asked = mode == Mode::Bridge && self.is_learned(lower);
        let Some(learner) = is_asked.then(query::find).flatten() else {
            return Ok((mac, None));
        };
        let mac = match mac {
            Some(mac) => mac,
            None => MacAddr::random()?,
        };
        let reply = learner.ask(&Query {
            netns: self.request.environment.netns.clone(),
            identity: self.request.netns.identity()?,
            tap: number,
            ifname: self.request.environment.ifname.clone(),
            mac,
            lower: lower.link.index,
        });
        Ok((Some(mac), reply))
    }

    /// Waits until no tap has the device's number. The macvtap in our own netns that a former pod
    /// had for the tap alone is deleted, unless it is `unknown` whose the device is.
    fn wait_until_free(&mut self, device: &DeviceId, unknown: Option<&str>) -> Result<()> {
        let deadline = self.request.deadline;
        while is_in_use(device.tap)? {
            if !tap_only::exists(&mut self.host, device)? {
                pause(deadline, || tap_held(device.tap))?;
                continue;
            }
            match check_stale(device.tap, unknown) {
                Ok(()) => {
                    tap_only::delete_of(&mut self.host, device)?;
                    warn!(device:%; "deleted the stale macvtap of a previous pod");
                }
                Err(in_use) => pause_for(PROCESS_POLL, deadline, || in_use)?,
            }
        }
        Ok(())
    }
}

/// Fails if a macvtap for the tap alone may not be a former pod's. What is `unknown` here is left to
/// the device plugin, which deletes what is stale when the kubelet allocates the device.
fn check_stale(tap: u32, unknown: Option<&str>) -> std::result::Result<(), AttachError> {
    let Some(why) = unknown else {
        return inventory::check_not_open(tap);
    };
    let path = tap::path(tap);
    let path = path.display();
    let text =
        format!("{path} is in use by a macvtap on the host, which may be another pod's: {why}");
    Err(AttachError::new(Kind::TryAgain, text))
}

/// The error of a VLAN that cannot be made.
fn lower_error(error: anyhow::Error) -> CniError {
    match error.downcast::<Ineligible>() {
        Ok(ineligible) => LowerError::from(ineligible).into(),
        Err(error) => error.into(),
    }
}

/// Whether the node of tap `number` is that of a tap.
fn is_in_use(number: u32) -> Result<bool> {
    let device = devnode::find(number)?.number();
    let found = device.map(tap::number_of).transpose()?.flatten();
    Ok(found == Some(number))
}

fn tap_held(number: u32) -> AttachError {
    let path = tap::path(number);
    let path = path.display();
    let text = match tap::devices(number).as_deref() {
        Ok([]) => format!(
            "{path} exists, but is not the node of a macvtap, and keeps the kernel from creating \
             that; remove it with: rm -r {path}"
        ),
        _ => format!("{path} is still in use by {}", inventory::locate(number)),
    };
    AttachError::new(Kind::TryAgain, text)
}
