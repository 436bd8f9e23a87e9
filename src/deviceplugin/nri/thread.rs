//! The thread that serves the runtime. It connects again whenever the runtime comes back.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use inotify::{EventMask, Inotify, WatchMask};
use log::{error, warn};

use super::{service::Service, session::Session};
use crate::{
    cli,
    deviceplugin::back_off::BackOff,
    host::{
        control_socket::BindError,
        nri_query::{self, Responder},
        worker::{Waiter, Worker},
    },
    types::status::NriStatus,
};

/// The time between attempts to connect while the runtime may be starting: it creates containers
/// 60 ms after its socket appears.
const FAST_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The time that a runtime may take to accept a connection after it ended, or after its socket
/// appeared.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How often it is looked whether the runtime's socket is there, for the status, and whether our
/// sockets and markers are.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two attempts to take over from another device plugin. Until then pods that come
/// get no taps.
const TAKE_OVER_INTERVAL: Duration = Duration::from_millis(500);

/// The service to the runtime, as long as this lives.
pub struct Nri {
    socket: PathBuf,
    status: Arc<Mutex<NriStatus>>,
    worker: Worker,
}

impl Nri {
    /// Serves the runtime, and the queries of ADD. None if NRI is off.
    pub fn start(nri: &cli::Nri, kubelet_dir: &Path) -> Result<Option<Self>> {
        let (socket, may_be_absent) = match nri {
            cli::Nri::Off => {
                let unmarked = nri_query::unmark(kubelet_dir);
                unmarked.context("noting that pods get no taps by NRI")?;
                return Ok(None);
            }
            cli::Nri::Auto => (PathBuf::from(cli::NRI_SOCKET), true),
            cli::Nri::Socket(path) => (path.clone(), false),
        };
        let status = Arc::new(Mutex::new(NriStatus::default()));
        let mut plugin = Plugin::new(socket.clone(), kubelet_dir, Responder::new(kubelet_dir)?);
        plugin.may_be_absent = may_be_absent;
        plugin.published = Arc::clone(&status);
        let worker = Worker::start("nri", move |waiter| plugin.run(waiter))?;
        Ok(Some(Self {
            socket,
            status,
            worker,
        }))
    }

    /// Where the runtime's socket is.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.socket.parent()
    }

    /// Its status.
    #[must_use]
    pub fn status(&self) -> NriStatus {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        NriStatus {
            running: self.worker.is_running(),
            ..status.clone()
        }
    }
}

/// Reports what appears in the socket's directory. Without it, the socket is tried from time to
/// time.
fn watch(socket: &Path) -> Option<Inotify> {
    let inotify = Inotify::init().ok()?;
    let watched = inotify.watches().add(socket.parent()?, WatchMask::CREATE);
    watched.is_ok().then_some(inotify)
}

struct Plugin {
    socket: PathBuf,
    /// Whether a node without the socket is as it should be.
    may_be_absent: bool,
    kubelet_dir: PathBuf,
    watch: Option<Inotify>,
    responder: Responder,
    session: Option<Session>,
    service: Service,
    last_error: String,
    retry_at: Instant,
    /// When it is looked again whether our sockets and markers are there; why they are not.
    claim_at: Instant,
    claim_error: String,
    /// Until when attempts to connect follow each other fast: until one succeeds, or it takes too
    /// long.
    fast_until: Option<Instant>,
    back_off: BackOff,
    published: Arc<Mutex<NriStatus>>,
}

impl Plugin {
    /// It has not connected yet.
    fn new(socket: PathBuf, kubelet_dir: &Path, responder: Responder) -> Self {
        let now = Instant::now();
        Self {
            watch: watch(&socket),
            socket,
            may_be_absent: false,
            kubelet_dir: kubelet_dir.to_owned(),
            responder,
            session: None,
            service: Service::default(),
            last_error: String::new(),
            retry_at: now,
            claim_at: now,
            claim_error: String::new(),
            fast_until: Some(now + START_TIMEOUT),
            back_off: BackOff::default(),
            published: Arc::default(),
        }
    }

    fn run(&mut self, waiter: &Waiter) {
        loop {
            self.run_due();
            self.responder.answer(self.obstacle().as_deref());
            self.publish();
            match self.wait(waiter) {
                Ok(None) => break,
                Ok(Some(true)) => self.receive(),
                Ok(Some(false)) => {}
                Err(error) => {
                    error!(error:% = format!("{error:#}"); "NRI ends: pods get no taps by it");
                    break;
                }
            }
        }
        self.session = None;
        self.publish();
    }

    fn is_ready(&self) -> bool {
        self.session.is_some() && self.service.is_synchronized
    }

    /// Why the runtime does not ask; none if it does.
    fn obstacle(&self) -> Option<String> {
        let why = if self.session.is_some() {
            "it is registering with the container runtime"
        } else {
            &self.last_error
        };
        let socket = self.socket.display();
        let text = || format!("the device plugin is not connected to {socket}: {why}");
        (!self.is_ready()).then(text)
    }

    /// Claims its place and connects if it is time, and if no other device plugin on this node has
    /// the place: each container to which two plugins give the same device fails.
    fn run_due(&mut self) {
        let now = Instant::now();
        self.drain_watch(now);
        let connects = self.session.is_none() && self.retry_at <= now;
        if !connects && now < self.claim_at {
            return;
        }
        self.claim_at = now + LOOK_INTERVAL;
        match self.claim() {
            Ok(()) if connects => self.connect(),
            Ok(()) => self.claim_error.clear(),
            Err(BindError::InUse(path)) => self.give_way(&path),
            Err(BindError::Failed(error)) if connects => self.retry_after(format!("{error:#}")),
            Err(BindError::Failed(error)) => self.note_claim_error(format!("{error:#}")),
        }
    }

