//! The state of the device plugin: the configuration, the links and the resources of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, mem,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use log::{debug, error, info, warn};
use tokio::sync::mpsc;

use super::{
    back_off::Retry,
    config::{Configuration, ResourceConfig},
    device_list::{self, DeviceList, ListedDevice, Plan},
    event::{EventSender, ResourceEvent},
    grpc::pod_resources,
    host_access::{HostAccess, Plan as AccessPlan, Port, Ports},
    learning_task::LearningTask,
    names::{KUBELET_SOCKET, is_resource_socket, socket_name},
    node_facts,
    node_features::NodeFeatures,
    node_identity::NodeIdentity,
    nri::Nri,
    orphans::Orphans,
    pod_devices::PodDevices,
    resource::{LowerState, Resource, Shared},
    selection::Selection,
    settings::Settings,
    tap_only::TapOnly,
    tap_only_pods::TapOnlyPods,
    vlans::Vlans,
};
use crate::{
    cli,
    host::{control_socket, file_id::FileId, tap},
    macvtap::{
        selector::Facts,
        tap_only::{self, Resources},
    },
    netlink::{Link, Socket},
    types::{
        link_name::LinkName,
        mode::Mode,
        status::{LearningStatus, Status},
    },
};

/// The longest time between two calls of [`Supervisor::run_due`].
const MAX_IDLE: Duration = Duration::from_hours(1);
/// The time between two looks of the kubelet, while there are macvtaps of pods without CNI.
const RELEASE_INTERVAL: Duration = Duration::from_secs(10);

/// Keeps the resources of a node registered, in line with its configuration and its links.
pub struct Supervisor {
    node: NodeIdentity,
    shared: Shared,
    configuration: Configuration,
    events: mpsc::UnboundedSender<(String, ResourceEvent)>,
    netlink: Socket,
    links: Vec<Link>,
    facts: Facts,
    /// The resources by the configuration.
    configured: BTreeMap<String, ResourceConfig>,
    /// The devices of each of them.
    devices: BTreeMap<String, Arc<Vec<ListedDevice>>>,
    pod_devices: PodDevices,
    orphans: Orphans,
    release_at: Instant,
    /// What is offered, by resource: also devices that pods hold of former resources.
    plans: BTreeMap<String, (ResourceConfig, Plan)>,
    resources: BTreeMap<String, Resource>,
    /// Resources that are not offered any more and still have to be stopped.
    stopping: Vec<Resource>,
    /// The kubelet's socket; the last one while there is none.
    kubelet: Option<FileId>,
    sockets_changed: bool,
    /// Which entries choose no lower device, as was logged.
    unselected: Vec<String>,
    vlans: Vlans,
    /// When what failed is tried again, unless something happens before.
    retry: Retry,
    /// Whether links, addresses or routes could not be listed.
    list_failed: bool,
    /// The links that discovery skips, with the reasons that were logged.
    skipped: BTreeMap<String, String>,
    host_access: HostAccess,
    learning: LearningTask,
    nri: Option<Nri>,
    features: Option<NodeFeatures>,
    kubelet_restarts: u64,
    link_resyncs: u64,
}

impl Supervisor {
    /// A supervisor that offers what `configuration` lists from the first call of
    /// [`Self::run_due`] on.
    pub fn new(
        settings: &Settings,
        configuration: Configuration,
        learning: LearningTask,
        events: mpsc::UnboundedSender<(String, ResourceEvent)>,
    ) -> Result<Self> {
        let kubelet_dir = &settings.kubelet_dir;
        let mut netlink = Socket::open()?;
        let supervisor = Self {
            node: NodeIdentity::new(settings.node_name.as_deref(), kubelet_dir)?,
            kubelet: FileId::of(&kubelet_dir.join(KUBELET_SOCKET))?,
            pod_devices: PodDevices::new(kubelet_dir),
            shared: Shared {
                kubelet_dir: kubelet_dir.clone(),
                tap_only: TapOnly::start()?,
            },
            configuration,
            events,
            links: netlink.links().context("listing links")?,
            facts: Facts::default(),
            netlink,
            configured: BTreeMap::new(),
            devices: BTreeMap::new(),
            orphans: Orphans::default(),
            release_at: Instant::now(),
            plans: BTreeMap::new(),
            resources: BTreeMap::new(),
            stopping: Vec::new(),
            sockets_changed: false,
            unselected: Vec::new(),
            vlans: Vlans::new(kubelet_dir),
            retry: Retry::default(),
            list_failed: false,
            skipped: BTreeMap::new(),
            host_access: HostAccess::new(kubelet_dir),
            learning,
            nri: None,
            features: settings.feature_dir.as_deref().map(NodeFeatures::new),
            kubelet_restarts: 0,
            link_resyncs: 0,
        };
        Ok(supervisor.begin())
    }

