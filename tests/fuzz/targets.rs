//! What comes from outside, and what must hold whatever it is. libFuzzer calls these functions
//! with what it makes up, `mod.rs` with what is in `corpus`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use macvtap::{
    cni,
    deviceplugin::{
        config::{self, Context},
        device_list,
        event::EventSender,
        grpc::{
            api::{
                AllocateRequest, PreStartContainerRequest, PreferredAllocationRequest,
                device_plugin_server::{DevicePlugin, DevicePluginServer},
            },
            service::PluginService,
        },
        selection::Selection,
        tap_only::TapOnly,
    },
    host::netns::Netns,
    learning::frame::{self, Frame},
    macvtap::selector::Facts,
    netlink::{self, Socket},
    types::device_id::DeviceId,
};
use prost::Message;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tonic::{Request, transport::Server};

/// Network namespaces in which a call can do no harm: a host with a lower device, and a pod.
struct Sandbox {
    host: Netns,
    pod: Netns,
    _far: Netns,
}

impl Sandbox {
    fn new() -> Self {
        let (host, pod, far) = (netns(), netns(), netns());
        host.run(|| {
            let mut socket = Socket::open()?;
            socket.create_veth("eth0", "far0", far.as_fd())?;
            let index = socket.link_by_name("eth0")?.unwrap().index;
            let up = netlink::Change {
                up: Some(true),
                ..netlink::Change::default()
            };
            Ok(socket.change(index, &up)?)
        })
        .unwrap();
        Self {
            host,
            pod,
            _far: far,
        }
    }

    /// The names of what is in the pod beside its loopback interface.
    fn attached(&self) -> Vec<String> {
        let links = self.pod.socket().unwrap().links().unwrap();
        let names = links.into_iter().filter(|link| !link.loopback);
        names.map(|link| link.name).collect()
    }

    /// What a value of the environment stands for.
    fn place(&self, value: &str) -> String {
        let path = |netns: &Netns| format!("/proc/self/fd/{}", netns.as_fd().as_raw_fd());
        match value {
            "@pod" => path(&self.pod),
            "@host" => path(&self.host),
            _ => value.to_owned(),
        }
    }
}

fn netns() -> Netns {
    Netns::create().unwrap()
}

thread_local! {
    static SANDBOX: RefCell<Sandbox> = RefCell::new(Sandbox::new());
}

/// A call of the CNI plugin: lines `NAME=value` of the environment, an empty line, standard
/// input. `@pod` and `@host` stand for the paths of the sandbox' namespaces.
pub fn cni(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (lines, stdin) = text.split_once("\n\n").unwrap_or((&text, ""));
    let names_file = serde_json::from_str::<Value>(stdin)
        .is_ok_and(|config| config.get("logFile").is_some() || config.get("logLevel").is_some());
    if names_file {
        return; // It would write where it is told to, as it should.
    }
    SANDBOX.with_borrow_mut(|sandbox| {
        let get = |name: &str| {
            let values = lines.lines().filter_map(|line| line.split_once('='));
            let value = values.rev().find(|(key, _)| *key == name);
            // It would run whatever program it is told to, as it should.
            let value = value.map(|(key, value)| match key {
                "CNI_PATH" if !value.is_empty() => (key, "/nonexistent"),
                _ => (key, value),
            });
            value.map_or_else(String::new, |(_, value)| sandbox.place(value))
        };
        let verb = get("CNI_COMMAND");
        let mut stdout = Vec::new();
        let succeeded = sandbox
            .host
            .run(|| Ok(cni::answer(get, &mut stdin.as_bytes(), &mut stdout)))
            .unwrap();
        check_answer(&verb, succeeded, &stdout);
        if !sandbox.attached().is_empty() {
            assert!(succeeded && verb == "ADD", "left behind by {verb}");
            sandbox.pod = netns();
        }
    });
}

/// One JSON document or nothing, and of the kind that the exit status says.
fn check_answer(verb: &str, succeeded: bool, stdout: &[u8]) {
    if stdout.is_empty() {
        let silent = ["CHECK", "DEL", "GC", "STATUS"].contains(&verb);
        assert!(succeeded && silent, "{verb} said nothing");
        return;
    }
    let document: Value = serde_json::from_slice(stdout).expect("one JSON document");
    let version = document["cniVersion"].is_string();
    if succeeded {
        assert!(version && document.get("code").is_none(), "{document}");
        let result =
            document.get("interfaces").is_some() || document["cniVersion"].as_str() < Some("0.3.0");
        match verb {
            "ADD" => assert!(result, "{document}"),
            "VERSION" => assert!(document["supportedVersions"].is_array(), "{document}"),
            _ => panic!("{verb} succeeded with {document}"),
        }
    } else {
        let code = document["code"].as_u64().is_some_and(|code| code > 0);
        let text = document["msg"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert!(version && code && text, "{document}");
    }
}

/// `CNI_ARGS`.
pub fn cni_args(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(args) = cni::Args::parse(&text) {
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, _) = pair.split_once('=').expect("a pair");
            assert!(args.get(key).is_none_or(|value| text.contains(value)));
        }
    }
}

