//! `macvtap link`: the macvtaps of this machine, for an administrator on the node.

mod change;
mod list;
mod table;
mod top;
mod watch;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli;

/// Does what the command line says.
pub fn main(command: &cli::Link) -> Result<ExitCode> {
    let outcome = match command {
        cli::Link::List { json } => list::list(*json),
        cli::Link::Add {
            name,
            lower_device,
            mode,
            tap,
            change,
        } => change::add(name, (lower_device, *mode, *tap), change),
        cli::Link::Delete { name, netns } => change::delete(name, netns.as_deref()),
        cli::Link::Set { name, mode, change } => change::set(name, *mode, change),
        cli::Link::Watch => watch::watch(),
        cli::Link::Top { interval, count } => top::top(*interval, *count),
    };
    outcome.map(|()| ExitCode::SUCCESS)
}
