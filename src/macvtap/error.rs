//! Why a macvtap could not be attached.

use std::fmt;

use anyhow::Error;

use crate::netlink::NetlinkError;

/// The failure of an attachment, by what can be done about it.
#[derive(Debug)]
pub struct AttachError {
    /// Of which kind.
    pub kind: Kind,
    error: Error,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The pod has an interface of that name.
    NameTaken,
    /// Something is in the way that may go away: the same may succeed later.
    TryAgain,
    /// Anything else.
    Failed,
}

impl AttachError {
    /// An error of a kind.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            error: Error::msg(text.into()),
        }
    }

    /// The same error with what was being done.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            error: self.error.context(doing.into()),
        }
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for AttachError {}

impl From<Error> for AttachError {
    fn from(error: Error) -> Self {
        Self {
            kind: Kind::Failed,
            error,
        }
    }
}

impl From<NetlinkError> for AttachError {
    fn from(error: NetlinkError) -> Self {
        Error::from(error).into()
    }
}
