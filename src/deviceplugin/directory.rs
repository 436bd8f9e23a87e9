//! Changes in a directory: the kubelet's, or that of the configuration.

use std::{
    fs, io, mem,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::FutureExt;
use inotify::{EventStream, Inotify, WatchMask};
use log::{info, warn};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::StreamExt;

use crate::host::file_id::Inode;

/// The time between two looks at a directory that is watched.
const WATCHED_INTERVAL: Duration = Duration::from_secs(5);
/// The time between two looks at a directory that cannot be watched.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Events within this time are one change.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Bytes for events, of which each has a name of up to 256.
const BUFFER: usize = 1024;

/// A directory that is watched, or polled if inotify cannot be used.
pub struct DirectoryWatch {
    path: PathBuf,
    watch: Option<Watched>,
    look_at: Instant,
    /// When the events that came will be reported.
    report_at: Option<Instant>,
    warned: bool,
}

struct Watched {
    events: EventStream<Vec<u8>>,
    inode: Inode,
}

impl DirectoryWatch {
    /// Starts to watch. The directory need not exist yet.
    #[must_use]
    pub fn start(path: &Path) -> Self {
        let mut directory = Self {
            path: path.to_owned(),
            watch: None,
            look_at: Instant::now(),
            report_at: None,
            warned: false,
        };
        directory.renew();
        directory
    }

    /// Returns when something changed in the directory, or may have. Nothing is lost if the
    /// future is dropped before.
    pub async fn changed(&mut self) {
        let report_at = if let Some(report_at) = self.report_at {
            report_at
        } else {
            self.wait().await;
            Instant::now() + DEBOUNCE
        };
        self.report_at = Some(report_at);
        sleep_until(report_at).await;
        if let Some(watch) = &mut self.watch {
            while let Some(Some(Ok(_))) = watch.events.next().now_or_never() {}
        }
        self.report_at = None;
        self.renew();
    }

    /// Waits for an event, or until it is time to look without one.
    async fn wait(&mut self) {
        match &mut self.watch {
            None => sleep_until(self.look_at).await,
            Some(watch) => match timeout_at(self.look_at, watch.events.next()).await {
                Err(_) | Ok(Some(Ok(_))) => {}
                Ok(_) => self.watch = None,
            },
        }
    }

    /// Watches the directory that the path leads to now, if that is another one than before.
    fn renew(&mut self) {
        let found = fs::metadata(&self.path).ok();
        let inode = found.as_ref().map(Inode::of);
        let watched = self.watch.as_ref().map(|watch| watch.inode);
        if inode.is_none() || watched != inode {
            self.watch = inode.and_then(|inode| self.watch(inode));
        }
        let interval = match self.watch {
            Some(_) => WATCHED_INTERVAL,
            None => POLL_INTERVAL,
        };
        self.look_at = Instant::now() + interval;
    }

    fn watch(&mut self, inode: Inode) -> Option<Watched> {
        let directory = self.path.display();
        match events(&self.path) {
            Ok(events) => {
                if mem::take(&mut self.warned) {
                    info!(directory:%; "watching again");
                }
                Some(Watched { events, inode })
            }
            Err(error) => {
                if !mem::replace(&mut self.warned, true) {
                    warn!(directory:%, error:%; "cannot be watched; polling");
                }
                None
            }
        }
    }
}

fn events(path: &Path) -> io::Result<EventStream<Vec<u8>>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(path, mask)?;
    inotify.into_event_stream(vec![0; BUFFER])
}
