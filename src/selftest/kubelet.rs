//! A stand-in for the kubelet's device manager, as far as a device plugin sees it.
//!
//! It behaves as the kubelet does, also where that is inconvenient: it removes all sockets when
//! it starts, dials back before it answers a registration, never dials again, takes each list as
//! complete, and when a stream ends, drops the client that the resource has now, even that of a
//! newer registration.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    net::UnixListener,
    runtime::{Builder, Handle},
    sync::oneshot,
    task::AbortHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use crate::deviceplugin::{
    grpc::{
        api::{
            AllocateRequest, AllocateResponse, ContainerAllocateRequest,
            ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty,
            PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
            device_plugin_client::DevicePluginClient,
            registration_server::{Registration, RegistrationServer},
        },
        channel,
    },
    names::{API_VERSION, KUBELET_SOCKET},
};

type Client = DevicePluginClient<Channel>;

/// How long the kubelet waits for a device plugin that it dials.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A resource as the kubelet has it.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    /// Whether its `ListAndWatch` stream is open.
    pub connected: bool,
    /// The name of the plugin's socket.
    pub endpoint: String,
    /// The last list.
    pub devices: Vec<Device>,
    /// The number of lists received.
    pub lists: u32,
    /// The number of registrations.
    pub registrations: u32,
    /// The options of the plugin.
    pub options: DevicePluginOptions,
}

impl Resource {
    /// The IDs of the healthy devices.
    #[must_use]
    pub fn healthy(&self) -> Vec<String> {
        let healthy = self
            .devices
            .iter()
            .filter(|device| device.health == "Healthy");
        let usable = healthy.filter(|_| self.connected);
        usable.map(|device| device.id.clone()).collect()
    }
}

#[derive(Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    clients: HashMap<String, (Client, AbortHandle)>,
}

#[derive(Clone)]
struct Shared {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running kubelet.
pub struct Kubelet {
    shared: Shared,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts in `directory`, which must exist.
    pub fn start(directory: &Path) -> Result<Self> {
        remove_sockets(directory)?;
        let shared = Shared {
            directory: directory.to_owned(),
            state: Arc::default(),
        };
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(directory.join(KUBELET_SOCKET)).context("creating kubelet.sock")?
        };
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = RegistrationServer::new(Registrar(shared.clone()));
        let thread = std::thread::Builder::new().spawn(move || {
            runtime.block_on(async {
                let incoming = UnixListenerStream::new(listener);
                tokio::select! {
                    _ = Server::builder().serve_with_incoming(service, incoming) => {}
                    _ = stopped => {}
                }
            });
            // As when a process ends: connections are not shut down first.
            runtime.shutdown_background();
        });
        Ok(Self {
            shared,
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread.context("starting a thread")?),
        })
    }

    /// A resource, if it was ever registered.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<Resource> {
        self.shared.lock().resources.get(name).cloned()
    }

    /// The names of all resources.
    #[must_use]
    pub fn resources(&self) -> Vec<String> {
        self.shared.lock().resources.keys().cloned().collect()
    }

    /// Waits until a resource is as `expected`, for at most `timeout`.
    pub fn wait_for(
        &self,
        name: &str,
        timeout: Duration,
        expected: impl Fn(&Resource) -> bool,
    ) -> Result<Resource> {
        let start = Instant::now();
        loop {
            let found = self.resource(name);
            if let Some(resource) = found.as_ref().filter(|resource| expected(resource)) {
                return Ok(resource.clone());
            }
            if start.elapsed() > timeout {
                bail!("resource {name} is not as expected after {timeout:?}: {found:?}");
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Allocates devices to a container, as when a pod is admitted.
    pub fn allocate(&self, resource: &str, ids: &[String]) -> Result<AllocateResponse> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: ids.to_vec(),
            }],
        };
        let call = |mut client: Client| async move { client.allocate(request).await };
        self.call(resource, call)
    }

    /// Calls `GetPreferredAllocation` for `size` of the available devices.
    pub fn prefer(&self, resource: &str, available: &[String], size: i32) -> Result<Vec<String>> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available_device_ids: available.to_vec(),
                must_include_device_ids: Vec::new(),
                allocation_size: size,
            }],
        };
        let call =
            |mut client: Client| async move { client.get_preferred_allocation(request).await };
        let answer = self.call(resource, call)?.container_responses;
        let first = answer.into_iter().next().context("the answer is empty")?;
        Ok(first.device_ids)
    }

    /// Calls `PreStartContainer` for a container with these devices.
    pub fn pre_start(&self, resource: &str, ids: &[String]) -> Result<()> {
        let request = PreStartContainerRequest {
            device_ids: ids.to_vec(),
        };
        let call = |mut client: Client| async move { client.pre_start_container(request).await };
        self.call(resource, call).map(|_| ())
    }

    /// Blocks for `time` from now on, as under a heavy load.
    pub fn freeze(&self, time: Duration) {
        let (sender, frozen) = mpsc::channel::<()>();
        self.runtime.spawn(async move {
            drop(sender);
            std::thread::sleep(time);
        });
        // Fails as soon as the task runs.
        let _ = frozen.recv();
    }

    /// Drops the streams of all resources.
    pub fn drop_streams(&self) {
        let mut state = self.shared.lock();
        for (_, (_, watching)) in state.clients.drain() {
            watching.abort();
        }
        for resource in state.resources.values_mut() {
            resource.connected = false;
        }
    }

    fn call<T, F>(&self, resource: &str, call: impl FnOnce(Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
        T: Send + 'static,
    {
        let client = self.shared.lock().clients.get(resource).cloned();
        let (client, _) = client.with_context(|| format!("{resource} has no endpoint"))?;
        let (sender, receiver) = mpsc::channel();
        let call = call(client);
        self.runtime.spawn(async move {
            // Fails if the caller has given up.
            let _ = sender.send(call.await);
        });
        let answer = receiver.recv().context("the kubelet has stopped")?;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(anyhow!("{:?}: {}", status.code(), status.message())),
        }
    }
}

