//! The settings of a device plugin.

use std::{env, path::PathBuf};

use log::LevelFilter;

use crate::{
    cli::{self, Switch},
    types::listen_address::ListenAddress,
};

/// The environment variable with the node's name, by the downward API.
const NODE_NAME: &str = "NODE_NAME";

/// The settings of a device plugin.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory of the kubelet's socket and ours.
    pub kubelet_dir: PathBuf,
    /// The name of the node in the cluster, if it is known.
    pub node_name: Option<String>,
    /// The configuration file; if none, the configuration is in the environment.
    pub config: Option<PathBuf>,
    /// Whether to learn on which node a MAC is.
    pub learning: bool,
    /// The directory of the pods' network namespaces.
    pub netns_dir: PathBuf,
    /// Whether containers get taps by NRI.
    pub nri: cli::Nri,
    /// The directory of node-feature-discovery's feature files; none if nothing is written there.
    pub feature_dir: Option<PathBuf>,
    /// The address on which health and metrics are served over HTTP.
    pub status_address: Option<ListenAddress>,
    /// The level of the log, unless `RUST_LOG` overrides it.
    pub level: LevelFilter,
}

impl From<&cli::Deviceplugin> for Settings {
    fn from(options: &cli::Deviceplugin) -> Self {
        Self {
            kubelet_dir: options.kubelet_dir.clone(),
            node_name: node_name(options.node_name.clone()),
            config: options.config.clone(),
            learning: options.learning == Switch::On,
            netns_dir: options.netns_dir.clone(),
            nri: options.nri.clone(),
            feature_dir: options.feature_dir.clone(),
            status_address: options.status_address.clone(),
            // The original's manifest has -v 3, for what is logged by default here.
            level: match options.verbosity {
                ..=3 => LevelFilter::Info,
                4..=5 => LevelFilter::Debug,
                _ => LevelFilter::Trace,
            },
        }
    }
}

/// The option, or else the environment variable; none if empty.
fn node_name(option: Option<String>) -> Option<String> {
    let name = option.or_else(|| env::var(NODE_NAME).ok());
    name.filter(|name| !name.is_empty())
}
