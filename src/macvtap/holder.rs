//! Who holds a tap: the search through all network namespaces, for messages.

use crate::host::netns::{self, Netns};

/// Says which interface holds tap `number`, and where, as far as that can be
/// found out: namespaces that cannot be entered are passed over.
#[must_use]
pub fn describe(number: u32) -> String {
    let holder = netns::all().find_map(|path| {
        let netns = Netns::open(&path).ok().flatten()?;
        let link = netns.socket().ok()?.link(number).ok().flatten()?;
        link.is_macvtap()
            .then(|| format!("interface {:?} in netns {}", link.name, path.display()))
    });
    holder.unwrap_or_else(|| "an interface in a netns that is being destroyed".to_owned())
}