    fn begin(mut self) -> Self {
        self.read_facts();
        self.plan();
        self.adopt();
        self.reconcile();
        self.remove_stale_sockets();
        self
    }

    /// Notes which pods have their macvtap by CNI, from before this device plugin started.
    fn adopt(&self) {
        let taps = tap::numbers().unwrap_or_default();
        let devices = self.pod_devices.held().with_taps(&taps);
        self.shared.tap_only.adopt(devices.cloned().collect());
    }

    /// Gives taps to containers by NRI, unless it is off.
    pub fn serve_nri(&mut self, nri: &cli::Nri) -> Result<()> {
        self.nri = Nri::start(nri, &self.shared.kubelet_dir)?;
        Ok(())
    }

    /// The directory of the runtime's socket, if NRI is on.
    pub fn nri_dir(&self) -> Option<&Path> {
        self.nri.as_ref().and_then(Nri::directory)
    }

    /// Removes the sockets of resources that are not offered any more, if nothing serves them: a
    /// device plugin that was killed left them.
    fn remove_stale_sockets(&self) {
        let dir = &self.shared.kubelet_dir;
        let resources = self.plans.keys();
        let kept: BTreeSet<String> = resources.map(|name| socket_name(dir, name)).collect();
        let is_stale = |name: &str| is_resource_socket(name) && !kept.contains(name);
        if let Err(error) = control_socket::remove_unserved(dir, is_stale) {
            debug!(error = format!("{error:#}"); "stale sockets not removed");
        }
    }

    /// Does what is due: serves, registers, stops what is not offered any more.
    pub async fn run_due(&mut self) {
        self.learning.run_due(Instant::now());
        if self.retry.is_due(Instant::now()) {
            self.vlans.try_again();
            self.links_changed();
        }
        let fails = self.list_failed || self.vlans.is_pending();
        self.retry.note(fails, Instant::now());
        join_all(self.stopping.drain(..).map(Resource::stop)).await;
        let new_kubelet = self.has_new_kubelet();
        let sockets_changed = mem::take(&mut self.sockets_changed);
        // Side by side: a kubelet that hangs must not make each of them wait in turn.
        let due = self.resources.values_mut().map(async |resource| {
            if new_kubelet || (sockets_changed && resource.lost_socket()) {
                resource.restart().await;
            }
            resource.run_due().await;
        });
        join_all(due).await;
    }

    /// When [`Self::run_due`] has to be called, if nothing happens before.
    pub fn deadline(&self) -> Instant {
        let deadlines = self.resources.values().filter_map(Resource::deadline);
        let others = self.learning.deadline().into_iter();
        let next = deadlines.chain(others).chain(self.retry.deadline()).min();
        next.unwrap_or_else(|| Instant::now() + MAX_IDLE)
    }

    /// Handles the event of a resource.
    pub fn handle(&mut self, resource: &str, event: ResourceEvent) {
        if let ResourceEvent::Allocated { devices, .. } = &event {
            self.pod_devices.allocated(devices);
        }
        if let Some(resource) = self.resources.get_mut(resource) {
            resource.handle(event);
        }
    }

    /// Handles a change in the kubelet's directory, or some time without one.
    pub fn directory_changed(&mut self) {
        self.sockets_changed = true;
        if self.found_kubelet().is_some() {
            self.pod_devices.kubelet_restarted();
        }
        if let Some(features) = &mut self.features {
            features.write();
        }
        if self.node.refresh() {
            self.plan();
            self.reconcile();
        } else if self.pod_devices.is_due() && self.look() {
            self.plan_resources();
            self.reconcile();
        }
        self.remove_released();
    }

    /// Deletes the macvtaps of pods without the CNI plugin that are gone: the kubelet has released
    /// their devices. It writes each allocation into its checkpoint before the container starts.
    fn remove_released(&mut self) {
        if !self.pod_devices.has_checkpoint() {
            return;
        }
        let mut found = TapOnlyPods::on(self.node.name());
        let mut released = Vec::new();
        for link in &self.links {
            let device = self.pod_devices.held().at(link.index);
            let Some(device) = device.filter(|device| tap_only::is_named_for(link, device)) else {
                continue;
            };
            if self.pod_devices.is_allocated(device) {
                found.allocated.push((device.clone(), link.alias.clone()));
            } else if self.pod_devices.is_released(device) {
                released.push(device.clone());
            } else {
                found.unknown.push((device.clone(), link.alias.clone()));
            }
        }
        if !released.is_empty() {
            self.shared.tap_only.clear(released);
        }
        if !found.is_empty() && self.release_at <= Instant::now() {
            self.release_at = Instant::now() + RELEASE_INTERVAL;
            self.ask_for_pods(found);
        }
    }

