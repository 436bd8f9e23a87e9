//! gRPC connections over Unix sockets.

use std::{io, path::PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint, Error},
};
use tower::Service;

/// A connector for [`endpoint`].
///
/// Tonic's own would add name resolution, which does not work in a static binary.
#[must_use]
pub fn connector(
    socket: PathBuf,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send {
    tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}

/// An endpoint whose address is not used.
#[must_use]
pub fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

/// Connects to the Unix socket at `path`.
pub async fn connect(path: PathBuf) -> Result<Channel, Error> {
    endpoint().connect_with_connector(connector(path)).await
}
