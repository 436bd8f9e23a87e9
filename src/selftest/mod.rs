//! The whole way on this machine, in throw-away network namespaces: from nothing to
//! a frame, through the destruction of the pod, to nothing.

pub mod kubelet;
mod report;
mod runtime;
mod wire;

use std::{
    collections::BTreeSet,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, gethostname};

use self::{report::Report, runtime::Runtime, wire::Wire};
use crate::{
    device_id::{self, DeviceId},
    mode::Mode,
    netns::Netns,
    tap,
};

/// How long the kernel may take to destroy a network namespace.
const DESTRUCTION: Duration = Duration::from_secs(5);

/// Runs the test, and prints each step with what was seen and how long it took.
pub fn main(json: bool) -> Result<ExitCode> {
    ensure!(
        Uid::effective().is_root(),
        "the selftest makes network namespaces and a macvtap in them: run it as root"
    );
    let mut report = Report::start(json);
    let outcome = run(&mut report);
    report.finish(outcome.is_ok())?;
    Ok(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn run(report: &mut Report) -> Result<()> {
    let wire = report.step("lower device", || {
        let wire = Wire::lay()?;
        let seen = format!(
            "veth {:?} in a netns of its own, its peer in another",
            wire::LOWER
        );
        Ok((wire, seen))
    })?;
    let id = device_id()?;
    let outcome = attach_and_detach(report, &wire, &id);
    // The namespaces are gone with their last descriptor, whatever happened.
    let wire_tap = wire.tap_number;
    drop(wire);
    report.step("clean-up", || {
        for number in [id.tap, wire_tap] {
            wait_until_gone(number)?;
        }
        Ok(((), "no netns, link, tap or node left".to_owned()))
    })?;
    outcome
}

fn attach_and_detach(report: &mut Report, wire: &Wire, id: &DeviceId) -> Result<()> {
    let path = tap::path(id.tap);
    let path = path.display();
    let mut runtime = Runtime::new(wire, id)?;
    report.step("STATUS", || {
        runtime.call("STATUS")?;
        Ok(((), "ADD could work here".to_owned()))
    })?;
    report.step("ADD", || {
        let mac = runtime.add()?;
        let seen = format!("{} {mac}, tap {path}", runtime::IFNAME);
        Ok(((), seen))
    })?;
    frames(report, wire, &runtime, id)?;
    report.step("CHECK", || {
        runtime.call("CHECK")?;
        Ok(((), "all as ADD left it".to_owned()))
    })?;
    report.step("pod lost", || {
        runtime.lose_pod()?;
        Ok((
            (),
            "its netns destroyed without DEL, a new one made".to_owned(),
        ))
    })?;
    report.step("ADD again", || {
        runtime.add()?;
        Ok(((), format!("the same device ID, the same {path}")))
    })?;
    frames(report, wire, &runtime, id)?;
    report.step("DEL", || {
        runtime.call("DEL")?;
        runtime.check_empty()?;
        ensure!(tap::devices(id.tap)?.is_empty(), "{path} is still there");
        Ok(((), "no interface in the pod, no tap".to_owned()))
    })
}

fn frames(report: &mut Report, wire: &Wire, runtime: &Runtime<'_>, id: &DeviceId) -> Result<()> {
    report.step("frame out", || {
        wire.frame_out(id.tap, runtime.mac)?;
        Ok(((), "written to the tap, seen on the wire".to_owned()))
    })?;
    report.step("frame in", || {
        wire.frame_in(id.tap, runtime.mac)?;
        Ok(((), "sent on the wire, read from the tap".to_owned()))
    })
}

/// A device ID whose tap exists nowhere on this machine.
fn device_id() -> Result<DeviceId> {
    let hostname = gethostname().context("asking for the host's name")?;
    let seed = format!("{} {}", hostname.display(), std::process::id());
    let slots = device_id::slots(&seed, "selftest", 16, &mut BTreeSet::new());
    for (slot, tap) in slots {
        if tap::devices(tap)?.is_empty() {
            return Ok(DeviceId {
                resource: "selftest".to_owned(),
                slot,
                lower: wire::LOWER.to_owned(),
                mode: Mode::Bridge,
                tap,
            });
        }
    }
    bail!("16 tap numbers drawn at random are all in use")
}

/// The kernel destroys a network namespace some time after its last user is gone.
fn wait_until_gone(number: u32) -> Result<()> {
    let start = Instant::now();
    while !tap::devices(number)?.is_empty() {
        ensure!(
            start.elapsed() < DESTRUCTION,
            "{} is still there after {DESTRUCTION:?}",
            tap::path(number).display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    tap::remove_stale(number)?;
    Ok(())
}

/// A network namespace of its own, with the advice that people need when they may not make one.
fn netns() -> Result<Netns> {
    Netns::create().context("the selftest needs CAP_SYS_ADMIN and CAP_NET_ADMIN")
}
