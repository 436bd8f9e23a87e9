//! The gRPC service of one resource, as the kubelet calls it.

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use log::{debug, info, warn};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse,
    ContainerPreferredAllocationResponse, DevicePluginOptions, DeviceSpec, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, device_plugin_server::DevicePlugin,
};
use crate::deviceplugin::{Event, device_list, tap_only};
use crate::{host::tap, types::device_id::DeviceId};

/// The service of one resource.
pub struct Service {
    /// The resource's name.
    pub resource: String,
    /// Which of the resource's servers this is.
    pub generation: u64,
    /// The list of devices. When its sender is gone, streams end.
    pub list: watch::Receiver<Arc<ListAndWatchResponse>>,
    /// Whom to tell about streams.
    pub events: mpsc::UnboundedSender<Event>,
}

impl Service {
    fn tell_failure(&self, reason: &'static str) {
        let _ = self.events.send(Event::NotAllocated {
            resource: self.resource.clone(),
            reason,
        });
    }

    /// Reads device IDs of this resource, of whatever configuration they are: a pod keeps what
    /// it was given.
    fn read(&self, ids: &[String]) -> Result<Vec<DeviceId>, Status> {
        let read = ids.iter().map(|id| {
            let device = id.parse::<DeviceId>();
            let device = device.map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
            if device.resource == self.resource {
                return Ok(device);
            }
            let text = format!("device ID {id:?} is not of resource {:?}", self.resource);
            Err(Status::invalid_argument(text))
        });
        read.collect()
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream = Lists;

    async fn list_and_watch(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let (resource, generation) = (self.resource.clone(), self.generation);
        let open = Open::new(resource, generation, self.events.clone());
        let lists = WatchStream::new(self.list.clone());
        Ok(Response::new(Lists { lists, _open: open }))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let existing = tap::numbers().unwrap_or_else(|error| {
            warn!("preferring no device: {error:#}");
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
        let mut container_responses = Vec::new();
        for request in request.into_inner().container_requests {
            let devices = self.read(&request.device_ids).inspect_err(|_| {
                self.tell_failure("device_id");
            })?;
            // When nobody listens any more, the plugin is ending.
            let _ = self.events.send(Event::Allocated {
                resource: self.resource.clone(),
                devices: u64::try_from(devices.len()).unwrap_or(u64::MAX),
            });
            container_responses.push(promise(&devices));
            // Afterwards: the kubelet waits, and has much to do before the pod's ADD.
            tokio::spawn(async move {
                for device in &devices {
                    info!("allocated device={device} tap={}", device.tap);
                    tap_only::clear(device);
                }
            });
        }
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        for device in self.read(&request.into_inner().device_ids)? {
            tap_only::ensure(&device).map_err(|error| {
                warn!("device={device} has no tap: {error:#}");
                self.tell_failure("tap");
                Status::failed_precondition(format!("{error:#}"))
            })?;
        }
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// What this plugin wants of the kubelet.
#[must_use]
pub fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: true,
    }
}

/// The promise: the taps' nodes, under the same path in the container. They need not exist yet;
/// the runtime looks at them when it makes the container, which is after CNI ADD.
fn promise(devices: &[DeviceId]) -> ContainerAllocateResponse {
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

/// The stream of lists: the one that holds now, then each new one.
pub struct Lists {
    lists: WatchStream<Arc<ListAndWatchResponse>>,
    _open: Open,
}

impl Stream for Lists {
    type Item = Result<ListAndWatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.lists).poll_next(context);
        next.map(|list| list.map(|list| Ok(list.as_ref().clone())))
    }
}

/// Tells the plugin that a stream is open, for as long as this exists.
struct Open {
    resource: String,
    generation: u64,
    events: mpsc::UnboundedSender<Event>,
}

impl Open {
    fn new(resource: String, generation: u64, events: mpsc::UnboundedSender<Event>) -> Self {
        debug!("resource={resource} the kubelet opened a stream");
        let open = Self {
            resource,
            generation,
            events,
        };
        open.tell(true);
        open
    }

    fn tell(&self, open: bool) {
        // When nobody listens any more, the plugin is ending.
        let _ = self.events.send(Event::Stream {
            resource: self.resource.clone(),
            generation: self.generation,
            open,
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.tell(false);
    }
}
