//! Where the configuration comes from: the environment, or a file that may change.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use log::{error, info, warn};
use nix::unistd::gethostname;

use super::{
    config::{self, Configuration, Context as ParseContext, Entry},
    settings::Settings,
};
use crate::host::files;

/// The environment variable of kubevirt/macvtap-cni.
const VARIABLE: &str = "DP_MACVTAP_CONF";
/// The maximum length of a configuration, in bytes: that of a `ConfigMap`.
const MAX_BYTES: u64 = 1 << 20;

/// The source of the configuration, with what is wrong with it.
pub struct ConfigSource {
    place: Place,
    /// The node's name, or else that of its host.
    node: String,
    /// The text that was parsed last.
    text: Option<String>,
    /// What is wrong with that text.
    warnings: Vec<String>,
    /// Why it could not be read the last time; none if it could.
    read_error: Option<String>,
}

/// Where the configuration is.
enum Place {
    /// The text of the environment variable.
    Environment(String),
    /// A file.
    File {
        path: PathBuf,
        /// Whether it existed once. Until then its absence means an empty list.
        existed: bool,
    },
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
            text: None,
            warnings: Vec::new(),
            read_error: None,
        })
    }

    /// The directory in which the file changes. A mounted `ConfigMap` changes by a symbolic link
    /// beside the file.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        let Place::File { path, .. } = &self.place else {
            return None;
        };
        Some(directory(path).to_owned())
    }

    /// What is wrong with the configuration: entries that are left out, or why it cannot be used.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.warnings
            .iter()
            .chain(&self.read_error)
            .cloned()
            .collect()
    }

    /// Reads the configuration for the first time.
    pub fn load(&mut self) -> Result<Configuration> {
        let text = self.place.read()?;
        if let Place::File {
            path,
            existed: false,
        } = &self.place
        {
            warn!(source:% = path.display(); "configuration does not exist: offering every NIC and bond");
        }
        self.parse(text, &[])
    }

    /// Reads the configuration again; none if its text has not changed, or cannot be used: then
    /// the former one stays in force. An entry that became wrong keeps its definition in `former`.
    pub fn reload(&mut self, former: &[Entry]) -> Option<Configuration> {
        let text = match self.place.read() {
            Ok(text) => text,
            Err(error) => {
                let error = stays_in_force(&error);
                if self.read_error.as_ref() != Some(&error) {
                    error!("{error}");
                }
                self.read_error = Some(error);
                return None;
            }
        };
        if self.read_error.take().is_some() {
            info!(source = self.place.name(); "configuration can be read again");
        }
        if self.text.as_ref() == Some(&text) {
            return None;
        }
        let parsed = self.parse(text, former);
        parsed
            .inspect_err(|error| {
                let error = stays_in_force(error);
                error!("{error}");
                self.warnings = vec![error];
            })
            .ok()
    }

    fn parse(&mut self, text: String, former: &[Entry]) -> Result<Configuration> {
        // Also if it is wrong, so that errors are logged once.
        let text = self.text.insert(text);
        let (name, node) = (self.place.name(), &self.node);
        let parsed = config::parse(text, ParseContext { node, former });
        let (configuration, warnings) =
            parsed.with_context(|| format!("the configuration in {name}"))?;
        log_configuration(&name, &configuration);
        for warning in &warnings {
            warn!(source = name; "{warning}");
        }
        self.warnings = warnings;
        Ok(configuration)
    }
}

fn stays_in_force(error: &anyhow::Error) -> String {
    format!("{error:#}; the former configuration stays in force")
}

impl Place {
    fn new(path: Option<&Path>) -> Result<Self> {
        if let Some(path) = path {
            return Ok(Self::File {
                path: path.to_owned(),
                existed: false,
            });
        }
        let text = env::var_os(VARIABLE)
            .with_context(|| format!("{VARIABLE} environment variable must be set"))?;
        Ok(Self::Environment(text.to_string_lossy().into_owned()))
    }

    fn name(&self) -> String {
        match self {
            Self::Environment(_) => VARIABLE.to_owned(),
            Self::File { path, .. } => path.display().to_string(),
        }
    }

    /// The text now.
    ///
    /// An optional `ConfigMap` that does not exist is mounted as an empty directory, which means
    /// the same as an empty list. A file that existed before is an error when it is gone.
    fn read(&mut self) -> Result<String> {
        match self {
            Self::Environment(text) => Ok(text.clone()),
            Self::File { path, existed } => {
                if !*existed && !path.exists() && directory(path).is_dir() {
                    return Ok("[]".to_owned());
                }
                let text = read(path)?;
                *existed = true;
                Ok(text)
            }
        }
    }
}

/// The directory of a file.
fn directory(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    parent.unwrap_or(Path::new("."))
}

fn log_configuration(source: &str, configuration: &Configuration) {
    if *configuration == Configuration::discover() {
        info!(source; "configuration loaded: offering every NIC and bond");
        return;
    }
    let (entries, other_nodes) = (configuration.entries.len(), configuration.for_others);
    info!(source, entries, other_nodes; "configuration loaded");
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let metadata = fs::metadata(path).with_context(|| format!("reading {shown}"))?;
    let length = metadata.len();
    ensure!(
        length <= MAX_BYTES,
        "the configuration in {shown} has {length} bytes, more than {MAX_BYTES}"
    );
    let text = files::read(path).with_context(|| format!("reading {shown}"))?;
    // What is not UTF-8 may be in a comment.
    Ok(String::from_utf8_lossy(&text).into_owned())
}
