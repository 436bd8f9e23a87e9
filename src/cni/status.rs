//! STATUS: whether ADD could work here.

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    config,
    error::{CniError, code},
};
use crate::netlink::Socket;

/// Fails with code 50 if ADD cannot work, with 51 if what it makes would have no connection.
pub fn status(json: &Value) -> Result<()> {
    let mut host = Socket::open()?;
    host.probe_macvtap()
        .context(
            "this node cannot make a macvtap; \
             the kernel needs it (modprobe macvtap), the plugin needs CAP_NET_ADMIN",
        )
        .map_err(|error| CniError::coded(code::NOT_AVAILABLE, &error))?;
    // With a device plugin the configuration does not tell which lower device a pod gets.
    let Some(name) = config::lower_device(json) else {
        return Ok(());
    };
    match host.link_by_name(name)? {
        None => {
            let text = format!("lower device {name:?} does not exist on this node");
            Err(CniError::new(code::NOT_AVAILABLE, text).into())
        }
        Some(lower) if !lower.up => {
            let text = format!("lower device {name:?} is down");
            Err(CniError::new(code::LIMITED_CONNECTIVITY, text).into())
        }
        Some(_) => Ok(()),
    }
}
