//! Which MAC an attachment has if none is asked for. Pure.

use super::error::{CniError, Result, code};
use crate::types::{
    json::{Fields, Invalid},
    mac::MacAddr,
    mode::Mode,
};

/// What KubeVirt and the API server name a VM's pod: this, the VM's name, `-`, and
/// [`RANDOM_LETTERS`] (`generateName` of Kubernetes).
const LAUNCHER: &str = "virt-launcher-";
const RANDOM_LETTERS: usize = 5;
/// The letters of such an end (`k8s.io/apimachinery`, `util/rand`).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A name of this length may have lost the end of the VM's name (`k8s.io/apiserver`,
/// `storage/names`).
const LONGEST_GENERATED: usize = 63;

/// How an attachment without a MAC gets one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MacPolicy {
    /// From the names of the VM or pod, of the network and of the interface. A VM keeps it when it
    /// is started again, so it keeps its DHCP lease, and when it migrates, so frames reach it there:
    /// the guest keeps the MAC with which it was started.
    #[default]
    Stable,
    /// Another one each time.
    Random,
}

/// The pod and the network that an attachment belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// The name of the network.
    pub network: &'a str,
    /// The name of the interface, for a pod can have several of a network.
    pub ifname: &'a str,
}

/// What decides the MAC of an attachment.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The one that is asked for.
    pub asked: Option<MacAddr>,
    /// How it gets one otherwise.
    pub policy: MacPolicy,
    /// The mode of the macvtap.
    pub mode: Mode,
    /// Whose it is; none outside of Kubernetes.
    pub names: Option<Names<'a>>,
}

impl Choice<'_> {
    /// Whether it is to come from names. In passthru mode a macvtap has the MAC of its lower
    /// device.
    #[must_use]
    pub fn is_stable(&self) -> bool {
        self.asked.is_none() && self.policy == MacPolicy::Stable && !self.mode.is_alone()
    }

    /// The MAC; none if it is random, or that of the lower device.
    #[must_use]
    pub fn mac(&self) -> Option<MacAddr> {
        let names = self.names.as_ref().filter(|_| self.is_stable());
        self.asked.or_else(|| names.and_then(stable))
    }
}

/// The policy that a configuration says.
pub fn read(fields: &Fields<'_>) -> Result<Option<MacPolicy>> {
    match fields.text("macPolicy")? {
        None => Ok(None),
        Some("stable") => Ok(Some(MacPolicy::Stable)),
        Some("random") => Ok(Some(MacPolicy::Random)),
        Some(other) => {
            let wanted = "\"stable\" or \"random\"";
            let invalid = Invalid::new("macPolicy", &other.into(), wanted);
            Err(CniError::new(code::CONFIG, invalid.to_string()))
        }
    }
}

/// The MAC that belongs to these names. None where two VMs of a cluster can have the same. The
/// names say nothing of the cluster: in two clusters on one LAN equal names have equal MACs, and a
/// VM that moves from one to the other keeps its own.
#[must_use]
pub fn stable(names: &Names<'_>) -> Option<MacAddr> {
    let Names {
        namespace,
        pod,
        network,
        ifname,
    } = *names;
    let (kind, owner) = match vm(pod) {
        Some(vm) if pod.len() < LONGEST_GENERATED => ("vm", vm),
        Some(_) => return None,
        None => ("pod", pod),
    };
    Some(MacAddr::of_names(&[
        namespace, kind, owner, network, ifname,
    ]))
}

/// The VM whose pod this is, if it is one's.
fn vm(pod: &str) -> Option<&str> {
    let name = pod.strip_prefix(LAUNCHER)?;
    let (vm, end) = name.split_at_checked(name.len().checked_sub(RANDOM_LETTERS)?)?;
    let is_random = end.bytes().all(|byte| LETTERS.contains(&byte));
    let vm = match vm.strip_suffix('-') {
        // Cut off before it.
        None if pod.len() >= LONGEST_GENERATED => vm,
        whole => whole?,
    };
    (is_random && !vm.is_empty()).then_some(vm)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NAMES: Names<'static> = Names {
        namespace: "vms",
        pod: "virt-launcher-fedora-x7k2p",
        network: "lan",
        ifname: "net1",
    };

    #[test]
    fn a_vm_keeps_its_mac_and_shares_it_with_no_other() {
        let of = |pod| stable(&Names { pod, ..NAMES });
        let mac = stable(&NAMES).unwrap();
        // It must never change, for VMs have it.
        assert_eq!(mac.to_string(), "5e:ad:6e:fe:45:ea");
        assert_eq!((mac.0[0] & 3, mac.is_assignable()), (2, true));
        assert_eq!(of("virt-launcher-fedora-8zqvl"), Some(mac));
        for other in [
            of("virt-launcher-fedora-a-x7k2p"),
            of("virt-launcher-fedora-x7k2a"),
            of("virt-launcher-fedora"),
            of("fedora"),
            stable(&Names {
                namespace: "vm",
                ..NAMES
            }),
            stable(&Names {
                network: "lan2",
                ..NAMES
            }),
            stable(&Names {
                ifname: "net2",
                ..NAMES
            }),
        ] {
            assert_ne!(other.unwrap(), mac);
        }
        assert_ne!(of("web-74bc9d7c8d-x7k2p"), of("web-74bc9d7c8d-8zqvl"));
    }

    #[test]
    fn names_that_may_be_cut_off_have_none() {
        let pod = |vm: &str| {
            let base = format!("{LAUNCHER}{vm}-");
            format!("{}x7k2p", &base[..base.len().min(58)])
        };
        let of = |vm: usize| {
            let pod = pod(&"v".repeat(vm));
            stable(&Names { pod: &pod, ..NAMES })
        };
        assert!(of(42).is_some());
        for vm in [43, 44, 45, 63] {
            assert_eq!(of(vm), None, "{vm}");
        }
    }

    #[test]
    fn policies_are_read_by_name() {
        let of = |json| read(&Fields::of(&json).unwrap());
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(
            of(json!({"macPolicy": "stable"})),
            Ok(Some(MacPolicy::Stable))
        );
        assert_eq!(
            of(json!({"macPolicy": "random"})),
            Ok(Some(MacPolicy::Random))
        );
        for wrong in [json!("Stable"), json!(true)] {
            let error = of(json!({"macPolicy": wrong})).unwrap_err();
            assert!(error.msg.contains("invalid macPolicy"), "{error}");
        }
    }
}
