//! rtnetlink, as far as this program needs it. Whoever calls speaks in links,
//! not in attributes.

mod link;
mod request;
mod socket;
mod watch;

pub use link::{Link, Stats};
pub use request::{Change, Create};
pub use socket::{NetlinkError, Socket, errno, read_links};
pub use watch::LinkWatch;