/// A device ID: what is understood is what would be printed.
pub fn device_id(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = text.parse::<DeviceId>() {
        assert_eq!(id.to_string(), text);
    }
}

/// `DP_MACVTAP_CONF`: each device that follows has an ID that can be read, and a tap of its own.
pub fn dp_conf(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok((configuration, _)) = config::parse(&text, Context::default()) else {
        return;
    };
    let node = (&[][..], &Facts::default());
    let resources = Selection::of(&configuration, node, &BTreeMap::new()).resources;
    let devices: usize = resources.values().map(|resource| resource.capacity).sum();
    if devices > 2000 {
        return; // Slow, and nothing new.
    }
    let all = device_list::devices("node", &resources);
    assert_eq!(all.len(), resources.len());
    let all: Vec<_> = all.values().flat_map(|devices| devices.iter()).collect();
    let mut taps: Vec<u32> = all.iter().map(|device| device.tap).collect();
    for device in &all {
        assert_eq!(device.id.parse::<DeviceId>().unwrap().tap, device.tap);
    }
    taps.sort_unstable();
    taps.dedup();
    assert_eq!(taps.len(), all.len());
}

/// A frame from the wire, or from a guest.
pub fn frame(data: &[u8]) {
    assert_eq!(Frame::read(data).is_some(), data.len() >= 14);
    let mut once = data.to_vec();
    frame::complete_checksum(&mut once);
    assert_eq!(once.len(), data.len());
    let mut twice = once.clone();
    frame::complete_checksum(&mut twice);
    assert_eq!(once, twice);
}

/// A datagram of the kernel's.
pub fn netlink(data: &[u8]) {
    if let Ok(links) = netlink::read_links(data, 1) {
        assert!(links.len() <= data.len() / 16);
    }
}

/// What comes in by a resource's socket. The first byte says how: as bytes of a connection, or
/// as the message of one of the methods.
pub fn grpc(data: &[u8]) {
    let Some((method, data)) = data.split_first() else {
        return;
    };
    SANDBOX.with_borrow(|sandbox| {
        let work = async {
            match method % 4 {
                0 => connection(data).await,
                1 => allocate(data).await,
                2 => {
                    if let Ok(request) = PreStartContainerRequest::decode(data) {
                        let _ = service().pre_start_container(Request::new(request)).await;
                    }
                }
                _ => prefer(data).await,
            }
        };
        let runtime = runtime();
        sandbox
            .host
            .run(|| {
                runtime.block_on(work);
                let mut socket = Socket::open()?;
                for link in socket.links()?.iter().filter(|link| link.is_macvtap()) {
                    socket.delete(link.index)?;
                }
                Ok(())
            })
            .unwrap();
    });
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

fn service() -> PluginService {
    let (_, list) = watch::channel(Arc::default());
    let (events, _) = mpsc::unbounded_channel();
    PluginService {
        generation: 1,
        list,
        events: EventSender::new("dataplane", events),
        tap_only: TapOnly::start().unwrap(),
    }
}

async fn connection(data: &[u8]) {
    let (mut kubelet, plugin) = tokio::io::duplex(1 << 16);
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(plugin));
    let service = DevicePluginServer::new(service());
    let server = tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    let _ = kubelet.write_all(data).await;
    let _ = kubelet.shutdown().await;
    let mut answer = Vec::new();
    let reading = kubelet.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_millis(20), reading).await;
    server.abort();
    let panicked = server.await.is_err_and(|end| end.is_panic());
    assert!(!panicked);
}

async fn allocate(data: &[u8]) {
    let Ok(request) = AllocateRequest::decode(data) else {
        return;
    };
    let asked: Vec<usize> = request
        .container_requests
        .iter()
        .map(|request| request.device_ids.len())
        .collect();
    if let Ok(answer) = service().allocate(Request::new(request)).await {
        let answers = answer.into_inner().container_responses;
        let allocated: Vec<usize> = answers.iter().map(|answer| answer.devices.len()).collect();
        assert_eq!(allocated, asked);
        let mut devices = answers.iter().flat_map(|answer| &answer.devices);
        assert!(devices.all(|device| device.host_path.starts_with("/dev/tap")));
    }
}

async fn prefer(data: &[u8]) {
    let Ok(request) = PreferredAllocationRequest::decode(data) else {
        return;
    };
    let answer = service()
        .get_preferred_allocation(Request::new(request.clone()))
        .await
        .unwrap();
    let answers = answer.into_inner().container_responses;
    for (request, answer) in request.container_requests.iter().zip(answers) {
        let size = usize::try_from(request.allocation_size).unwrap_or_default();
        assert!(answer.device_ids.len() <= size);
    }
}
