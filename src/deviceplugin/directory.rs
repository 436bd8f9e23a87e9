//! Changes in a directory: the kubelet's, or that of the configuration.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::FutureExt;
use inotify::{EventStream, Inotify, WatchMask};
use log::{info, warn};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::StreamExt;

/// How often the directory is looked at although it is watched.
const SELDOM: Duration = Duration::from_secs(5);
/// How often where it cannot be watched.
const OFTEN: Duration = Duration::from_millis(100);
/// Events that come within this are one change.
const SETTLE: Duration = Duration::from_millis(5);
const BUFFER: usize = 4096;

/// A directory that is watched, or polled where inotify cannot be had.
pub struct Directory {
    path: PathBuf,
    watch: Option<Watch>,
    look_at: Instant,
    /// When what was seen, but not yet reported, will have settled.
    settled: Option<Instant>,
    complained: bool,
}

struct Watch {
    events: EventStream<[u8; BUFFER]>,
    /// Device and inode of the directory that is watched.
    identity: (u64, u64),
}

impl Directory {
    /// Begins to watch. The directory need not exist yet.
    #[must_use]
    pub fn watch(path: &Path) -> Self {
        let mut directory = Self {
            path: path.to_owned(),
            watch: None,
            look_at: Instant::now(),
            settled: None,
            complained: false,
        };
        directory.renew();
        directory
    }

    /// Returns when something changed in the directory, or may have. Nothing is lost if the
    /// future is dropped before.
    pub async fn changed(&mut self) {
        let settled = if let Some(settled) = self.settled {
            settled
        } else {
            self.wait().await;
            Instant::now() + SETTLE
        };
        self.settled = Some(settled);
        sleep_until(settled).await;
        if let Some(watch) = &mut self.watch {
            while let Some(Some(Ok(_))) = watch.events.next().now_or_never() {}
        }
        self.settled = None;
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

    /// Whether the directory was deleted while a mount still leads to it: nobody who
    /// looks for the path finds what we would put there.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|found| found.nlink() == 0)
    }

    /// Watches the directory that the path leads to now, if that is another one than before.
    fn renew(&mut self) {
        let found = fs::metadata(&self.path).ok();
        let identity = found.map(|found| (found.dev(), found.ino()));
        let watched = self.watch.as_ref().map(|watch| watch.identity);
        if identity.is_none() || watched != identity {
            self.watch = identity.and_then(|identity| self.start(identity));
        }
        let pause = if self.watch.is_some() { SELDOM } else { OFTEN };
        self.look_at = Instant::now() + pause;
    }

    fn start(&mut self, identity: (u64, u64)) -> Option<Watch> {
        let path = self.path.display();
        match events(&self.path) {
            Ok(events) => {
                if std::mem::take(&mut self.complained) {
                    info!("directory={path} is watched again");
                }
                Some(Watch { events, identity })
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    warn!("directory={path} cannot be watched, so it is polled: {error}");
                }
                None
            }
        }
    }
}

fn events(path: &Path) -> io::Result<EventStream<[u8; BUFFER]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::CLOSE_WRITE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    inotify.watches().add(path, mask)?;
    inotify.into_event_stream([0; BUFFER])
}
