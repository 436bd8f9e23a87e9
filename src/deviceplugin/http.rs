//! Health and metrics over HTTP, for kubelet and Prometheus.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use log::{debug, info};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::metrics;
use crate::types::status::Status;

/// The maximum number of connections at a time.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take. It serves one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// The content type of Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The HTTP server, if there is to be one.
pub struct HttpServer {
    listener: Option<TcpListener>,
    free: Arc<Semaphore>,
}

impl HttpServer {
    /// Listens on `address`, if there is one.
    pub async fn listen(address: Option<SocketAddr>) -> Result<Self> {
        let listener = match address {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("listening on {address}"))?;
                info!(address:% = listener.local_addr()?; "serving health and metrics");
                Some(listener)
            }
        };
        Ok(Self {
            listener,
            free: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        })
    }

    /// The next connection.
    pub async fn accept(&self) -> Option<TcpStream> {
        match &self.listener {
            Some(listener) => listener.accept().await.ok().map(|(stream, _)| stream),
            None => std::future::pending().await,
        }
    }

    /// Answers with the present status.
    pub fn answer(&self, stream: TcpStream, status: impl FnOnce() -> Status) {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            debug!(connections = MAX_CONNECTIONS; "too many HTTP connections");
            return;
        };
        let status = status();
        let service = service_fn(move |request: Request<Incoming>| {
            let response = respond(request.uri().path(), &status);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut builder = http1::Builder::new();
        let connection = builder
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // The client may be gone.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

fn respond(path: &str, status: &Status) -> Response<String> {
    let failures = status.summary().failures;
    let (code, text) = match path {
        "/healthz" if status.netlink_error.is_none() => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if failures.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        "/healthz" | "/readyz" => {
            let text = format!("{}\n", failures.join("\n"));
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
        "/metrics" => (StatusCode::OK, metrics::text(status)),
        _ => {
            let text = "there are /healthz, /readyz and /metrics\n".to_owned();
            (StatusCode::NOT_FOUND, text)
        }
    };
    let mut response = Response::new(text);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}
