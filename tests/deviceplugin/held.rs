//! Devices that pods hold, whatever happens to the configuration, the host name and the kubelet.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kit::{
    binary,
    kubelet::{Plugin, RESOURCE, WAIT_TIMEOUT, command, connected},
    netns::{Host, LOWER, Node, foreign_tap_number, tap_exists, tap_number, tap_of, wait_until},
    pod_resources::PodResources,
};
use macvtap::{
    deviceplugin::grpc::api::ContainerAllocateResponse,
    selftest::kubelet::{Kubelet, Resource},
    types::device_id::original_link_name,
};
use prost::Message;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

/// A node whose device plugin reads a file.
struct World {
    node: Node,
    kubelet: Kubelet,
    plugin: Plugin,
    dir: PathBuf,
    _root: TempDir,
    config: TempDir,
}

impl World {
    fn new(lower: &str, mode: &str) -> Self {
        let (node, root, config) = (Node::new(), tempdir().unwrap(), tempdir().unwrap());
        let dir = root.path().join("device-plugins");
        fs::create_dir(&dir).unwrap();
        node.host.ip("link add eth7 type veth peer name far7");
        node.host.ip("link set eth7 up");
        let kubelet = Kubelet::start(&dir).unwrap();
        configure(config.path(), lower, mode);
        let plugin = Plugin::with_file(&node.host, &dir, &config.path().join("conf"));
        let world = Self {
            node,
            kubelet,
            plugin,
            dir,
            _root: root,
            config,
        };
        world.wait("all is healthy", |resource| resource.healthy().len() == 100);
        world
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Resource) -> bool) -> Resource {
        let found = self.kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, wanted);
        found.unwrap_or_else(|error| panic!("{what}: {error:#} {}", self.plugin.log()))
    }

    /// Another lower device and mode; the devices of the new list, without the one held.
    fn reconfigure(&self, lower: &str, mode: &str, held: &str) -> Vec<String> {
        configure(self.config.path(), lower, mode);
        let new = format!("@{lower}:{mode}:");
        let resource = self.wait("the new list has what is held", |resource| {
            let ids = resource.healthy();
            ids.iter().filter(|id| id.contains(&new)).count() >= 99
                && ids.iter().any(|id| id == held)
        });
        let mut ids = resource.healthy();
        ids.retain(|id| id != held);
        ids
    }

    fn checkpoint(&self, id: &str, tap: u32) {
        checkpoint(&self.dir, (RESOURCE, id), tap);
    }

    /// Has the checkpoint name these devices, and waits until the device plugin has read it.
    fn name(&self, ids: &[&String]) {
        name_devices(&self.dir, ids);
        self.wait("the checkpoint is read", knows_checkpoint);
    }
}

/// Writes the kubelet's checkpoint, where a pod has this device of a resource with this tap.
pub fn checkpoint(dir: &Path, (resource, id): (&str, &str), tap: u32) {
    let path = format!("/dev/tap{tap}");
    let response = ContainerAllocateResponse {
        devices: vec![macvtap::deviceplugin::grpc::api::DeviceSpec {
            container_path: path.clone(),
            host_path: path,
            permissions: "rw".to_owned(),
        }],
        ..ContainerAllocateResponse::default()
    };
    let entry = json!({
        "PodUID": "a3c7", "ContainerName": "compute", "ResourceName": resource,
        "DeviceIDs": {"-1": [id]}, "AllocResp": STANDARD.encode(response.encode_to_vec()),
    });
    write_checkpoint(dir, &json!([entry]));
}

/// A device ID of kubevirt/macvtap-cni, which is on the list exactly if the checkpoint names it.
const ORIGINAL: &str = "dataplaneMvp0";

fn name_devices(dir: &Path, ids: &[&String]) {
    let ids: Vec<&str> = ids.iter().map(|id| id.as_str()).chain([ORIGINAL]).collect();
    let entry = json!({"ResourceName": RESOURCE, "DeviceIDs": {"-1": ids}});
    write_checkpoint(dir, &json!([entry]));
}

fn knows_checkpoint(resource: &Resource) -> bool {
    resource.devices.iter().any(|device| device.id == ORIGINAL)
}

