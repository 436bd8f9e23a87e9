//! What the plugin prints.

use std::io::Write;

use anyhow::Context;
use serde_json::{Map, Serializer, Value, json, ser::PrettyFormatter};

use super::{
    error::{CniError, Result, code},
    version,
};

/// JSON as the reference implementation prints it: 4 spaces deep, no newline at the end.
#[must_use]
pub fn to_text(value: &Value) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = Serializer::with_formatter(&mut text, formatter);
    // A Value always serialises, and a Vec takes everything.
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => value.to_string(),
    }
}

/// The document of an error.
#[must_use]
pub fn error(error: &CniError) -> String {
    let mut object = Map::new();
    object.insert("cniVersion".into(), version::NEWEST.into());
    object.insert("code".into(), error.code.into());
    object.insert("msg".into(), error.msg.as_str().into());
    if !error.details.is_empty() {
        object.insert("details".into(), error.details.as_str().into());
    }
    to_text(&Value::Object(object))
}

/// The answer to VERSION.
#[must_use]
pub fn versions() -> String {
    let versions = json!({
        "cniVersion": version::NEWEST,
        "supportedVersions": version::SUPPORTED,
    });
    format!("{versions}\n")
}

/// Writes a document.
pub fn print(stdout: &mut dyn Write, text: &str) -> Result<()> {
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("writing the result to stdout")
        .map_err(|error| CniError::coded(code::IO, &error))
}
