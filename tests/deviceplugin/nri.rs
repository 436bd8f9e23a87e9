//! NRI, as a container runtime sees the device plugin: bytes, order and failures.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::{
        fs::MetadataExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kit::{
    binary,
    kubelet::{Plugin, WAIT_TIMEOUT, command},
    netns::{Cni, Host, IFNAME, Node, tap, tap_number, wait_until},
};
use macvtap::deviceplugin::{
    nri::{
        api::{
            ConfigureRequest, ConfigureResponse, Container, CreateContainerRequest,
            CreateContainerResponse, LinuxContainer, LinuxDevice, LinuxNamespace, LinuxPodSandbox,
            PodSandbox, RegisterPluginRequest, Request, Response, StateChangeEvent, Status,
            SynchronizeRequest, SynchronizeResponse,
        },
        frame::{Decoder, Message, PLUGIN, REQUEST, RESPONSE, RUNTIME},
    },
    status,
};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

const UID: &str = "6ee2a1b5-1ff2-4f36-a4a0-5a6f2b7d3c10";
const CREATE_CONTAINER: i32 = 1 << 3;

/// A runtime that waits for plugins.
struct Runtime {
    listener: UnixListener,
    path: PathBuf,
    dir: TempDir,
}

/// A plugin that is connected to it.
struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    received: Vec<Message>,
    /// The next stream, odd as all of a client.
    stream_id: u32,
    /// Bytes of the frames that are sent.
    frame: usize,
}

impl Runtime {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let path = dir.path().join("nri.sock");
        let listener = listen(&path);
        Self {
            listener,
            path,
            dir,
        }
    }

    fn plugin(&self, node: &Node) -> Plugin {
        let mut command = command(&[], self.dir.path());
        command.arg("--nri").arg(&self.path).args(["-v", "4"]);
        Plugin::spawn(&node.host, command)
    }

    /// A plugin that has connected and sent its registration.
    fn accept(&self) -> (Connection, RegisterPluginRequest) {
        let start = Instant::now();
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(start.elapsed() < WAIT_TIMEOUT, "no plugin connects");
            std::thread::sleep(Duration::from_millis(1));
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut connection = Connection {
            stream,
            decoder: Decoder::default(),
            received: Vec::new(),
            stream_id: 1,
            frame: 4096,
        };
        let message = connection.receive();
        assert_eq!((message.connection, message.kind), (RUNTIME, REQUEST));
        let request = Request::decode(&message.payload[..]).unwrap();
        assert_eq!(request.method, "RegisterPlugin");
        let registration = RegisterPluginRequest::decode(&request.payload[..]).unwrap();
        (connection, registration)
    }

    /// A plugin that is registered, configured and synchronized.
    fn ready(&self) -> Connection {
        let (mut connection, _) = self.accept();
        connection.register(None);
        connection.configure();
        connection.synchronize(&SynchronizeRequest::default());
        connection
    }
}

fn listen(path: &Path) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

impl Connection {
    fn send(&mut self, message: &Message) {
        let frames = message.encode().unwrap();
        for piece in frames.chunks(self.frame) {
            self.stream.write_all(piece).unwrap();
        }
    }

    fn receive(&mut self) -> Message {
        let mut buffer = [0; 4096];
        while self.received.is_empty() {
            let length = match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                length => length.unwrap(),
            };
            assert!(length > 0, "the plugin closed the connection");
            self.received = self.decoder.push(&buffer[..length]).unwrap();
        }
        self.received.remove(0)
    }

    /// Answers the registration.
    fn register(&mut self, status: Option<Status>) {
        let response = Response {
            status,
            payload: Vec::new(),
        };
        self.send(&Message {
            connection: RUNTIME,
            stream: 1,
            kind: RESPONSE,
            payload: response.encode_to_vec(),
        });
    }

    /// The response to a call.
    fn call(&mut self, method: &str, payload: Vec<u8>) -> Response {
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Plugin".to_owned(),
            method: method.to_owned(),
            payload,
        };
        let sent = self.stream_id;
        self.stream_id += 2;
        self.send(&Message {
            connection: PLUGIN,
            stream: sent,
            kind: REQUEST,
            payload: request.encode_to_vec(),
        });
        let message = self.receive();
        let Message {
            connection,
            stream,
            kind,
            payload,
        } = message;
        assert_eq!((connection, stream, kind), (PLUGIN, sent, RESPONSE));
        Response::decode(&payload[..]).unwrap()
    }

    fn configure(&mut self) -> ConfigureResponse {
        let request = ConfigureRequest {
            runtime_name: "runtime".to_owned(),
            runtime_version: "v1".to_owned(),
            ..ConfigureRequest::default()
        };
        let response = self.call("Configure", request.encode_to_vec());
        ConfigureResponse::decode(&response.payload[..]).unwrap()
    }

    fn synchronize(&mut self, request: &SynchronizeRequest) -> bool {
        let response = self.call("Synchronize", request.encode_to_vec());
        let response = SynchronizeResponse::decode(&response.payload[..]);
        response.unwrap().more
    }

    fn create(
        &mut self,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<Vec<LinuxDevice>, String> {
        let request = CreateContainerRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
        };
        let response = self.call("CreateContainer", request.encode_to_vec());
        if let Some(status) = response.status.filter(|status| status.code != 0) {
            return Err(status.message);
        }
        let response = CreateContainerResponse::decode(&response.payload[..]).unwrap();
        let linux = response.adjust.and_then(|adjust| adjust.linux);
        Ok(linux.map(|linux| linux.devices).unwrap_or_default())
    }
}

