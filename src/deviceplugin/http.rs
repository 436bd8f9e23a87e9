//! Health and metrics over HTTP, for kubelet and Prometheus.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::Duration,
};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use log::{info, warn};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, mpsc, oneshot},
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use super::{accept::Acceptor, attachment_limits, metrics};
use crate::types::{
    listen_address::ListenAddress,
    status::{LimitsStatus, Status},
};

/// The maximum number of connections at a time. One more closes the oldest, so that connections
/// without a request do not keep a probe out.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take. It serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How old the limits of attachments may be: to read them goes through many network namespaces.
const LIMITS_AGE: Duration = Duration::from_secs(1);
/// The content type of Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// A request that waits for the status.
pub type Query = oneshot::Sender<Status>;

/// The limits of attachments as they were read last, and when. Locked while they are read.
type Limits = Arc<Mutex<Option<(Instant, BTreeMap<u32, LimitsStatus>)>>>;

/// The HTTP server, if there is to be one.
pub struct HttpServer {
    address: Option<ListenAddress>,
    listener: Option<TcpListener>,
    retry_at: Instant,
    warned: bool,
    acceptor: Acceptor,
    /// From the oldest to the newest.
    connections: VecDeque<AbortHandle>,
    queries: mpsc::Receiver<Query>,
    sender: mpsc::Sender<Query>,
    limits: Limits,
}

impl HttpServer {
    /// A server that listens on `address`, if there is one.
    #[must_use]
    pub fn new(address: Option<ListenAddress>) -> Self {
        let (sender, queries) = mpsc::channel(1);
        Self {
            address,
            listener: None,
            retry_at: Instant::now(),
            warned: false,
            acceptor: Acceptor::default(),
            connections: VecDeque::new(),
            queries,
            sender,
            limits: Limits::default(),
        }
    }

    /// The next request for the status. Connections are served as long as this is awaited.
    pub async fn next_query(&mut self) -> Query {
        let Some(address) = self.address.clone() else {
            return pending().await;
        };
        loop {
            let Some(listener) = &self.listener else {
                sleep_until(self.retry_at).await;
                self.listen(&address).await;
                continue;
            };
            tokio::select! {
                Some(query) = self.queries.recv() => return query,
                (stream, _) = self.acceptor.accept(|context| listener.poll_accept(context)) => {
                    self.serve(stream);
                }
            }
        }
    }

    /// Another process may have the port: a device plugin that is about to end.
    async fn listen(&mut self, address: &ListenAddress) {
        match TcpListener::bind(&address.candidates[..]).await {
            Ok(listener) => {
                let address = listener.local_addr();
                let address = address.map_or_else(|error| error.to_string(), |it| it.to_string());
                info!(address; "serving health and metrics");
                self.listener = Some(listener);
            }
            Err(error) => {
                if !self.warned {
                    warn!(address:%, error:%; "cannot serve health and metrics; retrying");
                }
                self.warned = true;
                self.retry_at = Instant::now() + RETRY_INTERVAL;
            }
        }
    }

    fn serve(&mut self, stream: TcpStream) {
        self.connections
            .retain(|connection| !connection.is_finished());
        if self.connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.connections.pop_front()
        {
            oldest.abort();
        }
        let connection = tokio::spawn(serve(stream, self.sender.clone(), self.limits.clone()));
        self.connections.push_back(connection.abort_handle());
    }
}

/// Serves one request.
async fn serve(stream: TcpStream, queries: mpsc::Sender<Query>, limits: Limits) {
    let service = service_fn(|request: Request<Incoming>| {
        let (queries, limits) = (&queries, &limits);
        async move {
            let response = match status(queries).await {
                Some(status) => {
                    let path = request.uri().path();
                    respond(path, &with_limits(path, status, limits).await)
                }
                None => response(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "shutting down\n".to_owned(),
                ),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    let connection = builder
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // The client may be gone.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

/// The present status; none while the device plugin shuts down.
async fn status(queries: &mpsc::Sender<Query>) -> Option<Status> {
    let (query, status) = oneshot::channel();
    queries.send(query).await.ok()?;
    status.await.ok()
}

/// Metrics have what the limits of attachments did. The kernel is asked in a thread beside, for
/// that goes through many network namespaces.
async fn with_limits(path: &str, status: Status, limits: &Limits) -> Status {
    if path != "/metrics" {
        return status;
    }
    // One at a time, however many ask, also if those who asked first are gone by then.
    let mut known = Arc::clone(limits).lock_owned().await;
    if let Some((at, limits)) = &*known
        && at.elapsed() < LIMITS_AGE
    {
        let limits = limits.clone();
        return Status { limits, ..status };
    }
    let read = spawn_blocking({
        let status = status.clone();
        move || {
            let limits = attachment_limits::read(&status);
            *known = Some((Instant::now(), limits.clone()));
            limits
        }
    });
    match read.await {
        Ok(limits) => Status { limits, ..status },
        Err(error) => {
            warn!(error:%; "cannot read the limits of attachments");
            status
        }
    }
}

fn respond(path: &str, status: &Status) -> Response<String> {
    let failures = status.summary().failures;
    match path {
        "/healthz" if status.is_live() => response(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if failures.is_empty() => response(StatusCode::OK, "ok\n".to_owned()),
        "/healthz" | "/readyz" => {
            let lines = failures.iter().map(|problem| format!("{}\n", problem.text));
            response(StatusCode::SERVICE_UNAVAILABLE, lines.collect())
        }
        "/metrics" => response(StatusCode::OK, metrics::text(status)),
        _ => {
            let text = "there are /healthz, /readyz and /metrics\n".to_owned();
            response(StatusCode::NOT_FOUND, text)
        }
    }
}

fn response(code: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}
