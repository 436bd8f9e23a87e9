//! The kubelet's registration service.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::{
    api::{RegisterRequest, registration_client::RegistrationClient},
    service,
};
use crate::deviceplugin::NAMESPACE;

/// The name of the kubelet's socket.
pub const SOCKET: &str = "kubelet.sock";
/// The version of the API.
pub const VERSION: &str = "v1beta1";
/// How long the kubelet may take to answer. It dials back before it does, for up to 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// Registers a resource that is served on the socket `endpoint`, beside the kubelet's own.
pub async fn register(kubelet: PathBuf, resource: String, endpoint: String) -> Result<()> {
    let shown = kubelet.display().to_string();
    let call = async {
        // Not tonic's own connector: it would bring name resolution, which is not for a static
        // binary. The kubelet does not look at the address.
        let connect = tower::service_fn(move |_| {
            let path = kubelet.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost");
        let channel = channel.connect_with_connector(connect).await;
        let channel =
            channel.map_err(|error| anyhow!("connecting to {shown}: {}", cause(&error)))?;
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint,
            resource_name: format!("{NAMESPACE}/{resource}"),
            options: Some(service::options()),
        };
        let answer = RegistrationClient::new(channel).register(request).await;
        let answer = answer.map_err(|status| anyhow!("{}", status.message()));
        answer.with_context(|| format!("the kubelet at {shown} refused"))?;
        Ok(())
    };
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.with_context(|| format!("the kubelet at {shown} did not answer in {PATIENCE:?}"))?
}

/// The innermost error: the outer ones repeat it.
fn cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