fn configure(dir: &Path, lower: &str, mode: &str) {
    let text = format!(r#"[{{"name": "dataplane", "lowerDevice": "{lower}", "mode": "{mode}"}}]"#);
    fs::write(dir.join("new"), text).unwrap();
    fs::rename(dir.join("new"), dir.join("conf")).unwrap();
}

fn write_checkpoint(dir: &Path, entries: &Value) {
    let data = json!({"PodDeviceEntries": entries, "RegisteredDevices": {}});
    let text = json!({"Data": data, "Checksum": 7}).to_string();
    fs::write(dir.join("checkpoint-new"), text).unwrap();
    let path = dir.join("kubelet_internal_checkpoint");
    fs::rename(dir.join("checkpoint-new"), path).unwrap();
}

/// The pod keeps its device, and no other device has its tap, when the lower device and the mode
/// of its resource change.
#[test]
fn a_device_stays_listed_while_its_tap_exists() {
    let world = World::new(LOWER, "bridge");
    let id = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[3]
        .clone();
    let pod = Host::new();
    let call = world.node.cni(&pod, json!({"deviceID": id})).added();
    let ids = world.reconfigure("eth7", "vepa", &id);
    assert!(ids.iter().all(|new| tap_of(new) != tap_of(&id)));
    // What another pod is allocated and PreStart does does not touch it.
    world.kubelet.allocate(RESOURCE, &ids[..1]).unwrap();
    world.kubelet.pre_start(RESOURCE, &ids[..1]).unwrap();
    world
        .kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    call.succeed("CHECK");
    call.succeed("DEL");
    world.wait("it is not listed any more", |resource| {
        resource.devices.iter().all(|device| device.id != id)
    });
}

#[test]
fn a_device_stays_listed_while_the_checkpoint_names_it() {
    let world = World::new(LOWER, "bridge");
    let id = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[4]
        .clone();
    world.checkpoint(&id, tap_of(&id));
    world.reconfigure("eth7", "bridge", &id);
    // The resource goes as a whole, and the device plugin restarts.
    fs::write(
        world.config.path().join("new"),
        r#"[{"name": "b", "lowerDevice": "eth7"}]"#,
    )
    .unwrap();
    fs::rename(
        world.config.path().join("new"),
        world.config.path().join("conf"),
    )
    .unwrap();
    let alone = |resource: &Resource| resource.connected && resource.healthy() == [id.clone()];
    world.wait("it is offered alone", alone);
    drop(world.plugin);
    let file = world.config.path().join("conf");
    let _plugin = Plugin::with_file(&world.node.host, &world.dir, &file);
    let again = |resource: &Resource| resource.registrations > 1 && alone(resource);
    world
        .kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, again)
        .unwrap();
    write_checkpoint(&world.dir, &Value::Null);
    let gone = |resource: &Resource| !resource.connected;
    world
        .kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, gone)
        .unwrap();
}

/// A device that kubevirt/macvtap-cni allocated before the upgrade.
#[test]
fn devices_of_the_original_are_understood() {
    let world = World::new(LOWER, "bridge");
    let id = "dataplaneMvp0".to_owned();
    world.checkpoint(&id, 77);
    let listed = |resource: &Resource| resource.healthy().contains(&id);
    let ids = world.wait("it is listed", listed).healthy();
    let ids_of = std::slice::from_ref(&id);
    world.kubelet.pre_start(RESOURCE, ids_of).unwrap();
    let preferred = world.kubelet.prefer(RESOURCE, &ids, 101).unwrap();
    assert_eq!(preferred.last(), Some(&id));
    // The kubelet may allocate it again before it sees the next list.
    for _ in 0..2 {
        let answer = world.kubelet.allocate(RESOURCE, ids_of).unwrap();
        let path = answer.container_responses[0].devices[0].host_path.clone();
        let tap: u32 = path.strip_prefix("/dev/tap").unwrap().parse().unwrap();
        let pod = Host::new();
        let call = world.node.cni(&pod, json!({"deviceID": id})).added();
        assert!(tap_exists(tap), "{path}");
        call.succeed("DEL");
        wait_until("the tap is gone", || !tap_exists(tap));
    }
    world.kubelet.allocate(RESOURCE, ids_of).unwrap();
    let other = vec!["otherMvp0".to_owned()];
    world.kubelet.pre_start(RESOURCE, &other).unwrap_err();
    world.kubelet.allocate(RESOURCE, &other).unwrap_err();
}

