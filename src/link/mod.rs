//! `macvtap link`: the macvtaps of this machine, for an administrator on the node.

mod change;
pub(crate) mod list;
pub(crate) mod listing;
mod pods;
mod screen;
pub(crate) mod table;
pub(crate) mod terminal;
pub(crate) mod top;
pub(crate) mod traffic;
mod watch;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli;

/// Does what the command line says.
pub fn main(command: &cli::Link) -> Result<ExitCode> {
    let outcome = match command {
        cli::Link::List(options) => list::list(options),
        cli::Link::Add(options) => change::add(options),
        cli::Link::Delete { names, netns } => change::delete(names, netns.as_deref()),
        cli::Link::Set {
            name,
            mode,
            rates,
            change,
        } => change::set(name, (*mode, rates), change),
        cli::Link::Watch { json, kubelet_dir } => watch::watch(kubelet_dir, *json),
        cli::Link::Top(options) => top::top(options),
    };
    outcome.map(|()| ExitCode::SUCCESS)
}
