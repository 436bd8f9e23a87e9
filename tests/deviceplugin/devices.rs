//! Lists, allocations, and the tap that a container finds.

use std::{collections::BTreeSet, env, path::Path, time::Duration};

use kit::{
    kubelet::{Plugin, RESOURCE, SOCKET, TUNABLES, WAIT_TIMEOUT, configuration},
    netns::{Host, IFNAME, LOWER, Node, tap_exists, wait_until},
};
use macvtap::{
    deviceplugin::{
        grpc::{
            api::{
                AllocateRequest, ContainerAllocateRequest, device_plugin_client::DevicePluginClient,
            },
            channel,
        },
        status,
    },
    selftest::kubelet::{self, Kubelet},
    types::device_id::DeviceId,
};
use tempfile::{TempDir, tempdir};

use super::held::checkpoint;

struct Case {
    node: Node,
    kubelet: Kubelet,
    plugin: Plugin,
    dir: TempDir,
}

impl Case {
    fn new() -> Self {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let plugin = Plugin::start(&node.host, dir.path());
        Self {
            node,
            kubelet,
            plugin,
            dir,
        }
    }

    fn healthy(&self, count: usize) -> Vec<String> {
        let wanted = |resource: &macvtap::selftest::kubelet::Resource| {
            resource.connected && resource.healthy().len() == count
        };
        let resource = self
            .kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, wanted)
            .unwrap();
        assert_eq!(resource.devices.len(), 100, "devices are never absent");
        resource.healthy()
    }
}

fn parse(id: &str) -> DeviceId {
    id.parse().unwrap()
}

#[test]
fn are_unhealthy_while_the_lower_device_is_missing() {
    let case = Case::new();
    let ids = case.healthy(100);
    let host = &case.node.host;
    host.ip(&format!("link set {LOWER} down"));
    host.ip(&format!("link set {LOWER} name away"));
    case.healthy(0);
    host.ip(&format!("link set away name {LOWER}"));
    host.ip(&format!("link set {LOWER} up"));
    assert_eq!(case.healthy(100), ids);
    host.ip(&format!("link set {LOWER} down"));
    case.healthy(0);
    host.ip(&format!("link delete {LOWER}"));
    case.healthy(0);
    host.ip(&format!("link add {LOWER} type veth peer name other"));
    host.ip(&format!("link set {LOWER} up"));
    assert_eq!(case.healthy(100), ids);
    // One list for each change, and none besides.
    assert_eq!(case.kubelet.resource(RESOURCE).unwrap().lists, 5);
}

#[test]
fn start_unhealthy_without_the_lower_device() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    node.host.ip(&format!("link delete {LOWER}"));
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let _plugin = Plugin::start(&node.host, dir.path());
    let resource = kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, |resource| resource.lists > 0);
    let resource = resource.unwrap();
    assert_eq!((resource.devices.len(), resource.healthy().len()), (100, 0));
}

