//! The status of a device plugin, as it answers `probe`, `doctor` and `/metrics`. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::plural::count;

/// The effect of a lack of learning.
const UNREACHABLE: &str = "VMs are unreachable from VMs on the same node during migration";

/// The status of a device plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Why netlink does not work; none if it does.
    #[serde(rename = "netlink")]
    pub netlink_error: Option<String>,
    /// What is wrong with the configuration: entries that are left out or changed, or why a text
    /// that replaced it cannot be used.
    #[serde(default)]
    pub config_warnings: Vec<String>,
    /// How many entries of the configuration are for other nodes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub entries_for_others: usize,
    /// The resources that are offered.
    pub resources: Vec<ResourceStatus>,
    /// How often the kubelet restarted.
    pub kubelet_restarts: u64,
    /// How often the links were listed again after changes.
    pub link_resyncs: u64,
    /// Learning; none if it is off.
    pub learning: Option<LearningStatus>,
    /// NRI; none if it is off.
    #[serde(default)]
    pub nri: Option<NriStatus>,
    /// Host access, by lower device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_access: Vec<HostAccessStatus>,
    /// The limits of attachments, by the number of their tap. They are read for `/metrics` only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<u32, LimitsStatus>,
}

/// How the node reaches the VMs on a lower device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostAccessStatus {
    /// The name of the lower device.
    pub lower_device: String,
    /// The node's interface for it; empty if there is none.
    pub interface: String,
    /// The number of VMs' addresses that the node has routes to.
    pub addresses: u64,
    /// What does not work.
    pub errors: Vec<String>,
}

/// What the limits of an attachment did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitsStatus {
    /// Its resource; empty if it has none.
    pub resource: String,
    /// The name of its lower device; empty if it is not known.
    pub lower_device: String,
    /// Frames of the guest that security dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// The rate of what the guest receives, if there is one.
    pub ingress: Option<RateStatus>,
    /// The rate of what the guest sends, if there is one.
    pub egress: Option<RateStatus>,
}

/// What a rate did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateStatus {
    /// Bytes that passed.
    pub bytes: u64,
    /// Bytes that wait now.
    pub waiting_bytes: u64,
    /// How often a frame had to wait.
    pub throttled: u64,
}

/// The status of one resource.
#[expect(clippy::struct_excessive_bools, reason = "each is a metric of its own")]
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// The name, without `macvtap.network.kubevirt.io/`.
    pub name: String,
    /// The name of the lower device.
    pub lower_device: String,
    /// What the lower device was chosen by, if not by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Whether the lower device exists and is up.
    pub lower_up: bool,
    /// Whether it is up and has a carrier.
    #[serde(default)]
    pub lower_carrier: bool,
    /// Whether the configuration names it, or pods have devices on it.
    #[serde(default)]
    pub lower_required: bool,
    /// Whether the kubelet's `ListAndWatch` stream is open.
    pub registered: bool,
    /// The number of devices.
    pub devices: u64,
    /// The number of devices that pods can use.
    #[serde(default)]
    pub healthy: u64,
    /// The number of devices whose tap exists.
    pub attachments: u64,
    /// Why the devices are unhealthy; none if they are healthy.
    pub unhealthy_reason: Option<String>,
    /// The last error of serving or registering; empty if there is none.
    pub last_error: String,
    /// The number of devices allocated to containers.
    pub allocations: u64,
    /// The number of failed requests, by reason.
    pub failures: BTreeMap<String, u64>,
    /// The number of registrations that the kubelet accepted.
    pub registrations: u64,
    /// The number of `ListAndWatch` streams that ended.
    pub stream_restarts: u64,
}

/// The status of learning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LearningStatus {
    /// Whether its thread runs. If not, the numbers are the last ones.
    pub running: bool,
    /// Ports that are parked now.
    pub parked: u64,
    /// Ports that are active now.
    #[serde(rename = "live")]
    pub active: u64,
    /// How often an active port was parked.
    pub parks: u64,
    /// How often a port became active.
    pub unparks: u64,
    /// First frames that were sent again from their port.
    pub replays: u64,
    /// Own frames that came back.
    pub reflections: u64,
    /// Announcements of a port's MAC from outside.
    pub announcements: u64,
    /// Announcements that were ignored because there were too many.
    pub floods: u64,
    /// Frames with a parked port's MAC that the port did not send.
    pub spoofs: u64,
    /// Mode changes that failed.
    pub failures: u64,
    /// The ports, by the number of their tap.
    pub ports: BTreeMap<u32, PortStatus>,
}