/// ADD for a pod whose network names its lower device.
fn attached<'a>(node: &'a Node, pod: &Host) -> (Cni<'a>, u32) {
    let call = node.cni(pod, json!({"lowerDevice": "eth0"}));
    let args = format!("IgnoreUnknown=1;K8S_POD_UID={UID}");
    let call = call.env("CNI_ARGS", &args).added();
    let number = pod.link(IFNAME).unwrap()["ifindex"].as_u64().unwrap();
    (call, u32::try_from(number).unwrap())
}

fn namespace(kind: &str, path: &str) -> LinuxNamespace {
    LinuxNamespace {
        r#type: kind.to_owned(),
        path: path.to_owned(),
    }
}

fn sandbox(netns: &str) -> PodSandbox {
    PodSandbox {
        id: "sandbox".to_owned(),
        name: "vm".to_owned(),
        namespace: "default".to_owned(),
        uid: UID.to_owned(),
        linux: Some(LinuxPodSandbox {
            namespaces: vec![namespace("ipc", "/ipc"), namespace("network", netns)],
        }),
        ..PodSandbox::default()
    }
}

fn container(name: &str) -> Container {
    Container {
        id: format!("id-{name}"),
        pod_sandbox_id: "sandbox".to_owned(),
        name: name.to_owned(),
        state: 3,
        linux: None,
    }
}

#[test]
fn it_registers_for_few_events() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let plugin = runtime.plugin(&node);
    let (mut connection, registration) = runtime.accept();
    assert_eq!(registration.plugin_name, "macvtap");
    let digits = registration.plugin_idx.chars().all(|c| c.is_ascii_digit());
    assert!(
        digits && registration.plugin_idx.len() == 2,
        "{registration:?}"
    );
    connection.register(None);
    let ConfigureResponse { events } = connection.configure();
    assert!(events & CREATE_CONTAINER != 0);
    // containerd closes the connection of a plugin that subscribes to what it does not know.
    assert!(events > 0 && events < 1 << 11, "{events:b}");
    assert!(!connection.synchronize(&SynchronizeRequest::default()));
    plugin.wait_for_log("NRI is ready");
}

#[test]
fn the_state_may_come_in_parts_and_in_megabytes() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let plugin = runtime.plugin(&node);
    let (mut connection, _) = runtime.accept();
    connection.register(None);
    connection.configure();
    let part = |more| SynchronizeRequest {
        pods: vec![sandbox(&"x".repeat(1_500_000)); 4],
        containers: vec![container("app"); 1000],
        more,
    };
    for more in [true, true, false] {
        assert_eq!(connection.synchronize(&part(more)), more);
    }
    plugin.wait_for_log("NRI is ready");
    // The limit of the manifests is 128 MiB.
    let peak = plugin.peak_memory();
    assert!(peak < 100 << 10, "{peak} KiB");
}

#[test]
fn frames_may_be_cut_anywhere() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, number) = attached(&node, &pod);
    for size in [1, 3, 9] {
        connection.frame = size;
        let devices = connection.create(&sandbox(&pod.path()), &container("compute"));
        let paths: Vec<String> = devices.unwrap().into_iter().map(|d| d.path).collect();
        assert_eq!(paths, [tap(number).to_str().unwrap()]);
    }
}