#[test]
fn thousands_of_link_events_change_nothing() {
    let case = Case::new();
    case.healthy(100);
    std::thread::scope(|scope| {
        for number in 0..4 {
            let host = &case.node.host;
            scope.spawn(move || {
                let lines = format!("link add b{number} type bridge\nlink delete b{number}\n");
                let batch = tempdir().unwrap();
                let path = batch.path().join("batch");
                std::fs::write(&path, lines.repeat(100)).unwrap();
                host.ip(&format!("-batch {}", path.display()));
            });
        }
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(case.kubelet.resource(RESOURCE).unwrap().lists, 1);
    case.node.host.ip(&format!("link delete {LOWER}"));
    case.healthy(0);
}

#[test]
fn allocate_answers_with_the_taps() {
    let case = Case::new();
    let ids = case.healthy(100);
    let answer = case.kubelet.allocate(RESOURCE, &ids[..2]).unwrap();
    assert_eq!(answer.container_responses.len(), 1);
    let response = &answer.container_responses[0];
    assert!(response.envs.is_empty() && response.mounts.is_empty());
    for (device, id) in response.devices.iter().zip(&ids) {
        let path = format!("/dev/tap{}", parse(id).tap);
        assert_eq!(device.container_path, path);
        assert_eq!(device.host_path, path);
        assert_eq!(device.permissions, "rw");
        assert!(!tap_exists(parse(id).tap), "nothing exists before ADD");
    }
    assert_eq!(case.node.host.links(), [LOWER]);
    // Of an earlier configuration: another lower device, mode and number.
    let earlier = "dataplaneMvp9@eth7:vepa:17000000".to_owned();
    let answer = case.kubelet.allocate(RESOURCE, &[earlier]).unwrap();
    let device = &answer.container_responses[0].devices[0];
    assert_eq!(device.host_path, "/dev/tap17000000");
}

/// A runtime refuses a container that is given a node twice.
#[test]
fn a_device_that_is_requested_twice_is_given_once() {
    let case = Case::new();
    let ids = case.healthy(100);
    let twice = [ids[0].clone(), ids[1].clone(), ids[0].clone()];
    let answer = case.kubelet.allocate(RESOURCE, &twice).unwrap();
    let devices = answer.container_responses[0].devices.iter();
    let paths: Vec<String> = devices.map(|device| device.host_path.clone()).collect();
    let expected = ids[..2]
        .iter()
        .map(|id| format!("/dev/tap{}", parse(id).tap));
    assert_eq!(paths, expected.collect::<Vec<_>>());
}

#[test]
fn unknown_ids_are_refused_by_name() {
    let case = Case::new();
    case.healthy(100);
    for id in [
        "eth0Mvp3",
        "",
        "otherMvp9@eth7:vepa:17000000",
        "dataplaneMvp1@eth0:bridge:5",
    ] {
        let error = case
            .kubelet
            .allocate(RESOURCE, &[id.to_owned()])
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("InvalidArgument") && text.contains(id),
            "{text}"
        );
        assert!(case.kubelet.pre_start(RESOURCE, &[id.to_owned()]).is_err());
    }
}

#[test]
fn those_whose_tap_exists_nowhere_are_preferred() {
    let case = Case::new();
    let ids = case.healthy(100);
    let pod = Host::new();
    let held = parse(&ids[0]).tap;
    let call = case.node.cni(&pod, serde_json::json!({"deviceID": ids[0]}));
    call.add();
    let available = &ids[..3];
    let preferred = case.kubelet.prefer(RESOURCE, available, 2).unwrap();
    let preferred: BTreeSet<u32> = preferred.iter().map(|id| parse(id).tap).collect();
    assert_eq!(preferred.len(), 2);
    assert!(!preferred.contains(&held));
    assert_eq!(
        case.kubelet.prefer(RESOURCE, available, 3).unwrap().len(),
        3
    );
}

#[test]
fn pre_start_is_content_with_what_add_made() {
    let case = Case::new();
    let id = case.healthy(100).pop().unwrap();
    let pod = Host::new();
    let call = case
        .node
        .cni(&pod, serde_json::json!({"deviceID": id}))
        .added();
    case.kubelet.pre_start(RESOURCE, &[id]).unwrap();
    assert_eq!(case.node.host.links(), [LOWER]);
    assert_eq!(pod.links(), [IFNAME]);
    call.succeed("CHECK");
}

#[test]
fn a_pod_without_cni_gets_its_tap_from_pre_start() {
    let case = Case::new();
    let id = case.healthy(100)[50].clone();
    let tap = parse(&id).tap;
    case.kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    let names = case.node.host.links();
    assert_eq!(names.len(), 2);
    let name = names.iter().find(|name| name.starts_with("mvt")).unwrap();
    let link = case.node.host.link(name).unwrap();
    assert_eq!(link["ifindex"], tap);
    assert_eq!(link["operstate"], "UP");
    assert_eq!(link["inet6_addr_gen_mode"], "none");
    assert_eq!(link["linkinfo"]["info_data"]["mode"], "bridge");
    assert!(tap_exists(tap));
    // Again before the container's next start: the same one.
    case.kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    assert_eq!(
        case.node.host.link(name).unwrap()["address"],
        link["address"]
    );
    // The device goes to another pod.
    case.kubelet.allocate(RESOURCE, &[id]).unwrap();
    wait_until("the macvtap is deleted", || {
        case.node.host.links() == [LOWER]
    });
    assert!(!tap_exists(tap));
}

/// Takes the lower device away, with all macvtaps on it, and makes it again, as a driver that is loaded
/// again does.
fn make_lower_again(host: &Host) {
    host.ip(&format!("link delete {LOWER}"));
    host.ip(&format!("link add {LOWER} type veth peer name other"));
    host.ip(&format!("link set {LOWER} up"));
}

/// Made by `PreStartContainer` it would be in the host's network namespace, and without the security,
/// the MAC and the limits of the pod's network.
#[test]
fn a_macvtap_that_went_with_its_lower_device_is_not_made_again_by_pre_start() {
    let case = Case::new();
    let ids = [case.healthy(100)[53].clone()];
    case.kubelet.allocate(RESOURCE, &ids).unwrap();
    let pod = Host::new();
    let config = serde_json::json!({"deviceID": ids[0], "security": "mac"});
    let _call = case.node.cni(&pod, config).added();
    case.kubelet.pre_start(RESOURCE, &ids).unwrap();
    make_lower_again(&case.node.host);
    assert!(pod.links().is_empty());
    let error = case.kubelet.pre_start(RESOURCE, &ids).unwrap_err();
    assert!(error.to_string().contains("delete the pod"), "{error}");
    assert!(!tap_exists(parse(&ids[0]).tap));
    // The next pod may want the tap alone.
    case.kubelet.allocate(RESOURCE, &ids).unwrap();
    case.kubelet.pre_start(RESOURCE, &ids).unwrap();
    assert!(tap_exists(parse(&ids[0]).tap));
}

#[test]
fn the_same_where_the_device_plugin_was_restarted_before_the_lower_device_went() {
    let case = Case::new();
    let (attached, alone) = (
        [case.healthy(100)[54].clone()],
        [case.healthy(100)[55].clone()],
    );
    let pod = Host::new();
    let config = serde_json::json!({"deviceID": attached[0]});
    let _call = case.node.cni(&pod, config).added();
    case.kubelet.pre_start(RESOURCE, &alone).unwrap();
    checkpoint(
        case.dir.path(),
        (RESOURCE, &attached[0]),
        parse(&attached[0]).tap,
    );
    drop(case.plugin);
    let _plugin = Plugin::start(&case.node.host, case.dir.path());
    let again = |resource: &kubelet::Resource| resource.connected && resource.registrations > 1;
    case.kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, again)
        .unwrap();
    make_lower_again(&case.node.host);
    let error = case.kubelet.pre_start(RESOURCE, &attached).unwrap_err();
    assert!(error.to_string().contains("delete the pod"), "{error}");
    case.kubelet.pre_start(RESOURCE, &alone).unwrap();
}

