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
        device_list,
        event::{EventSender, ResourceEvent},
        tap_only::TapOnly,
    },
    host::tap,
    types::device_id::DeviceId,
};

/// The service of one resource.
pub struct PluginService {
    /// The server's generation.
    pub generation: u64,
    /// The list of devices. Streams end when its sender is dropped.
    pub list: watch::Receiver<Arc<ListAndWatchResponse>>,
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
    /// keeps what was allocated to it.
    fn parse(&self, ids: &[String]) -> Result<Vec<DeviceId>, Status> {
        let resource = self.events.resource();
        let devices = ids.iter().map(|id| {
            let device = id.parse::<DeviceId>();
            let device = device.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
            if device.resource == resource {
                return Ok(device);
            }
            let text = format!("device ID {id:?} is not of resource {resource:?}");
            Err(Status::invalid_argument(text))
        });
        let devices: Result<_, _> = devices.collect();
        devices.inspect_err(|_| self.report_failure("device_id"))
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
            warn!(error:% = format!("{error:#}"); "cannot tell which taps exist");
            BTreeSet::new()
        });
        let requests = request.into_inner().container_requests.into_iter();
        let container_responses = requests.map(|request| {
            let size = usize::try_from(request.allocation_size).unwrap_or_default();
            let (available, must) = (
                request.available_device_ids,
                request.must_include_device_ids,
            );
            ContainerPreferredAllocationResponse {
                device_ids: device_list::prefer(&available, &must, size, &existing),
            }
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
        let containers: Vec<Vec<DeviceId>> = containers.collect::<Result<_, _>>()?;
        let container_responses = containers.iter().map(|devices| response(devices)).collect();
        for devices in containers {
            self.events.send(ResourceEvent::Allocated {
                devices: u64::try_from(devices.len()).unwrap_or(u64::MAX),
            });
            for device in &devices {
                info!(device:% = device, tap = device.tap; "allocated");
            }
            self.tap_only.clear(devices);
        }
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        let devices = self.parse(&request.into_inner().device_ids)?;
        let outcome = self.tap_only.ensure(devices).await;
        outcome.map_err(|error| {
            let error = format!("{error:#}");
            warn!(resource = self.events.resource(), error; "container refused: no tap");
            self.report_failure("tap");
            Status::failed_precondition(error)
        })?;
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
fn response(devices: &[DeviceId]) -> ContainerAllocateResponse {
    let devices = devices.iter().map(|device| {
        let path = tap::path(device.tap).to_string_lossy().into_owned();
        DeviceSpec {
            container_path: path.clone(),
            host_path: path,
            permissions: "rw".to_owned(),
        }
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
    lists: WatchStream<Arc<ListAndWatchResponse>>,
    _open: OpenStream,
}

impl Stream for ListStream {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.lists).poll_next(context);
        next.map(|list| list.map(|list| Ok(list.as_ref().clone())))
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
