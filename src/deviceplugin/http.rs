//! Health and metrics by HTTP, for kubelet and Prometheus. One request a connection, few
//! connections at once, and none for long: who does not read must not hold anything up.

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

/// Connections at once.
const MOST: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The content type of Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// Who answers by HTTP, if anybody is to.
pub struct Http {
    listener: Option<TcpListener>,
    free: Arc<Semaphore>,
}

impl Http {
    /// Begins to listen.
    pub async fn listen(address: Option<SocketAddr>) -> Result<Self> {
        let listener = match address {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("listening on {address}"))?;
                info!("status address={}", listener.local_addr()?);
                Some(listener)
            }
        };
        Ok(Self {
            listener,
            free: Arc::new(Semaphore::new(MOST)),
        })
    }

    /// Who asks next.
    pub async fn asked(&self) -> Option<TcpStream> {
        match &self.listener {
            Some(listener) => listener.accept().await.ok().map(|(asker, _)| asker),
            None => std::future::pending().await,
        }
    }

    /// Answers by how it is now, which costs something to find out.
    pub fn answer(&self, asker: TcpStream, status: impl FnOnce() -> Status) {
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            debug!("more than {MOST} ask by HTTP at once");
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
            .serve_connection(TokioIo::new(asker), service);
        tokio::spawn(async move {
            // Whoever asked may be gone.
            let _ = timeout(PATIENCE, connection).await;
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