/// The kubelet allocates a device again before the CNI plugin's DEL for its former pod.
#[test]
fn a_container_does_not_get_the_tap_of_the_pod_that_had_its_device_before() {
    let case = Case::new();
    let ids = [case.healthy(100)[56].clone()];
    let attach = |pod: &Host| {
        let config = serde_json::json!({"deviceID": ids[0]});
        case.node.cni(pod, config).added()
    };
    let former = Host::new();
    let call = attach(&former);
    case.kubelet.allocate(RESOURCE, &ids).unwrap();
    let error = case.kubelet.pre_start(RESOURCE, &ids).unwrap_err();
    let expected = format!("the pod that had device {} before", ids[0]);
    assert!(error.to_string().contains(&expected), "{error}");
    call.succeed("DEL");
    // What ADD makes now is the pod's own, whatever its device number is.
    let pod = Host::new();
    let call = attach(&pod);
    case.kubelet.pre_start(RESOURCE, &ids).unwrap();
    assert_eq!(case.node.host.links(), [LOWER]);
    // A pod that wants the tap alone gets another one.
    case.kubelet.allocate(RESOURCE, &ids).unwrap();
    call.succeed("DEL");
    case.kubelet.pre_start(RESOURCE, &ids).unwrap();
    assert!(tap_exists(parse(&ids[0]).tap) && case.node.host.links().len() == 2);
}

