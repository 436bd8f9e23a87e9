//! Which containers get the taps of their pod, and how they are described to the runtime. Pure.

use crate::{
    deviceplugin::nri::api::{
        Container, ContainerAdjustment, CreateContainerResponse, LinuxContainerAdjustment,
        LinuxDevice, LinuxNamespace, OptionalUInt32, PodSandbox,
    },
    types::{device_number::DeviceNumber, owner::Access},
};

/// The annotation of a pod that names the containers which get its taps, separated by commas.
const CONTAINERS: &str = "macvtap.network.kubevirt.io/containers";

/// Who may open the node in the container. ADD refuses networks that say something else.
const ACCESS: Access = Access::QEMU;

/// A tap of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The path of its node.
    pub path: String,
    /// Its device number.
    pub device: DeviceNumber,
}

/// Whether a container gets the taps of its pod: `compute` of a virt-launcher pod; of any other
/// pod those that the annotation names, or all.
pub fn gets_taps(pod: &PodSandbox, container: &Container) -> bool {
    if let Some(names) = pod.annotations.get(CONTAINERS) {
        return names.split(',').any(|name| name.trim() == container.name);
    }
    let of_kubevirt = pod.labels.get("kubevirt.io");
    of_kubevirt.is_none_or(|kind| kind != "virt-launcher") || container.name == "compute"
}

/// The path of the pod's network namespace. A pod on the host's network has none.
pub fn netns(pod: &PodSandbox) -> Option<&str> {
    let namespaces = &pod.linux.as_ref()?.namespaces;
    let network = namespaces
        .iter()
        .find(|namespace| namespace.r#type == "network")?;
    Some(&network.path)
}

/// Whether the container has a user namespace. runc then binds the host's node into it, whose
/// owner is not mapped there.
pub fn has_user_namespace(pod: &PodSandbox, container: &Container) -> bool {
    let is_user = |namespace: &LinuxNamespace| namespace.r#type == "user";
    let of_pod = pod.linux.iter().flat_map(|linux| &linux.namespaces);
    let of_container = container.linux.iter().flat_map(|linux| &linux.namespaces);
    of_pod.chain(of_container).any(is_user)
}

/// The paths of the devices that the container has.
pub fn device_paths(container: &Container) -> impl Iterator<Item = &str> {
    let devices = container.linux.iter().flat_map(|linux| &linux.devices);
    devices.map(|device| device.path.as_str())
}

/// Those of the taps that the container does not have.
pub fn missing(container: &Container, taps: Vec<Tap>) -> Vec<Tap> {
    let paths: Vec<&str> = device_paths(container).collect();
    let missing = |tap: &Tap| !paths.contains(&tap.path.as_str());
    taps.into_iter().filter(missing).collect()
}

/// The answer that gives a container these taps. The runtime adds the rule of the device cgroup.
/// Without an owner and a mode it would make nodes of root that all may open.
pub fn give(taps: &[Tap]) -> CreateContainerResponse {
    if taps.is_empty() {
        return CreateContainerResponse::default();
    }
    let devices = taps.iter().map(|tap| LinuxDevice {
        path: tap.path.clone(),
        r#type: "c".to_owned(),
        major: tap.device.major.cast_signed(),
        minor: tap.device.minor.cast_signed(),
        file_mode: Some(ACCESS.mode().into()),
        uid: Some(ACCESS.owner.user.into()),
        gid: Some(ACCESS.owner.group.into()),
    });
    let linux = LinuxContainerAdjustment {
        devices: devices.collect(),
    };
    CreateContainerResponse {
        adjust: Some(ContainerAdjustment { linux: Some(linux) }),
    }
}

impl From<u32> for OptionalUInt32 {
    fn from(value: u32) -> Self {
        Self { value }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::deviceplugin::nri::api::{LinuxContainer, LinuxPodSandbox};

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        entries.iter().map(owned).collect()
    }

    fn container(name: &str) -> Container {
        Container {
            name: name.to_owned(),
            ..Container::default()
        }
    }

    fn namespace(kind: &str) -> LinuxNamespace {
        LinuxNamespace {
            r#type: kind.to_owned(),
            path: format!("/run/{kind}"),
        }
    }

    fn tap(number: i32) -> Tap {
        Tap {
            path: format!("/dev/tap{number}"),
            device: DeviceNumber {
                major: 240,
                minor: 3,
            },
        }
    }

    #[test]
    fn compute_gets_the_taps_of_a_vm_and_every_container_those_of_a_pod() {
        let launcher = [("kubevirt.io", "virt-launcher")];
        let hotplug = [("kubevirt.io", "hotplug-disk")];
        let named = [(CONTAINERS, "a, b")];
        for (labels, annotations, name, expected) in [
            (&launcher[..], &[][..], "compute", true),
            (&launcher, &[], "guest-console-log", false),
            (&launcher, &named, "compute", false),
            (&[], &[], "compute", true),
            (&[], &[], "anything", true),
            (&hotplug, &[], "hotplug-disk", true),
            (&[], &named, "a", true),
            (&[], &named, "b", true),
            (&[], &named, "c", false),
            (&[], &[(CONTAINERS, "")], "c", false),
        ] {
            let pod = PodSandbox {
                labels: map(labels),
                annotations: map(annotations),
                ..PodSandbox::default()
            };
            assert_eq!(
                gets_taps(&pod, &container(name)),
                expected,
                "{name} {pod:?}"
            );
        }
    }

    #[test]
    fn namespaces_are_told_by_their_type() {
        let pod = |kinds: &[&str]| PodSandbox {
            linux: Some(LinuxPodSandbox {
                namespaces: kinds.iter().map(|kind| namespace(kind)).collect(),
            }),
            ..PodSandbox::default()
        };
        assert_eq!(netns(&pod(&["ipc", "network"])), Some("/run/network"));
        assert_eq!(netns(&pod(&["ipc"])), None);
        assert_eq!(netns(&PodSandbox::default()), None);
        assert!(has_user_namespace(&pod(&["user"]), &container("a")));
        assert!(!has_user_namespace(&pod(&["network"]), &container("a")));
        let mut own = container("a");
        own.linux = Some(LinuxContainer {
            namespaces: vec![namespace("user")],
            ..LinuxContainer::default()
        });
        assert!(has_user_namespace(&pod(&["network"]), &own));
    }

    #[test]
    fn a_device_that_is_there_is_not_given_again() {
        let mut container = container("compute");
        assert_eq!(missing(&container, vec![tap(1), tap(2)]), [tap(1), tap(2)]);
        let device = |path: &str| LinuxDevice {
            path: path.to_owned(),
            ..LinuxDevice::default()
        };
        container.linux = Some(LinuxContainer {
            devices: vec![device("/dev/kvm"), device("/dev/tap1")],
            ..LinuxContainer::default()
        });
        assert_eq!(missing(&container, vec![tap(1), tap(11)]), [tap(11)]);
    }

    #[test]
    fn the_node_has_an_owner_and_a_mode() {
        let answer = give(&[tap(33_554_433)]);
        let devices = answer.adjust.unwrap().linux.unwrap().devices;
        let [device] = &devices[..] else {
            panic!("{devices:?}");
        };
        assert_eq!(
            (device.path.as_str(), device.r#type.as_str()),
            ("/dev/tap33554433", "c")
        );
        assert_eq!((device.major, device.minor), (240, 3));
        let values = [&device.uid, &device.gid, &device.file_mode].map(|v| v.unwrap().value);
        assert_eq!(values, [107, 107, 0o600]);
        assert_eq!(give(&[]), CreateContainerResponse::default());
    }
}
