//! User and group numbers of a pod with a user namespace of its own.
//!
//! The kernel gives the files in `/proc/sys/net` of a network namespace to the root of the user
//! namespace that owns it (`net_ctl_set_ownership` of `net/sysctl_net.c`); so their owner is what
//! 0 is mapped to. What other numbers are mapped to a process of the pod shows; before there is
//! one, the kubelet's rule holds: each pod has 65536 numbers in a row.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::types::owner::{Access, Owner};

/// A sysctl that each network namespace has.
const SYSCTL: &str = "/proc/sys/net/ipv4/ip_forward";
/// Numbers in the user namespace of a pod (KEP-127).
const KUBELET_RANGE: u32 = 65_536;

/// The root of the user namespace that owns the calling thread's network namespace, in our own
/// numbers; our own root where the sysctls are hidden.
#[must_use]
pub fn root() -> Owner {
    let metadata = fs::metadata(SYSCTL).ok();
    Owner {
        user: metadata.as_ref().map_or(0, MetadataExt::uid),
        group: metadata.as_ref().map_or(0, MetadataExt::gid),
    }
}

/// The pod's numbers of `access` as our own, where the pod's root is `root`. `netns` is the path
/// by which the runtime names the pod's network namespace.
pub fn map(access: Access, root: Owner, netns: &Path) -> Result<Access> {
    if root == (Owner { user: 0, group: 0 }) {
        return Ok(access);
    }
    let process = process_of(root, netns);
    let mapped = |number, root, file: &str| {
        let text = process.as_ref().map(|process| process.join(file));
        let text = text.and_then(|path| fs::read_to_string(path).ok());
        let text = text.unwrap_or_else(|| format!("0 {root} {KUBELET_RANGE}"));
        lookup(&text, number).with_context(|| {
            let map = text.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{number} is not mapped in the pod's user namespace ({file}: {map})")
        })
    };
    let Owner { user, group } = access.owner;
    Ok(Access {
        owner: Owner {
            user: mapped(user, root.user, "uid_map").context("owner")?,
            group: mapped(group, root.group, "gid_map").context("group")?,
        },
        ..access
    })
}

/// A process in the pod's user namespace: the one that the path of the netns names, or any that
/// has its root. One of each user namespace is looked at.
fn process_of(root: Owner, netns: &Path) -> Option<PathBuf> {
    let maps_root = |process: &Path, file: &str| {
        let text = fs::read_to_string(process.join(file)).ok();
        text.and_then(|text| lookup(&text, 0))
    };
    let is_in = |process: &PathBuf| {
        maps_root(process, "uid_map") == Some(root.user)
            && maps_root(process, "gid_map") == Some(root.group)
    };
    let named = netns.parent().and_then(Path::parent).map(PathBuf::from);
    let named = named.filter(|process| process.starts_with("/proc"));
    let others = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = named.into_iter().chain(others.map(|entry| entry.path()));
    let namespace = |process: &Path| fs::read_link(process.join("ns/user")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace(Path::new("/proc/self")).into_iter().collect();
    let mut first_of_each =
        all.filter(|process| namespace(process).is_none_or(|it| seen.insert(it)));
    first_of_each.find(is_in)
}

/// What `number` is mapped to by a `uid_map` or `gid_map`, `user_namespaces(7)`.
fn lookup(map: &str, number: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || words.next()?.ok();
        let (inside, outside, length) = (next()?, next()?, next()?);
        let offset = number
            .checked_sub(inside)
            .filter(|offset| *offset < length)?;
        outside.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_number_in_its_range() {
        let map = "         0     200000      65536\n     70000          5         10\n";
        assert_eq!(lookup(map, 107), Some(200_107));
        assert_eq!(lookup(map, 65_535), Some(265_535));
        assert_eq!(lookup(map, 65_536), None);
        assert_eq!(lookup(map, 70_009), Some(14));
        assert_eq!(lookup("0 0 4294967295", 107), Some(107));
        for broken in ["", "x", "0 1", "0 4294967295 4294967295"] {
            assert_eq!(lookup(broken, 107), None, "{broken}");
        }
    }

    #[test]
    fn a_pod_without_processes_has_the_kubelets_range() {
        let access = |user| Access {
            owner: Owner { user, group: 107 },
            group: true,
        };
        let root = Owner {
            user: 3_000_000_000,
            group: 3_000_065_536,
        };
        let netns = Path::new("/run/netns/cni-1");
        let mapped = map(access(107), root, netns).unwrap();
        assert_eq!(mapped.owner.to_string(), "3000000107:3000065643");
        assert!(mapped.group);
        let error = map(access(65_536), root, netns).unwrap_err();
        assert!(format!("{error:#}").contains("owner: 65536 is not mapped"));
        let root = Owner { user: 0, group: 0 };
        assert_eq!(map(access(65_536), root, netns).unwrap(), access(65_536));
    }
}