#[test]
fn the_container_of_an_attached_pod_gets_its_tap() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let before = connection.create(&sandbox(&pod.path()), &container("a"));
    assert_eq!(before, Ok(vec![]), "nothing is attached yet");
    let (call, number) = attached(&node, &pod);
    let created = connection
        .create(&sandbox(&pod.path()), &container("a"))
        .unwrap();
    let [device] = &created[..] else {
        panic!("{created:?}");
    };
    let metadata = std::fs::metadata(tap(number)).unwrap();
    let rdev = std::os::unix::fs::MetadataExt::rdev(&metadata);
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    assert_eq!(
        (device.r#type.as_str(), device.path.as_str()),
        ("c", tap(number).to_str().unwrap())
    );
    assert_eq!(
        (device.major.cast_unsigned(), device.minor.cast_unsigned()),
        (major, minor)
    );
    let values = [device.uid, device.gid, device.file_mode].map(|value| value.unwrap().value);
    assert_eq!(values, [107, 107, 0o600]);
    call.succeed("DEL");
    let after = connection.create(&sandbox(&pod.path()), &container("a"));
    assert_eq!(after, Ok(vec![]));
}

/// The pod and the container of a tap, as `link list` prints them.
fn listed(node: &Node, runtime: &Runtime, number: u32) -> Value {
    let mut command = std::process::Command::new(binary());
    command.args(["link", "list", "--json", &number.to_string()]);
    command.arg("--kubelet-dir").arg(runtime.dir.path());
    let output = node.host.output(&mut command);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let macvtap = &list["macvtaps"][0];
    json!([macvtap["pod"], macvtap["container"]])
}

/// In the device plugin's container nothing else says which pod has a tap.
#[test]
fn a_list_names_the_pod_and_the_containers_that_the_runtime_told_of() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, number) = attached(&node, &pod);
    let is_listed = |expected: Value| listed(&node, &runtime, number) == expected;
    assert!(is_listed(json!([null, null])));
    for name in ["a", "b"] {
        let created = connection.create(&sandbox(&pod.path()), &container(name));
        assert_eq!(created.unwrap().len(), 1);
    }
    wait_until("they are listed", || {
        is_listed(json!(["default/vm", "a, b"]))
    });
    let removed = StateChangeEvent {
        event: 11,
        pod: Some(sandbox(&pod.path())),
        container: Some(container("a")),
    };
    connection.call("StateChange", removed.encode_to_vec());
    wait_until("one is gone", || is_listed(json!(["default/vm", "b"])));
}

#[test]
fn a_device_plugin_that_starts_learns_from_the_runtime_which_containers_have_taps() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let (mut connection, _) = runtime.accept();
    connection.register(None);
    connection.configure();
    let number = tap_number();
    let _call = node.allocated(&pod, number).added();
    let mut running = container("compute");
    running.linux = Some(LinuxContainer {
        devices: vec![LinuxDevice {
            path: tap(number).to_str().unwrap().to_owned(),
            ..LinuxDevice::default()
        }],
        ..LinuxContainer::default()
    });
    connection.synchronize(&SynchronizeRequest {
        pods: vec![sandbox(&pod.path())],
        containers: vec![running],
        more: false,
    });
    wait_until("it is listed", || {
        listed(&node, &runtime, number) == json!(["default/vm", "compute"])
    });
}

