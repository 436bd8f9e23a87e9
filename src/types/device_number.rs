//! The number of a character device.

use std::fmt;

/// Major and minor number, by which the kernel finds the driver behind a node in `/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The driver; all macvtaps have one.
    pub major: u64,
    /// The device of that driver.
    pub minor: u64,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}
