//! The device plugin's metrics, in Prometheus' text format.

use std::fmt::Write;

use serde_json::Value;

/// A metric: its name, its type, what it is, and where its samples are in the status.
pub struct Metric {
    /// The name, by Prometheus' conventions.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it is.
    pub help: &'static str,
    samples: fn(&Value) -> Vec<Sample>,
}

/// Labels and a value.
type Sample = (Vec<(&'static str, String)>, u64);

/// All of them.
pub const METRICS: [Metric; 20] = [
    metric(
        "macvtap_build_info",
        "gauge",
        "The version that runs; always 1",
        |_| vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1)],
    ),
    metric(
        "macvtap_devices",
        "gauge",
        "Devices that the kubelet is offered",
        |status| resources(status, |resource| number(&resource["devices"])),
    ),
    metric(
        "macvtap_devices_healthy",
        "gauge",
        "Those of them in good health",
        |status| {
            let healthy = |resource: &Value| {
                if resource["trouble"].is_null() {
                    number(&resource["devices"])
                } else {
                    0
                }
            };
            resources(status, healthy)
        },
    ),
    metric(
        "macvtap_attachments",
        "gauge",
        "Macvtaps that pods have of a resource",
        |status| resources(status, |resource| number(&resource["attachments"])),
    ),
    metric(
        "macvtap_registered",
        "gauge",
        "Whether the kubelet knows a resource",
        |status| resources(status, |resource| u64::from(resource["registered"] == true)),
    ),
    metric(
        "macvtap_lower_device_up",
        "gauge",
        "Whether a lower device exists and is up",
        |status| {
            let mut samples: Vec<Sample> = list(&status["resources"])
                .map(|resource| {
                    let label = ("lower_device", text_of(&resource["lowerDevice"]));
                    (vec![label], u64::from(resource["lowerUp"] == true))
                })
                .collect();
            samples.sort();
            samples.dedup_by(|a, b| a.0 == b.0);
            samples
        },
    ),
    metric(
        "macvtap_allocations_total",
        "counter",
        "Devices promised to containers",
        |status| resources(status, |resource| number(&resource["allocations"])),
    ),
    metric(
        "macvtap_allocation_failures_total",
        "counter",
        "Requests of the kubelet that failed, by reason",
        |status| {
            let samples = list(&status["resources"]).flat_map(|resource| {
                let reasons = resource["failures"].as_object().into_iter().flatten();
                reasons.map(|(reason, count)| {
                    let mut labels = labels(resource);
                    labels.push(("reason", reason.clone()));
                    (labels, number(count))
                })
            });
            samples.collect()
        },
    ),
    metric(
        "macvtap_registrations_total",
        "counter",
        "Registrations that the kubelet accepted",
        |status| resources(status, |resource| number(&resource["registrations"])),
    ),
    metric(
        "macvtap_stream_restarts_total",
        "counter",
        "Streams of devices that the kubelet ended",
        |status| resources(status, |resource| number(&resource["streamRestarts"])),
    ),
    metric(
        "macvtap_kubelet_restarts_total",
        "counter",
        "Kubelets that came after the first",
        |status| vec![(vec![], number(&status["kubeletRestarts"]))],
    ),
    metric(
        "macvtap_link_resyncs_total",
        "counter",
        "How often links were listed again after changes",
        |status| vec![(vec![], number(&status["linkResyncs"]))],
    ),
    metric(
        "macvtap_learning_enabled",
        "gauge",
        "Whether learning is on",
        |status| vec![(vec![], u64::from(!status["learning"].is_null()))],
    ),
    metric(
        "macvtap_learning_ports",
        "gauge",
        "Ports by state",
        |status| {
            let learning = &status["learning"];
            let state =
                |name: &'static str| (vec![("state", name.to_owned())], number(&learning[name]));
            vec![state("live"), state("parked")]
        },
    ),
    metric(
        "macvtap_learning_parks_total",
        "counter",
        "Ports parked because their MAC was announced elsewhere",
        |status| learnt(status, "parks"),
    ),
    metric(
        "macvtap_learning_unparks_total",
        "counter",
        "Ports that became live",
        |status| learnt(status, "unparks"),
    ),
    metric(
        "macvtap_learning_replays_total",
        "counter",
        "First frames sent again for neighbours",
        |status| learnt(status, "replays"),
    ),
    metric(
        "macvtap_learning_reflections_total",
        "counter",
        "Own announcements that came back, ignored",
        |status| learnt(status, "reflections"),
    ),
    metric(
        "macvtap_learning_announcements_total",
        "counter",
        "Announcements of ports' MACs from outside",
        |status| learnt(status, "announcements"),
    ),
    metric(
        "macvtap_learning_failures_total",
        "counter",
        "Announcements ignored as too many, and modes that could not be set",
        |status| {
            let of = |reason: &'static str, name: &str| {
                (
                    vec![("reason", reason.to_owned())],
                    number(&status["learning"][name]),
                )
            };
            vec![of("flood", "floods"), of("mode", "failures")]
        },
    ),
];

const fn metric(
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&Value) -> Vec<Sample>,
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
pub fn text(status: &Value) -> String {
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

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn labels(resource: &Value) -> Vec<(&'static str, String)> {
    vec![
        ("resource", text_of(&resource["name"])),
        ("lower_device", text_of(&resource["lowerDevice"])),
    ]
}

fn resources(status: &Value, value: impl Fn(&Value) -> u64) -> Vec<Sample> {
    let resources = list(&status["resources"]);
    resources
        .map(|resource| (labels(resource), value(resource)))
        .collect()
}

fn learnt(status: &Value, name: &str) -> Vec<Sample> {
    vec![(vec![], number(&status["learning"][name]))]
}
