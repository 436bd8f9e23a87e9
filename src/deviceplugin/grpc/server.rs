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
use log::debug;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tonic::transport::Server;

use super::{
    api::device_plugin_server::DevicePluginServer,
    connection::{Connection, Stage, reached},
    service::{PluginService, SentList},
};
use crate::{
    deviceplugin::{accept::Acceptor, event::ResourceEvent},
    host::{file_id::FileId, files},
};

/// How long connections may take to finish what they were asked.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long they may take to end after they were closed.
const ABORT_TIMEOUT: Duration = Duration::from_millis(200);

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
    stage: watch::Sender<Stage>,
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
        let (stage, stages) = watch::channel(Stage::Serving);
        let task = tokio::spawn(Box::pin(serve(listener, service(receiver), stages)));
        Ok(Self {
            path,
            file,
            list,
            stage,
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

    /// Removes the socket, ends the streams and closes the connections.
    pub async fn stop(mut self) -> Result<()> {
        // First, for a device plugin that waits for our end. It may have bound its own already.
        let removed = if self.is_intact() {
            files::remove(&self.path)
        } else {
            Ok(())
        };
        drop(self.list);
        let stages = [
            (Stage::Stopping, CLOSE_TIMEOUT),
            (Stage::Closed, ABORT_TIMEOUT),
        ];
        for (stage, limit) in stages {
            // The server may have ended by itself.
            self.stage.send_replace(stage);
            if timeout(limit, &mut self.task).await.is_ok() {
                return removed;
            }
            debug!(socket:% = self.path.display(), timeout:? = limit; "connections are still open");
        }
        self.task.abort();
        removed
    }
}

fn is_file(path: &Path, file: FileId) -> bool {
    FileId::of(path).is_ok_and(|found| found == Some(file))
}

async fn serve(listener: UnixListener, service: PluginService, stages: watch::Receiver<Stage>) {
    let (events, generation) = (service.events.clone(), service.generation);
    let serving = Server::builder().serve_with_incoming_shutdown(
        DevicePluginServer::new(service),
        incoming(listener, stages.clone()),
        reached(stages, Stage::Stopping),
    );
    let outcome = serving.await.context("serving the kubelet");
    events.send(ResourceEvent::ServerEnded {
        generation,
        outcome,
    });
}

/// The connections of a listener, for ever.
fn incoming(
    listener: UnixListener,
    stages: watch::Receiver<Stage>,
) -> impl Stream<Item = io::Result<Connection>> {
    let start = (listener, Acceptor::default(), stages);
    stream::unfold(start, |(listener, mut acceptor, stages)| async {
        let accepted = acceptor.accept(|context| listener.poll_accept(context));
        let (stream, _) = accepted.await;
        let connection = Connection::new(stream, stages.clone());
        Some((Ok(connection), (listener, acceptor, stages)))
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

    use tokio::{sync::mpsc, time::Instant};

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::deviceplugin::{event::EventSender, tap_only::TapOnly};

    async fn server(path: &Path) -> ResourceServer {
        let events = EventSender::new("a", mpsc::unbounded_channel().0);
        let service = |list| PluginService {
            generation: 0,
            list,
            events,
            tap_only: TapOnly::start().unwrap(),
        };
        let list = Arc::new(SentList::default());
        let server = ResourceServer::start(path.to_owned(), list, service).await;
        server.unwrap()
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let server = server(&path).await;
        fs::remove_file(&path).unwrap();
        let _successor = net::UnixListener::bind(&path).unwrap();
        server.stop().await.unwrap();
        assert!(path.exists());
    }

    #[tokio::test]
    async fn connections_without_a_request_are_closed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let server = server(&path).await;
        let idle = UnixStream::connect(&path).await.unwrap();
        let start = Instant::now();
        // The server sends the settings of HTTP/2 when it has accepted the connection.
        idle.readable().await.unwrap();
        server.stop().await.unwrap();
        let took = start.elapsed();
        assert!(took < CLOSE_TIMEOUT, "{took:?}");
        assert!(!path.exists());
        OtherServer(idle).ended().await;
    }

    #[tokio::test]
    async fn connections_that_do_not_end_are_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let server = server(&path).await;
        let mut hanging = UnixStream::connect(&path).await.unwrap();
        hanging.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        hanging.readable().await.unwrap();
        server.stop().await.unwrap();
        OtherServer(hanging).ended().await;
    }
}
