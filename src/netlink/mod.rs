//! rtnetlink, as far as this program needs it. Callers speak in links, not in attributes.

mod address;
mod attr;
mod batch;
pub(crate) mod bpf;
mod error;
mod event_socket;
pub mod filter;
mod link;
mod message;
mod neighbor;
mod nft;
mod request;
mod route;
mod route_watch;
mod single_address;
mod socket;
mod tc;
mod uevent;
mod watch;

pub use address::{AssignedAddress, InstalledRoute};
pub use bpf::compile;
pub use error::NetlinkError;
pub use link::{Link, Stats, read_links};
pub use neighbor::{KnownNeighbor, Neighbor, NeighborState};
pub use nft::{Counter, Nft, Table};
pub use request::{Change, Create, CreateUpper, MAX_ALIAS, NO_IPV6_ADDRESSES, UpperKind};
pub use route_watch::{RouteChange, RouteWatch};
pub use single_address::{AddressRoute, ROUTE_PROTOCOL};
pub use socket::Socket;
pub use tc::{Direction, Qdisc, Tbf};
pub use uevent::Uevents;
pub use watch::LinkWatch;