#[test]
fn pre_start_without_the_lower_device_says_so() {
    let case = Case::new();
    let id = case.healthy(100)[51].clone();
    case.node.host.ip(&format!("link delete {LOWER}"));
    let error = case
        .kubelet
        .pre_start(RESOURCE, &[id])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("FailedPrecondition") && error.contains(LOWER),
        "{error}"
    );
}

#[test]
fn the_way_of_a_device_from_allocation_to_frame_and_back() {
    let case = Case::new();
    let id = case.healthy(100)[52].clone();
    let answer = case
        .kubelet
        .allocate(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    let allocated = answer.container_responses[0].devices[0].host_path.clone();
    for _ in 0..3 {
        // The sandbox is lost and made again; Allocate is not called.
        let pod = Host::new();
        let call = case.node.cni(&pod, serde_json::json!({"deviceID": id}));
        call.added().succeed("CHECK");
        case.kubelet
            .pre_start(RESOURCE, std::slice::from_ref(&id))
            .unwrap();
        assert!(std::path::Path::new(&allocated).exists());
    }
}

#[test]
fn passthru_offers_one() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let text = configuration().replace("bridge", "passthru");
    let _plugin = Plugin::configured(&node.host, dir.path(), &text);
    let resource = kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, |resource| resource.lists > 0);
    assert_eq!(resource.unwrap().healthy().len(), 1);
}

/// A macvtap in passthru mode has its lower device to itself, so that what is healthy is what ADD
/// can make: its pod's network namespace is not the node's.
#[test]
fn a_lower_device_is_one_passthru_macvtaps_or_others() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let text = serde_json::json!([
        {"name": "alone", "lowerDevice": LOWER, "mode": "passthru"},
        {"name": "shared", "lowerDevice": LOWER, "capacity": 3},
    ]);
    let plugin = Plugin::configured(&node.host, dir.path(), &text.to_string());
    let wait = |name: &str, healthy: usize| {
        let name = format!("macvtap.network.kubevirt.io/{name}");
        let found = kubelet.wait_for(&name, WAIT_TIMEOUT, |resource| {
            resource.lists > 0 && resource.healthy().len() == healthy
        });
        let found = found.unwrap_or_else(|error| panic!("{name}: {error:#} {}", plugin.log()));
        found.devices[0].id.clone()
    };
    let ids = [wait("alone", 1), wait("shared", 3)];
    for (used, other, count) in [(0, "shared", 3), (1, "alone", 1)] {
        let pod = Host::new();
        let call = node.cni(&pod, serde_json::json!({"deviceID": ids[used]}));
        let call = call.added();
        wait(other, 0);
        wait(["alone", "shared"][used], [1, 3][used]);
        let second = Host::new();
        let second = node.cni(&second, serde_json::json!({"deviceID": ids[1 - used]}));
        assert!(second.fail("ADD").1.contains(LOWER));
        call.succeed("DEL");
        wait(other, count);
    }
}

/// The kubelet admits a pod again with the device that it has only if that is healthy.
#[test]
fn a_passthru_device_whose_tap_a_pod_has_alone_stays_healthy() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let text = serde_json::json!([
        {"name": "alone", "lowerDevice": LOWER, "mode": "passthru"},
        {"name": "shared", "lowerDevice": LOWER, "capacity": 3},
    ]);
    let _plugin = Plugin::configured(&node.host, dir.path(), &text.to_string());
    let name = |name: &str| format!("macvtap.network.kubevirt.io/{name}");
    let wait = |resource: &str, healthy: usize| {
        let wanted = |found: &kubelet::Resource| found.healthy().len() == healthy;
        let found = kubelet.wait_for(&name(resource), WAIT_TIMEOUT, wanted);
        found.unwrap().healthy()
    };
    let ids = wait("alone", 1);
    wait("shared", 3);
    kubelet.pre_start(&name("alone"), &ids).unwrap();
    wait("shared", 0);
    assert_eq!(wait("alone", 1), ids);
}

