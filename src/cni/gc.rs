//! GC: removes what no attachment can have any more.
//!
//! An interface goes with its network namespace, and one in a namespace that lives may be
//! another network's. What alone can be stale are nodes of a /dev that is no devtmpfs,
//! and that is decided by the kernel, not by the list of attachments.

use log::info;
use serde_json::Value;

use super::{
    config,
    environment::Environment,
    error::{CniError, Result, code},
    input::Input,
};
use crate::{host::devnode, macvtap::sub_interface::Maker, netlink::Socket};

/// Removes stale nodes and an unused VLAN, and lets the IPAM plugin release stale addresses.
pub fn gc(environment: &Environment, input: &Input) -> Result<()> {
    let mut results = vec![input.forward(environment)];
    if lists_attachments(&input.json) {
        results.push(remove_stale_nodes());
        results.push(remove_unused_vlan(&input.json));
    }
    CniError::all(results.into_iter().filter_map(Result::err).collect())
}

/// Without a list of valid attachments the runtime does not know them.
fn lists_attachments(json: &Value) -> bool {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    keys.iter()
        .any(|key| json.get(key).is_some_and(Value::is_array))
}

/// The VLAN interface that ADD made, if the last DEL could not remove it: the netns of its pod was
/// still going away.
fn remove_unused_vlan(json: &Value) -> Result<()> {
    if let Some(vlan) = config::vlan(json) {
        vlan.remove_unused(&mut Socket::open()?, Maker::Cni)?;
    }
    Ok(())
}

fn remove_stale_nodes() -> Result<()> {
    let refuse = |error| CniError::coded(code::IO, &error);
    let mut errors = Vec::new();
    let numbers = devnode::numbers().map_err(refuse)?;
    for number in numbers {
        match devnode::remove_stale(number) {
            Ok(true) => info!(tap = number; "removed a stale node"),
            Ok(false) => {}
            Err(error) => errors.push(refuse(error)),
        }
    }
    CniError::all(errors)
}
