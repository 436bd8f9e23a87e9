//! What the limits of attachments did, read from the kernel for `/metrics`.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use log::debug;

use crate::{
    host::netns::Netns,
    macvtap::{limits::Limits, port_security::Interface},
    netlink::Qdisc,
    types::status::{LimitsStatus, PortStatus, RateStatus, Status},
};

/// Reads the limits of the attachments that learning knows, by the number of their tap.
pub fn read(status: &Status) -> BTreeMap<u32, LimitsStatus> {
    let ports = status.learning.iter().flat_map(|learning| &learning.ports);
    let read = |(tap, port): (&u32, &PortStatus)| match read_port(*tap, port) {
        Ok(limits) => Some((*tap, limits)),
        Err(error) => {
            // The pod may be gone by now.
            let error = format!("{error:#}");
            debug!(tap, error = error.as_str(); "cannot read the limits of an attachment");
            None
        }
    };
    ports.filter_map(read).collect()
}

fn read_port(tap: u32, port: &PortStatus) -> Result<LimitsStatus> {
    let netns = Netns::open(Path::new(&port.netns))?;
    let netns = netns.context("the network namespace does not exist")?;
    let interface = Interface {
        netns: Some(&netns),
        name: &port.interface,
        index: tap,
    };
    let limits = Limits::read(&interface, &mut netns.socket()?)?;
    let dropped = limits.dropped.into_iter();
    Ok(LimitsStatus {
        resource: port.resource.clone().unwrap_or_default(),
        lower_device: port.lower_device.clone().unwrap_or_default(),
        dropped: dropped
            .map(|counter| (counter.name, counter.frames))
            .collect(),
        ingress: limits.ingress.as_ref().map(rate),
        egress: limits.egress.as_ref().map(rate),
    })
}

fn rate(qdisc: &Qdisc) -> RateStatus {
    RateStatus {
        bytes: qdisc.sent_bytes,
        waiting_bytes: qdisc.backlog_bytes.into(),
        throttled: qdisc.throttled.into(),
    }
}
