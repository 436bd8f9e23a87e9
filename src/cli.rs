//! The command line, for clap.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Offer the node's macvtaps to the kubelet (`DP_MACVTAP_CONF` says which)
    Deviceplugin(Deviceplugin),
    /// Tell whether the device plugin is registered with the kubelet, and what is not well
    Probe {
        /// The directory of the kubelet's device plugin socket
        #[arg(
            long,
            value_name = "DIR",
            default_value = "/var/lib/kubelet/device-plugins"
        )]
        kubelet_dir: PathBuf,
    },
    /// Copy this binary into the CNI directory
    Install(Install),
    /// Remove this program from the CNI directory, and nothing else
    Uninstall(Install),
    /// Copy as `install` does; existing manifests call it by this name
    #[command(hide = true)]
    Cp {
        /// The file to copy
        source: PathBuf,
        /// The file to write, or its directory
        target: PathBuf,
    },
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

/// The options of the device plugin.
#[derive(Args, Clone, Debug)]
pub struct Deviceplugin {
    /// The directory of the kubelet's device plugin socket
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/kubelet/device-plugins"
    )]
    pub kubelet_dir: PathBuf,
    /// Read the configuration from a file instead of the environment, and again when it changes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Learn where VMs live, so that they stay reachable when they migrate; needs
    /// `CAP_NET_RAW` and `CAP_SYS_ADMIN`
    #[arg(long, value_name = "WHEN", default_value = "on")]
    pub learning: Switch,
    /// The directory where the runtime has the pods' network namespaces
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    pub netns_dir: PathBuf,
    /// How much to log: from 4 on also why links are not offered; `RUST_LOG` comes before it
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// The options of the installer.
#[derive(Args, Clone, Debug)]
pub struct Install {
    /// The CNI directory; can be given again [default: /host/opt/cni/bin if it exists, or else
    /// /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    pub dir: Vec<PathBuf>,
    /// The name of the file, which is the `type` in configurations
    #[arg(long, default_value = crate::call::NAME)]
    pub name: String,
}
