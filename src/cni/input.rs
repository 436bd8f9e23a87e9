//! What the runtime writes to standard input: the network configuration.

use std::io::Read;

use serde_json::Value;

use super::{
    config,
    delegate::Delegate,
    environment::{self, Environment},
    error::{CniError, Result, code},
};
use crate::types::json::Fields;

/// The longest configuration that is read, in bytes. GC lists every attachment of a node.
const MAX_INPUT_BYTES: u64 = 4 << 20;

/// A network configuration.
pub struct Input {
    /// What it says.
    pub json: Value,
    /// As it was written.
    pub text: Vec<u8>,
}

impl Input {
    /// Reads it, and checks what every verb needs of it.
    pub fn read(stdin: &mut dyn Read) -> Result<Self> {
        let mut text = Vec::new();
        let read = stdin.take(MAX_INPUT_BYTES + 1).read_to_end(&mut text);
        let unread =
            |why: String| CniError::new(code::IO, format!("error reading from stdin: {why}"));
        let length = read.map_err(|error| unread(error.to_string()))?;
        if u64::try_from(length).is_ok_and(|length| length > MAX_INPUT_BYTES) {
            return Err(unread(format!("more than {MAX_INPUT_BYTES} bytes")));
        }
        // As Go, which takes what is not UTF-8 for U+FFFD.
        let json = serde_json::from_str(&String::from_utf8_lossy(&text));
        let json = json.map_err(|error| wrong(&error.to_string()))?;
        check_name(&json)?;
        Ok(Self { json, text })
    }

    /// Calls the IPAM plugin, if the network has one, with the verb that we were called with.
    pub fn forward(&self, environment: &Environment) -> Result<()> {
        let Some(plugin) = config::ipam_plugin(&self.json) else {
            return Ok(());
        };
        let delegate = Delegate {
            plugin: &plugin,
            environment,
            stdin: &self.text,
        };
        delegate.forward(&environment.verb)
    }
}

fn check_name(json: &Value) -> Result<()> {
    let Some(fields) = Fields::of(json) else {
        return Err(wrong("it is not a JSON object"));
    };
    let refuse = |text: &str, details: &str| Err(CniError::detailed(code::CONFIG, text, details));
    match fields.value("name") {
        None => refuse("missing network name", ""),
        Some(Value::String(name)) if name.is_empty() => refuse("missing network name", ""),
        Some(Value::String(name)) if !environment::is_name(name) => {
            refuse("invalid characters found in network name", name)
        }
        Some(Value::String(_)) => Ok(()),
        Some(other) => Err(wrong(&format!("name is {other}, not a string"))),
    }
}

fn wrong(why: &str) -> CniError {
    let text = format!("error unmarshall network config: {why}");
    CniError::new(code::DECODING, text)
}