/// A port as learning believes it to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// The interface's name in the pod.
    pub interface: String,
    /// The path of the pod's netns.
    pub netns: String,
    /// The MAC.
    pub mac: String,
    /// The index of the lower device.
    pub lower: u32,
    /// Whether it is parked, in VEPA mode.
    pub parked: bool,
    /// Its resource, if it has a device of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The name of the lower device, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower_device: Option<String>,
    /// The addresses that IPAM gave it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// The status of the plugin that the container runtime asks about containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NriStatus {
    /// Whether its thread runs. If not, the numbers are the last ones.
    pub running: bool,
    /// Whether the runtime asks about each container that it creates.
    pub ready: bool,
    /// Whether this node's runtime has no NRI, and need not have it.
    pub absent: bool,
    /// The runtime's name and version; empty if it never connected.
    pub runtime: String,
    /// Why there is no connection; empty if there is one.
    pub last_error: String,
    /// The number of containers that got taps.
    pub given: u64,
    /// The number of containers that were refused.
    pub refused: u64,
    /// The containers that run without their taps.
    pub without: Vec<String>,
    /// The containers that have taps, by the number of the tap.
    #[serde(default)]
    pub taps: BTreeMap<u32, ContainerName>,
}

/// A container as Kubernetes names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ContainerName {
    /// The pod's namespace and name.
    pub pod: String,
    /// The container's name; several of one pod are separated by commas.
    pub container: String,
}

/// What a status amounts to, in sentences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What works.
    pub ok: Vec<String>,
    /// What is not as usual, but possibly intended.
    pub notes: Vec<String>,
    /// What is wrong on the node or in the configuration: a restart of the device plugin would
    /// not help.
    pub warnings: Vec<Problem>,
    /// What the device plugin fails to do.
    pub failures: Vec<Problem>,
}

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub fix: &'static str,
}

impl Problem {
    fn new(text: impl Into<String>, fix: &'static str) -> Self {
        let text = text.into();
        Self { text, fix }
    }
}

const SEE_LOG: &str = "see the device plugin's log";
const CORRECT_ENTRY: &str = "correct the configuration; it is read again by itself";

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Status {
    /// Whether it works itself, whatever kubelet, runtime and configuration do: a restart would not
    /// help against those, as it does against a thread for NRI that has ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.netlink_error.is_none() && self.nri.as_ref().is_none_or(|nri| nri.running)
    }

    /// Learning, if it is on and its thread runs.
    #[must_use]
    pub fn running_learning(&self) -> Option<&LearningStatus> {
        self.learning.as_ref().filter(|learning| learning.running)
    }

    /// What works and what does not, each fact once. A lower device that is missing is a failure
    /// of the node, not of the device plugin.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        match &self.netlink_error {
            None => summary.ok.push("netlink answers".to_owned()),
            Some(error) => {
                let text = format!("netlink does not answer: {error}");
                summary.failures.push(Problem::new(text, SEE_LOG));
            }
        }
        self.add_learning(&mut summary);
        if let Some(nri) = &self.nri {
            nri.summarize(&mut summary);
        }
        let mistakes = self.config_warnings.iter();
        let mistakes = mistakes
            .map(|warning| Problem::new(format!("configuration: {warning}"), CORRECT_ENTRY));
        summary.warnings.extend(mistakes);
        for resource in &self.resources {
            resource.add_to(&mut summary);
        }
        for access in &self.host_access {
            access.summarize(&mut summary);
        }
        if self.resources.is_empty() {
            self.add_no_resource(&mut summary);
        }
        summary
    }

    /// Says that there is no resource, which is a mistake only where pods need one.
    fn add_no_resource(&self, summary: &mut Summary) {
        let text = |reason| format!("no resource is offered: {reason}");
        if self.entries_for_others > 0 {
            let reason = text("the entries of the configuration are for other nodes");
            summary.notes.push(reason);
        } else if self.nri.as_ref().is_some_and(NriStatus::is_connected) {
            let reason = text("pods get their taps by NRI");
            summary.notes.push(reason);
        } else {
            let reason =
                text("the configuration lists none, and no NIC or bond of this node is eligible");
            let fix = "name a NIC of this node in the configuration, or bring one up";
            summary.warnings.push(Problem::new(reason, fix));
        }
    }

    fn add_learning(&self, summary: &mut Summary) {
        match &self.learning {
            Some(LearningStatus {
                running: true,
                active,
                parked,
                ..
            }) => summary.ok.push(format!(
                "learning is on: {} active, {parked} parked",
                count(active, "port")
            )),
            Some(_) => {
                let text = format!("learning has stopped: {UNREACHABLE}");
                summary.warnings.push(Problem::new(text, SEE_LOG));
            }
            None => summary
                .notes
                .push(format!("learning is off: {UNREACHABLE}")),
        }
    }
}

