//! `macvtap selftest`: the whole chain on this machine, in temporary network namespaces, from
//! discovery to a frame, through the loss of kubelet and pod.

pub mod kubelet;
mod plugin;
mod report;
mod runtime;
mod wire;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::unistd::Uid;

use self::{plugin::Plugin, report::Report, runtime::Runtime, wire::Wire};
use crate::{
    host::{devnode, netns::Netns, tap},
    macvtap::discovery::Discovery,
    netlink::Link,
    types::{device_id::DeviceId, plural::count},
};

/// How long the kernel may take to destroy a network namespace.
const DESTROY_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the test, and prints each step with what was seen and how long it took.
pub fn main(json: bool) -> Result<ExitCode> {
    ensure!(
        Uid::effective().is_root(),
        "the selftest creates network namespaces and macvtaps in them: run it as root"
    );
    let mut report = Report::start(json)?;
    let outcome = run(&mut report);
    report.finish(outcome.is_ok())?;
    Ok(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn run(report: &mut Report) -> Result<()> {
    report.step("discovery", discovery)?;
    let wire = report.step("lower device", || {
        let wire = Wire::lay()?;
        let seen = format!(
            "veth {:?} in one temporary netns, its peer in another",
            wire::LOWER
        );
        Ok((wire, seen))
    })?;
    let mut taps = vec![wire.tap_number];
    let outcome = Plugin::start(&wire)
        .and_then(|mut plugin| allocate_and_attach(report, &wire, &mut plugin, &mut taps));
    // The namespaces are destroyed with their last descriptor, also after a failure.
    drop(wire);
    let cleaned = report.last_step("clean-up", || {
        for number in taps {
            wait_until_gone(number)?;
        }
        Ok(((), "no process, netns, link, tap or node left".to_owned()))
    });
    outcome.and(cleaned)
}

/// What an empty configuration offers on this machine.
fn discovery() -> Result<((), String)> {
    let links = Netns::current()?.socket()?.links()?;
    let (others, nics): (Vec<&Link>, Vec<&Link>) = links
        .iter()
        .partition(|link| Discovery::default().reason_against(link).is_some());
    let names: Vec<&str> = nics.iter().map(|link| link.name.as_str()).collect();
    let names = match names.as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    let others = count(others.len(), "other link");
    Ok((
        (),
        format!("NICs and bonds of this machine: {names} ({others})"),
    ))
}

fn allocate_and_attach(
    report: &mut Report,
    wire: &Wire,
    plugin: &mut Plugin,
    taps: &mut Vec<u32>,
) -> Result<()> {
    report.step("registration", || {
        let devices = count(plugin.devices()?.len(), "device");
        Ok(((), format!("the kubelet has {devices}")))
    })?;
    let id = report.step("Allocate", || {
        let id = plugin.allocate()?;
        let seen = format!("{id} allocates {}", tap::path(id.tap).display());
        Ok((id, seen))
    })?;
    taps.push(id.tap);
    attach_and_detach(report, wire, plugin, &id)?;
    report.step("SIGTERM", || {
        plugin.stop()?;
        Ok(((), "the device plugin exited cleanly".to_owned()))
    })
}

fn attach_and_detach(
    report: &mut Report,
    wire: &Wire,
    plugin: &mut Plugin,
    id: &DeviceId,
) -> Result<()> {
    let mut runtime = Runtime::new(wire, id)?;
    report.step("STATUS", || {
        runtime.call("STATUS")?;
        Ok(((), "ADD can work here".to_owned()))
    })?;
    add(report, &mut runtime, plugin, id)?;
    frames(report, wire, &runtime, id)?;
    report.step("CHECK", || {
        runtime.call("CHECK")?;
        Ok(((), "everything is as ADD left it".to_owned()))
    })?;
    report.step("kubelet", || {
        let before = plugin.devices()?;
        plugin.restart_kubelet()?;
        ensure!(plugin.devices()? == before, "the devices have changed");
        Ok(((), "restarted; it has the same devices again".to_owned()))
    })?;
    report.step("pod lost", || {
        wire.drain()?;
        runtime.lose_pod()?;
        Ok((
            (),
            "netns destroyed without DEL, another one created".to_owned(),
        ))
    })?;
    add(report, &mut runtime, plugin, id)?;
    frames(report, wire, &runtime, id)?;
    detach(report, &mut runtime, id)
}

fn detach(report: &mut Report, runtime: &mut Runtime<'_>, id: &DeviceId) -> Result<()> {
    let path = tap::path(id.tap);
    let path = path.display();
    report.step("DEL", || {
        runtime.call("DEL")?;
        runtime.check_empty()?;
        ensure!(tap::devices(id.tap)?.is_empty(), "{path} still exists");
        Ok(((), "no interface in the pod, no tap".to_owned()))
    })
}

/// ADD, and what the kubelet does next.
fn add(
    report: &mut Report,
    runtime: &mut Runtime<'_>,
    plugin: &Plugin,
    id: &DeviceId,
) -> Result<()> {
    report.step("ADD", || {
        let mac = runtime.add()?;
        let path = tap::path(id.tap);
        let seen = format!("{} {mac}, tap {}", runtime::IFNAME, path.display());
        Ok(((), seen))
    })?;
    report.step("PreStart", || {
        plugin.pre_start(id)?;
        Ok(((), "the allocated tap exists".to_owned()))
    })
}

fn frames(report: &mut Report, wire: &Wire, runtime: &Runtime<'_>, id: &DeviceId) -> Result<()> {
    report.step("frame out", || {
        wire.frame_out(id.tap, runtime.mac)?;
        Ok(((), "written to the tap, received on the wire".to_owned()))
    })?;
    report.step("frame in", || {
        wire.frame_in(id.tap, runtime.mac)?;
        Ok(((), "sent on the wire, read from the tap".to_owned()))
    })
}

/// The kernel destroys a network namespace some time after its last user.
fn wait_until_gone(number: u32) -> Result<()> {
    let start = Instant::now();
    while !tap::devices(number)?.is_empty() {
        ensure!(
            start.elapsed() < DESTROY_TIMEOUT,
            "{} still exists after {DESTROY_TIMEOUT:?}",
            tap::path(number).display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    devnode::remove_stale(number)?;
    Ok(())
}
