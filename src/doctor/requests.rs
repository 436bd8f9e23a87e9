//! How the pods of this cluster get their taps: what requests the resource of a network, or
//! whether the container runtime gives the tap. Pure.

use crate::types::release::Release;

/// The first KubeVirt that does not request the resource of a network by itself.
const KUBEVIRT_WITHOUT_REQUESTS: Release = Release(1, 9);
/// The first Kubernetes with `MutatingAdmissionPolicy`, and the first with it enabled.
const POLICY_BETA: Release = Release(1, 34);
const POLICY: Release = Release(1, 36);
/// The first containerd with NRI, and the first with it enabled.
const CONTAINERD_NRI: Release = Release(1, 7);
const CONTAINERD_NRI_ENABLED: Release = Release(2, 0);

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Containerd,
    Crio,
}

/// The container runtime of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runtime {
    pub kind: Kind,
    pub release: Option<Release>,
    /// Whether its configuration enables NRI; none if it does not say.
    pub configured: Option<bool>,
    /// Whether its NRI socket exists.
    pub serves_nri: bool,
}

impl Runtime {
    /// Its name and release.
    pub fn name(&self) -> String {
        let name = match self.kind {
            Kind::Containerd => "containerd",
            Kind::Crio => "CRI-O",
        };
        match self.release {
            Some(release) => format!("{name} {release}"),
            None => name.to_owned(),
        }
    }

    /// Whether NRI can be used, and what to do about it if not.
    pub fn nri(&self) -> String {
        let name = self.name();
        if self.serves_nri {
            return format!("{name} has NRI enabled");
        }
        if self.kind == Kind::Containerd && self.release.is_some_and(|it| it < CONTAINERD_NRI) {
            return format!("{name} has no NRI; containerd {CONTAINERD_NRI} and later has");
        }
        let by_default = self.release.is_some_and(|it| it >= CONTAINERD_NRI_ENABLED);
        let by_default = self.kind == Kind::Containerd && by_default;
        if self.configured.unwrap_or(by_default) {
            return format!("{name} has NRI enabled, but no socket: restart it");
        }
        let key = match self.kind {
            Kind::Containerd => {
                "disable = false in the section plugins.\"io.containerd.nri.v1.nri\" of \
                 /etc/containerd/config.toml"
            }
            Kind::Crio => "enable_nri = true in the section crio.nri of /etc/crio/crio.conf",
        };
        format!("{name} has NRI disabled; {key} enables it")
    }
}

/// What pods need for their taps, whatever KubeVirt the cluster has.
pub fn needs(kubernetes: Option<Release>, runtime: Option<Runtime>) -> String {
    format!(
        "KubeVirt before {KUBEVIRT_WITHOUT_REQUESTS} requests the resource of a network by itself; \
         later releases need one of: {}",
        ways(kubernetes, runtime)
    )
}

/// What the VMs of this KubeVirt need for their taps; none if they need nothing.
pub fn needs_of(kubevirt: Release, kubernetes: Option<Release>) -> Option<String> {
    (kubevirt >= KUBEVIRT_WITHOUT_REQUESTS).then(|| {
        format!(
            "KubeVirt {kubevirt} does not request the resource of a network; use one of: {}",
            ways(kubernetes, None)
        )
    })
}

fn ways(kubernetes: Option<Release>, runtime: Option<Runtime>) -> String {
    let policy = match kubernetes {
        Some(release) if release < POLICY_BETA => None,
        Some(release) if release < POLICY => Some(format!(
            "manifests/injection-v1beta1 with its feature gate, since Kubernetes is {release}"
        )),
        Some(_) => Some("manifests/injection".to_owned()),
        None => Some(format!(
            "manifests/injection on Kubernetes {POLICY} or later"
        )),
    };
    let nri = match runtime {
        Some(runtime) if !runtime.serves_nri => "the component nri, after NRI is enabled",
        _ => "the component nri",
    };
    let ways = policy.into_iter().chain([nri.to_owned()]);
    let ways = ways.chain(["the network-resources-injector".to_owned()]);
    ways.collect::<Vec<_>>().join("; ")
}