/// The kubelet ends; its socket stays.
impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is printed by the thread.
            let _ = thread.join();
        }
    }
}

fn remove_sockets(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Registrar(Shared);

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let name = request.resource_name;
        if request.version != API_VERSION {
            return Err(Status::unknown("unsupported version"));
        }
        if !name.contains('/') || name.contains("kubernetes.io/") {
            let text = format!("the ResourceName {name:?} is invalid");
            return Err(Status::unknown(text));
        }
        let path = self.0.directory.join(&request.endpoint);
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, dial(path)).await;
        let client = dialled.map_err(|_| Status::unknown("the endpoint does not answer"))??;
        let options = client.clone().get_device_plugin_options(Empty {}).await?;
        let shared = self.0.clone();
        let mut state = shared.lock();
        let resource = state.resources.entry(name.clone()).or_default();
        resource.endpoint = request.endpoint;
        resource.registrations += 1;
        resource.options = options.into_inner();
        let watching = watch(self.0.clone(), name.clone(), client.clone());
        let watching = tokio::spawn(watching).abort_handle();
        state.clients.insert(name, (client, watching));
        Ok(Response::new(Empty {}))
    }
}

async fn dial(path: PathBuf) -> Result<Client, Status> {
    let channel = channel::connect(path).await;
    let channel = channel.map_err(|error| Status::unknown(format!("dialling back: {error}")))?;
    Ok(Client::new(channel))
}

/// Receives lists until the stream ends.
async fn watch(shared: Shared, name: String, mut client: Client) {
    if let Ok(lists) = client.list_and_watch(Empty {}).await {
        let mut lists = lists.into_inner();
        while let Ok(Some(list)) = lists.message().await {
            if let Some(resource) = shared.lock().resources.get_mut(&name) {
                resource.connected = true;
                resource.devices = list.devices;
                resource.lists += 1;
            }
        }
    }
    let mut state = shared.lock();
    if let Some((_, current)) = state.clients.remove(&name) {
        current.abort();
    }
    if let Some(resource) = state.resources.get_mut(&name) {
        resource.connected = false;
    }
}
