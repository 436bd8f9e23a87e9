//! The status socket: how `probe` and `doctor` query the device plugin of a kubelet's directory.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use log::warn;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::oneshot,
    time::{sleep_until, timeout, timeout_at},
};

use super::accept::Acceptor;
use crate::{
    host::{
        control_socket::{self, Connection, Server, SocketFile},
        stdout,
    },
    types::status::{Status, Summary},
};

/// The name of the socket.
const NAME: &str = "status.sock";
/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the socket is made again if it was removed, or could not be made.
const BIND_INTERVAL: Duration = Duration::from_secs(1);

/// The socket. It is made again for as long as it takes: while another device plugin stops, and
/// when its directory comes late or was removed.
pub struct StatusServer {
    dir: PathBuf,
    listener: Option<(UnixListener, SocketFile)>,
    acceptor: Acceptor,
    check_at: Instant,
    last_error: String,
}

impl StatusServer {
    /// Listens, now or as soon as it can. A device plugin that cannot be queried still serves.
    #[must_use]
    pub fn listen(kubelet_dir: &Path) -> Self {
        let mut socket = Self {
            dir: control_socket::dir_in(kubelet_dir),
            listener: None,
            acceptor: Acceptor::default(),
            check_at: Instant::now(),
            last_error: String::new(),
        };
        socket.check();
        socket
    }

    /// The next query. Nothing is lost if the future is dropped before.
    pub async fn next_query(&mut self) -> oneshot::Sender<Status> {
        let client = self.accept().await;
        let (query, status) = oneshot::channel();
        tokio::spawn(answer(client, status));
        query
    }

    async fn accept(&mut self) -> UnixStream {
        loop {
            let check_at = self.check_at.into();
            let Some((listener, _)) = &self.listener else {
                sleep_until(check_at).await;
                self.check();
                continue;
            };
            let accepted = self
                .acceptor
                .accept(|context| listener.poll_accept(context));
            match timeout_at(check_at, accepted).await {
                Ok((client, _)) if control_socket::is_root(&client) => return client,
                Ok(_) => {}
                Err(_) => self.check(),
            }
        }
    }

    /// Makes the socket if it is not there.
    fn check(&mut self) {
        self.check_at = Instant::now() + BIND_INTERVAL;
        let file = self.listener.as_ref().map(|(_, file)| file);
        if file.is_some_and(SocketFile::is_in_place) {
            return;
        }
        self.listener = None;
        match self.bind() {
            Ok(listener) => {
                self.listener = Some(listener);
                self.last_error.clear();
            }
            Err(error) => self.warn(&format!("{error:#}")),
        }
    }

    fn bind(&self) -> Result<(UnixListener, SocketFile)> {
        let (listener, file) = Server::bind(&self.dir, NAME)?.into_parts();
        Ok((UnixListener::from_std(listener)?, file))
    }

    /// Warns, but does not repeat itself.
    fn warn(&mut self, error: &str) {
        if self.last_error != error {
            warn!(error; "cannot serve probe and doctor; retrying");
            error.clone_into(&mut self.last_error);
        }
    }
}

/// Answers a client, which may never read.
async fn answer(mut client: UnixStream, status: oneshot::Receiver<Status>) {
    let Ok(status) = status.await else {
        return; // The device plugin shuts down.
    };
    match serde_json::to_vec(&status) {
        Ok(mut line) => {
            line.push(b'\n');
            // The client may be gone.
            let _ = timeout(ANSWER_TIMEOUT, client.write_all(&line)).await;
        }
        Err(error) => warn!(error:%; "cannot encode the status"),
    }
}

/// Queries the device plugin of a kubelet's directory, and prints its summary. Fails if it is not
/// healthy, or with `live` only if a restart would help against that.
pub fn probe(kubelet_dir: &Path, live: bool) -> Result<ExitCode> {
    let status = query(kubelet_dir).with_context(|| {
        let dir = kubelet_dir.display();
        format!("the device plugin of {dir} does not answer; is it running?")
    })?;
    let is_live = status.is_live();
    let Summary {
        mut ok,
        notes,
        warnings,
        failures,
    } = status.summary();
    ok.extend(notes);
    let warnings = warnings.iter();
    ok.extend(warnings.map(|problem| format!("warning: {}", problem.text)));
    let failures: Vec<String> = failures.into_iter().map(|problem| problem.text).collect();
    let is_excused = live && is_live;
    if is_excused {
        ok.extend(failures.iter().map(|text| format!("not ready: {text}")));
    }
    stdout::print(&format!("{}\n", ok.join("\n")))?;
    ensure!(
        is_excused || failures.is_empty(),
        "unhealthy: {}",
        failures.join("; ")
    );
    Ok(ExitCode::SUCCESS)
}

/// Queries the device plugin of a kubelet's directory for its status.
pub fn query(kubelet_dir: &Path) -> Result<Status> {
    let mut connection = Connection::open(&control_socket::dir_in(kubelet_dir), NAME)?;
    connection.receive(Instant::now() + ANSWER_TIMEOUT)
}