/// The last value of a switch in a section of a TOML file, as far as runtimes write it: a heading
/// that names the section, then `key = true` on a line of its own.
pub fn switch(toml: &str, section: &str, key: &str) -> Option<bool> {
    let (mut inside, mut value) = (false, None);
    for line in toml.lines().map(str::trim) {
        if let Some(heading) = line.strip_prefix('[') {
            let heading = heading.split(']').next().unwrap_or_default();
            inside = heading.trim_end_matches(['"', '\'']).ends_with(section);
        } else if inside
            && let Some((name, text)) = line.split_once('=')
            && name.trim() == key
        {
            let text = text.split('#').next().unwrap_or_default();
            value = text.trim().parse().ok();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn containerd(release: (u32, u32)) -> Runtime {
        Runtime {
            kind: Kind::Containerd,
            release: Some(Release(release.0, release.1)),
            configured: None,
            serves_nri: false,
        }
    }

    fn configured(value: bool, runtime: Runtime) -> Runtime {
        Runtime {
            configured: Some(value),
            ..runtime
        }
    }

    #[test]
    fn says_whether_the_runtime_has_nri_and_what_enables_it() {
        for (runtime, expected) in [
            (
                containerd((1, 6)),
                "containerd 1.6 has no NRI; containerd 1.7",
            ),
            (
                containerd((1, 7)),
                "containerd 1.7 has NRI disabled; disable = false",
            ),
            (
                containerd((2, 1)),
                "containerd 2.1 has NRI enabled, but no socket",
            ),
            (
                configured(false, containerd((2, 1))),
                "containerd 2.1 has NRI disabled; disable = false",
            ),
            (
                configured(true, containerd((1, 7))),
                "containerd 1.7 has NRI enabled, but no socket",
            ),
        ] {
            let text = runtime.nri();
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn an_nri_socket_says_more_than_a_configuration() {
        let containerd = Runtime {
            serves_nri: true,
            ..containerd((1, 7))
        };
        assert_eq!(containerd.nri(), "containerd 1.7 has NRI enabled");
        let crio = |configured| Runtime {
            kind: Kind::Crio,
            release: None,
            configured,
            serves_nri: false,
        };
        assert!(
            crio(None)
                .nri()
                .starts_with("CRI-O has NRI disabled; enable_nri = true")
        );
        assert!(crio(Some(true)).nri().contains("enabled, but no socket"));
    }

    #[test]
    fn says_what_pods_need_by_the_releases_of_the_cluster() {
        let of = |kubernetes| needs(Some(kubernetes), None);
        assert!(!of(Release(1, 33)).contains("injection"));
        assert!(of(Release(1, 35)).contains("manifests/injection-v1beta1 with its"));
        assert!(of(Release(1, 36)).contains("one of: manifests/injection; the component nri; "));
        assert!(needs(None, None).contains("on Kubernetes 1.36 or later"));
        let disabled = needs(None, Some(containerd((1, 7))));
        assert!(disabled.contains("the component nri, after NRI is enabled"));
        assert_eq!(needs_of(Release(1, 8), None), None);
        let text = needs_of(Release(1, 10), Some(Release(1, 36))).unwrap();
        assert!(text.starts_with("KubeVirt 1.10 does not request"), "{text}");
    }

    #[test]
    fn finds_a_switch_in_the_files_of_runtimes() {
        let section = "io.containerd.nri.v1.nri";
        for (toml, expected) in [
            (
                "[plugins.\"io.containerd.nri.v1.nri\"]\n  disable = false # on\n",
                Some(false),
            ),
            (
                "[plugins.'io.containerd.nri.v1.nri']\ndisable=true",
                Some(true),
            ),
            (
                "[plugins.'io.containerd.cri.v1.runtime']\ndisable = true",
                None,
            ),
            (
                "[plugins.\"io.containerd.nri.v1.nri\"]\n[other]\ndisable = true",
                None,
            ),
            (
                "#[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(switch(toml, section, "disable"), expected, "{toml}");
        }
        let crio = "[crio.nri]\nenable_nri = false\n[crio.nri]\nenable_nri = true\n";
        assert_eq!(switch(crio, "crio.nri", "enable_nri"), Some(true));
    }
}
