//! One resource: its devices, its server, its registration.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Result, anyhow};
use log::{debug, info, warn};
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    Event,
    device_list::Offer,
    grpc::{
        api::ListAndWatchResponse,
        kubelet,
        server::{Server, socket_name},
        service::Service,
    },
    registration::Registration,
};
use crate::types::{device_id::DeviceId, status::ResourceStatus};

/// A resource that is offered.
pub struct Endpoint {
    offer: Offer,
    /// The numbers of the devices' taps, since somebody asked.
    taps: OnceCell<Vec<u32>>,
    kubelet_dir: PathBuf,
    events: mpsc::UnboundedSender<Event>,
    server: Option<Server>,
    /// How many servers the resource had; events of former ones do not count.
    generation: u64,
    registration: Registration,
    call: Option<JoinHandle<()>>,
    calls: u64,
    /// What was complained about last, so that it is not said again and again.
    complaint: String,
    counts: Counts,
}

/// What happened to a resource, for metrics.
#[derive(Clone, Default)]
struct Counts {
    allocations: u64,
    failures: BTreeMap<String, u64>,
    registrations: u64,
    stream_restarts: u64,
}

impl Endpoint {
    /// An endpoint that is neither served nor registered yet.
    pub fn new(offer: Offer, kubelet_dir: PathBuf, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            offer,
            taps: OnceCell::new(),
            kubelet_dir,
            events,
            server: None,
            generation: 0,
            registration: Registration::new(Instant::now()),
            call: None,
            calls: 0,
            complaint: String::new(),
            counts: Counts::default(),
        }
    }

    /// What is offered.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Offers something else under the same name.
    pub fn change(&mut self, offer: Offer) {
        if let Some(server) = &self.server {
            server
                .list
                .send_if_modified(|list: &mut Arc<ListAndWatchResponse>| {
                    let changed = *list != offer.list;
                    *list = offer.list.clone();
                    changed
                });
        }
        if !Arc::ptr_eq(&self.offer.ids, &offer.ids) {
            self.taps.take();
        }
        self.offer = offer;
    }

    /// When [`Self::act`] has to be called again, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.registration.deadline()
    }

    /// Serves and registers, if it is time for it.
    pub async fn act(&mut self) {
        let now = Instant::now();
        if !self.registration.call(now) {
            return;
        }
        if self.server.is_none()
            && let Err(error) = self.serve().await
        {
            self.complain(&error);
            self.registration.answered(false, now);
            return;
        }
        self.register();
    }

    async fn serve(&mut self) -> Result<()> {
        self.generation += 1;
        let resource = self.offer.resource.name.clone();
        let path = self.kubelet_dir.join(self.socket_name());
        let (generation, events) = (self.generation, self.events.clone());
        let service = |list| Service {
            resource,
            generation,
            list,
            events,
        };
        let list = self.offer.list.clone();
        let server = Server::start(path, list, service, self.events.clone()).await?;
        self.server = Some(server);
        Ok(())
    }

    fn register(&mut self) {
        self.calls += 1;
        let (call, events) = (self.calls, self.events.clone());
        let resource = self.offer.resource.name.clone();
        let endpoint = self.socket_name();
        let path = self.kubelet_dir.join(kubelet::SOCKET);
        let name = resource.clone();
        let answer = kubelet::register(path, resource, endpoint);
        self.hang_up();
        self.call = Some(tokio::spawn(async move {
            // When nobody listens any more, the plugin is ending.
            let _ = events.send(Event::Answered {
                resource: name,
                call,
                outcome: answer.await,
            });
        }));
    }

    /// The kubelet answered a registration.
    pub fn answered(&mut self, call: u64, outcome: &Result<()>) {
        if call != self.calls {
            return;
        }
        if let Err(error) = outcome {
            self.complain(error);
        } else {
            debug!("resource={} the kubelet accepted it", self.name());
            self.counts.registrations += 1;
        }
        self.registration.answered(outcome.is_ok(), Instant::now());
        self.tell_if_registered(false);
    }

    /// The kubelet opened or closed a stream.
    pub fn streams(&mut self, generation: u64, open: bool) {
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
        self.tell_if_registered(before);
    }

    fn tell_if_registered(&mut self, before: bool) {
        match (before, self.registration.is_registered()) {
            (false, true) => {
                let count = self.offer.list.devices.len();
                info!("resource={} registered, devices={count}", self.name());
                self.complaint.clear();
            }
            (true, false) => info!("resource={} the kubelet left", self.name()),
            _ => {}
        }
    }

    /// A server ended without being told to.
    pub fn ended(&mut self, generation: u64, outcome: &Result<()>) {
        if generation != self.generation || self.server.is_none() {
            return;
        }
        let unasked = anyhow!("the server ended");
        self.complain(outcome.as_ref().err().unwrap_or(&unasked));
        self.server = None;
        self.generation += 1;
        // Not at once: what ended it may still be so.
        self.registration = Registration::after_failure(Instant::now());
    }

    /// Whether the server's socket is gone or another one.
    pub fn lost_socket(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| !server.is_intact())
    }

    /// Registers anew, with a new server if the socket of the present one is lost.
    ///
    /// The former server is ended first, and its connections with it: some kubelets drop the
    /// new endpoint when the old stream ends after the registration.
    pub async fn restart(&mut self) {
        self.hang_up();
        if self.lost_socket() {
            debug!("resource={} its socket is gone", self.name());
            self.stop_server().await;
            self.registration = Registration::new(Instant::now());
        } else {
            self.registration.restart(Instant::now());
        }
    }

    /// Devices were promised.
    pub fn allocated(&mut self, devices: u64) {
        self.counts.allocations += devices;
    }

    /// Devices were not promised.
    pub fn not_allocated(&mut self, reason: &'static str) {
        *self.counts.failures.entry(reason.to_owned()).or_default() += 1;
    }

    /// How it is, for who asks. `taps` are all of the machine.
    pub fn status(&self, taps: &BTreeSet<u32>, lower_up: bool) -> ResourceStatus {
        let own = self.taps.get_or_init(|| taps_of(&self.offer));
        let attached = own.iter().filter(|tap| taps.contains(tap));
        let counts = self.counts.clone();
        ResourceStatus {
            name: self.name().to_owned(),
            lower_device: self.offer.resource.lower.clone(),
            lower_up,
            registered: self.registration.is_registered() && !self.lost_socket(),
            devices: number(self.offer.ids.len()),
            attachments: number(attached.count()),
            unhealthy_reason: self.offer.trouble.clone(),
            last_error: self.complaint.clone(),
            allocations: counts.allocations,
            failures: counts.failures,
            registrations: counts.registrations,
            stream_restarts: counts.stream_restarts,
        }
    }

    /// Ends serving.
    pub async fn stop(mut self) {
        self.hang_up();
        self.stop_server().await;
    }

    async fn stop_server(&mut self) {
        self.generation += 1;
        if let Some(server) = self.server.take()
            && let Err(error) = server.stop().await
        {
            self.complain(&error);
        }
    }

    /// Gives up on a call that is not answered yet.
    fn hang_up(&mut self) {
        if let Some(call) = self.call.take() {
            call.abort();
        }
    }

    fn name(&self) -> &str {
        &self.offer.resource.name
    }

    fn socket_name(&self) -> String {
        socket_name(&self.kubelet_dir, self.name())
    }

    fn complain(&mut self, error: &anyhow::Error) {
        let complaint = format!("{error:#}");
        if complaint != self.complaint {
            warn!(
                "resource={} not registered, trying on: {complaint}",
                self.name()
            );
            self.complaint = complaint;
        }
    }
}

fn taps_of(offer: &Offer) -> Vec<u32> {
    let devices = offer.ids.iter().map(|id| id.parse::<DeviceId>());
    devices.filter_map(|id| Some(id.ok()?.tap)).collect()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
