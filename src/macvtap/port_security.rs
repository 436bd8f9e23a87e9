//! Port security in force: the filter of a guest's frames, in its pod's network namespace.
//!
//! It is there as long as the interface is, without a process of ours: as a table of nf_tables,
//! or, in kernels whose nf_tables cannot see what a device sends (before 5.16), as a classic BPF
//! program in traffic control, which does not count by reason.

use std::{fmt, io};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::security::{Description, Security};
use crate::{
    host::netns::Netns,
    netlink::{Counter, Direction, Link, NetlinkError, Nft, Socket, Table, compile},
    types::{errors::io_error, link_name::MAX_NAME, mac::MacAddr},
};

/// The interface whose frames are filtered.
#[derive(Clone, Copy)]
pub struct Interface<'a> {
    /// The network namespace that it is in; our own if none.
    pub netns: Option<&'a Netns>,
    /// Its name there.
    pub name: &'a str,
    /// Its index there.
    pub index: u32,
}

/// What to do about a filter that is too long.
const FEWER_RULES: &str = "list fewer MACs, VLANs and addresses, or prefixes in place of addresses";

/// What a filter says of itself, and what it dropped by reason.
type InForce = (Description, Vec<Counter>);

/// Stands for security that may be in force.
const UNREADABLE: &str = "unknown without CAP_NET_ADMIN";

/// By what a filter is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A table of nf_tables.
    Nftables,
    /// A classic BPF program.
    ClassicBpf,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nf_tables",
            Self::ClassicBpf => "classic BPF",
        })
    }
}

impl<'a> Interface<'a> {
    /// A link of a network namespace; of our own if none.
    #[must_use]
    pub fn of(link: &'a Link, netns: Option<&'a Netns>) -> Self {
        Self {
            netns,
            name: &link.name,
            index: link.index,
        }
    }

    /// Puts `security` in force for what a guest with this MAC sends, in place of what was in force
    /// before, without a gap. The first time the interface has to be down, for what it sent before
    /// has passed.
    pub fn secure(&self, security: &Security, mac: MacAddr) -> Result<Mechanism> {
        self.install(&table_name(self.name), security, mac)
    }

    fn install(&self, table: &str, security: &Security, mac: MacAddr) -> Result<Mechanism> {
        let filter = security.filter(mac);
        let comment = Description::of(security, mac).to_string();
        let table = Table {
            name: table,
            device: self.name,
            comment: &comment,
            filter: &filter,
        };
        let lacking = match self.nft()?.and_then(|mut nft| nft.install(&table)) {
            Ok(()) => return Ok(Mechanism::Nftables),
            Err(error) if is_lacking(&error) => error,
            Err(error) if errno_of(&error) == Some(Errno::EMSGSIZE) => bail!(
                "the rules for the guest's frames do not fit into one request ({error}); \
                 {FEWER_RULES}"
            ),
            Err(error) => return Err(error).context("installing the rules for the guest's frames"),
        };
        let program = compile(&filter).context(FEWER_RULES)?;
        let mut socket = self.inside(Socket::open)??;
        let attached = socket.add_clsact(self.index);
        let install = |()| socket.set_program(self.index, Direction::Egress, &program);
        match attached.and_then(install) {
            Ok(()) => Ok(Mechanism::ClassicBpf),
            Err(error) => bail!(
                "this kernel cannot enforce security {security}: neither by nf_tables with an \
                 egress hook ({lacking}), nor by clsact with cls_bpf ({error})"
            ),
        }
    }

