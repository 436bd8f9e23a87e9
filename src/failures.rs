//! Failures of work that goes on after each of them.

use anyhow::{Error, Result, anyhow};

/// All failures in one; none if there are none.
pub fn together(failures: &[Error]) -> Result<()> {
    let texts: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
    if texts.is_empty() {
        return Ok(());
    }
    Err(anyhow!("{}", texts.join("; and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_every_failure() {
        assert!(together(&[]).is_ok());
        let error = together(&[anyhow!("one"), anyhow!("two")]).unwrap_err();
        assert_eq!(error.to_string(), "one; and two");
    }
}