impl HostAccessStatus {
    /// What does not work, in sentences.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let errors = self.errors.iter();
        errors.map(|error| format!("host access on {}: {error}", self.lower_device))
    }

    fn summarize(&self, summary: &mut Summary) {
        if !self.interface.is_empty() {
            let addresses = match self.addresses {
                1 => "1 address of VMs".to_owned(),
                number => format!("{number} addresses of VMs"),
            };
            let (lower, interface) = (&self.lower_device, &self.interface);
            let text = format!("host access on {lower} by {interface}: {addresses}");
            summary.ok.push(text);
        }
        let warnings = self.warnings();
        summary
            .warnings
            .extend(warnings.map(|text| Problem::new(text, SEE_LOG)));
    }
}

impl NriStatus {
    /// Whether the runtime asks about each container that it creates.
    fn is_connected(&self) -> bool {
        self.running && self.ready
    }

    /// A container without its taps is no failure of the device plugin.
    fn summarize(&self, summary: &mut Summary) {
        let Self {
            runtime,
            last_error,
            ..
        } = self;
        if self.is_connected() {
            summary.ok.push(format!("NRI is connected to {runtime}"));
        } else if self.running && self.absent {
            let text = "the container runtime has no NRI socket";
            summary.ok.push(text.to_owned());
        } else {
            let text = format!("NRI is not connected: {last_error}");
            let fix = if self.running {
                "check that the container runtime runs, and that it has NRI enabled"
            } else {
                SEE_LOG
            };
            summary.failures.push(Problem::new(text, fix));
        }
        let without = self.without.iter();
        let problems = without.map(|text| Problem::new(text, "delete the pod"));
        summary.warnings.extend(problems);
    }
}