/// A VM that was attached before the upgrade, while the device plugin and the kubelet are replaced.
#[test]
fn a_pod_of_the_original_is_known_and_its_containers_start_again() {
    let world = World::new(LOWER, "bridge");
    let (id, number, pod) = ("dataplaneMvp12", foreign_tap_number(), Host::named());
    let name = original_link_name(id);
    let words = format!("link add {name} index {number} link {LOWER} type macvtap mode bridge");
    world.node.host.ip(&words);
    let call = world.node.cni(&pod, json!({"deviceID": id})).added();
    world.checkpoint(id, number);
    let _resources = PodResources::serve(&world.dir, &[("vms/virt-launcher-vm1", id)]);
    let listed = |resource: &Resource| resource.healthy().iter().any(|healthy| healthy == id);
    world.wait("it is listed", listed);
    let run = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.args(words).arg("--kubelet-dir").arg(&world.dir);
        let output = world.node.host.output(&mut command);
        String::from_utf8(output.stdout).unwrap()
    };
    let list = run(&["link", "list", "--json", &number.to_string()]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        list["macvtaps"][0]["pod"], "vms/virt-launcher-vm1",
        "{list}"
    );
    assert_eq!(list["macvtaps"][0]["container"], "compute", "{list}");
    let doctor = run(&["doctor"]);
    assert!(!doctor.contains(&format!("tap{number}")), "{doctor}");
    let ids = [id.to_owned()];
    world.kubelet.pre_start(RESOURCE, &ids).unwrap();
    drop(world.kubelet);
    let kubelet = Kubelet::start(&world.dir).unwrap();
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, listed).unwrap();
    kubelet.pre_start(RESOURCE, &ids).unwrap();
    drop(world.plugin);
    let file = world.config.path().join("conf");
    let _plugin = Plugin::with_file(&world.node.host, &world.dir, &file);
    let again = |resource: &Resource| resource.registrations > 1 && listed(resource);
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, again).unwrap();
    kubelet.pre_start(RESOURCE, &ids).unwrap();
    call.succeed("CHECK");
    call.succeed("DEL");
    assert!(!tap_exists(number));
}

/// A file that is broken, or none, costs what it says and nothing else.
#[test]
fn a_checkpoint_that_cannot_be_read_is_named_and_waited_for() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let path = dir.path().join("kubelet_internal_checkpoint");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let plugin = Plugin::start(&node.host, dir.path());
    plugin.wait_for_log("not a regular file");
    let offered = |resource: &Resource| resource.healthy().len() == 100;
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, offered).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "{\"Data\": null").unwrap();
    plugin.wait_for_log("decoding the kubelet's checkpoint");
    let id = "dataplaneMvp0";
    checkpoint(dir.path(), (RESOURCE, id), 77);
    let listed = |resource: &Resource| resource.healthy().iter().any(|healthy| healthy == id);
    kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, listed).unwrap();
}

/// DHCP and cloud-init change the host name.
#[test]
fn the_host_name_does_not_matter() {
    let (node, dir) = (Node::new(), tempdir().unwrap());
    let kubelet = Kubelet::start(dir.path()).unwrap();
    let mut lists = Vec::new();
    for (round, name) in (1..).zip(["localhost", "node1.example.com"]) {
        let script = format!("hostname {name} && exec \"$@\"");
        let words = ["unshare", "--uts", "sh", "-c", &script, "sh"];
        let plugin = Plugin::spawn(&node.host, command(&words, dir.path()));
        let registered =
            |resource: &Resource| resource.connected && resource.registrations == round;
        let resource = kubelet
            .wait_for(RESOURCE, WAIT_TIMEOUT, registered)
            .unwrap();
        lists.push(resource.healthy());
        drop(plugin);
        let gone = |resource: &Resource| !resource.connected;
        kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, gone).unwrap();
    }
    assert_eq!(lists[0], lists[1]);
    assert_eq!(lists[0].len(), 100);
}

/// The macvtap of a pod without the CNI plugin outlives the device plugin, and not the pod: the
/// kubelet's checkpoint tells.
#[test]
fn the_macvtap_of_a_pod_without_cni_goes_with_its_pod() {
    let world = World::new(LOWER, "bridge");
    let id = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[5]
        .clone();
    let other = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[6]
        .clone();
    world.name(&[&id, &other]);
    for id in [&id, &other] {
        world
            .kubelet
            .pre_start(RESOURCE, std::slice::from_ref(id))
            .unwrap();
    }
    world.checkpoint(&id, tap_of(&id));
    wait_until("the one that was released is gone", || {
        !tap_exists(tap_of(&other))
    });
    drop(world.plugin);
    let file = world.config.path().join("conf");
    let _plugin = Plugin::with_file(&world.node.host, &world.dir, &file);
    let again = |resource: &Resource| resource.connected && resource.registrations > 1;
    world
        .kubelet
        .wait_for(RESOURCE, WAIT_TIMEOUT, again)
        .unwrap();
    world
        .kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    assert!(tap_exists(tap_of(&id)));
    write_checkpoint(&world.dir, &Value::Null);
    wait_until("its pod is gone", || !tap_exists(tap_of(&id)));
    let links = world.node.host.links();
    assert!(
        links.iter().all(|name| !name.starts_with("mvt")),
        "{links:?}"
    );
}

