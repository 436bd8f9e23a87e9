//! What was done how often.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
};

#[derive(Default)]
pub struct Count(Mutex<BTreeMap<&'static str, u64>>);

impl Count {
    pub fn one(&self, what: &'static str) {
        self.add(what, 1);
    }

    pub fn add(&self, what: &'static str, times: u64) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count.entry(what).or_default() += times;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Events disturb operations; they are none.
        let operations: u64 = count
            .iter()
            .filter(|(what, _)| !what.starts_with("event"))
            .map(|(_, times)| times)
            .sum();
        write!(f, "{operations} operations")?;
        count
            .iter()
            .try_for_each(|(what, times)| write!(f, "\n{times:>10} {what}"))
    }
}
