//! A resource's socket, and the server behind it.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server as Grpc;

use super::{
    api::{ListAndWatchResponse, device_plugin_server::DevicePluginServer},
    service::Service,
};
use crate::{
    deviceplugin::{Event, NAMESPACE},
    host::file_id::FileId,
};
use crate::{host::files, types::device_id::short_hash};

/// How long connections may take to close.
const FAREWELL: Duration = Duration::from_millis(500);
/// The longest path of a Unix socket, in bytes (`sun_path` without its NUL).
const LONGEST_PATH: usize = 107;

/// A server that runs.
pub struct Server {
    path: PathBuf,
    file: FileId,
    /// The list that streams show; they end with it.
    pub list: watch::Sender<Arc<ListAndWatchResponse>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// The name of a resource's socket in `directory`: a hash of the resource's name where that
/// would make the path too long.
#[must_use]
pub fn socket_name(directory: &Path, resource: &str) -> String {
    let name = format!("{NAMESPACE}_{resource}");
    if directory.join(&name).as_os_str().len() <= LONGEST_PATH {
        return name;
    }
    format!("{NAMESPACE}_{}", short_hash(resource))
}

impl Server {
    /// Binds the socket at `path` and serves it.
    ///
    /// A socket that nobody listens on any more is replaced. One that somebody does is left
    /// alone, and that is an error.
    pub async fn start(
        path: PathBuf,
        list: Arc<ListAndWatchResponse>,
        service: impl FnOnce(watch::Receiver<Arc<ListAndWatchResponse>>) -> Service,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self> {
        let listener = bind(&path).await?;
        let file = FileId::of(&path)?.context("the socket just made is gone already")?;
        let (list, receiver) = watch::channel(list);
        let service = service(receiver);
        let (resource, generation) = (service.resource.clone(), service.generation);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let serving = Grpc::builder().serve_with_incoming_shutdown(
                DevicePluginServer::new(service),
                UnixListenerStream::new(listener),
                async {
                    // Told to stop, or forgotten: either way it is over.
                    let _ = stopped.await;
                },
            );
            let outcome = serving.await.context("serving the kubelet");
            let _ = events.send(Event::Ended {
                resource,
                generation,
                outcome,
            });
        });
        Ok(Self {
            path,
            file,
            list,
            stop,
            task,
        })
    }

    /// Whether the socket's file is still the one that was bound.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        FileId::of(&self.path).is_ok_and(|found| found == Some(self.file))
    }

    /// Ends the streams, closes connections and removes the socket.
    pub async fn stop(self) -> Result<()> {
        let intact = self.is_intact();
        drop(self.list);
        // The server may have ended by itself.
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            abort.abort();
        }
        if intact {
            files::remove(&self.path)?;
        }
        Ok(())
    }
}

async fn bind(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    if UnixStream::connect(path).await.is_ok() {
        bail!("another device plugin serves {shown}; it is left alone");
    }
    files::remove(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("making socket {shown}"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("closing socket {shown} to others"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_named_as_the_originals_or_by_a_hash() {
        let usual = Path::new("/var/lib/kubelet/device-plugins");
        let name = socket_name(usual, "eth0.100");
        assert_eq!(name, "macvtap.network.kubevirt.io_eth0.100");
        let long = "x".repeat(63);
        let name = socket_name(usual, &long);
        assert_eq!(name.len(), NAMESPACE.len() + 1 + 12);
        assert_ne!(name, socket_name(usual, &"y".repeat(63)));
        let longest = "x".repeat(LONGEST_PATH - 32 - 28);
        assert!(socket_name(usual, &longest).ends_with(&longest));
        assert!(!socket_name(usual, &format!("{longest}x")).ends_with("xxx"));
    }
}