/// Starts a device plugin that reads the file in `config`, on a node with a name of its own.
fn named_plugin(host: &Host, dir: &Path, config: &Path) -> Plugin {
    let mut command = command(&[], dir);
    command.arg("--node-name").arg(config.file_name().unwrap());
    command.arg("--config").arg(config.join("conf"));
    Plugin::spawn(host, command)
}

/// A static pod on that node.
fn static_pod(config: &Path) -> String {
    let node = config.file_name().unwrap().to_str().unwrap();
    format!("kube-system/etcd-{}", node.to_lowercase())
}

/// What the device plugin lists that registered after so many others.
fn listed_after(kubelet: &Kubelet, others: u32) -> Vec<String> {
    let listed = kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, |resource| {
        resource.registrations > others && resource.healthy().len() >= 100
    });
    listed.unwrap().healthy()
}

/// The kubelet took a while to answer, and meanwhile allocated two devices to other pods.
#[test]
fn a_late_list_of_pods_does_not_concern_the_pods_that_came_since() {
    let world = World::new(LOWER, "bridge");
    drop(world.plugin);
    let (host, config) = (&world.node.host, world.config.path());
    let plugin = named_plugin(host, &world.dir, config);
    let healthy = listed_after(&world.kubelet, 1);
    let ids = &healthy[1..4];
    let names: Vec<String> = ids.iter().map(|id| original_link_name(id)).collect();
    world.kubelet.pre_start(RESOURCE, ids).unwrap();
    for name in [&names[0], &names[2]] {
        host.ip(&format!("link set {name} alias vms/gone"));
    }
    drop(plugin);
    checkpoint(&world.dir, (RESOURCE, &ids[1]), tap_of(&ids[1]));
    let pods = [
        (&*static_pod(config), "none"),
        ("vms/former", &ids[1]),
        ("kube-system/macvtap-x7k2p", "another"),
    ];
    let resources = PodResources::serve(&world.dir, &pods);
    resources.hold(true);
    let plugin = named_plugin(host, &world.dir, config);
    listed_after(&world.kubelet, 2);
    wait_until("the kubelet was asked", || resources.was_listed());
    world.kubelet.allocate(RESOURCE, &ids[..2]).unwrap();
    world.kubelet.pre_start(RESOURCE, &ids[..2]).unwrap();
    for name in &names[..2] {
        host.ip(&format!("link set {name} mtu 1400"));
    }
    resources.hold(false);
    wait_until("that of the pod that is gone is deleted", || {
        !tap_exists(tap_of(&ids[2]))
    });
    // It is done after what the list led to.
    world.kubelet.pre_start(RESOURCE, &ids[..2]).unwrap();
    for name in &names[..2] {
        let link = host.link(name).unwrap();
        assert_eq!(link["mtu"], 1400, "{link} {}", plugin.log());
        assert_eq!(link["ifalias"], Value::Null, "{}", plugin.log());
    }
}