    /// ADD has to know that it depends on us before the runtime does, and as long as it does.
    fn claim(&mut self) -> Result<(), BindError> {
        self.responder.bind()?;
        Ok(nri_query::mark(&self.kubelet_dir)?)
    }

    fn connect(&mut self) {
        match Session::start(&self.socket) {
            Ok(session) => {
                self.service.begin();
                self.session = Some(session);
                // One that is closed again at once must not be followed by the next at once.
                self.fast_until = None;
            }
            Err(error) => self.retry_after(format!("{error:#}")),
        }
    }

    fn give_way(&mut self, socket: &Path) {
        self.session = None;
        self.retry_at = Instant::now() + TAKE_OVER_INTERVAL;
        let socket = socket.display();
        self.note_error(format!(
            "another device plugin serves NRI on this node: it has {socket}"
        ));
    }

    fn note_claim_error(&mut self, error: String) {
        if self.claim_error != error {
            warn!(error = error.as_str(); "ADD cannot query the device plugin");
            self.claim_error = error;
        }
    }

    fn drain_watch(&mut self, now: Instant) {
        let mut appeared = false;
        if self.watch.is_none() {
            self.watch = watch(&self.socket);
            // The socket may have appeared before.
            appeared = self.watch.is_some();
        }
        let mut buffer = [0; 4096];
        let events = self
            .watch
            .as_mut()
            .map(|watch| watch.read_events(&mut buffer));
        let events: Vec<_> = events.into_iter().flatten().flatten().collect();
        // Without a name, events were lost.
        let name = self.socket.file_name();
        appeared |= events
            .iter()
            .any(|event| event.name.is_none() || event.name == name);
        // The directory was deleted: another one may take its place.
        if events
            .iter()
            .any(|event| event.mask.contains(EventMask::IGNORED))
        {
            self.watch = None;
        }
        if appeared {
            self.fast_until = Some(now + START_TIMEOUT);
            self.retry_at = now;
        }
    }

    fn retry_after(&mut self, error: String) {
        let now = Instant::now();
        let starting = self.fast_until.is_some_and(|until| now < until);
        self.retry_at = if starting {
            now + FAST_RETRY_INTERVAL
        } else {
            self.back_off.fail(now)
        };
        self.note_error(error);
    }

    fn note_error(&mut self, error: String) {
        if self.last_error != error {
            let socket = self.socket.display();
            warn!(socket:%, error = error.as_str(); "not connected to the container runtime");
            self.last_error = error;
        }
    }

    fn receive(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        let error = match session.receive(&mut self.service) {
            Ok(true) => {
                if self.service.is_synchronized {
                    self.last_error.clear();
                    self.back_off = BackOff::default();
                }
                return;
            }
            Ok(false) => "the runtime closed the connection".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        self.session = None;
        if self.service.is_synchronized {
            self.fast_until = Some(Instant::now() + START_TIMEOUT);
        }
        self.retry_after(error);
    }

    /// Waits for the runtime, for ADD, for the socket to appear, or until it is time to connect.
    /// Whether the runtime has sent something; none if it is time to stop.
    fn wait(&self, waiter: &Waiter) -> Result<Option<bool>> {
        let session = self.session.as_ref().map(Session::as_fd);
        let watch = self.watch.as_ref().map(Inotify::as_fd);
        let others = watch.into_iter().chain(self.responder.descriptors());
        let now = Instant::now();
        let next = match session {
            Some(_) => self.claim_at,
            None => self.retry_at.min(self.claim_at),
        };
        let next = self
            .responder
            .paused_until()
            .map_or(next, |until| until.min(next));
        let pause = next.saturating_duration_since(now);
        let ready = waiter.wait(session.into_iter().chain(others), pause)?;
        Ok(ready.map(|ready| session.is_some() && ready.first() == Some(&true)))
    }

    fn publish(&self) {
        let service = &self.service;
        let status = NriStatus {
            running: true,
            ready: self.is_ready(),
            absent: self.may_be_absent && self.session.is_none() && !self.socket.exists(),
            runtime: service.runtime.clone(),
            last_error: self.last_error.clone(),
            given: service.given,
            refused: service.refused,
            without: service.without.values().cloned().collect(),
            taps: service.taps(),
        };
        *self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::control_socket::{Server, dir_in};

    #[test]
    fn another_device_plugins_place_is_tried_at_short_intervals_and_a_runtime_at_longer_ones() {
        let dir = tempfile::tempdir().unwrap();
        // In no directory that other tests use.
        let responder = Responder::in_dirs([dir_in(dir.path())]).unwrap();
        let mut plugin = Plugin::new(dir.path().join("nri.sock"), dir.path(), responder);
        let name = nri_query::socket_name().unwrap();
        let other = Server::bind(&dir_in(dir.path()), &name).unwrap();
        let wait = |plugin: &mut Plugin| {
            let now = Instant::now();
            (plugin.retry_at, plugin.fast_until) = (now, None);
            plugin.run_due();
            plugin.fast_until = None;
            plugin.retry_at.saturating_duration_since(now)
        };
        for _ in 0..5 {
            assert!(wait(&mut plugin) < Duration::from_secs(1));
        }
        assert!(plugin.last_error.starts_with("another device plugin"));
        drop(other);
        assert!(wait(&mut plugin) >= Duration::from_secs(1));
        assert!(plugin.last_error.contains("No such file"));
    }
}
