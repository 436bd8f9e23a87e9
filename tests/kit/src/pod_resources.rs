//! The kubelet's socket for pod resources.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use macvtap::deviceplugin::grpc::pod_resources::api::{
    self, ContainerDevices, ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse,
    pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer},
};
use tokio::{net::UnixListener, sync::oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::kubelet::RESOURCE;

struct Service {
    answer: Arc<Mutex<ListPodResourcesResponse>>,
    listed: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.listed.store(true, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone();
        while self.held.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Response::new(answer))
    }
}

/// The socket, until this is dropped.
pub struct PodResources {
    answer: Arc<Mutex<ListPodResourcesResponse>>,
    listed: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl PodResources {
    /// Serves beside the kubelet's device-plugins directory. Each pod, named `namespace/name`, has
    /// one container, `compute`, with one device.
    pub fn serve(kubelet_dir: &Path, pods: &[(&str, &str)]) -> Self {
        let dir = kubelet_dir.parent().unwrap().join("pod-resources");
        fs::create_dir(&dir).unwrap();
        let listed = Arc::new(AtomicBool::new(false));
        let held = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(Mutex::new(answer(pods)));
        let service = PodResourcesListerServer::new(Service {
            answer: Arc::clone(&answer),
            listed: Arc::clone(&listed),
            held: Arc::clone(&held),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap().block_on(async {
                let listener = UnixListener::bind(dir.join("kubelet.sock")).unwrap();
                bound.send(()).unwrap();
                let incoming = UnixListenerStream::new(listener);
                let server = Server::builder().serve_with_incoming(service, incoming);
                tokio::select! { _ = server => {}, _ = stopped => {} }
            });
        });
        is_bound.recv().unwrap();
        Self {
            answer,
            listed,
            held,
            stop: Some(stop),
            server: Some(server),
        }
    }

    /// Serves other pods from now on.
    pub fn replace(&self, pods: &[(&str, &str)]) {
        *self.answer.lock().unwrap() = answer(pods);
    }

    /// Whether answers wait, with what they were when they were asked for.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn was_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }
}

impl Drop for PodResources {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.server.take().unwrap().join();
    }
}

fn answer(pods: &[(&str, &str)]) -> ListPodResourcesResponse {
    ListPodResourcesResponse {
        pod_resources: pods.iter().map(|(pod, id)| resources(pod, id)).collect(),
    }
}

fn resources(pod: &str, id: &str) -> api::PodResources {
    let (namespace, name) = pod.split_once('/').unwrap();
    api::PodResources {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        containers: vec![ContainerResources {
            name: "compute".to_owned(),
            devices: vec![ContainerDevices {
                resource_name: RESOURCE.to_owned(),
                device_ids: vec![id.to_owned(), "of another plugin".to_owned()],
            }],
        }],
    }
}
