//! The Container Runtime Interface as far as the kubelet uses it for a pod with a tap: the
//! messages by their field numbers in Kubernetes' `cri-api` (`runtime.v1`), and a client.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use macvtap::deviceplugin::grpc::channel;
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
    #[prost(uint32, tag = "4")]
    pub attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Sandbox {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Metadata>,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<Empty>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<Sandbox>,
}

/// A request or an answer that is but an ID.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Name {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub readonly: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Device {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(string, tag = "3")]
    pub permissions: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Capabilities {
    #[prost(string, repeated, tag = "1")]
    pub add: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub drop: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Int64 {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    pub capabilities: Option<Capabilities>,
    #[prost(message, optional, tag = "5")]
    pub run_as_user: Option<Int64>,
    #[prost(bool, tag = "11")]
    pub no_new_privs: bool,
    #[prost(message, optional, tag = "12")]
    pub run_as_group: Option<Int64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Linux {
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Container {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<Name>,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "8")]
    pub devices: Vec<Device>,
    #[prost(message, optional, tag = "15")]
    pub linux: Option<Linux>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Container>,
    #[prost(message, optional, tag = "3")]
    sandbox: Option<Sandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

/// What a command in a container printed, and its exit status.
#[derive(Clone, PartialEq, Message)]
pub struct Output {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

/// A client, which waits for each answer.
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects when it is first needed.
    pub fn new(socket: PathBuf) -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let endpoint = channel::endpoint().timeout(Duration::from_mins(1));
        let connect = channel::connector(socket);
        let channel = runtime.block_on(async { endpoint.connect_with_connector_lazy(connect) });
        Self { runtime, channel }
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, String>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path = PathAndQuery::try_from(path).unwrap();
        let mut client = Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            client.ready().await.map_err(|error| format!("{error:?}"))?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            let answer = client.unary(Request::new(request), path, codec).await;
            let answer = answer.map_err(|status| format!("{method}: {}", status.message()))?;
            Ok(answer.into_inner())
        })
    }

    pub fn is_up(&self) -> bool {
        self.call::<_, Empty>("Status", Empty {}).is_ok()
    }

    /// Makes a pod's sandbox; its ID.
    pub fn run_sandbox(&self, config: &Sandbox) -> Result<String, String> {
        let config = Some(config.clone());
        let answer: Id = self.call("RunPodSandbox", RunPodSandbox { config })?;
        Ok(answer.id)
    }

    /// The address by which the kubelet reaches a pod; empty if the runtime knows none.
    pub fn address(&self, sandbox: &str) -> String {
        let request = Id { id: sandbox.into() };
        let answer: SandboxStatus = self.call("PodSandboxStatus", request).unwrap();
        let network = answer.status.and_then(|status| status.network);
        network.map_or_else(String::new, |network| network.ip)
    }

    /// Stops a sandbox and removes it with its containers.
    pub fn remove_sandbox(&self, id: &str) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let _: Empty = self.call(method, Id { id: id.into() }).unwrap();
        }
    }

    /// Stops a sandbox, and removes its container and then the sandbox, as the kubelet does.
    ///
    /// containerd 2.1.9 takes a lock twice where it removes both at once, and hangs for good if
    /// an NRI plugin registers between the two.
    pub fn remove(&self, sandbox: &str, container: &str) {
        let steps = [
            ("StopPodSandbox", sandbox),
            ("RemoveContainer", container),
            ("RemovePodSandbox", sandbox),
        ];
        for (method, id) in steps {
            let _: Empty = self.call(method, Id { id: id.into() }).unwrap();
        }
    }

    /// Removes a container.
    pub fn remove_container(&self, id: &str) {
        let _: Empty = self.call("RemoveContainer", Id { id: id.into() }).unwrap();
    }

    /// Makes a container and starts it; its ID.
    pub fn start(
        &self,
        sandbox_id: &str,
        sandbox: &Sandbox,
        config: Container,
    ) -> Result<String, String> {
        let id = self.create(sandbox_id, sandbox, config)?;
        self.start_created(&id)?;
        Ok(id)
    }

    /// Makes a container; its ID.
    pub fn create(
        &self,
        sandbox_id: &str,
        sandbox: &Sandbox,
        config: Container,
    ) -> Result<String, String> {
        let request = CreateContainer {
            sandbox_id: sandbox_id.into(),
            config: Some(config),
            sandbox: Some(sandbox.clone()),
        };
        let container: Id = self.call("CreateContainer", request)?;
        Ok(container.id)
    }

    /// Starts a container that was made.
    pub fn start_created(&self, id: &str) -> Result<(), String> {
        let _: Empty = self.call("StartContainer", Id { id: id.into() })?;
        Ok(())
    }

    /// Runs a command in a container.
    pub fn exec(&self, container_id: &str, command: &str) -> Output {
        let command = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let request = ExecSync {
            container_id: container_id.into(),
            command,
            timeout: 20,
        };
        self.call("ExecSync", request).unwrap()
    }
}
