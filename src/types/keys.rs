//! How wrong values of keys are judged. Pure.

use std::fmt::Display;

/// How keys are read that kubevirt/macvtap-cni does not know.
pub struct Keys {
    /// Whether a wrong value is left out.
    pub lenient: bool,
    /// What was left out, and why.
    pub warnings: Vec<String>,
}

impl Keys {
    /// Keys none of which has been read.
    #[must_use]
    pub fn new(lenient: bool) -> Self {
        Self {
            lenient,
            warnings: Vec::new(),
        }
    }

    /// The value of a key. One that is wrong is left out with a warning where that is allowed.
    pub fn take<T, E: Display>(&mut self, value: Result<Option<T>, E>) -> Result<Option<T>, E> {
        match value {
            Err(error) if self.lenient => {
                self.warnings.push(format!("{error}; it is ignored"));
                Ok(None)
            }
            other => other,
        }
    }
}
