//! The device plugin: tells the kubelet which macvtaps a node offers, and promises them to pods.
//!
//! One thread, one loop that owns all state. What happens comes in as events;
//! what to do about it is decided in `config`, `offer` and `registration`.

pub mod config;
mod config_source;
pub mod device_list;
mod directory;
pub mod grpc;
mod http;
pub mod metrics;
mod registration;
mod resource;
pub mod status;
mod supervisor;
mod tap_only;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use log::{LevelFilter, error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::sleep_until,
};
use tokio_stream::StreamExt;

use self::{config_source::Source, directory::Directory, http::Http, supervisor::Node};
use crate::{
    cli::{self, Switch},
    host::{logging, peer},
    netlink::LinkWatch,
};

/// The namespace of the resources' names.
pub const NAMESPACE: &str = "macvtap.network.kubevirt.io";
/// How long the end may take.
const FAREWELL: Duration = Duration::from_millis(900);

/// What the loop is told by what it started.
pub enum Event {
    /// The kubelet opened or closed a stream.
    Stream {
        /// The resource.
        resource: String,
        /// Which of the resource's servers it is about.
        generation: u64,
        /// Opened, or closed.
        open: bool,
    },
    /// The kubelet answered a registration, or could not be reached.
    Answered {
        /// The resource.
        resource: String,
        /// Which of the resource's calls it is about.
        call: u64,
        /// What it answered.
        outcome: Result<()>,
    },
    /// Devices were promised to a container.
    Allocated {
        /// The resource.
        resource: String,
        /// How many.
        devices: u64,
    },
    /// Devices were not promised.
    NotAllocated {
        /// The resource.
        resource: String,
        /// Why, in a word for metrics.
        reason: &'static str,
    },
    /// A server ended.
    Ended {
        /// The resource.
        resource: String,
        /// Which of the resource's servers it is about.
        generation: u64,
        /// How.
        outcome: Result<()>,
    },
}

/// What the device plugin is told when it is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of the kubelet's socket, and ours.
    pub kubelet_dir: PathBuf,
    /// The file to read the configuration from; the environment if none.
    pub config: Option<PathBuf>,
    /// The directory of the pods' network namespaces; none if nothing is to be learnt.
    pub learning: Option<PathBuf>,
    /// Where to tell health and metrics by HTTP, if anywhere.
    pub status_address: Option<SocketAddr>,
    /// What is logged, unless `RUST_LOG` says otherwise.
    pub level: LevelFilter,
}

impl From<&cli::Deviceplugin> for Settings {
    fn from(options: &cli::Deviceplugin) -> Self {
        Self {
            kubelet_dir: options.kubelet_dir.clone(),
            config: options.config.clone(),
            learning: (options.learning == Switch::On).then(|| options.netns_dir.clone()),
            status_address: options.status_address,
            // The original's manifest says -v 3, which was the usual there.
            level: match options.verbosity {
                0..=3 => LevelFilter::Info,
                4..=5 => LevelFilter::Debug,
                _ => LevelFilter::Trace,
            },
        }
    }
}

/// Runs the device plugin until a signal ends it.
pub fn main(settings: &Settings) -> Result<ExitCode> {
    logging::start(settings.level);
    let source = match &settings.config {
        Some(path) => Source::File(path.clone()),
        None => Source::environment()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(run(settings, source))
}

async fn run(settings: &Settings, mut source: Source) -> Result<ExitCode> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP]);
    let mut signals = signals.context("listening to signals")?;
    let links = LinkWatch::open()?;
    let mut kubelet = Directory::watch(&settings.kubelet_dir);
    let mut config = source.directory().map(|path| Directory::watch(&path));
    let (sender, mut events) = mpsc::unbounded_channel();
    let configuration = source.first()?;
    let status = listen(&settings.kubelet_dir);
    let mut node = Node::new(settings.kubelet_dir.clone(), configuration, sender)?;
    node.learn(settings.learning.as_deref());
    let http = Http::listen(settings.status_address).await?;
    loop {
        node.act().await;
        tokio::select! {
            Some(event) = events.recv() => node.hear(event),
            changed = links.changed() => {
                changed?;
                node.list_links();
            }
            () = kubelet.changed() => {
                check_mount(&kubelet, &settings.kubelet_dir)?;
                node.look_at_sockets();
            }
            Some(asker) = http.asked() => http.answer(asker, || node.status()),
            Some(asker) = asked(status.as_ref()) => status::answer(asker, &node.status())?,
            () = changed(&mut config) => reload(&mut node, &mut source),
            signal = signals.next() => match signal {
                Some(SIGHUP) => reload(&mut node, &mut source),
                signal => {
                    info!("ending signal={}", signal.unwrap_or_default());
                    break;
                }
            },
            () = sleep_until(node.deadline().into()) => {}
        }
    }
    Ok(end(node, signals).await)
}

fn check_mount(kubelet: &Directory, path: &Path) -> Result<()> {
    ensure!(
        !kubelet.is_orphaned(),
        "{} was deleted; another directory in its place is not the one that is mounted \
         here: start again",
        path.display()
    );
    Ok(())
}

/// A device plugin that cannot be asked still serves.
fn listen(kubelet_dir: &Path) -> Option<UnixListener> {
    let listener = status::listen(kubelet_dir);
    listener
        .inspect_err(|error| warn!("nobody can ask how it is: {error:#}"))
        .ok()
}

/// Who asks next. Only root may: anybody in this netns can reach the socket.
async fn asked(listener: Option<&UnixListener>) -> Option<UnixStream> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        let (asker, _) = listener.accept().await.ok()?;
        if peer::is_root(&asker) {
            return Some(asker);
        }
    }
}

async fn changed(directory: &mut Option<Directory>) {
    match directory {
        Some(directory) => directory.changed().await,
        None => std::future::pending().await,
    }
}

/// A broken configuration leaves the last good one in force.
fn reload(node: &mut Node, source: &mut Source) {
    match source.again() {
        Ok(Some(configuration)) => node.configure(configuration),
        Ok(None) => {}
        Err(error) => error!("the former configuration stays in force: {error:#}"),
    }
}

/// Ends cleanly, unless a second signal says that there is no time for it.
async fn end(node: Node, mut signals: Signals) -> ExitCode {
    let again = async {
        while let Some(signal) = signals.next().await {
            if signal != SIGHUP {
                break;
            }
        }
    };
    tokio::select! {
        () = node.stop() => {
            info!("ended");
            ExitCode::SUCCESS
        }
        () = tokio::time::sleep(FAREWELL) => {
            warn!("not everything could be closed in {FAREWELL:?}");
            ExitCode::SUCCESS
        }
        () = again => {
            warn!("a second signal: ending at once");
            ExitCode::FAILURE
        }
    }
}