    /// By what `security` is in force for what a guest with this MAC sends; none if it is not, or
    /// not as it would be put in force now.
    pub fn secured(&self, security: &Security, mac: MacAddr) -> Result<Option<Mechanism>> {
        let filter = security.filter(mac);
        let table = table_name(self.name);
        let comment = Description::of(security, mac).to_string();
        let table = Table {
            name: &table,
            device: self.name,
            comment: &comment,
            filter: &filter,
        };
        match self.nft()?.and_then(|mut nft| nft.is_installed(&table)) {
            Ok(true) => return Ok(Some(Mechanism::Nftables)),
            Err(error) if !is_lacking(&error) => return Err(error.into()),
            _ => {}
        }
        let programs = self.inside(Socket::open)??.egress_programs(self.index)?;
        let installed = programs == [compile(&filter)?];
        Ok(installed.then_some(Mechanism::ClassicBpf))
    }

    /// The security that is in force, and what was dropped by reason; none if none is.
    pub fn security(&self) -> Result<Option<InForce>> {
        match self.read_security()? {
            Err(error) if !is_lacking(&error) => Err(error.into()),
            read => Ok(read.ok().flatten()),
        }
    }

    /// The same for the inventory, which needs no right: the kernel shows tables to
    /// `CAP_NET_ADMIN` alone.
    pub fn visible_security(&self) -> Result<Option<InForce>> {
        match self.read_security()? {
            Err(error) if error.errno() == Some(Errno::EPERM) => {
                Ok(Some((Description::parse(UNREADABLE), Vec::new())))
            }
            Err(error) if !is_lacking(&error) => Err(error.into()),
            read => Ok(read.ok().flatten()),
        }
    }

    fn read_security(&self) -> Result<Result<Option<InForce>, NetlinkError>> {
        let name = table_name(self.name);
        let read = |mut nft: Nft| {
            let tables = nft.tables()?;
            let Some((_, comment)) = tables.into_iter().find(|(table, _)| *table == name) else {
                return Ok(None);
            };
            Ok(Some((Description::parse(&comment), nft.counters(&name)?)))
        };
        Ok(self.nft()?.and_then(read))
    }

    fn nft(&self) -> Result<Result<Nft, NetlinkError>> {
        self.inside(Nft::open)
    }

    /// Runs `open` in its network namespace.
    pub(super) fn inside<T>(&self, open: impl FnOnce() -> T) -> Result<T> {
        inside(self.netns, open)
    }
}

/// Removes the table of the interface with this name, which the kernel leaves when the interface
/// goes. A program goes with it.
pub fn remove_security(netns: Option<&Netns>, name: &str) -> Result<()> {
    let removed = inside(netns, Nft::open)?.and_then(|mut nft| nft.delete(&table_name(name)));
    match removed {
        Err(error) if !is_lacking(&error) => {
            Err(error).context("deleting the rules for the guest's frames")
        }
        _ => Ok(()),
    }
}

fn inside<T>(netns: Option<&Netns>, open: impl FnOnce() -> T) -> Result<T> {
    match netns {
        Some(netns) => netns.run(|| Ok(open())),
        None => Ok(open()),
    }
}

/// By what this kernel can enforce `security`. Tried out in a network namespace that is made for
/// it.
pub fn probe(security: &Security) -> Result<Mechanism> {
    let netns = Netns::create()?;
    let interface = Interface {
        netns: Some(&netns),
        name: "lo",
        index: 1,
    };
    // Each rule names its table: with the longest name the request is as long as it can be.
    let table = table_name(&"x".repeat(MAX_NAME));
    interface.install(&table, security, MacAddr::random()?)
}

fn table_name(interface: &str) -> String {
    format!("macvtap-{interface}")
}

/// The kernel's errno, or that of the socket.
fn errno_of(error: &NetlinkError) -> Option<Errno> {
    let of_socket = match error {
        NetlinkError::Unanswered(error) => io_error(error).and_then(io::Error::raw_os_error),
        NetlinkError::Refused { .. } => None,
    };
    error.errno().or(of_socket.map(Errno::from_raw))
}

/// Whether the kernel has no nf_tables, no family netdev, no egress hook in it, or not all that
/// the rules are made of.
fn is_lacking(error: &NetlinkError) -> bool {
    matches!(
        errno_of(error),
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::ENOENT)
    )
}
