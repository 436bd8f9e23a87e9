//! The command line, for clap.

use clap::{Parser, Subcommand};
use clap_complete::Shell;

/// macvtap networking for virtual machines on Kubernetes
///
/// Called by a container runtime (with `CNI_COMMAND` set and no arguments), it is a CNI plugin.
#[derive(Debug, Parser)]
#[command(name = crate::call::NAME, version, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Be the CNI plugin: environment and stdin in, JSON out
    Cni,
    /// Try everything on this machine, in throw-away network namespaces (needs root)
    Selftest {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}