    /// Makes the kubelet look whether the pods of these macvtaps are gone, and write what it finds
    /// into its checkpoint.
    fn ask_for_pods(&self, found: TapOnlyPods) {
        let tap_only = self.shared.tap_only.clone();
        let Some(socket) = pod_resources::socket(&self.shared.kubelet_dir) else {
            tap_only.warn_kept(
                found
                    .unknown
                    .into_iter()
                    .map(|(device, _)| device)
                    .collect(),
            );
            return;
        };
        let resources = found.allocated.iter();
        let resources: BTreeSet<&str> = resources
            .map(|(device, _)| device.resource.as_str())
            .collect();
        let resources = resources
            .into_iter()
            .filter_map(|name| self.resources.get(name));
        let events: Vec<EventSender> = resources.map(Resource::events).collect();
        tokio::spawn(async move {
            match pod_resources::list(socket).await {
                Ok(answer) => {
                    found.compare(&answer, &tap_only);
                    for events in events {
                        events.send(ResourceEvent::Released);
                    }
                }
                Err(error) => {
                    debug!(error = format!("{error:#}"); "kubelet's pod resources not listed");
                }
            }
        });
    }

    /// The kubelet's socket, if it is another one than before, or the first.
    fn found_kubelet(&self) -> Option<FileId> {
        let found = FileId::of(&self.shared.kubelet_dir.join(KUBELET_SOCKET));
        found.ok()?.filter(|found| self.kubelet != Some(*found))
    }

    /// Whether the kubelet has another socket than before, or its first.
    fn has_new_kubelet(&mut self) -> bool {
        let Some(found) = self.found_kubelet().filter(|_| self.sockets_changed) else {
            return false;
        };
        if self.kubelet.replace(found).is_some() {
            info!("kubelet restarted");
            self.kubelet_restarts += 1;
        } else {
            info!("kubelet started");
        }
        true
    }

    /// Lists the links again.
    pub fn links_changed(&mut self) {
        match self.netlink.links() {
            Ok(links) => {
                self.link_resyncs += 1;
                self.links = links;
                self.list_failed = false;
                self.read_facts();
                self.discover();
                self.reconcile();
            }
            Err(error) => {
                self.list_failed = true;
                error!(error:% = format!("{error:#}"); "cannot list links; keeping the former list");
            }
        }
    }

    /// Reads what the configuration chooses lower devices by, beside the links.
    fn read_facts(&mut self) {
        if !self.configuration.needs_facts() {
            return;
        }
        match node_facts::read(&mut self.netlink, &self.links, &self.configuration) {
            Ok(facts) => self.facts = facts,
            Err(error) => {
                self.list_failed = true;
                error!(error:%; "cannot list addresses and routes; keeping the former ones");
            }
        }
    }

    /// The configuration.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Offers what another configuration lists. What it does not change stays as it is, also on a
    /// lower device that is gone or in doubt.
    pub fn configure(&mut self, configuration: Configuration) {
        let former = mem::replace(&mut self.configuration, configuration);
        let configuration = &self.configuration;
        self.configured
            .retain(|_, resource| configuration.keeps(resource, &former));
        self.read_facts();
        self.plan();
        self.reconcile();
    }

    /// Plans again if other resources are to be offered.
    fn discover(&mut self) {
        if self.select() != self.configured {
            self.plan();
        }
    }

    /// The resources to offer by the configuration.
    fn select(&mut self) -> BTreeMap<String, ResourceConfig> {
        let node = (self.links.as_slice(), &self.facts);
        let selection = Selection::of(&self.configuration, node, &self.configured);
        for warning in &selection.warnings {
            if !self.unselected.contains(warning) {
                warn!("{warning}");
            }
        }
        self.unselected = selection.warnings;
        selection.resources
    }

    /// Plans what to offer by the configuration and what pods hold.
    fn plan(&mut self) {
        self.configured = self.select();
        self.look();
        self.devices = device_list::devices(self.node.text(), &self.configured);
        self.plan_resources();
    }

