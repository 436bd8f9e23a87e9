//! The gRPC service of one resource, as the kubelet calls it.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use log::{debug, info, warn};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, device_plugin_server::DevicePlugin,
};
use crate::{
    deviceplugin::{
        config::ResourceConfig,
        device_list::{self, DeviceList, Former},
        event::{DEVICE_ID_FAILURE, EventSender, ResourceEvent, TAP_FAILURE},
        tap_only::TapOnly,
    },
    host::tap,
    types::device_id::{DeviceId, is_original},
};

/// A list that the kubelet is sent.
#[derive(Debug, Default, PartialEq)]
pub struct SentList {
    message: ListAndWatchResponse,
    former: Arc<Former>,
    resource: Option<ResourceConfig>,
}

impl SentList {
    /// The list of these devices.
    #[must_use]
    pub fn of(list: &DeviceList) -> Arc<Self> {
        Arc::new(Self {
            message: list.to_message(),
            former: list.plan.former.clone(),
            resource: Some(list.resource.clone()),
        })
    }
}

/// The service of one resource.
pub struct PluginService {
    /// The server's generation.
    pub generation: u64,
    /// The list of devices. Streams end when its sender is dropped.
    pub list: watch::Receiver<Arc<SentList>>,
    /// Where streams and allocations are reported.
    pub events: EventSender,
    /// The macvtaps of pods without the CNI plugin.
    pub tap_only: TapOnly,
}

impl PluginService {
    fn report_failure(&self, reason: &'static str) {
        self.events.send(ResourceEvent::RequestFailed { reason });
    }

    /// Parses device IDs of this resource, of the present or a former configuration: a pod
    /// keeps what was allocated to it. Each of them once, however often it is requested.
    fn parse(&self, ids: &[String]) -> Result<Vec<Requested>, Status> {
        let resource = self.events.resource();
        let mut seen = BTreeSet::new();
        let ids = ids.iter().filter(|id| seen.insert(*id));
        let requested = ids.map(|id| {
            let requested = Requested::parse(id);
            let requested =
                requested.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
            if requested.resource() == resource {
                return Ok(requested);
            }
            let text = format!("device ID {id:?} is not of resource {resource:?}");
            Err(Status::invalid_argument(text))
        });
        let requested: Result<_, _> = requested.collect();
        requested.inspect_err(|_| self.report_failure(DEVICE_ID_FAILURE))
    }

    /// Allocates devices to a container; the numbers of their taps.
    async fn allocate_container(&self, requested: Vec<Requested>) -> Result<Vec<u32>, Status> {
        let (mut taps, mut devices) = (Vec::new(), Vec::new());
        for each in requested {
            match each {
                Requested::Device(device) => {
                    info!(device:%, tap = device.tap; "allocated");
                    taps.push(device.tap);
                    devices.push(device);
                }
                Requested::Original { id, .. } => taps.push(self.allocate_original(id).await?),
            }
        }
        self.tap_only.allocated(devices.clone());
        self.events.send(ResourceEvent::Allocated {
            devices,
            count: u64::try_from(taps.len()).unwrap_or(u64::MAX),
        });
        Ok(taps)
    }

    /// Allocates as kubevirt/macvtap-cni does. The kubelet has such a device on its list only
    /// while a pod holds it, and may allocate it again before the list is updated.
    async fn allocate_original(&self, id: String) -> Result<u32, Status> {
        let resource = self.list.borrow().resource.clone();
        let Some(ResourceConfig { lower, mode, .. }) = resource else {
            return Err(Status::failed_precondition(
                "the resource is not configured",
            ));
        };
        let created = self.tap_only.create_original(id.clone(), lower, mode).await;
        let tap = created.map_err(|error| self.refuse(&error))?;
        info!(device = id, tap; "allocated");
        Ok(tap)
    }

    fn refuse(&self, error: &anyhow::Error) -> Status {
        let error = format!("{error:#}");
        warn!(resource = self.events.resource(), error; "container refused: no tap");
        self.report_failure(TAP_FAILURE);
        Status::failed_precondition(error)
    }
}

/// A device that the kubelet names.
enum Requested {
    Device(DeviceId),
    /// One that kubevirt/macvtap-cni allocated.
    Original {
        id: String,
        resource: String,
    },
}

