//! The device plugin: offers the node's macvtaps to the kubelet and allocates them to pods.
//!
//! One event loop owns all state; `config`, `device_list` and `registration` decide.

mod accept;
mod attachment_limits;
mod back_off;
mod checkpoint_file;
pub mod config;
mod config_selector;
mod config_source;
pub mod device_list;
mod directory;
pub mod event;
pub mod grpc;
pub mod held;
pub(crate) mod host_access;
mod http;
mod inputs;
mod learning_task;
pub mod metrics;
pub(crate) mod names;
mod node_facts;
mod node_features;
mod node_identity;
pub mod nri;
mod orphans;
mod pod_devices;
mod registration;
mod resource;
pub mod selection;
mod settings;
pub mod status;
mod supervisor;
pub mod tap_containers;
pub mod tap_only;
mod tap_only_pods;
mod vlans;

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use log::{info, warn};
use signal_hook::consts::SIGHUP;
use signal_hook_tokio::Signals;
use tokio::{
    sync::{Notify, mpsc},
    time::timeout_at,
};
use tokio_stream::StreamExt;

use self::{
    config_source::ConfigSource,
    directory::DirectoryWatch,
    event::ResourceEvent,
    http::HttpServer,
    inputs::{Input, Inputs, signals},
    learning_task::LearningTask,
    settings::Settings,
    status::StatusServer,
    supervisor::Supervisor,
};
use crate::{
    host::{descriptors, file_id::is_orphaned, logging, processor_time},
    netlink::LinkWatch,
};

/// Descriptors that are ready and taken from the kernel at a time.
const MAX_EVENTS_PER_TURN: usize = 64;
/// How long shutting down may take.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(900);

/// Runs the device plugin until a signal ends it.
pub fn main(settings: &Settings) -> Result<ExitCode> {
    logging::start(settings.level);
    descriptors::raise_limit();
    let source = ConfigSource::new(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(MAX_EVENTS_PER_TURN)
        .build()
        .context("starting the event loop")?;
    runtime.block_on(run(settings, source))
}

async fn run(settings: &Settings, mut source: ConfigSource) -> Result<ExitCode> {
    let (sender, events) = mpsc::unbounded_channel();
    let mut inputs = inputs(settings, &source, events)?;
    let configuration = source.load()?;
    inputs
        .links
        .follow_addresses(configuration.follows_addresses())?;
    let learning = learning(settings, &inputs);
    let mut supervisor = Supervisor::new(settings, configuration, learning, sender)?;
    supervisor.serve_nri(&settings.nri)?;
    loop {
        supervisor.run_due().await;
        let input = timeout_at(supervisor.deadline().into(), inputs.next()).await;
        match input.unwrap_or(Ok(Input::Nothing))? {
            Input::Nothing => {}
            Input::Resource(resource, event) => supervisor.handle(&resource, event),
            Input::Links => links_changed(&mut supervisor, &inputs.links)?,
            Input::Ports => supervisor.ports_changed(),
            Input::KubeletDirectory => {
                check_mount(&settings.kubelet_dir)?;
                supervisor.nri_dir().map_or(Ok(()), check_mount)?;
                supervisor.directory_changed();
            }
            Input::Configuration => {
                let entries = &supervisor.configuration().entries;
                if let Some(configuration) = source.reload(entries) {
                    supervisor.configure(configuration);
                    follow_addresses(&mut supervisor, &inputs.links)?;
                }
            }
            // The client may be gone.
            Input::Query(query) => drop(query.send(supervisor.status(source.warnings()))),
            Input::Signal(signal) => {
                info!(signal; "shutting down");
                return Ok(shut_down(supervisor, inputs.signals).await);
            }
        }
    }
}

fn learning(settings: &Settings, inputs: &Inputs) -> LearningTask {
    let ports = Arc::clone(&inputs.ports);
    LearningTask::start(settings, Arc::new(move || ports.notify_one()))
}

fn inputs(
    settings: &Settings,
    source: &ConfigSource,
    events: mpsc::UnboundedReceiver<(String, ResourceEvent)>,
) -> Result<Inputs> {
    let kubelet_dir = &settings.kubelet_dir;
    Ok(Inputs {
        links: LinkWatch::open()?,
        ports: Arc::new(Notify::new()),
        kubelet_dir: DirectoryWatch::start(kubelet_dir),
        config_dir: source.directory().map(|path| DirectoryWatch::start(&path)),
        events,
        status: StatusServer::listen(kubelet_dir),
        http: HttpServer::new(settings.status_address.clone()),
        signals: signals()?,
    })
}

fn check_mount(path: &Path) -> Result<()> {
    ensure!(
        !is_orphaned(path),
        "{} was deleted; a directory that replaces it is not mounted here: restart the container",
        path.display()
    );
    Ok(())
}

fn links_changed(supervisor: &mut Supervisor, watch: &LinkWatch) -> Result<()> {
    let start = processor_time::of_thread()?;
    supervisor.links_changed();
    watch.rest(processor_time::of_thread()?.saturating_sub(start));
    Ok(())
}

/// Follows addresses if the configuration needs them, which may have changed since it was loaded.
fn follow_addresses(supervisor: &mut Supervisor, watch: &LinkWatch) -> Result<()> {
    let wanted = supervisor.configuration().follows_addresses();
    watch.follow_addresses(wanted)?;
    if wanted {
        links_changed(supervisor, watch)?;
    }
    Ok(())
}

/// Shuts down cleanly, unless a second signal arrives.
async fn shut_down(supervisor: Supervisor, mut signals: Signals) -> ExitCode {
    let second_signal = async {
        while let Some(signal) = signals.next().await {
            if signal != SIGHUP {
                break;
            }
        }
    };
    tokio::select! {
        () = supervisor.stop() => {
            info!("shut down");
            ExitCode::SUCCESS
        }
        () = tokio::time::sleep(SHUTDOWN_GRACE) => {
            warn!(timeout:? = SHUTDOWN_GRACE; "not everything could be closed in time");
            ExitCode::SUCCESS
        }
        () = second_signal => {
            warn!("second signal: exiting at once");
            ExitCode::FAILURE
        }
    }
}
