//! The kubelet's pod resources API.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use super::channel;

/// The API, generated from `proto/podresources.proto`.
pub mod api {
    #![expect(
        missing_docs,
        clippy::pedantic,
        reason = "generated code, described in the proto file"
    )]

    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}

/// How long the kubelet may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of an answer, in bytes, as in Kubernetes' own clients.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The socket of the kubelet whose device-plugins directory this is: where our manifests mount it,
/// or as a privileged container in the host's pid namespace sees it.
#[must_use]
pub fn socket(kubelet_dir: &Path) -> Option<PathBuf> {
    let mounted = kubelet_dir.parent()?.join("pod-resources/kubelet.sock");
    let of_host = Path::new("/proc/1/root").join(mounted.strip_prefix("/").ok()?);
    [mounted, of_host].into_iter().find(|path| path.exists())
}

/// The devices that containers have. The kubelet also releases the devices of pods that are gone,
/// which it else does not before it allocates devices to another pod (`UpdateAllocatedDevices` of
/// its device manager).
pub async fn list(socket: PathBuf) -> Result<api::ListPodResourcesResponse> {
    let call = async {
        let channel = channel::connect(socket).await?;
        let client = api::pod_resources_lister_client::PodResourcesListerClient::new(channel);
        let mut client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        let answer = client.list(api::ListPodResourcesRequest {}).await;
        let answer = answer.map_err(|status| anyhow!("{}", status.message()))?;
        Ok(answer.into_inner())
    };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
    answer.context("the kubelet did not answer")?
}