    /// Looks which devices pods hold. True if they are others than before.
    fn look(&mut self) -> bool {
        let resources = self.pod_devices.resources().map(str::to_owned);
        let resources: BTreeSet<String> =
            resources.chain(self.configured.keys().cloned()).collect();
        let resources = Resources {
            node: self.node.text(),
            names: resources.iter().map(String::as_str).collect(),
        };
        let before = self.pod_devices.held().clone();
        let listed = self.devices.values().flat_map(|devices| devices.iter());
        self.pod_devices.look(listed);
        // The devices of most macvtaps are known by now: the kubelet's checkpoint names them.
        let held = self.pod_devices.held();
        let orphans = self.orphans.find(&self.links, held, &resources);
        self.pod_devices.hold(&orphans);
        *self.pod_devices.held() != before
    }

    fn plan_resources(&mut self) {
        let held = self.pod_devices.held();
        let former = held.resources().filter_map(|name| {
            let resource = device_list::former_resource(name, held)?;
            Some((name.to_owned(), resource))
        });
        let resources = former.chain(self.configured.clone());
        let resources: BTreeMap<String, ResourceConfig> = resources.collect();
        let plans = resources.into_iter().map(|(name, resource)| {
            let devices = self.devices.get(&name).cloned().unwrap_or_default();
            let plan = Plan::new(&name, &devices, held);
            (name, (resource, plan))
        });
        self.plans = plans.collect();
    }

    /// Brings the resources in line with the plans and the links.
    fn reconcile(&mut self) {
        self.log_skipped();
        self.reconcile_vlans();
        self.update_host_access();
        let plans = &self.plans;
        let removed = self
            .resources
            .extract_if(.., |name, _| !plans.contains_key(name));
        for (name, resource) in removed {
            info!(resource = name; "not offered any more");
            self.stopping.push(resource);
        }
        for (resource, plan) in self.plans.clone().into_values() {
            self.offer(resource, plan);
        }
        if let Some(features) = &mut self.features {
            let configured = self.configured.values();
            let lowers = configured.map(|resource| &resource.lower[..]);
            features.update(&self.links, &lowers.collect());
        }
    }

    /// Makes the VLAN interfaces that resources are on, and removes those that neither a resource
    /// is on nor the device of a pod. Their events bring us here again.
    fn reconcile_vlans(&mut self) {
        let used = self.plans.values().flat_map(|(resource, plan)| {
            let former = plan.former.devices.iter().map(|device| &*device.lower);
            former.chain([&*resource.lower])
        });
        let used = used.collect();
        let resources = self.plans.values().map(|(resource, _)| resource);
        self.vlans.update(resources, &used);
        self.vlans
            .reconcile(&mut self.netlink, &mut self.links, &used);
    }

    /// Handles a change of the ports of learning.
    pub fn ports_changed(&mut self) {
        self.update_host_access();
    }

    /// Reports the lower devices of resources with host access, and what is on them. Pods that hold
    /// former devices on one of these lower devices keep theirs.
    fn update_host_access(&mut self) {
        let mut lowers: BTreeMap<LinkName, BTreeSet<u32>> = BTreeMap::new();
        let plans = self.plans.values();
        for (resource, plan) in plans.filter(|(resource, _)| resource.host_access) {
            let taps = lowers.entry(resource.lower.clone()).or_default();
            taps.extend(plan.devices.iter().map(|device| device.tap));
            let former = plan.former.devices.iter();
            let former = former.filter(|device| device.mode == Mode::Bridge);
            taps.extend(former.map(|device| device.tap));
        }
        let ports = match self.learning.ports() {
            Ports::Known(mut ports) => {
                ports.extend(self.links.iter().filter_map(port_of_host));
                Ports::Known(ports)
            }
            other => other,
        };
        let plan = AccessPlan { lowers, ports };
        self.host_access.update(plan, &self.links, self.node.text());
    }

    /// Offers a resource, unless nothing changed: there are many link events, and lists are
    /// long.
    fn offer(&mut self, resource: ResourceConfig, plan: Plan) {
        let ineligible = device_list::ineligible(&resource, &plan, &self.links);
        let list = DeviceList {
            unhealthy_former: plan.former.unhealthy(ineligible.is_some(), &self.links),
            unhealthy_reason: ineligible.or_else(|| self.pod_devices.held().conflict(&resource)),
            numa_node: numa_node(&resource.lower, &self.links),
            resource,
            plan,
        };
        let name = &list.resource.name;
        let offered = self.resources.get_mut(name);
        if !offered
            .as_ref()
            .is_some_and(|offered| offered.list().has_same_health(&list))
        {
            log_list(&list);
        }
        match offered {
            Some(offered) if *offered.list() == list => {}
            Some(offered) => offered.update_list(list),
            None => {
                let events = EventSender::new(name, self.events.clone());
                let name = name.clone();
                let resource = Resource::new(list, self.shared.clone(), events);
                self.resources.insert(name, resource);
            }
        }
    }

