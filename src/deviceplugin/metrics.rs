//! The device plugin's metrics, in Prometheus' text format.

use std::{borrow::Cow, collections::BTreeMap, fmt::Write};

use crate::types::status::{
    HostAccessStatus, LearningStatus, LimitsStatus, NriStatus, RateStatus, ResourceStatus, Status,
};

/// A metric: its name, its type, what it is, and where its samples are in the status.
pub struct Metric {
    /// The name, by Prometheus' conventions.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
    samples: fn(&Status) -> Vec<Sample>,
}

/// Labels and a value.
type Sample = (Vec<(&'static str, String)>, u64);

/// All of them.
pub const METRICS: [Metric; 34] = [
    metric(
        "macvtap_build_info",
        "gauge",
        "The version; always 1",
        |_| vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1)],
    ),
    metric(
        "macvtap_configuration_warnings",
        "gauge",
        "What is wrong, ignored or left out in the configuration",
        |status| vec![(vec![], status.config_warnings.len() as u64)],
    ),
    metric(
        "macvtap_configuration_entries_for_others",
        "gauge",
        "Entries of the configuration that are for other nodes",
        |status| vec![(vec![], status.entries_for_others as u64)],
    ),
    metric(
        "macvtap_devices",
        "gauge",
        "Devices offered to the kubelet",
        |status| resources(status, |resource| resource.devices),
    ),
    metric(
        "macvtap_devices_healthy",
        "gauge",
        "Healthy devices offered to the kubelet",
        |status| resources(status, |resource| resource.healthy),
    ),
    metric(
        "macvtap_attachments",
        "gauge",
        "Devices of a resource whose tap exists",
        |status| resources(status, |resource| resource.attachments),
    ),
    metric(
        "macvtap_registered",
        "gauge",
        "Whether a resource is registered with the kubelet",
        |status| resources(status, |resource| u64::from(resource.registered)),
    ),
    metric(
        "macvtap_lower_device_up",
        "gauge",
        "Whether a lower device exists and is up",
        |status| lower_devices(status, |resource| resource.lower_up),
    ),
    metric(
        "macvtap_lower_device_carrier",
        "gauge",
        "Whether a lower device is up and has a carrier",
        |status| lower_devices(status, |resource| resource.lower_carrier),
    ),
    metric(
        "macvtap_lower_device_required",
        "gauge",
        "Whether the configuration names a lower device, or pods have devices on it",
        |status| lower_devices(status, |resource| resource.lower_required),
    ),
    metric(
        "macvtap_allocations_total",
        "counter",
        "Devices allocated to containers",
        |status| resources(status, |resource| resource.allocations),
    ),
    metric(
        "macvtap_allocation_failures_total",
        "counter",
        "Failed requests of the kubelet, by reason",
        |status| {
            let samples = status.resources.iter().flat_map(|resource| {
                resource.failures.iter().map(|(reason, count)| {
                    let mut labels = labels(resource);
                    labels.push(("reason", reason.clone()));
                    (labels, *count)
                })
            });
            samples.collect()
        },
    ),
    metric(
        "macvtap_registrations_total",
        "counter",
        "Registrations accepted by the kubelet",
        |status| resources(status, |resource| resource.registrations),
    ),
    metric(
        "macvtap_stream_restarts_total",
        "counter",
        "ListAndWatch streams that ended",
        |status| resources(status, |resource| resource.stream_restarts),
    ),
    metric(
        "macvtap_kubelet_restarts_total",
        "counter",
        "Restarts of the kubelet",
        |status| vec![(vec![], status.kubelet_restarts)],
    ),
    metric(
        "macvtap_link_resyncs_total",
        "counter",
        "Times that links were listed again after changes",
        |status| vec![(vec![], status.link_resyncs)],
    ),
    metric(
        "macvtap_learning_enabled",
        "gauge",
        "Whether learning is on and its thread runs",
        |status| vec![(vec![], u64::from(status.running_learning().is_some()))],
    ),
    metric(
        "macvtap_learning_ports",
        "gauge",
        "Ports by state",
        |status| {
            let learning = learning(status);
            let state = |name: &str, ports| (vec![("state", name.to_owned())], ports);
            vec![
                state("active", learning.active),
                state("parked", learning.parked),
            ]
        },
    ),
    metric(
        "macvtap_learning_parks_total",
        "counter",
        "Ports parked because their MAC was announced elsewhere",
        |status| vec![(vec![], learning(status).parks)],
    ),
    metric(
        "macvtap_learning_unparks_total",
        "counter",
        "Ports that became active",
        |status| vec![(vec![], learning(status).unparks)],
    ),
    metric(
        "macvtap_learning_replays_total",
        "counter",
        "First frames sent again to neighbours",
        |status| vec![(vec![], learning(status).replays)],
    ),
    metric(
        "macvtap_learning_reflections_total",
        "counter",
        "Own announcements that came back, ignored",
        |status| vec![(vec![], learning(status).reflections)],
    ),
    metric(
        "macvtap_learning_announcements_total",
        "counter",
        "Announcements of a port's MAC from outside",
        |status| vec![(vec![], learning(status).announcements)],
    ),
    metric(
        "macvtap_learning_failures_total",
        "counter",
        "Announcements ignored as too many, frames of another port with a port's MAC, and failed \
         changes, by reason",
        |status| {
            let learning = learning(status);
            let reason = |name: &str, count| (vec![("reason", name.to_owned())], count);
            vec![
                reason("flood", learning.floods),
                reason("spoof", learning.spoofs),
                reason("mode", learning.failures),
            ]
        },
    ),
    metric(
        "macvtap_nri_enabled",
        "gauge",
        "Whether containers get taps by NRI; not where it may be absent and is",
        |status| {
            let nri = status.nri.as_ref();
            vec![(vec![], u64::from(nri.is_some_and(|nri| !nri.absent)))]
        },
    ),
    metric(
        "macvtap_nri_connected",
        "gauge",
        "Whether the container runtime asks for the taps of containers",
        |status| {
            let nri = nri(status);
            vec![(vec![], u64::from(nri.running && nri.ready))]
        },
    ),
    metric(
        "macvtap_nri_containers_total",
        "counter",
        "Containers of pods with taps that the runtime asked about, by outcome",
        |status| {
            let nri = nri(status);
            let outcome = |name: &str, count| (vec![("outcome", name.to_owned())], count);
            vec![outcome("given", nri.given), outcome("refused", nri.refused)]
        },
    ),
    metric(
        "macvtap_nri_containers_without_tap",
        "gauge",
        "Containers that run without their taps",
        |status| vec![(vec![], nri(status).without.len() as u64)],
    ),
    metric(
        "macvtap_host_access_addresses",
        "gauge",
        "Addresses of VMs that the node has routes to, by lower device",
        |status| host_access(status, |access| access.addresses),
    ),
    metric(
        "macvtap_host_access_errors",
        "gauge",
        "What does not work of host access, by lower device",
        |status| host_access(status, |access| access.errors.len() as u64),
    ),
    metric(
        "macvtap_frames_dropped_total",
        "counter",
        "Frames of guests that port security dropped, by tap and reason",
        |status| {
            let samples = status.limits.iter().flat_map(|(tap, limits)| {
                limits.dropped.iter().map(|(reason, count)| {
                    let mut labels = tap_labels(*tap, limits);
                    labels.push(("reason", reason.clone()));
                    (labels, *count)
                })
            });
            samples.collect()
        },
    ),
    metric(
        "macvtap_limited_bytes_total",
        "counter",
        "Bytes that passed a rate, by tap and direction",
        |status| rates(status, |rate| rate.bytes),
    ),
    metric(
        "macvtap_throttled_total",
        "counter",
        "Times that a frame had to wait for a rate, by tap and direction",
        |status| rates(status, |rate| rate.throttled),
    ),
    metric(
        "macvtap_rate_waiting_bytes",
        "gauge",
        "Bytes that wait for a rate, by tap and direction",
        |status| rates(status, |rate| rate.waiting_bytes),
    ),
];

