//! The state of the device plugin: configuration, links and endpoints of a node.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result};
use futures_util::future::join_all;
use log::{debug, error, info, warn};
use nix::unistd::gethostname;
use tokio::sync::mpsc;

use super::{
    Event,
    config::{Configuration, Resource},
    device_list::{self, Offer},
    grpc::kubelet,
    resource::Endpoint,
};
use crate::host::file_id::FileId;
use crate::{
    host::tap,
    learning::Learning,
    netlink::{Link, Socket},
    types::{errors::io_error, status::Status},
};

/// How long the loop may sleep when nothing is due.
const LONG: Duration = Duration::from_hours(1);
/// How often it is tried to learn while another device plugin does.
const LEARN_AGAIN: Duration = Duration::from_secs(2);

/// A node that offers macvtaps.
pub struct Node {
    hostname: String,
    kubelet_dir: PathBuf,
    configuration: Configuration,
    events: mpsc::UnboundedSender<Event>,
    netlink: Socket,
    links: Vec<Link>,
    /// The device IDs of each resource, as of the resources that they were made for.
    device_ids: BTreeMap<String, Arc<Vec<String>>>,
    resources: BTreeMap<String, Resource>,
    endpoints: BTreeMap<String, Endpoint>,
    leaving: Vec<Endpoint>,
    kubelet: Option<FileId>,
    sockets_changed: bool,
    unfit: BTreeMap<String, String>,
    learning: Option<Learning>,
    /// When to try to learn again, and where.
    learn_again: Option<(Instant, PathBuf)>,
    kubelet_restarts: u64,
    link_resyncs: u64,
}