    /// Logs why discovery skips links, each reason once.
    fn log_skipped(&mut self) {
        let skipped = self.links.iter().filter_map(|link| {
            let mut discoveries = self.configuration.discoveries();
            let (first, _) = discoveries.next()?;
            let reason = first.reason_against(link)?;
            let others = discoveries.all(|(other, _)| other.reason_against(link).is_some());
            others.then(|| (link.name.clone(), reason))
        });
        let skipped: BTreeMap<String, String> = skipped.collect();
        for (link, reason) in &skipped {
            if self.skipped.get(link) != Some(reason) {
                debug!(link, reason; "link not offered");
            }
        }
        self.skipped = skipped;
    }

    /// The status.
    pub fn status(&mut self, mut config_warnings: Vec<String>) -> Status {
        config_warnings.extend(self.unselected.iter().chain(self.vlans.errors()).cloned());
        let netlink_error = self.netlink.link(1).err().map(|error| format!("{error:#}"));
        let taps = tap::numbers().unwrap_or_default();
        let resources = self.resources.values().map(|resource| {
            let lower = self.lower_state(&resource.list().resource);
            resource.status(&taps, lower)
        });
        Status {
            netlink_error,
            config_warnings,
            entries_for_others: self.configuration.for_others,
            resources: resources.collect(),
            kubelet_restarts: self.kubelet_restarts,
            link_resyncs: self.link_resyncs,
            learning: self.learning_status(),
            nri: self.nri.as_ref().map(Nri::status),
            host_access: self.host_access.status(),
            limits: BTreeMap::new(),
        }
    }

    /// The status of learning, where each port has its resource and its lower device.
    fn learning_status(&self) -> Option<LearningStatus> {
        let mut status = self.learning.status()?;
        for (tap, port) in &mut status.ports {
            let device = self.pod_devices.held().at(*tap);
            port.resource = device.map(|device| device.resource.clone());
            let lower = self.links.iter().find(|link| link.index == port.lower);
            port.lower_device = lower.map(|link| link.name.clone());
        }
        Some(status)
    }

    fn lower_state(&self, resource: &ResourceConfig) -> LowerState {
        let mut links = self.links.iter();
        let link = links.find(|link| link.is_called(&resource.lower));
        let is_named = self.configuration.resource(&resource.name).is_some();
        LowerState {
            up: link.is_some_and(|link| link.up),
            carrier: link.is_some_and(|link| link.carrier),
            required: is_named || self.pod_devices.held().has(&resource.name),
        }
    }

    /// Stops serving.
    pub async fn stop(self) {
        let resources = self.resources.into_values().chain(self.stopping);
        join_all(resources.map(Resource::stop)).await;
    }
}

fn log_list(list: &DeviceList) {
    let ResourceConfig {
        name, lower, mode, ..
    } = &list.resource;
    let selector = list.resource.selector.as_deref();
    let devices = list.size();
    let health = match &list.unhealthy_reason {
        None => "healthy".to_owned(),
        Some(reason) => format!("unhealthy: {reason}"),
    };
    match selector {
        None => info!(resource = name, lower:%, mode:% = mode, devices, health; "offering"),
        Some(selector) => info!(
            resource = name, lower:%, selector, mode:% = mode, devices, health;
            "offering"
        ),
    }
}

/// A macvtap in the host's own network namespace, of a pod without the CNI plugin.
fn port_of_host(link: &Link) -> Option<Port> {
    let is_port = link.is_macvtap() && link.mode == Some(Mode::Bridge);
    Some(Port {
        tap: link.index,
        mac: link.mac.filter(|_| is_port)?,
        lower: link.lower?,
        parked: false,
        addresses: Vec::new(),
    })
}

/// The NUMA node of a NIC, if the machine has more than one.
fn numa_node(lower: &str, links: &[Link]) -> Option<i64> {
    let link = links.iter().find(|link| link.is_called(lower))?;
    let path = format!("/sys/class/net/{}/device/numa_node", link.name);
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok().filter(|node| *node >= 0)
}