/// `KubeVirt` keeps what is in `/dev/vfio` of the container when it attaches a volume.
#[test]
fn with_volume_hotplug_a_container_has_each_tap_twice() {
    for (hotplug, count) in [("true", 2), ("false", 1)] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let kubelet = Kubelet::start(dir.path()).unwrap();
        let key = format!(r#""bridge", "volumeHotplug": {hotplug}"#);
        let text = configuration().replace(r#""bridge""#, &key);
        let _plugin = Plugin::configured(&node.host, dir.path(), &text);
        let resource = kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, |resource| resource.lists > 0);
        let id = resource.unwrap().healthy()[0].clone();
        let tap = parse(&id).tap;
        let answer = kubelet.allocate(RESOURCE, &[id]).unwrap();
        let devices = &answer.container_responses[0].devices;
        let paths: Vec<&str> = devices
            .iter()
            .map(|device| device.container_path.as_str())
            .collect();
        let expected = [
            format!("/dev/tap{tap}"),
            format!("/dev/vfio/macvtap-tap{tap}"),
        ];
        assert_eq!(paths, expected[..count]);
        let host = format!("/dev/tap{tap}");
        assert!(devices.iter().all(|device| device.host_path == host));
    }
}

/// All containers of a request are checked before anything is done for the first.
#[test]
fn allocate_does_all_or_nothing() {
    let case = Case::new();
    let id = case.healthy(100)[53].clone();
    case.kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    let containers = |ids: [&str; 2]| AllocateRequest {
        container_requests: ids
            .map(|id| ContainerAllocateRequest {
                device_ids: vec![id.to_owned()],
            })
            .into(),
    };
    let allocate = |request| allocate(&case.dir.path().join(SOCKET), request);
    let status = || {
        case.node
            .host
            .0
            .run(|| status::query(case.dir.path()))
            .unwrap()
    };
    let error = allocate(containers([&id, "nonsense"])).unwrap_err();
    assert!(error.message().contains("nonsense"), "{error:?}");
    wait_until("the failure is counted", || {
        status().resources[0].failures.get("device_id") == Some(&1)
    });
    assert_eq!(status().resources[0].allocations, 0);
    assert!(tap_exists(parse(&id).tap), "its macvtap was deleted");
    allocate(containers([&id, &id])).unwrap();
    wait_until("the macvtap is deleted", || !tap_exists(parse(&id).tap));
    wait_until("both are counted", || {
        status().resources[0].allocations == 2
    });
}

/// Allocates to several containers at once, which the kubelet does not do.
fn allocate(socket: &Path, request: AllocateRequest) -> Result<(), tonic::Status> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = channel::connect(socket.to_owned()).await.unwrap();
        let answer = DevicePluginClient::new(channel).allocate(request).await;
        answer.map(|_| ())
    })
}

/// Of its own it has heap, stacks and relocated pages. What it shares are the pages of the file: the
/// functions that run are side by side there, so that the others stay out of memory, as far as
/// `scripts/functions.order` has them. Run `scripts/order` if that alone has grown.
#[test]
fn an_idle_device_plugin_takes_little_memory() {
    // What cargo builds for tests is not what is shipped, and pages are larger elsewhere.
    if env::var_os("MACVTAP_BINARY").is_none() || !cfg!(target_arch = "x86_64") {
        return;
    }
    // As the DaemonSet has it, and where glibc gives threads heaps of their own.
    for tunables in [TUNABLES, ""] {
        let (node, dir) = (Node::new(), tempdir().unwrap());
        let _kubelet = Kubelet::start(dir.path()).unwrap();
        let plugin = Plugin::alone(&node.host, dir.path(), tunables);
        let (own, all) = (plugin.private_memory() * 1024, plugin.memory() * 1024);
        assert!(own < 500_000, "{own} bytes of its own with {tunables:?}");
        assert!(all < 3_500_000, "{all} bytes with {tunables:?}");
    }
}
