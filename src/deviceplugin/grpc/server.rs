//! The gRPC server of one resource, and its socket.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Error, Result};
use futures_util::stream::{self, Stream};
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tonic::transport::Server;

use super::{
    api::device_plugin_server::DevicePluginServer,
    service::{PluginService, SentList},
};
use crate::{
    deviceplugin::{accept::Acceptor, event::ResourceEvent},
    host::{file_id::FileId, files},
};

/// How long connections may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a socket cannot be served.
#[derive(Debug)]
pub enum StartError {
    /// Another process serves it.
    InUse(OtherServer),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A connection to the server of another process, which ends with that.
#[derive(Debug)]
pub struct OtherServer(UnixStream);

impl OtherServer {
    /// Returns when it has ended.
    pub async fn ended(mut self) {
        let mut buffer = [0; 256];
        // What it sends, the settings of HTTP/2, is of no concern.
        while matches!(self.0.read(&mut buffer).await, Ok(1..)) {}
    }
}

/// A running server.
pub struct ResourceServer {
    path: PathBuf,
    file: FileId,
    /// The list that streams send; they end when it is dropped.
    list: watch::Sender<Arc<SentList>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ResourceServer {
    /// Binds the socket at `path` and serves it.
    ///
    /// Replaces a socket that is not served any more. Fails if another process serves it.
    pub async fn start(
        path: PathBuf,
        list: Arc<SentList>,
        service: impl FnOnce(watch::Receiver<Arc<SentList>>) -> PluginService,
    ) -> Result<Self, StartError> {
        let listener = bind(&path).await?;
        let file = FileId::of(&path)?;
        let file = file.with_context(|| format!("{} vanished", path.display()))?;
        let (list, receiver) = watch::channel(list);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, service(receiver), stopped));
        Ok(Self {
            path,
            file,
            list,
            stop,
            task,
        })
    }

    /// Sends another list on the streams, unless it is the same.
    pub fn send(&self, list: &Arc<SentList>) {
        self.list.send_if_modified(|sent| {
            let changed = sent != list;
            sent.clone_from(list);
            changed
        });
    }

    /// Sends the list again.
    pub fn send_again(&self) {
        self.list.send_modify(|_| {});
    }

    /// Whether the socket's file is still the one that was bound.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        is_file(&self.path, self.file)
    }

    /// Ends the streams, closes connections and removes the socket.
    pub async fn stop(self) -> Result<()> {
        drop(self.list);
        // The server may have ended by itself.
        let _ = self.stop.send(());
        let abort = self.task.abort_handle();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.task)
            .await
            .is_err()
        {
            abort.abort();
        }
        // Another process may have bound its own meanwhile.
        if is_file(&self.path, self.file) {
            files::remove(&self.path)?;
        }
        Ok(())
    }
}

fn is_file(path: &Path, file: FileId) -> bool {
    FileId::of(path).is_ok_and(|found| found == Some(file))
}

async fn serve(listener: UnixListener, service: PluginService, stopped: oneshot::Receiver<()>) {
    let (events, generation) = (service.events.clone(), service.generation);
    let serving = Server::builder().serve_with_incoming_shutdown(
        DevicePluginServer::new(service),
        incoming(listener),
        async {
            // Stopped, or its handle dropped: it ends either way.
            let _ = stopped.await;
        },
    );
    let outcome = serving.await.context("serving the kubelet");
    events.send(ResourceEvent::ServerEnded {
        generation,
        outcome,
    });
}

/// The connections of a listener, for ever.
fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    let start = (listener, Acceptor::default());
    stream::unfold(start, |(listener, mut acceptor)| async {
        let accepted = acceptor.accept(|context| listener.poll_accept(context));
        let (connection, _) = accepted.await;
        Some((Ok(connection), (listener, acceptor)))
    })
}

async fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let shown = path.display();
    match UnixStream::connect(path).await {
        Ok(connection) => return Err(StartError::InUse(OtherServer(connection))),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => files::remove(path)?,
        Err(error) => {
            let error = Error::new(error).context(format!("connecting to {shown}"));
            return Err(error.into());
        }
    }
    let listener = UnixListener::bind(path).with_context(|| format!("making socket {shown}"))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))
        .with_context(|| format!("setting the mode of socket {shown}"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net;

    use futures_util::future::join;
    use tokio::sync::mpsc;

    use super::*;
    use crate::deviceplugin::{event::EventSender, tap_only::TapOnly};

    #[tokio::test]
    async fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let events = EventSender::new("a", mpsc::unbounded_channel().0);
        let service = |list| PluginService {
            generation: 0,
            list,
            events,
            tap_only: TapOnly::start().unwrap(),
        };
        let list = Arc::new(SentList::default());
        let server = ResourceServer::start(path.clone(), list, service).await;
        let succeed = async {
            fs::remove_file(&path).unwrap();
            net::UnixListener::bind(&path).unwrap()
        };
        let (stopped, _successor) = join(server.unwrap().stop(), succeed).await;
        stopped.unwrap();
        assert!(path.exists());
    }
}
