//! What the servers and registrations of resources report to the supervisor.

use anyhow::Result;
use tokio::sync::mpsc;

use crate::types::device_id::DeviceId;

/// Why requests of the kubelet fail.
pub const FAILURES: [&str; 2] = [DEVICE_ID_FAILURE, TAP_FAILURE];
/// The kubelet named a device that is not one of the resource.
pub const DEVICE_ID_FAILURE: &str = "device_id";
/// The tap of a device could not be made, or is another's.
pub const TAP_FAILURE: &str = "tap";

/// An event of one resource.
#[derive(Debug)]
pub enum ResourceEvent {
    /// The kubelet opened a `ListAndWatch` stream.
    StreamOpened {
        /// The server's generation.
        generation: u64,
    },
    /// A `ListAndWatch` stream ended.
    StreamClosed {
        /// The server's generation.
        generation: u64,
    },
    /// The kubelet answered a registration, or could not be reached.
    RegistrationAnswered {
        /// The number of the call.
        call: u64,
        /// The kubelet's answer.
        outcome: Result<()>,
    },
    /// Devices were allocated to a container.
    Allocated {
        /// Those of them with an ID of ours.
        devices: Vec<DeviceId>,
        /// The number of devices.
        count: u64,
    },
    /// The kubelet released the devices of pods that are gone. It writes its checkpoint when it
    /// receives a list.
    Released,
    /// A request of the kubelet failed.
    RequestFailed {
        /// One of [`FAILURES`].
        reason: &'static str,
    },
    /// The other process that served the resource's socket has ended.
    SocketFreed,
    /// A server ended.
    ServerEnded {
        /// The server's generation.
        generation: u64,
        /// Why, if it failed.
        outcome: Result<()>,
    },
}

/// Reports the events of one resource.
#[derive(Clone)]
pub struct EventSender {
    resource: String,
    sender: mpsc::UnboundedSender<(String, ResourceEvent)>,
}

impl EventSender {
    /// A sender for the events of `resource`.
    #[must_use]
    pub fn new(resource: &str, sender: mpsc::UnboundedSender<(String, ResourceEvent)>) -> Self {
        Self {
            resource: resource.to_owned(),
            sender,
        }
    }

    /// The resource.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Reports an event.
    pub fn send(&self, event: ResourceEvent) {
        // There is no receiver any more while the device plugin shuts down.
        let _ = self.sender.send((self.resource.clone(), event));
    }
}
