//! Failures: of work that goes on after each of them, and what is below one.

use std::io;

use anyhow::{Error, Result, anyhow};

/// All failures in one; none if there are none.
pub fn together(failures: &[Error]) -> Result<()> {
    let texts: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    if texts.is_empty() {
        return Ok(());
    }
    Err(anyhow!("{}", texts.join("; and ")))
}

/// The system's refusal among the causes of an error, if there is one.
#[must_use]
pub fn io_error(error: &Error) -> Option<&io::Error> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_systems_refusal_below_what_was_being_done() {
        let error = Error::from(io::Error::from(io::ErrorKind::AddrInUse));
        let error = error.context("making a socket").context("learning");
        let found = io_error(&error).map(io::Error::kind);
        assert_eq!(found, Some(io::ErrorKind::AddrInUse));
        assert!(io_error(&anyhow!("no such thing")).is_none());
    }

    #[test]
    fn reports_every_failure() {
        assert!(together(&[]).is_ok());
        let error = together(&[anyhow!("one"), anyhow!("two")]).unwrap_err();
        assert_eq!(error.to_string(), "one; and two");
    }
}
