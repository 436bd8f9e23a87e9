//! Where the configuration comes from: the environment, or a file that may change.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use log::{info, warn};
use nix::unistd::gethostname;

use super::{
    config::{self, Configuration, Context as ParseContext, Entry},
    settings::Settings,
};

/// The environment variable of kubevirt/macvtap-cni.
const VARIABLE: &str = "DP_MACVTAP_CONF";
/// The maximum length of a configuration, in bytes: that of a `ConfigMap`.
const MAX_BYTES: u64 = 1 << 20;

/// A configuration, with what is wrong with it.
pub struct Loaded {
    /// The configuration.
    pub configuration: Configuration,
    /// Warnings about entries, some of which are left out.
    pub warnings: Vec<String>,
}

/// The source of the configuration.
pub struct ConfigSource {
    place: Place,
    /// The node's name, or else that of its host.
    node: String,
}

/// Where the configuration is.
enum Place {
    /// The text of the environment variable.
    Environment(String),
    /// A file, and its text when it was last read.
    File(PathBuf, Option<String>),
}

impl ConfigSource {
    /// The file of the settings, or the environment variable if there is none.
    pub fn new(settings: &Settings) -> Result<Self> {
        let host = || {
            let name = gethostname().context("reading the name of this host")?;
            anyhow::Ok(name.to_string_lossy().into_owned())
        };
        let node = settings.node_name.clone();
        Ok(Self {
            place: Place::new(settings.config.as_deref())?,
            node: node.map_or_else(host, Ok)?,
        })
    }
    /// The directory in which the file changes. A mounted `ConfigMap` changes by a symbolic link
    /// beside the file.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        let Place::File(path, _) = &self.place else {
            return None;
        };
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        Some(parent.unwrap_or(Path::new(".")).to_owned())
    }

    /// Reads the configuration for the first time.
    pub fn load(&mut self) -> Result<Loaded> {
        let loaded = self.reload(&[])?;
        loaded.context("the configuration was loaded before")
    }

    /// Reads the configuration again; none if its text has not changed. An entry that became
    /// wrong keeps its definition in `former`.
    pub fn reload(&mut self, former: &[Entry]) -> Result<Option<Loaded>> {
        let (name, text) = match &mut self.place {
            Place::Environment(text) => (VARIABLE.to_owned(), text.clone()),
            Place::File(path, before) => {
                let text = match before {
                    None => read_first(path)?,
                    Some(_) => read(path)?,
                };
                // Also if it is wrong, so that errors are logged once.
                if before.replace(text.clone()).as_ref() == Some(&text) {
                    return Ok(None);
                }
                (path.display().to_string(), text)
            }
        };
        let node = &self.node;
        let parsed = config::parse(&text, ParseContext { node, former });
        let (configuration, warnings) =
            parsed.with_context(|| format!("the configuration in {name}"))?;
        log_configuration(&name, &configuration);
        for warning in &warnings {
            warn!(source = name; "{warning}");
        }
        Ok(Some(Loaded {
            configuration,
            warnings,
        }))
    }
}

impl Place {
    fn new(path: Option<&Path>) -> Result<Self> {
        if let Some(path) = path {
            return Ok(Self::File(path.to_owned(), None));
        }
        let text = env::var_os(VARIABLE)
            .with_context(|| format!("{VARIABLE} environment variable must be set"))?;
        let text = text.into_string().ok();
        let text = text.with_context(|| format!("{VARIABLE} is not UTF-8"))?;
        Ok(Self::Environment(text))
    }
}

fn log_configuration(source: &str, configuration: &Configuration) {
    if *configuration == Configuration::discover() {
        info!(source; "configuration loaded: offering every NIC and bond");
        return;
    }
    let (entries, other_nodes) = (configuration.entries.len(), configuration.for_others);
    info!(source, entries, other_nodes; "configuration loaded");
}

/// An optional `ConfigMap` that does not exist is mounted as an empty directory, which means the
/// same as an empty list. A file that existed before is an error when it is gone: the
/// configuration that was read from it stays in force.
fn read_first(path: &Path) -> Result<String> {
    let dir = path.parent().filter(|dir| *dir != Path::new(""));
    if !path.exists() && dir.unwrap_or(Path::new(".")).is_dir() {
        warn!(source:% = path.display(); "configuration does not exist: offering every NIC and bond");
        return Ok("[]".to_owned());
    }
    read(path)
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let metadata = fs::metadata(path).with_context(|| format!("reading {shown}"))?;
    let length = metadata.len();
    ensure!(
        length <= MAX_BYTES,
        "the configuration in {shown} has {length} bytes, more than {MAX_BYTES}"
    );
    fs::read_to_string(path).with_context(|| format!("reading {shown}"))
}
