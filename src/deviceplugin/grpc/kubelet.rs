//! The client of the kubelet's registration service.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};

use super::{
    api::{RegisterRequest, registration_client::RegistrationClient},
    channel, service,
};
use crate::deviceplugin::names::{API_VERSION, qualified};

/// How long the kubelet may take to answer. It dials back first, for up to 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Registers a resource that is served on the socket `endpoint`, in the same directory as the
/// kubelet's own.
pub async fn register(kubelet: PathBuf, resource: String, endpoint: String) -> Result<()> {
    let path = kubelet.display().to_string();
    let call = call(kubelet, &path, &resource, endpoint);
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
    answer.with_context(|| format!("the kubelet at {path} did not answer in {ANSWER_TIMEOUT:?}"))?
}

async fn call(kubelet: PathBuf, path: &str, resource: &str, endpoint: String) -> Result<()> {
    let channel = channel::connect(kubelet).await;
    let channel =
        channel.map_err(|error| anyhow!("connecting to {path}: {}", root_cause(&error)))?;
    let request = RegisterRequest {
        version: API_VERSION.to_owned(),
        endpoint,
        resource_name: qualified(resource),
        options: Some(service::options()),
    };
    let answer = RegistrationClient::new(channel).register(request).await;
    let answer = answer.map_err(|status| anyhow!("{}", status.message()));
    answer.with_context(|| format!("the kubelet at {path} refused"))?;
    Ok(())
}

/// The innermost error: the outer ones repeat it.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
