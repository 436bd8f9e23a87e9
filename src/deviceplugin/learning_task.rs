//! Learning, as far as it can be had: another device plugin may be learning, or a capability
//! may be missing.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Error, Result};
use log::{error, warn};

use super::{
    host_access::{Port, Ports},
    settings::Settings,
};
use crate::{
    host::control_socket::BindError,
    learning::{Learning, OnChange},
    types::status::LearningStatus,
};

/// The time between attempts to start.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Learning that starts when it can, and starts again when its thread has ended.
pub struct LearningTask {
    is_on: bool,
    /// The directory of the pods' network namespaces.
    netns_dir: PathBuf,
    kubelet_dir: PathBuf,
    on_change: OnChange,
    learning: Option<Learning>,
    has_started: bool,
    retry_at: Option<Instant>,
}

impl LearningTask {
    /// Starts learning, unless it is turned off. `on_change` is called when ports come, go or
    /// change.
    #[must_use]
    pub fn start(settings: &Settings, on_change: OnChange) -> Self {
        let mut task = Self {
            is_on: settings.learning,
            netns_dir: settings.netns_dir.clone(),
            kubelet_dir: settings.kubelet_dir.clone(),
            on_change,
            learning: None,
            has_started: false,
            retry_at: None,
        };
        match task.try_start() {
            Ok(true) => return task,
            Ok(false) => warn_off(&Error::msg("it is turned off by --learning")),
            Err(error) => warn_off(&error),
        }
        if task.retry_at.is_none()
            && let Err(error) = Learning::do_without(&task.netns_dir, &task.kubelet_dir)
        {
            warn!(error = format!("{error:#}"); "ports may stay parked");
        }
        task
    }

    /// Tries again if it is time.
    pub fn run_due(&mut self, now: Instant) {
        let learning = self.learning.as_ref();
        if learning.is_some_and(|learning| !learning.is_running()) {
            error!("learning has stopped, starting it again");
            self.learning = None;
            self.retry_at = Some(now + RETRY_INTERVAL);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            // The first attempt was logged.
            let _ = self.try_start();
        }
    }

    /// When [`Self::run_due`] has to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Its status; none if it is off.
    pub fn status(&self) -> Option<LearningStatus> {
        self.learning.as_ref().map(Learning::status)
    }

    /// The macvtaps of guests, as far as it knows them.
    pub fn ports(&self) -> Ports {
        let Some(learning) = &self.learning else {
            return Ports::Unknown;
        };
        let Some(ports) = learning.ports() else {
            return Ports::Awaited;
        };
        let ports = ports.into_iter().filter_map(|(tap, port)| {
            Some(Port {
                tap,
                mac: port.mac.parse().ok()?,
                lower: port.lower,
                parked: port.parked,
                addresses: port.addresses,
            })
        });
        Ports::Known(ports.collect())
    }

    /// Starts it. False if it is turned off.
    fn try_start(&mut self) -> Result<bool> {
        self.retry_at = None;
        if !self.is_on {
            return Ok(false);
        }
        match Learning::start(
            &self.netns_dir,
            &self.kubelet_dir,
            Arc::clone(&self.on_change),
        ) {
            Ok(learning) => {
                self.learning = Some(learning);
                self.has_started = true;
                Ok(true)
            }
            Err(error) => {
                // The device plugin that learns may be about to end. A capability that is missing
                // stays so.
                if matches!(error, BindError::InUse(_)) || self.has_started {
                    self.retry_at = Some(Instant::now() + RETRY_INTERVAL);
                }
                Err(error.into())
            }
        }
    }
}

fn warn_off(reason: &Error) {
    warn!(
        reason:% = format!("{reason:#}");
        "learning is off: VMs are unreachable from VMs on the same node during migration"
    );
}
