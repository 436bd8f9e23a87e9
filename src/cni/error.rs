//! The CNI error object, and the codes of the specification.

use std::fmt;

use anyhow::Error;
use serde_json::{Map, Value};

use super::{result::to_text, version};
use crate::{host::netns::NotANetns, types::json::Invalid};

/// The codes of the CNI specification 1.1.0, section "Error".
pub mod code {
    /// The configuration's version is not one of ours.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// An environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// Something could not be decoded.
    pub const DECODING: u32 = 6;
    /// The network configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// `CNI_NETNS` is not a netns to work in. In the reference implementation, not in the
    /// specification.
    pub const NETNS: u32 = 8;
    /// The same call may succeed later.
    pub const TRY_AGAIN: u32 = 11;
    /// The plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Attachments would have limited connectivity.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Whatever has no code of its own.
    pub const INTERNAL: u32 = 999;
}

/// An error with a code that runtimes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// More about it, may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self::detailed(code, msg, "")
    }

    /// An error with details.
    pub fn detailed(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// `error` with its chain of causes in one line, under this code.
    #[must_use]
    pub fn coded(code: u32, error: &Error) -> Self {
        Self::new(code, format!("{error:#}"))
    }

    /// The whole chain as one error, with code and details of the coded error in it, if any.
    #[must_use]
    pub fn from_chain(error: &Error) -> Self {
        let coded = error.downcast_ref::<Self>();
        let code = match coded {
            Some(coded) => coded.code,
            None if error.is::<NotANetns>() => code::NETNS,
            None if error.is::<Invalid>() => code::CONFIG,
            None => code::INTERNAL,
        };
        Self {
            code,
            msg: format!("{error:#}"),
            details: coded.map_or_else(String::new, |coded| coded.details.clone()),
        }
    }

    /// The JSON document to print.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut object = Map::new();
        object.insert("cniVersion".into(), version::NEWEST.into());
        object.insert("code".into(), self.code.into());
        object.insert("msg".into(), self.msg.as_str().into());
        if !self.details.is_empty() {
            object.insert("details".into(), self.details.as_str().into());
        }
        to_text(&Value::Object(object))
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl std::error::Error for CniError {}
