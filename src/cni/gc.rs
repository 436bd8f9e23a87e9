//! GC: removes what no attachment can have any more.
//!
//! An interface goes with its network namespace, and one in a namespace that lives may be
//! another network's. What alone can be stale are nodes of a /dev that is no devtmpfs,
//! and that is decided by the kernel, not by the list of attachments.

use log::info;
use serde_json::Value;

use super::{
    environment::Environment,
    error::{CniError, Result, code},
    input::Input,
};
use crate::host::devnode;

/// Removes stale nodes, and lets the IPAM plugin release stale addresses.
pub fn gc(environment: &Environment, input: &Input) -> Result<()> {
    let removed = remove_stale_nodes(&input.json);
    let released = input.forward(environment);
    CniError::all(
        [removed, released]
            .into_iter()
            .filter_map(Result::err)
            .collect(),
    )
}

/// Does nothing if the runtime gave no list of valid attachments: then it does not know them.
fn remove_stale_nodes(json: &Value) -> Result<()> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    if !keys
        .iter()
        .any(|key| json.get(key).is_some_and(Value::is_array))
    {
        return Ok(());
    }
    let refuse = |error| CniError::coded(code::IO, &error);
    let mut errors = Vec::new();
    for number in devnode::numbers().map_err(refuse)? {
        match devnode::remove_stale(number) {
            Ok(true) => info!(tap = number; "removed a stale node"),
            Ok(false) => {}
            Err(error) => errors.push(refuse(error)),
        }
    }
    CniError::all(errors)
}