impl Requested {
    fn parse(id: &str) -> anyhow::Result<Self> {
        match id.rsplit_once("Mvp") {
            Some((resource, _)) if is_original(id) => Ok(Self::Original {
                id: id.to_owned(),
                resource: resource.to_owned(),
            }),
            _ => Ok(Self::Device(id.parse()?)),
        }
    }

    fn resource(&self) -> &str {
        match self {
            Self::Device(device) => &device.resource,
            Self::Original { resource, .. } => resource,
        }
    }
}

#[tonic::async_trait]
impl DevicePlugin for PluginService {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream = ListStream;

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        Ok(Response::new(ListStream {
            lists: WatchStream::new(self.list.clone()),
            _open: OpenStream::new(self.generation, self.events.clone()),
        }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let existing = tap::numbers().unwrap_or_else(|error| {
            warn!(error:% = format!("{error:#}"); "cannot list the taps");
            BTreeSet::new()
        });
        let former = self.list.borrow().former.clone();
        let requests = request.into_inner().container_requests;
        let container_responses =
            requests
                .iter()
                .map(|request| ContainerPreferredAllocationResponse {
                    device_ids: device_list::prefer(request, &former, &existing),
                });
        Ok(Response::new(PreferredAllocationResponse {
            container_responses: container_responses.collect(),
        }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests;
        let containers = requests
            .iter()
            .map(|request| self.parse(&request.device_ids));
        // All of them before anything is done for the first.
        let containers: Vec<Vec<Requested>> = containers.collect::<Result<_, _>>()?;
        let resource = self.list.borrow().resource.clone();
        let hotplug = resource.is_some_and(|resource| resource.volume_hotplug);
        let mut container_responses = Vec::new();
        for requested in containers {
            let taps = self.allocate_container(requested).await?;
            container_responses.push(response(&taps, hotplug));
        }
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let requested = self.parse(&request.into_inner().device_ids)?;
        // Of the original's devices only the kubelet knows which taps they are.
        let devices = requested
            .into_iter()
            .filter_map(|requested| match requested {
                Requested::Device(device) => Some(device),
                Requested::Original { .. } => None,
            });
        let outcome = self.tap_only.ensure(devices.collect()).await;
        outcome.map_err(|error| self.refuse(&error))?;
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// The calls that the kubelet is asked to make.
#[must_use]
pub fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: true,
    }
}

/// The nodes of the taps, under the same path in the container. They need not exist yet: the
/// runtime looks for them when it creates the container, which is after CNI ADD.
///
/// With `hotplug` also in `/dev/vfio`: when `KubeVirt` attaches a volume to a running VM, it
/// replaces the list of devices that the container may open, and keeps of others those alone
/// that it finds there or in `/dev/bus/usb` (`pkg/virt-handler/cgroup`). The list is of device
/// numbers, so the tap can be opened by its other path again.
fn response(taps: &[u32], hotplug: bool) -> ContainerAllocateResponse {
    let devices = taps.iter().flat_map(|tap| {
        let host_path = tap::path(*tap).to_string_lossy().into_owned();
        let kept = hotplug.then(|| format!("/dev/vfio/macvtap-tap{tap}"));
        let paths = std::iter::once(host_path.clone()).chain(kept);
        paths.map(move |container_path| DeviceSpec {
            container_path,
            host_path: host_path.clone(),
            permissions: "rw".to_owned(),
        })
    });
    ContainerAllocateResponse {
        envs: HashMap::new(),
        mounts: Vec::new(),
        devices: devices.collect(),
        annotations: HashMap::new(),
    }
}

/// The stream of lists: the present one, then each new one.
pub struct ListStream {
    lists: WatchStream<Arc<SentList>>,
    _open: OpenStream,
}

impl Stream for ListStream {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.lists).poll_next(context);
        next.map(|list| list.map(|list| Ok(list.message.clone())))
    }
}

/// Reports that a stream is open, and when it is dropped, that it is closed.
struct OpenStream {
    generation: u64,
    events: EventSender,
}

impl OpenStream {
    fn new(generation: u64, events: EventSender) -> Self {
        debug!(resource = events.resource(); "kubelet opened ListAndWatch");
        events.send(ResourceEvent::StreamOpened { generation });
        Self { generation, events }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let generation = self.generation;
        self.events.send(ResourceEvent::StreamClosed { generation });
    }
}
