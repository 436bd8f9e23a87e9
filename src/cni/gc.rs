//! GC: removes what no attachment can have any more.
//!
//! An interface goes with its network namespace, and one in a namespace that lives may be
//! another network's. What alone can be stale are nodes of a /dev that is no devtmpfs,
//! and whether a node is stale the kernel tells, not the list of attachments.

use anyhow::Result;
use log::info;
use serde_json::Value;

use crate::{host::tap, types::errors::together};

/// Removes stale nodes, unless the runtime gave no list of valid attachments: then it does not
/// know them.
pub fn gc(json: &Value) -> Result<()> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    if !keys
        .iter()
        .any(|key| json.get(key).is_some_and(Value::is_array))
    {
        return Ok(());
    }
    let mut failures = Vec::new();
    for number in tap::nodes()? {
        match tap::remove_stale(number) {
            Ok(true) => info!("removed the stale node of tap={number}"),
            Ok(false) => {}
            Err(error) => failures.push(error),
        }
    }
    together(&failures)
}