const fn metric(
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&Status) -> Vec<Sample>,
) -> Metric {
    Metric {
        name,
        kind,
        help,
        samples,
    }
}

/// The metrics of a device plugin whose status this is.
#[must_use]
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    for metric in &METRICS {
        let Metric {
            name,
            kind,
            help,
            samples,
        } = metric;
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples(status) {
            let labels = labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            let _ = match labels.as_str() {
                "" => writeln!(text, "{name} {value}"),
                labels => writeln!(text, "{name}{{{labels}}} {value}"),
            };
        }
    }
    text
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn labels(resource: &ResourceStatus) -> Vec<(&'static str, String)> {
    vec![
        ("resource", resource.name.clone()),
        ("lower_device", resource.lower_device.clone()),
    ]
}

fn tap_labels(tap: u32, limits: &LimitsStatus) -> Vec<(&'static str, String)> {
    vec![
        ("tap", tap.to_string()),
        ("resource", limits.resource.clone()),
        ("lower_device", limits.lower_device.clone()),
    ]
}

/// One sample for each lower device, on which there may be several resources.
fn lower_devices(status: &Status, value: fn(&ResourceStatus) -> bool) -> Vec<Sample> {
    let mut lowers: BTreeMap<&str, bool> = BTreeMap::new();
    for resource in &status.resources {
        *lowers.entry(&resource.lower_device).or_default() |= value(resource);
    }
    let sample = |(lower, value): (&str, bool)| {
        let label = ("lower_device", lower.to_owned());
        (vec![label], u64::from(value))
    };
    lowers.into_iter().map(sample).collect()
}