impl ResourceStatus {
    /// Says whether the resource is registered, and its devices healthy.
    fn add_to(&self, summary: &mut Summary) {
        let name = &self.name;
        if self.registered {
            let devices = count(self.devices, "device");
            let text = format!("resource {name} is registered with {devices}");
            summary.ok.push(text);
        } else {
            let text = format!("resource {name} is not registered");
            let text = match self.last_error.as_str() {
                "" => text,
                error => format!("{text}: {error}"),
            };
            let fix = "check that the kubelet runs, and see the device plugin's log";
            summary.failures.push(Problem::new(text, fix));
        }
        if let Some(selector) = &self.selector {
            let lower = &self.lower_device;
            let text = format!("resource {name} is on {lower}, chosen by {selector}");
            summary.ok.push(text);
        }
        if let Some(reason) = &self.unhealthy_reason {
            let text = format!("resource {name} is unhealthy: {reason}");
            let fix =
                "correct the lower device or the configuration: the resource follows by itself";
            summary.warnings.push(Problem::new(text, fix));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dataplane() -> ResourceStatus {
        ResourceStatus {
            name: "dataplane".to_owned(),
            registered: true,
            devices: 100,
            ..ResourceStatus::default()
        }
    }

    fn texts(problems: &[Problem]) -> Vec<&str> {
        problems.iter().map(|problem| &problem.text[..]).collect()
    }

    fn status(resource: ResourceStatus) -> Status {
        Status {
            resources: vec![resource],
            ..Status::default()
        }
    }

    #[test]
    fn an_unregistered_resource_is_a_failure() {
        let summary = status(dataplane()).summary();
        assert_eq!(
            summary.ok[1],
            "resource dataplane is registered with 100 devices"
        );
        assert!(summary.failures.is_empty() && summary.warnings.is_empty());
        let summary = status(ResourceStatus {
            registered: false,
            last_error: "connection refused".to_owned(),
            ..dataplane()
        })
        .summary();
        let expected = "resource dataplane is not registered: connection refused";
        assert_eq!(texts(&summary.failures), [expected]);
    }

    #[test]
    fn a_netlink_error_is_a_failure() {
        let status = Status {
            netlink_error: Some("EPERM".to_owned()),
            ..Status::default()
        };
        let failures = status.summary().failures;
        assert_eq!(texts(&failures), ["netlink does not answer: EPERM"]);
    }

    #[test]
    fn a_missing_lower_device_is_no_failure_of_the_device_plugin() {
        let summary = status(ResourceStatus {
            unhealthy_reason: Some("the lower device does not exist".to_owned()),
            ..dataplane()
        })
        .summary();
        assert!(summary.failures.is_empty());
        let expected = "resource dataplane is unhealthy: the lower device does not exist";
        assert_eq!(texts(&summary.warnings), [expected]);
        assert_eq!(summary.ok.len(), 2, "{summary:?}");
    }

    #[test]
    fn a_node_without_resources_is_not_well() {
        let summary = Status::default().summary();
        assert!(
            summary.warnings[0]
                .text
                .starts_with("no resource is offered")
        );
        let other = Status {
            entries_for_others: 1,
            ..Status::default()
        };
        assert!(other.summary().warnings.is_empty());
        assert!(other.summary().notes[1].contains("other nodes"));
        let nri = |ready| Status {
            nri: Some(NriStatus {
                running: true,
                ready,
                ..NriStatus::default()
            }),
            ..Status::default()
        };
        let connected = nri(true).summary();
        assert!(connected.warnings.is_empty(), "{connected:?}");
        assert!(connected.notes[1].ends_with("by NRI"), "{connected:?}");
        assert_eq!(nri(false).summary().warnings.len(), 1);
    }

    #[test]
    fn what_chose_the_lower_device_is_said() {
        let summary = status(ResourceStatus {
            lower_device: "ens1".to_owned(),
            selector: Some("\"ens*\"".to_owned()),
            ..dataplane()
        })
        .summary();
        let expected = "resource dataplane is on ens1, chosen by \"ens*\"";
        assert_eq!(summary.ok[2], expected);
    }

    #[test]
    fn a_dead_learner_does_not_learn() {
        let learning = |running| LearningStatus {
            running,
            active: 3,
            ..LearningStatus::default()
        };
        let summary = |learning| {
            let status = Status {
                learning: Some(learning),
                ..Status::default()
            };
            status.summary()
        };
        assert_eq!(
            summary(learning(true)).ok[1],
            "learning is on: 3 ports active, 0 parked"
        );
        let stopped = summary(learning(false));
        assert!(stopped.warnings[0].text.starts_with("learning has stopped"));
        assert!(!stopped.ok.iter().any(|text| text.contains("learning")));
    }

    #[test]
    fn a_container_without_its_tap_is_a_warning_and_a_lost_runtime_a_failure() {
        let summary = |nri| {
            let status = Status {
                nri: Some(nri),
                ..Status::default()
            };
            status.summary()
        };
        let ready = NriStatus {
            running: true,
            ready: true,
            without: vec!["container c of pod p runs without /dev/tap1".to_owned()],
            ..NriStatus::default()
        };
        let expected = Problem::new(
            "container c of pod p runs without /dev/tap1",
            "delete the pod",
        );
        assert_eq!(summary(ready.clone()).warnings[0], expected);
        assert!(summary(ready.clone()).failures.is_empty());
        let lost = |absent| NriStatus {
            ready: false,
            absent,
            last_error: "refused".to_owned(),
            ..ready.clone()
        };
        let failures = summary(lost(false)).failures;
        assert_eq!(texts(&failures), ["NRI is not connected: refused"]);
        assert!(summary(lost(true)).failures.is_empty());
    }

    #[test]
    fn the_keys_stay() {
        let status = Status {
            config_warnings: vec!["entry 2".to_owned()],
            learning: Some(LearningStatus::default()),
            nri: Some(NriStatus::default()),
            ..status(dataplane())
        };
        let resource = json!({
            "name": "dataplane", "lowerDevice": "", "lowerUp": false, "lowerCarrier": false,
            "lowerRequired": false, "registered": true,
            "devices": 100, "healthy": 0, "attachments": 0, "unhealthyReason": null, "lastError": "",
            "allocations": 0, "failures": {}, "registrations": 0, "streamRestarts": 0,
        });
        let learning = json!({
            "running": false, "parked": 0, "live": 0, "parks": 0, "unparks": 0, "replays": 0,
            "reflections": 0, "announcements": 0, "floods": 0, "spoofs": 0, "failures": 0,
            "ports": {},
        });
        let nri = json!({
            "running": false, "ready": false, "absent": false, "runtime": "", "lastError": "", "given": 0,
            "refused": 0, "without": [], "taps": {},
        });
        let expected = json!({
            "netlink": null, "configWarnings": ["entry 2"], "resources": [resource],
            "kubeletRestarts": 0, "linkResyncs": 0, "learning": learning, "nri": nri,
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }
}
