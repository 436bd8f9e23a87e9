//! What the event loop waits for.

use std::{future::pending, sync::Arc};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::StreamExt;

use super::{
    directory::DirectoryWatch, event::ResourceEvent, http::HttpServer, status::StatusServer,
};
use crate::{netlink::LinkWatch, types::status::Status};

/// What the event loop has to handle.
pub enum Input {
    /// Nothing happened in time.
    Nothing,
    /// An event of this resource.
    Resource(String, ResourceEvent),
    /// Links of the host changed.
    Links,
    /// Ports of learning changed.
    Ports,
    /// Files in the kubelet's directory changed.
    KubeletDirectory,
    /// The configuration may have changed.
    Configuration,
    /// The status is queried.
    Query(oneshot::Sender<Status>),
    /// This signal is to end the device plugin.
    Signal(i32),
}

/// The sources of inputs.
pub struct Inputs {
    /// The links of the host.
    pub links: LinkWatch,
    /// That ports of learning changed.
    pub ports: Arc<Notify>,
    /// The directory of the kubelet's socket.
    pub kubelet_dir: DirectoryWatch,
    /// The directory of the configuration, if that is in a file.
    pub config_dir: Option<DirectoryWatch>,
    /// The events of resources.
    pub events: mpsc::UnboundedReceiver<(String, ResourceEvent)>,
    /// Queries of `probe` and `doctor`.
    pub status: StatusServer,
    /// Queries over HTTP.
    pub http: HttpServer,
    /// Signals, of which SIGHUP is to read the configuration again.
    pub signals: Signals,
}

impl Inputs {
    /// The next input. Nothing is lost if the future is dropped before.
    pub async fn next(&mut self) -> Result<Input> {
        Ok(tokio::select! {
            Some((resource, event)) = self.events.recv() => Input::Resource(resource, event),
            changed = self.links.changed() => {
                changed?;
                Input::Links
            }
            () = self.ports.notified() => Input::Ports,
            () = self.kubelet_dir.changed() => Input::KubeletDirectory,
            () = changed(&mut self.config_dir) => Input::Configuration,
            query = self.status.next_query() => Input::Query(query),
            query = self.http.next_query() => Input::Query(query),
            signal = self.signals.next() => match signal {
                Some(SIGHUP) => Input::Configuration,
                signal => Input::Signal(signal.unwrap_or_default()),
            },
        })
    }
}

async fn changed(directory: &mut Option<DirectoryWatch>) {
    match directory {
        Some(directory) => directory.changed().await,
        None => pending().await,
    }
}

/// The signals that the device plugin handles.
pub fn signals() -> Result<Signals> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP]);
    signals.context("installing signal handlers")
}
