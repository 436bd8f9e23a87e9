//! The DaemonSet's container, in which parts of the node are not visible.

use std::path::Path;

use super::finding::Finding;

/// Whether this runs in our image.
pub fn is_ours() -> bool {
    Path::new("/macvtap").exists() && !Path::new("/etc/os-release").exists()
}

/// The finding about a directory of the node.
pub fn not_visible(check: &'static str, path: &Path) -> Finding {
    let text = format!(
        "{} is not visible in this container; run doctor on the node",
        path.display()
    );
    Finding::note(check, text)
}