#[test]
fn other_pods_and_other_devices_are_left_alone() {
    let (node, runtime, pod, other) = (Node::new(), Runtime::new(), Host::named(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, number) = attached(&node, &pod);
    let mut of_other_uid = sandbox(&pod.path());
    of_other_uid.uid = "another".to_owned();
    assert_eq!(
        connection.create(&of_other_uid, &container("a")),
        Ok(vec![])
    );
    let in_other_netns = sandbox(&other.path());
    assert_eq!(
        connection.create(&in_other_netns, &container("a")),
        Ok(vec![])
    );
    let mut on_host_network = sandbox(&pod.path());
    on_host_network.linux = None;
    assert_eq!(
        connection.create(&on_host_network, &container("a")),
        Ok(vec![])
    );
    let mut has_it = container("a");
    let device = LinuxDevice {
        path: tap(number).to_str().unwrap().to_owned(),
        ..LinuxDevice::default()
    };
    has_it.linux = Some(LinuxContainer {
        devices: vec![device],
        ..LinuxContainer::default()
    });
    assert_eq!(
        connection.create(&sandbox(&pod.path()), &has_it),
        Ok(vec![])
    );
}

/// The connection stays, and the container fails with words.
#[test]
fn what_cannot_be_done_fails_the_container() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, _) = attached(&node, &pod);
    let mut with_users = sandbox(&pod.path());
    let namespaces = &mut with_users.linux.as_mut().unwrap().namespaces;
    namespaces.push(namespace("user", ""));
    let error = connection.create(&with_users, &container("a")).unwrap_err();
    assert!(error.contains("user namespace"), "{error}");
    let gone = sandbox("/run/netns/this-one-is-gone");
    let error = connection.create(&gone, &container("a")).unwrap_err();
    assert!(
        error.contains("/run/netns/this-one-is-gone is gone"),
        "{error}"
    );
    let response = connection.call("CreateContainer", vec![0xff; 3]);
    assert!(response.status.unwrap().message.contains("decoding"));
    let devices = connection.create(&sandbox(&pod.path()), &container("a"));
    assert_eq!(devices.unwrap().len(), 1);
}

#[test]
fn what_is_unknown_is_answered_so_that_newer_runtimes_fall_back() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let response = connection.call("StartContainer", Vec::new());
    assert_eq!(response.status.unwrap().code, 12);
    let event = StateChangeEvent {
        event: 99,
        ..StateChangeEvent::default()
    };
    let response = connection.call("StateChange", event.encode_to_vec());
    assert!(response.status.is_none());
    connection.send(&Message {
        connection: 7,
        stream: 1,
        kind: 3,
        payload: vec![1, 2, 3],
    });
    let response = connection.call("StateChange", event.encode_to_vec());
    assert!(response.status.is_none());
}

/// A container that starts without having been asked about was created while no plugin was.
#[test]
fn a_container_that_would_start_without_its_tap_does_not() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, number) = attached(&node, &pod);
    let started = |name: &str| StateChangeEvent {
        event: 6,
        pod: Some(sandbox(&pod.path())),
        container: Some(container(name)),
    };
    let asked = connection.create(&sandbox(&pod.path()), &container("asked"));
    assert_eq!(asked.unwrap().len(), 1);
    let start = |connection: &mut Connection, name: &str| {
        let response = connection.call("StateChange", started(name).encode_to_vec());
        response.status.map(|status| status.message)
    };
    assert_eq!(start(&mut connection, "asked"), None);
    let error = start(&mut connection, "missed").unwrap();
    assert!(error.contains("container missed of pod default/vm would start without /dev/tap"));
    plugin.wait_for_log("container not started");
    let mut has_it = started("has it");
    has_it.container.as_mut().unwrap().linux = Some(LinuxContainer {
        devices: vec![LinuxDevice {
            path: tap(number).to_str().unwrap().to_owned(),
            ..LinuxDevice::default()
        }],
        ..LinuxContainer::default()
    });
    let response = connection.call("StateChange", has_it.encode_to_vec());
    assert!(response.status.is_none(), "{response:?}");
}

/// The taps are known, so that the container would not work.
#[test]
fn a_container_whose_tap_cannot_be_given_is_not_started_and_is_reported_if_it_runs() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, _) = attached(&node, &pod);
    let mut with_users = sandbox(&pod.path());
    let namespaces = &mut with_users.linux.as_mut().unwrap().namespaces;
    namespaces.push(namespace("user", ""));
    let started = StateChangeEvent {
        event: 6,
        pod: Some(with_users.clone()),
        container: Some(container("missed")),
    };
    let response = connection.call("StateChange", started.encode_to_vec());
    let message = response.status.unwrap_or_default().message;
    assert!(message.contains("user namespace"), "{message}");
    drop(connection);
    let (mut connection, _) = runtime.accept();
    connection.register(None);
    connection.configure();
    connection.synchronize(&SynchronizeRequest {
        pods: vec![with_users],
        containers: vec![container("missed")],
        more: false,
    });
    let without = || {
        status::query(runtime.dir.path())
            .unwrap()
            .nri
            .unwrap()
            .without
    };
    wait_until("it is reported", || !without().is_empty());
    assert!(without()[0].contains("container missed of pod default/vm runs without its tap"));
}

