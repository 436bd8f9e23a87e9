//! Where the configuration comes from: the environment, or a file that may change.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use log::{info, warn};

use super::config::{self, Configuration, ResourceConfig};

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
pub enum ConfigSource {
    /// The text of the environment variable.
    Environment(String),
    /// A file, and its text when it was last read.
    File(PathBuf, Option<String>),
}

impl ConfigSource {
    /// The file at `path`, or the environment variable if there is no path.
    pub fn new(path: Option<&Path>) -> Result<Self> {
        if let Some(path) = path {
            return Ok(Self::File(path.to_owned(), None));
        }
        let text = env::var_os(VARIABLE)
            .with_context(|| format!("{VARIABLE} environment variable must be set"))?;
        let text = text.into_string().ok();
        let text = text.with_context(|| format!("{VARIABLE} is not UTF-8"))?;
        Ok(Self::Environment(text))
    }

    /// The directory in which the file changes. A mounted `ConfigMap` changes by a symbolic link
    /// beside the file.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        let Self::File(path, _) = self else {
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
    pub fn reload(&mut self, former: &[ResourceConfig]) -> Result<Option<Loaded>> {
        let (name, text) = match self {
            Self::Environment(text) => (VARIABLE.to_owned(), text.clone()),
            Self::File(path, before) => {
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
        let parsed = config::parse(&text, former);
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

fn log_configuration(source: &str, configuration: &Configuration) {
    match configuration {
        Configuration::Discover => {
            info!(source; "configuration loaded: offering every NIC and bond");
        }
        Configuration::Listed(resources) => {
            info!(source, resources = resources.len(); "configuration loaded");
        }
    }
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
