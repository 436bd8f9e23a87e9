//! Standard output, whose reader may close it or whose disk may be full.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use anyhow::{Context, Error, Result};

/// The reader of standard output has closed it, as `head` does.
#[derive(Debug)]
struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Prints and flushes. An error for which [`is_closed`] holds ends a command without a message.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        other => other.context("writing to standard output"),
    }
}

/// Prints what a command found out where its exit status says the same: that must not change
/// because the text is not read.
pub fn print_report(text: &str) -> Result<()> {
    match print(text) {
        Err(error) if is_closed(&error) => Ok(()),
        other => other,
    }
}

/// Whether a command failed because the reader of standard output has closed it.
#[must_use]
pub fn is_closed(error: &Error) -> bool {
    error.is::<Closed>()
}