/// ADD would take it that pods get no taps by NRI, and the runtime would start their containers without.
#[test]
fn sockets_and_markers_that_were_removed_are_made_again() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let _plugin = runtime.plugin(&node);
    let _connection = runtime.ready();
    let (_, inode) = node.host.0.identity().unwrap();
    let own = runtime.dir.path().join(".macvtap");
    let shared = PathBuf::from("/run/macvtap");
    let files = [
        own.join("nri"),
        own.join(format!("nri-{inode}.sock")),
        shared.join(format!("nri-{inode}")),
        shared.join(format!("nri-{inode}.sock")),
    ];
    let are_there = || files.iter().all(|file| file.exists());
    wait_until("they are there", are_there);
    for file in &files {
        std::fs::remove_file(file).unwrap();
    }
    wait_until("they are there again", are_there);
    let (_call, _) = attached(&node, &pod);
}

/// As when the runtime is installed again: what it makes is under another directory of that name.
#[test]
fn an_orphaned_mount_of_the_runtimes_directory_ends_it() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let (real, seen) = (dir.path().join("real"), dir.path().join("seen"));
    std::fs::create_dir(&real).unwrap();
    std::fs::create_dir(&seen).unwrap();
    let script = format!(
        "mount --bind {} {} && exec \"$@\"",
        real.display(),
        seen.display()
    );
    let private = ["unshare", "--mount", "--propagation", "private"];
    let words = [&private[..], &["sh", "-c", &script, "sh"]].concat();
    let mut command = command(&words, dir.path());
    command.arg("--nri").arg(seen.join("nri.sock"));
    let mut plugin = Plugin::spawn(&node.host, command);
    plugin.wait_for_log("not connected to the container runtime");
    std::fs::remove_dir(&real).unwrap();
    std::fs::create_dir(&real).unwrap();
    let (status, _) = plugin.end();
    assert_eq!(status, Some(1));
    assert!(plugin.log().contains("was deleted"), "{}", plugin.log());
}

/// The kernel refuses to wait for more descriptors than a process may have.
#[test]
fn a_device_plugin_whose_thread_for_nri_has_ended_is_not_live() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let is_live = || status::query(runtime.dir.path()).unwrap().is_live();
    assert!(is_live());
    limit_descriptors(&plugin, "1");
    connection.call("StateChange", Vec::new());
    plugin.wait_for_log("NRI ends");
    limit_descriptors(&plugin, "1024");
    wait_until("it is not live", || !is_live());
}

#[test]
fn it_connects_again_when_it_was_refused_or_the_runtime_comes_back() {
    let (node, mut runtime) = (Node::new(), Runtime::new());
    let plugin = runtime.plugin(&node);
    let (mut connection, _) = runtime.accept();
    connection.register(Some(Status {
        code: 2,
        message: "not this one".to_owned(),
    }));
    plugin.wait_for_log("not this one");
    drop(connection);
    let connection = runtime.ready();
    // The file of a runtime that was killed stays, and refuses.
    drop((connection, runtime.listener));
    plugin.wait_for_log("closed the connection");
    std::fs::remove_file(&runtime.path).unwrap();
    runtime.listener = listen(&runtime.path);
    let _connection = runtime.ready();
    wait_until("it is ready again", || {
        plugin.log().matches("NRI is ready").count() == 2
    });
}

/// A runtime that cannot take plugins now: each connection costs both, and each marker a write.
#[test]
fn a_runtime_that_closes_each_connection_is_not_overrun() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let _plugin = runtime.plugin(&node);
    drop(runtime.accept());
    let marker = runtime.dir.path().join(".macvtap/nri");
    let written = || {
        let metadata = std::fs::metadata(&marker).unwrap();
        (metadata.ino(), metadata.modified().unwrap())
    };
    let before = written();
    let (start, mut connections) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(2) {
        connections += usize::from(runtime.listener.accept().is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((1..5).contains(&connections), "{connections}");
    assert_eq!(written(), before);
    // A runtime that starts is not kept waiting.
    std::fs::remove_file(&runtime.path).unwrap();
    let runtime = Runtime {
        listener: listen(&runtime.path),
        ..runtime
    };
    runtime.ready();
}

/// `prlimit` for the device plugin: it can open nothing more.
fn limit_descriptors(plugin: &Plugin, limit: &str) {
    let mut command = std::process::Command::new("prlimit");
    let id = plugin.id().to_string();
    command.args(["--pid", &id, &format!("--nofile={limit}:")]);
    assert!(command.status().unwrap().success());
}

/// Most containers of a node have nothing to do with macvtap.
#[test]
fn what_is_not_known_of_a_pod_does_not_keep_its_containers_from_being_created() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let plugin = runtime.plugin(&node);
    let mut connection = runtime.ready();
    let (_call, _) = attached(&node, &pod);
    limit_descriptors(&plugin, "3");
    let without = connection.create(&sandbox(&pod.path()), &container("a"));
    assert!(without.unwrap().is_empty());
    plugin.wait_for_log("taps of the pod not known");
    limit_descriptors(&plugin, "1024");
    // It is known by the time it starts.
    let started = StateChangeEvent {
        event: 6,
        pod: Some(sandbox(&pod.path())),
        container: Some(container("a")),
    };
    let response = connection.call("StateChange", started.encode_to_vec());
    let message = response.status.unwrap().message;
    assert!(
        message.contains("would start without /dev/tap"),
        "{message}"
    );
    let devices = connection.create(&sandbox(&pod.path()), &container("b"));
    assert_eq!(devices.unwrap().len(), 1);
}

