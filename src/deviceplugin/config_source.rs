//! Where the configuration comes from: the environment, or a file that may change.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use log::{info, warn};

use super::config::{self, Configuration};

/// The environment variable of kubevirt/macvtap-cni.
const VARIABLE: &str = "DP_MACVTAP_CONF";
/// The longest configuration, in bytes: what fits into a `ConfigMap`.
const LONGEST: u64 = 1 << 20;

/// The source of the configuration, with what was read from it last.
pub enum Source {
    /// The text of the environment variable.
    Environment(String),
    /// A file.
    File(PathBuf),
    /// A file that was read before.
    Read(PathBuf, String),
}

impl Source {
    /// The environment, where the variable has to be set.
    pub fn environment() -> Result<Self> {
        let text = env::var_os(VARIABLE)
            .with_context(|| format!("{VARIABLE} environment variable must be set"))?;
        let text = text.into_string().ok();
        let text = text.with_context(|| format!("{VARIABLE} is not UTF-8"))?;
        Ok(Self::Environment(text))
    }

    /// The directory in which a change can be seen. A mounted `ConfigMap` changes by a
    /// symbolic link beside the file.
    #[must_use]
    pub fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Environment(_) => None,
            Self::File(path) | Self::Read(path, _) => {
                let parent = path.parent().filter(|parent| *parent != Path::new(""));
                Some(parent.unwrap_or(Path::new(".")).to_owned())
            }
        }
    }

    /// Reads the configuration for the first time: it has to be good.
    pub fn first(&mut self) -> Result<Configuration> {
        let configuration = self.again()?;
        configuration.context("the configuration was read before")
    }

    /// Reads the configuration again; none if it is the same text as before.
    pub fn again(&mut self) -> Result<Option<Configuration>> {
        let (name, text) = match &*self {
            Self::Environment(text) => (VARIABLE.to_owned(), text.clone()),
            Self::File(path) => (path.display().to_string(), read_first(path)?),
            Self::Read(path, before) => {
                let text = read(path)?;
                if text == *before {
                    return Ok(None);
                }
                (path.display().to_string(), text)
            }
        };
        // A broken text is remembered as well, so that it is complained about once.
        if let Self::File(path) | Self::Read(path, _) = self {
            *self = Self::Read(path.clone(), text.clone());
        }
        let (configuration, complaints) =
            config::parse(&text).with_context(|| format!("the configuration in {name}"))?;
        info!("configuration={name} {}", summary(&configuration));
        for complaint in complaints {
            warn!("configuration={name} {complaint}");
        }
        Ok(Some(configuration))
    }
}

fn summary(configuration: &Configuration) -> String {
    match configuration {
        Configuration::Discover => "is empty: every NIC and bond is offered".to_owned(),
        Configuration::Listed(resources) => format!("lists {} resources", resources.len()),
    }
}

/// An optional `ConfigMap` that does not exist is mounted as an empty directory, which means the
/// same as an empty list. A file that was there before and is gone is an error instead: the
/// configuration read from it stays in force.
fn read_first(path: &Path) -> Result<String> {
    let dir = path.parent().filter(|dir| *dir != Path::new(""));
    if !path.exists() && dir.unwrap_or(Path::new(".")).is_dir() {
        let shown = path.display().to_string();
        warn!(configuration = shown; "does not exist: every NIC and bond is offered");
        return Ok("[]".to_owned());
    }
    read(path)
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let length = fs::metadata(path)
        .with_context(|| format!("reading the configuration in {shown}"))?
        .len();
    ensure!(
        length <= LONGEST,
        "the configuration in {shown} has {length} bytes, more than {LONGEST}"
    );
    fs::read_to_string(path).with_context(|| format!("reading the configuration in {shown}"))
}
