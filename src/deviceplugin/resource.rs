//! One resource: its devices, its server, its registration.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use futures_util::future::join;
use log::{debug, info, warn};
use tokio::{
    task::{AbortHandle, JoinHandle},
    time::sleep,
};

use super::{
    device_list::DeviceList,
    event::{EventSender, FAILURES, ResourceEvent},
    grpc::{
        kubelet,
        server::{OtherServer, ResourceServer, StartError},
        service::{PluginService, SentList},
    },
    names::{KUBELET_SOCKET, socket_name},
    registration::RegistrationState,
    tap_only::TapOnly,
};
use crate::types::status::ResourceStatus;

/// The shortest wait for the end of another server: one that closes each connection at once must
/// not make it spin.
const MIN_WAIT: Duration = Duration::from_millis(200);

/// What the resources of a node have in common.
#[derive(Clone)]
pub struct Shared {
    /// The directory of the kubelet's socket and ours.
    pub kubelet_dir: PathBuf,
    /// The macvtaps of pods without the CNI plugin.
    pub tap_only: TapOnly,
}

/// The state of a resource's lower device.
#[derive(Clone, Copy, Debug)]
pub struct LowerState {
    /// Whether it exists and is up.
    pub up: bool,
    /// Whether it is up and has a carrier.
    pub carrier: bool,
    /// Whether the configuration names it, or pods hold devices on it.
    pub required: bool,
}

/// A resource that is offered.
pub struct Resource {
    list: DeviceList,
    sent: Arc<SentList>,
    shared: Shared,
    events: EventSender,
    server: Option<ResourceServer>,
    /// The number of servers that the resource had. Events of former ones are ignored.
    generation: u64,
    registration: RegistrationState,
    call: Option<JoinHandle<()>>,
    calls: u64,
    /// Waits for the end of another process that serves the socket.
    wait: Option<AbortHandle>,
    /// Logged once, not at each attempt.
    last_error: String,
    counts: Counts,
}

#[derive(Clone, Default)]
struct Counts {
    allocations: u64,
    failures: BTreeMap<String, u64>,
    registrations: u64,
    stream_restarts: u64,
}

impl Resource {
    /// A resource that is neither served nor registered yet.
    pub fn new(list: DeviceList, shared: Shared, events: EventSender) -> Self {
        Self {
            sent: SentList::of(&list),
            list,
            shared,
            events,
            server: None,
            generation: 0,
            registration: RegistrationState::new(Instant::now()),
            call: None,
            calls: 0,
            wait: None,
            last_error: String::new(),
            counts: Counts {
                // From the start, so that the first one of a reason is an increase.
                failures: FAILURES.map(|reason| (reason.to_owned(), 0)).into(),
                ..Counts::default()
            },
        }
    }

    /// Where its events are reported.
    pub fn events(&self) -> EventSender {
        self.events.clone()
    }

    /// Its devices.
    pub fn list(&self) -> &DeviceList {
        &self.list
    }

    /// Offers other devices.
    pub fn update_list(&mut self, list: DeviceList) {
        self.sent = SentList::of(&list);
        if let Some(server) = &self.server {
            server.send(&self.sent);
        }
        self.list = list;
    }

