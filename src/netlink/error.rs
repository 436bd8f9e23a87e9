//! Why a netlink request failed.

use std::fmt;

use nix::errno::Errno;

/// The failure of a netlink request.
#[derive(Debug)]
pub enum NetlinkError {
    /// The kernel refused the request.
    Refused {
        /// The error number.
        errno: Errno,
        /// The text of the extended acknowledgement; many refusals come without one.
        text: Option<String>,
    },
    /// The request could not be sent, or its answer could not be read: the kernel may have
    /// done what was asked, or not.
    Unanswered(anyhow::Error),
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Unanswered(_) => None,
        }
    }

    /// The text of the kernel's extended acknowledgement, if it refused with one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Refused { text, .. } => text.as_deref(),
            Self::Unanswered(_) => None,
        }
    }
}

/// What exists already, and is to exist, is left as it is.
pub(super) fn or_existing(made: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match made {
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

/// What is not there, and is to go, is gone.
pub(super) fn or_absent(deleted: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match deleted {
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::EADDRNOTAVAIL | Errno::ESRCH | Errno::ENOENT | Errno::ENODEV)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (errno, text) = match self {
            Self::Refused { errno, text } => (errno, text),
            Self::Unanswered(error) => return write!(f, "{error:#}"),
        };
        write!(f, "the kernel answered {} ({errno:?})", errno.desc())?;
        if let Some(text) = text {
            write!(f, ": {text}")?;
        }
        // rtnetlink_rcv_msg of net/core/rtnetlink.c, and each change of a link in another netns.
        if *errno == Errno::EPERM {
            f.write_str("; it needs CAP_NET_ADMIN")?;
        }
        Ok(())
    }
}

impl std::error::Error for NetlinkError {}

impl From<anyhow::Error> for NetlinkError {
    fn from(error: anyhow::Error) -> Self {
        Self::Unanswered(error)
    }
}
