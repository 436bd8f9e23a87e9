//! How wrong values of keys are judged.

use super::error::{CniError, Result};

/// How keys are read that kubevirt/macvtap-cni does not know.
pub struct Keys {
    /// Whether a wrong value is left out.
    pub lenient: bool,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

impl Keys {
    /// The value of a key. One that is wrong is left out with a warning where that is allowed.
    pub fn take<T, E: Into<CniError>>(
        &mut self,
        value: std::result::Result<Option<T>, E>,
    ) -> Result<Option<T>> {
        match value.map_err(Into::into) {
            Err(error) if self.lenient => {
                self.warnings.push(format!("{error}; it is ignored"));
                Ok(None)
            }
            other => other,
        }
    }
}
