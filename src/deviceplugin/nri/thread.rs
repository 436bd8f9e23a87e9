//! The thread that serves the runtime. It connects again whenever the runtime comes back.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use inotify::{Inotify, WatchMask};
use log::{error, warn};

use super::{service::Service, session::Session};
use crate::{
    cli,
    host::{
        control_socket,
        nri_query::{self, Listener},
        worker::{Waiter, Worker},
    },
    types::status::NriStatus,
};

/// The time between attempts to connect while the runtime may be starting: it creates containers
/// 60 ms after its socket appears.
const FAST_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// The time that a runtime may take to start after its connection or its directory changed.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// The time between attempts to connect otherwise.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The service to the runtime, as long as this lives.
pub struct Nri {
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
        let now = Instant::now();
        let mut plugin = Plugin {
            watch: watch(&socket),
            socket,
            may_be_absent,
            kubelet_dir: kubelet_dir.to_owned(),
            listener: Listener::new(control_socket::server_dirs(kubelet_dir)),
            session: None,
            service: Service::default(),
            last_error: String::new(),
            retry_at: now,
            fast_until: now + START_TIMEOUT,
            published: Arc::clone(&status),
        };
        let worker = Worker::start("nri", move |waiter| plugin.run(waiter))?;
        Ok(Some(Self { status, worker }))
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
    listener: Listener,
    session: Option<Session>,
    service: Service,
    last_error: String,
    retry_at: Instant,
    fast_until: Instant,
    published: Arc<Mutex<NriStatus>>,
}

impl Plugin {
    fn run(&mut self, waiter: &Waiter) {
        loop {
            self.connect_if_due();
            self.listener.answer(self.obstacle().as_deref());
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

    /// Connects if it is time, and if no other device plugin on this node is connected: each
    /// container to which two plugins give the same device fails.
    fn connect_if_due(&mut self) {
        let now = Instant::now();
        self.drain_watch(now);
        if self.session.is_some() || now < self.retry_at {
            return;
        }
        match self.connect() {
            Ok(session) => {
                self.service.begin();
                self.session = Some(session);
            }
            Err(error) => self.retry_after(format!("{error:#}")),
        }
    }

    /// ADD has to know that it depends on us before the runtime does.
    fn connect(&mut self) -> Result<Session> {
        self.listener.bind()?;
        nri_query::mark(&self.kubelet_dir)?;
        Session::start(&self.socket)
    }

    fn drain_watch(&mut self, now: Instant) {
        let mut buffer = [0; 4096];
        let watch = self.watch.as_mut();
        if watch.is_some_and(|watch| watch.read_events(&mut buffer).is_ok()) {
            self.fast_until = now + START_TIMEOUT;
            self.retry_at = now;
        }
    }

    fn retry_after(&mut self, error: String) {
        let now = Instant::now();
        let starting = now < self.fast_until;
        let interval = if starting {
            FAST_RETRY_INTERVAL
        } else {
            RETRY_INTERVAL
        };
        self.retry_at = now + interval;
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
                }
                return;
            }
            Ok(false) => "the runtime closed the connection".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        self.session = None;
        self.fast_until = Instant::now() + START_TIMEOUT;
        self.retry_after(error);
    }

    /// Waits for the runtime, for ADD, for the socket to appear, or until it is time to connect.
    /// Whether the runtime has sent something; none if it is time to stop.
    fn wait(&self, waiter: &Waiter) -> Result<Option<bool>> {
        let session = self.session.as_ref().map(Session::as_fd);
        let watch = self.watch.as_ref().map(Inotify::as_fd);
        let others = watch.into_iter().chain(self.listener.descriptors());
        let pause = match session {
            Some(_) => RETRY_INTERVAL,
            None => self.retry_at.saturating_duration_since(Instant::now()),
        };
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