    /// When [`Self::run_due`] has to be called, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.registration.deadline()
    }

    /// Serves and registers if it is time.
    pub async fn run_due(&mut self) {
        let now = Instant::now();
        if !self.registration.call(now) {
            return;
        }
        if self.server.is_none()
            && let Err(error) = self.serve().await
        {
            self.report_error(&error);
            self.registration.answered(false, now);
            return;
        }
        self.register();
    }

    async fn serve(&mut self) -> Result<()> {
        self.cancel_wait();
        self.generation += 1;
        let path = self.shared.kubelet_dir.join(self.socket_name());
        let service = |list| PluginService {
            generation: self.generation,
            list,
            events: self.events.clone(),
            tap_only: self.shared.tap_only.clone(),
        };
        let shown = path.display().to_string();
        match ResourceServer::start(path, self.sent.clone(), service).await {
            Ok(server) => {
                self.server = Some(server);
                Ok(())
            }
            Err(StartError::InUse(other)) => {
                self.wait_for(other);
                bail!("another device plugin serves {shown}")
            }
            Err(StartError::Failed(error)) => Err(error),
        }
    }

    /// Takes over from another device plugin as soon as it ends, kubevirt/macvtap-cni for one.
    /// Until then the kubelet has no devices to allocate.
    fn wait_for(&mut self, other: OtherServer) {
        let events = self.events.clone();
        let wait = tokio::spawn(async move {
            join(other.ended(), sleep(MIN_WAIT)).await;
            events.send(ResourceEvent::SocketFreed);
        });
        self.wait = Some(wait.abort_handle());
    }

    fn register(&mut self) {
        self.cancel_call();
        self.calls += 1;
        let (call, events) = (self.calls, self.events.clone());
        let path = self.shared.kubelet_dir.join(KUBELET_SOCKET);
        // Boxed, since it is large: to spawn it copies it on the stack several times.
        let answer = Box::pin(kubelet::register(
            path,
            self.name().to_owned(),
            self.socket_name(),
        ));
        self.call = Some(tokio::spawn(async move {
            let outcome = answer.await;
            events.send(ResourceEvent::RegistrationAnswered { call, outcome });
        }));
    }

    /// Handles what its server or its registration reports.
    pub fn handle(&mut self, event: ResourceEvent) {
        match event {
            ResourceEvent::StreamOpened { generation } => self.stream_changed(generation, true),
            ResourceEvent::StreamClosed { generation } => self.stream_changed(generation, false),
            ResourceEvent::RegistrationAnswered { call, outcome } => self.answered(call, &outcome),
            ResourceEvent::Allocated { count, .. } => self.counts.allocations += count,
            ResourceEvent::Released => {
                if let Some(server) = &self.server {
                    server.send_again();
                }
            }
            ResourceEvent::SocketFreed if self.server.is_none() => {
                self.registration.restart(Instant::now());
            }
            ResourceEvent::SocketFreed => {}
            ResourceEvent::RequestFailed { reason } => {
                *self.counts.failures.entry(reason.to_owned()).or_default() += 1;
            }
            ResourceEvent::ServerEnded {
                generation,
                outcome,
            } => self.server_ended(generation, &outcome),
        }
    }

    fn answered(&mut self, call: u64, outcome: &Result<()>) {
        if call != self.calls {
            return;
        }
        if let Err(error) = outcome {
            self.report_error(error);
        } else {
            debug!(resource = self.name(); "kubelet accepted the registration");
            self.counts.registrations += 1;
        }
        self.registration.answered(outcome.is_ok(), Instant::now());
        self.log_registration(false);
    }

    fn stream_changed(&mut self, generation: u64, open: bool) {
        if generation != self.generation {
            return;
        }
        let before = self.registration.is_registered();
        if open {
            self.registration.opened(Instant::now());
        } else {
            self.registration.closed(Instant::now());
            self.counts.stream_restarts += 1;
        }
        self.log_registration(before);
    }

    fn log_registration(&mut self, before: bool) {
        match (before, self.registration.is_registered()) {
            (false, true) => {
                let devices = self.list.size();
                info!(resource = self.name(), devices; "registered");
                self.last_error.clear();
            }
            (true, false) => {
                info!(resource = self.name(); "kubelet closed ListAndWatch; registering again");
            }
            _ => {}
        }
    }

    fn server_ended(&mut self, generation: u64, outcome: &Result<()>) {
        if generation != self.generation || self.server.is_none() {
            return;
        }
        let unexpected = anyhow!("the server ended");
        self.report_error(outcome.as_ref().err().unwrap_or(&unexpected));
        self.server = None;
        self.generation += 1;
        // Not at once: the cause may persist.
        self.registration = RegistrationState::after_failure(Instant::now());
    }

    /// Whether the server's socket was removed or replaced.
    pub fn lost_socket(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| !server.is_intact())
    }

    /// Registers again, with a new server if the socket of the present one is lost.
    ///
    /// The former server is stopped before: some kubelets drop the new endpoint when the stream of
    /// the former one ends after the registration.
    pub async fn restart(&mut self) {
        self.cancel_call();
        if self.lost_socket() {
            debug!(resource = self.name(); "socket is gone");
            self.stop_server().await;
            self.registration = RegistrationState::new(Instant::now());
        } else {
            self.registration.restart(Instant::now());
        }
    }

    /// Its status. `taps` are all of the machine.
    pub fn status(&self, taps: &BTreeSet<u32>, lower: LowerState) -> ResourceStatus {
        let attached = self.list.taps().filter(|tap| taps.contains(tap));
        let counts = self.counts.clone();
        ResourceStatus {
            name: self.name().to_owned(),
            lower_device: self.list.resource.lower.to_string(),
            selector: self.list.resource.selector.clone(),
            lower_up: lower.up,
            lower_carrier: lower.carrier,
            lower_required: lower.required,
            registered: self.registration.is_registered() && !self.lost_socket(),
            devices: count(self.list.size()),
            healthy: count(self.list.healthy()),
            attachments: count(attached.count()),
            unhealthy_reason: self.list.unhealthy_reason.clone(),
            last_error: self.last_error.clone(),
            allocations: counts.allocations,
            failures: counts.failures,
            registrations: counts.registrations,
            stream_restarts: counts.stream_restarts,
        }
    }

    /// Stops serving.
    pub async fn stop(mut self) {
        self.cancel_wait();
        self.cancel_call();
        self.stop_server().await;
    }

    async fn stop_server(&mut self) {
        self.generation += 1;
        if let Some(server) = self.server.take()
            && let Err(error) = server.stop().await
        {
            self.report_error(&error);
        }
    }

    fn cancel_wait(&mut self) {
        if let Some(wait) = self.wait.take() {
            wait.abort();
        }
    }

    fn cancel_call(&mut self) {
        if let Some(call) = self.call.take() {
            call.abort();
        }
    }

    fn name(&self) -> &str {
        &self.list.resource.name
    }

    fn socket_name(&self) -> String {
        socket_name(&self.shared.kubelet_dir, self.name())
    }

    fn report_error(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if error != self.last_error {
            warn!(resource = self.name(), error; "not registered; retrying");
            self.last_error = error;
        }
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