fn host_access(status: &Status, value: fn(&HostAccessStatus) -> u64) -> Vec<Sample> {
    let accesses = status.host_access.iter();
    let sample = |access: &HostAccessStatus| {
        let label = ("lower_device", access.lower_device.clone());
        (vec![label], value(access))
    };
    accesses.map(sample).collect()
}

fn resources(status: &Status, value: impl Fn(&ResourceStatus) -> u64) -> Vec<Sample> {
    let resources = status.resources.iter();
    resources
        .map(|resource| (labels(resource), value(resource)))
        .collect()
}

fn rates(status: &Status, value: impl Fn(&RateStatus) -> u64) -> Vec<Sample> {
    let both = status.limits.iter().flat_map(|(tap, limits)| {
        let ways = [("ingress", &limits.ingress), ("egress", &limits.egress)];
        ways.map(|(direction, rate)| (tap_labels(*tap, limits), direction, rate))
    });
    let samples = both.filter_map(|(mut labels, direction, rate)| {
        labels.push(("direction", direction.to_owned()));
        Some((labels, value(rate.as_ref()?)))
    });
    samples.collect()
}

/// The numbers of learning; zeros if it is off.
fn learning(status: &Status) -> Cow<'_, LearningStatus> {
    let learning = status.learning.as_ref();
    learning.map_or_else(Cow::default, Cow::Borrowed)
}

/// The numbers of NRI; zeros if it is off.
fn nri(status: &Status) -> Cow<'_, NriStatus> {
    let nri = status.nri.as_ref();
    nri.map_or_else(Cow::default, Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_learner_does_not_learn() {
        let text = |running| {
            let learning = LearningStatus {
                running,
                ..LearningStatus::default()
            };
            super::text(&Status {
                learning: Some(learning),
                ..Status::default()
            })
        };
        assert!(text(true).contains("\nmacvtap_learning_enabled 1\n"));
        assert!(text(false).contains("\nmacvtap_learning_enabled 0\n"));
    }

    #[test]
    fn a_runtime_without_nri_is_not_expected_to_be_connected() {
        let text = |absent| {
            let nri = NriStatus {
                running: true,
                absent,
                ..NriStatus::default()
            };
            super::text(&Status {
                nri: Some(nri),
                ..Status::default()
            })
        };
        assert!(text(true).contains("\nmacvtap_nri_enabled 0\n"));
        assert!(text(false).contains("\nmacvtap_nri_enabled 1\n"));
    }
}
