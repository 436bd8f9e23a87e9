//! rtnetlink, as far as this program needs it. Callers speak in links, not in attributes.

mod attr;
mod error;
mod link;
mod message;
mod request;
mod socket;
mod uevent;
mod watch;

pub use error::NetlinkError;
pub use link::{Link, Stats, read_links};
pub use request::{Change, Create};
pub use socket::Socket;
pub use uevent::Uevents;
pub use watch::LinkWatch;
