//! The command line, for clap.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::types::{mac::MacAddr, mode::Mode};

/// Where the kubelet has its socket for device plugins (`DevicePluginPath` of Kubernetes'
/// `deviceplugin/v1beta1`).
const KUBELET_DIR: &str = "/var/lib/kubelet/device-plugins";

/// macvtap networking for virtual machines on Kubernetes
///
/// Called by a container runtime (with `CNI_COMMAND` set and no arguments), it is a CNI plugin.
#[derive(Debug, Parser)]
#[command(name = crate::dispatch::NAME, version, arg_required_else_help = true)]
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
        #[arg(long, value_name = "DIR", default_value = KUBELET_DIR)]
        kubelet_dir: PathBuf,
    },
    /// List, make, change and watch the macvtaps of this machine
    Link {
        /// What to do
        #[command(subcommand)]
        command: Link,
    },
    /// Check the node for what keeps macvtaps from working, and tell the cure
    Doctor(Doctor),
    /// Copy this binary into the CNI directory
    Install(Install),
    /// Remove this program from the CNI directory, and nothing else
    Uninstall(InstallTarget),
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
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR)]
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
    /// Tell health and metrics by HTTP at this address, on /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket_address)]
    pub status_address: Option<SocketAddr>,
    /// How much to log: from 4 on also why links are not offered; `RUST_LOG` comes before it
    #[arg(short, value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
}

/// What to do with macvtaps.
#[derive(Clone, Debug, Subcommand)]
pub enum Link {
    /// List every macvtap in whatever network namespace, and the lower devices (other network
    /// namespaces need `CAP_SYS_ADMIN`)
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a macvtap (needs `CAP_NET_ADMIN`)
    Add {
        /// Its name
        name: String,
        /// The lower device
        #[arg(long, value_name = "NAME")]
        lower_device: String,
        /// bridge, vepa, private or passthru
        #[arg(long, default_value = "bridge")]
        mode: Mode,
        /// Its interface index, which is the number of its tap
        #[arg(long, value_name = "N")]
        tap: Option<u32>,
        /// What it is to be like
        #[command(flatten)]
        change: LinkChange,
    },
    /// Delete a macvtap (needs `CAP_NET_ADMIN`)
    Delete {
        /// Its name
        name: String,
        /// The network namespace that it is in
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
    },
    /// Change a macvtap (needs `CAP_NET_ADMIN`)
    Set {
        /// Its name
        name: String,
        /// The mode that it is to have
        #[arg(long)]
        mode: Option<Mode>,
        /// What it is to be like
        #[command(flatten)]
        change: LinkChange,
    },
    /// Tell what changes, as it happens
    Watch,
    /// Show the traffic of each macvtap
    Top {
        /// Seconds from one to the next
        #[arg(long, default_value_t = 2.0, value_parser = seconds)]
        interval: f64,
        /// How often; without end if not given
        #[arg(long, value_name = "N")]
        count: Option<u32>,
    },
}

/// What a macvtap is to be like, by the words of the configuration.
#[derive(Args, Clone, Debug)]
pub struct LinkChange {
    /// The network namespace that it is in
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// Its hardware address
    #[arg(long)]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes
    #[arg(long)]
    pub mtu: Option<u32>,
    /// Whether it receives frames to every address
    #[arg(long, value_name = "WHEN")]
    pub promisc_mode: Option<Switch>,
    /// Whether it receives every multicast frame
    #[arg(long, value_name = "WHEN")]
    pub all_multicast: Option<Switch>,
    /// Whether it is up
    #[arg(long, value_name = "WHEN")]
    pub up: Option<Switch>,
}

/// An address and a port. Manifests put them together from a node's address, so an IPv6 address
/// needs no brackets.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let split = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    let parsed = text.parse().ok().or_else(split);
    parsed.ok_or_else(|| "write it as 127.0.0.1:9403 or [::1]:9403".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.1 to 3600 seconds".to_owned()),
    }
}

/// The options of the doctor.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// The directory of the kubelet's device plugin socket
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR)]
    pub kubelet_dir: PathBuf,
    /// The CNI directory
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_dir: PathBuf,
    /// The directory of the CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Ask for this IPv4 address by ARP from a MAC of a moment: where a virtual switch drops
    /// frames of MACs that it does not know, there is no answer
    #[arg(long, value_name = "ADDRESS", requires = "lower_device")]
    pub probe_network: Option<Ipv4Addr>,
    /// The lower device to ask by
    #[arg(long, value_name = "NAME")]
    pub lower_device: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
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
    /// Where the binary goes
    #[command(flatten)]
    pub target: InstallTarget,
    /// Also write the device plugin's seccomp profile to this file; its directory has to exist
    #[arg(long, value_name = "FILE")]
    pub seccomp_profile: Option<PathBuf>,
}

/// Where the binary is installed.
#[derive(Args, Clone, Debug)]
pub struct InstallTarget {
    /// The CNI directory; can be given again [default: /host/opt/cni/bin if it exists, or else
    /// /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    pub dir: Vec<PathBuf>,
    /// The name of the file, which is the `type` in configurations
    #[arg(long, default_value = crate::dispatch::NAME)]
    pub name: String,
}
