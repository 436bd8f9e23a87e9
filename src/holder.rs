//! Who holds a tap: the search through all network namespaces, for messages.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::PathBuf};

use crate::netns::Netns;

/// Where container runtimes and iproute2 keep network namespaces.
const NAMED: &str = "/run/netns";

/// Says which interface holds tap `number`, and where, as far as that can be
/// found out: namespaces that cannot be entered are passed over.
#[must_use]
pub fn describe(number: u32) -> String {
    let holder = namespaces().find_map(|path| {
        let netns = Netns::open(&path).ok().flatten()?;
        let link = netns.socket().ok()?.link(number).ok().flatten()?;
        link.is_macvtap()
            .then(|| format!("interface {:?} in netns {}", link.name, path.display()))
    });
    holder.unwrap_or_else(|| "an interface in a netns that is being destroyed".to_owned())
}

/// The network namespaces with a name, then those of processes; each once.
fn namespaces() -> impl Iterator<Item = PathBuf> {
    let named = entries(NAMED);
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    let mut seen = BTreeSet::new();
    named.chain(of_processes).filter(move |path| {
        fs::metadata(path).is_ok_and(|found| seen.insert((found.dev(), found.ino())))
    })
}

fn entries(directory: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}
