//! The default route, as far as lower devices are chosen by it.

use std::collections::BTreeSet;

use super::{Socket, address::InstalledRoute, error::NetlinkError};

impl Socket {
    /// The indexes of the interfaces of the default route that the kernel prefers: the one with
    /// the lowest priority number in the main table, of IPv4 if there is one.
    pub fn default_route(&mut self) -> Result<BTreeSet<u32>, NetlinkError> {
        let routes = self.routes(InstalledRoute::is_default)?;
        let rank = |route: &InstalledRoute| (!route.destination.is_ipv4(), route.priority);
        let lowest = routes.iter().map(rank).min();
        let preferred = routes.iter().filter(|route| Some(rank(route)) == lowest);
        Ok(preferred.filter_map(|route| route.interface).collect())
    }
}