#[test]
fn at_the_limit_of_descriptors_it_does_not_spin() {
    let (node, runtime) = (Node::new(), Runtime::new());
    let plugin = runtime.plugin(&node);
    let _connection = runtime.ready();
    plugin.wait_for_log("NRI is ready");
    let dir = runtime.dir.path().join(".macvtap");
    let mut names = kit::netns::names(&dir).into_iter();
    let socket = names.find(|name| name.starts_with("nri-")).unwrap();
    limit_descriptors(&plugin, "3");
    let _waiting = UnixStream::connect(dir.join(socket)).unwrap();
    plugin.wait_for_log("cannot accept connections");
    let before = plugin.processor_time();
    std::thread::sleep(Duration::from_secs(2));
    let used = plugin.processor_time().saturating_sub(before);
    assert!(used < Duration::from_millis(200), "{used:?}");
}

#[test]
fn what_a_node_that_is_gone_left_is_removed() {
    let (node, runtime, other) = (Node::new(), Runtime::new(), tempdir().unwrap());
    let marker = |number: u64| PathBuf::from(format!("/run/macvtap/nri-{number}"));
    // No network namespace has these numbers.
    let (gone, present, no_number) = (marker(1), marker(2), PathBuf::from("/run/macvtap/nri-x"));
    std::fs::create_dir_all("/run/macvtap").unwrap();
    let dir = other.path().as_os_str().as_encoded_bytes().to_owned();
    std::fs::write(&present, &dir).unwrap();
    for path in [&gone, &no_number] {
        std::fs::write(path, [&dir[..], b"/this-is-gone"].concat()).unwrap();
    }
    let _plugin = runtime.plugin(&node);
    let _connection = runtime.ready();
    wait_until("it is removed", || !gone.exists());
    assert!(present.exists() && no_number.exists());
    for path in [present, no_number] {
        std::fs::remove_file(path).unwrap();
    }
}

/// The file in the kubelet's directory outlives a reboot, after which pods may come before the
/// device plugin.
#[test]
fn after_a_reboot_add_waits_for_the_device_plugin() {
    let (node, runtime, pod) = (Node::new(), Runtime::new(), Host::named());
    let mut plugin = runtime.plugin(&node);
    let connection = runtime.ready();
    plugin.wait_for_log("NRI is ready");
    plugin.signal("KILL");
    plugin.end();
    drop(connection);
    let dir = runtime.dir.path().display();
    let mounts = format!(
        "mount -t tmpfs tmpfs /var/lib && mkdir -p /var/lib/kubelet/device-plugins && \
         mount --bind {dir} /var/lib/kubelet/device-plugins && \
         mount -t tmpfs tmpfs /run/macvtap && exec \"$@\""
    );
    let private = ["unshare", "--mount", "--propagation", "private"];
    let words = [&private[..], &["sh", "-c", &mounts, "sh"]].concat();
    let call = node.cni(&pod, json!({"lowerDevice": "eth0"}));
    let args = format!("IgnoreUnknown=1;K8S_POD_UID={UID}");
    let (code, message) = call.env("CNI_ARGS", &args).by(&words).fail("ADD");
    assert_eq!(code, 11, "{message}");
    assert!(
        message.contains("the device plugin of this node is not running"),
        "{message}"
    );
}
