//! The CNI error, and the codes of the specification.

use std::fmt;

use crate::{
    macvtap::{
        error::{AttachError, Kind},
        lower::{LowerError, Reason},
    },
    netlink::NetlinkError,
    types::json::Invalid,
};

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

/// The outcome of a part of a verb.
pub type Result<T> = std::result::Result<T, CniError>;

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

    /// `error` with its causes in one line, under this code.
    #[must_use]
    pub fn coded(code: u32, error: &anyhow::Error) -> Self {
        Self::new(code, format!("{error:#}"))
    }

    /// The same error with what was being done.
    #[must_use]
    pub fn context(self, doing: &str) -> Self {
        Self {
            msg: format!("{doing}: {}", self.msg),
            ..self
        }
    }

    /// The same error with more about it.
    #[must_use]
    pub fn with_details(self, more: &[String]) -> Self {
        let details = [self.details.as_str()]
            .into_iter()
            .filter(|details| !details.is_empty());
        let details: Vec<&str> = details.chain(more.iter().map(String::as_str)).collect();
        Self {
            details: details.join("; "),
            ..self
        }
    }

    /// All errors in one, under the code of the first; success if there are none.
    pub fn all(errors: Vec<Self>) -> Result<()> {
        let all = errors.into_iter().reduce(|first, next| Self {
            msg: format!("{}; and {}", first.msg, next.msg),
            ..first
        });
        all.map_or(Ok(()), Err)
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)
    }
}

impl std::error::Error for CniError {}

impl From<anyhow::Error> for CniError {
    fn from(error: anyhow::Error) -> Self {
        Self::coded(code::INTERNAL, &error)
    }
}

impl From<Invalid> for CniError {
    fn from(invalid: Invalid) -> Self {
        Self::new(code::CONFIG, invalid.to_string())
    }
}

impl From<NetlinkError> for CniError {
    fn from(error: NetlinkError) -> Self {
        Self::new(code::INTERNAL, error.to_string())
    }
}

impl From<LowerError> for CniError {
    fn from(error: LowerError) -> Self {
        let code = match &error {
            LowerError::Ineligible(ineligible) => match ineligible.reason {
                Reason::NotEthernet => code::CONFIG,
                Reason::Down => code::TRY_AGAIN,
                Reason::Missing | Reason::Port(_) | Reason::Held(_) => code::INTERNAL,
            },
            LowerError::Netlink(_) => code::INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

impl From<AttachError> for CniError {
    fn from(error: AttachError) -> Self {
        match error.kind {
            Kind::NameTaken => Self::new(code::ENVIRONMENT, format!("CNI_IFNAME: {error}")),
            Kind::TryAgain => Self::new(code::TRY_AGAIN, error.to_string()),
            Kind::Failed => Self::new(code::INTERNAL, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_gives_the_code_of_all() {
        assert_eq!(CniError::all(Vec::new()), Ok(()));
        let one = CniError::new(code::IO, "one").context("doing");
        let two = CniError::new(code::CONFIG, "two");
        let all = CniError::all(vec![one, two]).unwrap_err();
        assert_eq!(
            (all.code, all.msg.as_str()),
            (code::IO, "doing: one; and two")
        );
    }
}