impl Node {
    /// A node that offers what `configuration` says, as soon as [`Self::act`] is called.
    pub fn new(
        kubelet_dir: PathBuf,
        configuration: Configuration,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self> {
        let hostname = gethostname().context("asking for the host's name")?;
        let mut netlink = Socket::open()?;
        let kubelet = FileId::of(&kubelet_dir.join(kubelet::SOCKET))?;
        let mut node = Self {
            hostname: hostname.to_string_lossy().into_owned(),
            kubelet_dir,
            configuration,
            events,
            links: netlink.links().context("listing links")?,
            netlink,
            device_ids: BTreeMap::new(),
            resources: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            leaving: Vec::new(),
            kubelet,
            sockets_changed: false,
            unfit: BTreeMap::new(),
            learning: None,
            learn_again: None,
            kubelet_restarts: 0,
            link_resyncs: 0,
        };
        node.update();
        Ok(node)
    }

    /// Begins to learn about ports in the namespaces of this directory, unless there is none.
    /// A device plugin that cannot learn works as before there was learning.
    pub fn learn(&mut self, netns_dir: Option<&Path>) {
        if let Some(netns_dir) = netns_dir {
            self.try_to_learn(netns_dir.to_owned());
        } else {
            tell_learning_is_off(&Error::msg("it is so configured"));
        }
    }

    /// While another device plugin learns, it is tried again and again: that one may be ending.
    fn try_to_learn(&mut self, netns_dir: PathBuf) {
        let again = self.learn_again.take().is_some();
        match Learning::start(&netns_dir) {
            Ok(learning) => self.learning = Some(learning),
            Err(error) => {
                if !again {
                    tell_learning_is_off(&error);
                }
                if is_in_use(&error) {
                    self.learn_again = Some((Instant::now() + LEARN_AGAIN, netns_dir));
                }
            }
        }
    }

    /// Does what is due: serves, registers, ends what is offered no more.
    pub async fn act(&mut self) {
        let again = self.learn_again.as_ref();
        let again = again.filter(|(time, _)| *time <= Instant::now());
        if let Some((_, netns_dir)) = again.cloned() {
            self.try_to_learn(netns_dir);
        }
        join_all(self.leaving.drain(..).map(Endpoint::stop)).await;
        let kubelet_changed = self.kubelet_changed();
        let sockets_changed = std::mem::take(&mut self.sockets_changed);
        // Side by side: a kubelet that hangs must not make each of them wait in turn.
        let acts = self.endpoints.values_mut().map(async |endpoint| {
            if kubelet_changed || (sockets_changed && endpoint.lost_socket()) {
                endpoint.restart().await;
            }
            endpoint.act().await;
        });
        join_all(acts).await;
    }

    /// When [`Self::act`] has to be called again, if nothing happens before.
    pub fn deadline(&self) -> Instant {
        let deadlines = self.endpoints.values().filter_map(Endpoint::deadline);
        let again = self.learn_again.as_ref().map(|(time, _)| *time);
        deadlines
            .chain(again)
            .min()
            .unwrap_or_else(|| Instant::now() + LONG)
    }

    /// Takes in what happened.
    pub fn hear(&mut self, event: Event) {
        let (Event::Stream { resource, .. }
        | Event::Allocated { resource, .. }
        | Event::NotAllocated { resource, .. }
        | Event::Answered { resource, .. }
        | Event::Ended { resource, .. }) = &event;
        let Some(endpoint) = self.endpoints.get_mut(resource) else {
            return;
        };
        match event {
            Event::Stream {
                generation, open, ..
            } => endpoint.streams(generation, open),
            Event::Allocated { devices, .. } => endpoint.allocated(devices),
            Event::NotAllocated { reason, .. } => endpoint.not_allocated(reason),
            Event::Answered { call, outcome, .. } => endpoint.answered(call, &outcome),
            Event::Ended {
                generation,
                outcome,
                ..
            } => endpoint.ended(generation, &outcome),
        }
    }

    /// Something changed in the kubelet's directory.
    pub fn look_at_sockets(&mut self) {
        self.sockets_changed = true;
    }

    fn kubelet_changed(&mut self) -> bool {
        if !self.sockets_changed {
            return false;
        }
        let found = FileId::of(&self.kubelet_dir.join(kubelet::SOCKET));
        let found = found.unwrap_or_default();
        let changed = found.is_some() && found != self.kubelet;
        if changed {
            info!("there is a new kubelet");
            self.kubelet_restarts += 1;
        }
        self.kubelet = found;
        changed
    }

    /// Lists the links again.
    pub fn list_links(&mut self) {
        match self.netlink.links() {
            Ok(links) => {
                self.link_resyncs += 1;
                self.links = links;
                self.update();
            }
            Err(error) => error!("listing links, what was known of them stays: {error:#}"),
        }
    }

    /// Offers what another configuration says. What it does not change stays as it is.
    pub fn configure(&mut self, configuration: Configuration) {
        self.configuration = configuration;
        self.resources.clear();
        self.update();
    }

    /// Brings the endpoints in line with configuration and links.
    fn update(&mut self) {
        self.tell_unfit();
        let wanted = device_list::resources(&self.configuration, &self.links, &self.resources);
        let wanted: BTreeMap<String, Resource> = wanted
            .into_iter()
            .map(|resource| (resource.name.clone(), resource))
            .collect();
        if wanted != self.resources {
            let list: Vec<Resource> = wanted.values().cloned().collect();
            self.device_ids = device_list::device_ids(&self.hostname, &list);
            self.resources = wanted;
        }
        let names: Vec<String> = self.endpoints.keys().cloned().collect();
        for name in names {
            if !self.resources.contains_key(&name) {
                info!("resource={name} is offered no more");
                self.leaving.extend(self.endpoints.remove(&name));
            }
        }
        for resource in self.resources.clone().into_values() {
            self.offer(resource);
        }
    }

    /// Offers a resource, unless it is offered like that already. Links change often and
    /// lists are long, so that comes first.
    fn offer(&mut self, resource: Resource) {
        let trouble = device_list::trouble(&self.configuration, &resource, &self.links);
        let numa_node = numa_node(&resource.lower);
        let ids = self
            .device_ids
            .get(&resource.name)
            .cloned()
            .unwrap_or_default();
        let former = self.endpoints.get(&resource.name).map(Endpoint::offer);
        let told =
            former.is_some_and(|former| former.resource == resource && former.trouble == trouble);
        let same = told
            && former.is_some_and(|former| {
                former.numa_node == numa_node && Arc::ptr_eq(&former.ids, &ids)
            });
        if same {
            return;
        }
        let list = Arc::new(device_list::list(&ids, trouble.is_none(), numa_node));
        let name = resource.name.clone();
        let offer = Offer {
            resource,
            trouble,
            numa_node,
            ids,
            list,
        };
        if !told {
            tell(&offer);
        }
        if let Some(endpoint) = self.endpoints.get_mut(&name) {
            endpoint.change(offer);
        } else {
            let endpoint = Endpoint::new(offer, self.kubelet_dir.clone(), self.events.clone());
            self.endpoints.insert(name, endpoint);
        }
    }

    /// Says why links are not offered by discovery, once for each reason.
    fn tell_unfit(&mut self) {
        if self.configuration != Configuration::Discover {
            return;
        }
        let unfit = self.links.iter().filter_map(|link| {
            let why = device_list::unfit(link)?;
            Some((link.name.clone(), why))
        });
        let unfit: BTreeMap<String, String> = unfit.collect();
        for (link, why) in &unfit {
            if self.unfit.get(link) != Some(why) {
                debug!("link={link} is not offered: {why}");
            }
        }
        self.unfit = unfit;
    }

    /// How it is, for who asks.
    pub fn status(&mut self) -> Status {
        let netlink_error = self.netlink.link(1).err().map(|error| format!("{error:#}"));
        let taps = tap::numbers().unwrap_or_default();
        let resources = self.endpoints.values().map(|endpoint| {
            let lower_up = self.is_up(&endpoint.offer().resource.lower);
            endpoint.status(&taps, lower_up)
        });
        Status {
            netlink_error,
            resources: resources.collect(),
            kubelet_restarts: self.kubelet_restarts,
            link_resyncs: self.link_resyncs,
            learning: self.learning.as_ref().map(Learning::status),
        }
    }

    fn is_up(&self, lower: &str) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.name == lower && link.up)
    }

    /// Ends serving everything.
    pub async fn stop(self) {
        let endpoints = self.endpoints.into_values().chain(self.leaving);
        join_all(endpoints.map(Endpoint::stop)).await;
    }
}

fn tell_learning_is_off(error: &Error) {
    warn!(
        "learning is off, VMs that migrate are out of reach of their neighbours for a time: {error:#}"
    );
}

fn is_in_use(error: &Error) -> bool {
    io_error(error).is_some_and(|error| error.kind() == ErrorKind::AddrInUse)
}

fn tell(offer: &Offer) {
    let Resource {
        name,
        lower,
        mode,
        capacity,
    } = &offer.resource;
    let health = match &offer.trouble {
        None => "healthy".to_owned(),
        Some(why) => format!("unhealthy: {why}"),
    };
    info!("resource={name} lower={lower} mode={mode} devices={capacity} {health}");
}

/// The NUMA node that a NIC is attached to, if the machine has more than one.
fn numa_node(lower: &str) -> Option<i64> {
    let path = format!("/sys/class/net/{lower}/device/numa_node");
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok().filter(|node| *node >= 0)
}
