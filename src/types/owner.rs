//! Who a tap belongs to, and who may open it.

use std::fmt;

/// User and group of a tap's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.user, self.group)
    }
}

/// Owner and permission bits of a tap's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who it belongs to.
    pub owner: Owner,
    /// Whether the group may open it as well.
    pub group: bool,
}

/// User and group of QEMU in `KubeVirt`'s images.
pub const QEMU: Owner = Owner {
    user: 107,
    group: 107,
};

impl Access {
    /// QEMU's user alone, which is what a network gets that says nothing else.
    pub const QEMU: Self = Self {
        owner: QEMU,
        group: false,
    };
    /// Root alone.
    pub const ROOT: Self = Self {
        owner: Owner { user: 0, group: 0 },
        group: false,
    };

    /// The permission bits: others have no access.
    #[must_use]
    pub fn mode(self) -> u32 {
        if self.group { 0o660 } else { 0o600 }
    }
}