/// Its pod and the configuration went while no device plugin ran. What shows that it is ours is
/// that its index and its name are hashes of a device of the resource; another one is left alone. What
/// shows that it is in use no more is that the kubelet does not list its pod, while it lists others.
#[test]
fn the_macvtap_of_a_former_list_is_removed_by_proof() {
    let world = World::new(LOWER, "bridge");
    drop(world.plugin);
    let start = || named_plugin(&world.node.host, &world.dir, world.config.path());
    let plugin = start();
    let again = |resource: &Resource| resource.connected && resource.registrations > 1;
    let listed = world.kubelet.wait_for(RESOURCE, WAIT_TIMEOUT, again);
    let id = listed.unwrap().healthy()[9].clone();
    let resources = PodResources::serve(&world.dir, &[("vms/launcher", &id)]);
    checkpoint(&world.dir, (RESOURCE, &id), tap_of(&id));
    let ids = std::slice::from_ref(&id);
    world.kubelet.pre_start(RESOURCE, ids).unwrap();
    let name = original_link_name(&id);
    wait_until("it shows its pod", || {
        world.node.host.link(&name).unwrap()["ifalias"] == "vms/launcher"
    });
    drop(plugin);
    write_checkpoint(&world.dir, &serde_json::Value::Null);
    configure(world.config.path(), "eth7", "vepa");
    let foreign = tap_number();
    world.node.host.ip(&format!(
        "link add mvt0123456789ab index {foreign} link {LOWER} type macvtap mode bridge"
    ));
    let plugin = start();
    plugin.wait_for_log("kept the macvtap of a pod");
    assert!(tap_exists(tap_of(&id)));
    let static_pod = static_pod(world.config.path());
    resources.replace(&[
        ("kube-system/macvtap-x7k2p", "another"),
        (&static_pod, "none"),
    ]);
    wait_until("it is removed", || !tap_exists(tap_of(&id)));
    plugin.wait_for_log("remove it with: ip link delete mvt0123456789ab");
    std::thread::sleep(Duration::from_millis(600));
    assert!(tap_exists(foreign));
    let foreign = plugin
        .log()
        .matches("ip link delete mvt0123456789ab")
        .count();
    assert_eq!(foreign, 1);
}

/// A usual remedy for a checkpoint that the kubelet cannot read. The kubelet then knows nothing of the
/// devices of pods that run, but lists these pods.
#[test]
fn the_macvtap_of_a_pod_without_cni_outlives_the_loss_of_the_checkpoint() {
    let world = World::new(LOWER, "bridge");
    let listed = world.wait("a list", |resource| resource.lists > 0);
    let ids = [listed.healthy()[11].clone()];
    world.kubelet.pre_start(RESOURCE, &ids).unwrap();
    world.name(&[&ids[0]]);
    drop(world.kubelet);
    fs::remove_file(world.dir.join("kubelet_internal_checkpoint")).unwrap();
    let kubelet = Kubelet::start(&world.dir).unwrap();
    connected(&kubelet);
    write_checkpoint(&world.dir, &Value::Null);
    world.plugin.wait_for_log("kept the macvtap of a pod");
    assert!(tap_exists(tap_of(&ids[0])), "{}", world.plugin.log());
}

/// The device plugin's container sees neither the runtime's files nor the pod's processes.
#[test]
fn a_list_names_the_pod_and_the_container_that_the_kubelet_knows() {
    let world = World::new(LOWER, "bridge");
    let id = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[3]
        .clone();
    let pod = Host::named();
    let call = world.node.cni(&pod, json!({"deviceID": id})).added();
    let tap = tap_of(&id).to_string();
    let listed = || {
        let mut command = Command::new(binary());
        command.args(["link", "list", "--json", "--kubelet-dir"]);
        let output = world.node.host.output(command.arg(&world.dir).arg(&tap));
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list["macvtaps"][0].clone()
    };
    assert_eq!(listed()["pod"], Value::Null);
    let _resources = PodResources::serve(&world.dir, &[("vms/virt-launcher-vm1", &id)]);
    wait_until("the kubelet answers", || !listed()["pod"].is_null());
    let macvtap = listed();
    assert_eq!(macvtap["pod"], "vms/virt-launcher-vm1");
    assert_eq!(macvtap["container"], "compute");
    call.succeed("DEL");
}

/// On a quiet node the kubelet is not asked for devices, so it would never write that it
/// released some.
#[test]
fn the_kubelet_is_asked_to_release_the_devices_of_pods_that_are_gone() {
    let world = World::new(LOWER, "bridge");
    let id = world
        .wait("a list", |resource| resource.lists > 0)
        .healthy()[7]
        .clone();
    let resources = PodResources::serve(&world.dir, &[("vms/virt-launcher-vm1", &id)]);
    world.checkpoint(&id, tap_of(&id));
    world
        .kubelet
        .pre_start(RESOURCE, std::slice::from_ref(&id))
        .unwrap();
    wait_until("the kubelet was asked", || resources.was_listed());
    let lists = world.kubelet.resource(RESOURCE).unwrap().lists;
    world.wait("it gets the list again", |resource| resource.lists > lists);
    write_checkpoint(&world.dir, &Value::Null);
    wait_until("its pod is gone", || !tap_exists(tap_of(&id)));
}
