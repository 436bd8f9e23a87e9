//! The command line, for clap.

use std::{
    io,
    net::Ipv4Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf, absolute},
    str::FromStr,
};

use anyhow::{Error, Result, bail};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::{
    host::{control_socket, netns},
    macvtap::bandwidth::parse_rate,
    types::{
        link_name::{LinkName, MAX_NAME},
        listen_address::ListenAddress,
        mac::MacAddr,
        mode::Mode,
    },
};

/// Where the kubelet has its socket for device plugins.
pub const KUBELET_DIR: &str = control_socket::KUBELET_DIR;
/// Where runtimes have their socket (`DefaultSocketPath` of containerd/nri).
pub const NRI_SOCKET: &str = "/var/run/nri/nri.sock";
/// Where iproute2 and container runtimes keep network namespaces by name.
const NETNS_DIR: &str = netns::NAMED;

/// `ETH_MIN_MTU` and `ETH_MAX_MTU` of `linux/if_ether.h`.
const MTUS: RangeInclusive<i64> = 68..=65535;
/// Interface indexes are positive C integers.
const TAPS: RangeInclusive<i64> = 1..=0x7fff_ffff;

const EXIT_STATUS: &str = "\
Exit status:
  0  success
  1  failure; for probe and doctor: a problem was found
  2  wrong usage";
const LINK_EXAMPLES: &str = "\
Examples:
  macvtap link list --lower-device eth0
  macvtap link add tap0 --lower-device eth0 --mode bridge --up on
  macvtap link set net1 --netns blue --mtu 1400
  macvtap link delete tap0 tap1";
const LIST_EXAMPLES: &str = "\
Examples:
  macvtap link list --wide
  macvtap link list --pod default/vm-a
  macvtap link list --json | jq '.macvtaps[].tap'";
const DOCTOR_EXAMPLES: &str = "\
Examples:
  macvtap doctor
  macvtap doctor --probe-network 192.0.2.1 --lower-device eth0";
const KUBECTL_EXAMPLES: &str = "\
Examples:
  kubectl macvtap link list --pod default/vm-a
  kubectl macvtap doctor --node worker-1
  kubectl macvtap top

Exit status:
  0  success
  1  failure, a node that does not answer, or a problem
  2  wrong usage";
const INSTALL_EXAMPLES: &str = "\
A program of another origin under that name is kept beside it as .NAME.prev, and `macvtap
uninstall` puts it back.

Examples:
  macvtap install
  macvtap install --dir /var/lib/cni/bin";

/// macvtap networking for virtual machines on Kubernetes
///
/// Called by a container runtime (without arguments, with CNI_COMMAND set), it is a CNI plugin.
#[derive(Debug, Parser)]
#[command(name = crate::dispatch::NAME, version, arg_required_else_help = true)]
#[command(after_help = EXIT_STATUS)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run as a CNI plugin
    Cni,
    /// Run the device plugin, which advertises macvtaps to the kubelet
    ///
    /// The environment variable DP_MACVTAP_CONF configures the resources.
    Deviceplugin(Deviceplugin),
    /// Check that the device plugin is registered and healthy
    Probe {
        /// Directory of the kubelet's device plugin socket
        #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
        kubelet_dir: PathBuf,
        /// Check only what a restart of the device plugin would help against
        #[arg(long)]
        live: bool,
    },
    /// List, create, change and watch the macvtaps of this machine
    #[command(after_long_help = LINK_EXAMPLES)]
    Link {
        /// The command.
        #[command(subcommand)]
        command: Link,
    },
    /// Diagnose this node and suggest fixes
    #[command(after_long_help = DOCTOR_EXAMPLES)]
    Doctor(Doctor),
    /// Copy this binary into the CNI directory
    #[command(after_long_help = INSTALL_EXAMPLES)]
    Install(Install),
    /// Remove this program from the CNI directory
    Uninstall(Install),
    /// Copy as install does; existing manifests call it by this name
    #[command(hide = true)]
    Cp {
        /// File to copy
        source: PathBuf,
        /// File to write, or its directory
        target: PathBuf,
    },
    /// Test the whole chain on this machine, in temporary network namespaces (needs root)
    Selftest {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print completions for a shell
    Completions {
        /// Shell
        shell: Shell,
    },
}

/// A shell of Linux.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// bash.
    #[value(help = None)]
    Bash,
    /// fish.
    #[value(help = None)]
    Fish,
    /// zsh.
    #[value(help = None)]
    Zsh,
}

/// The options of the device plugin.
#[derive(Args, Clone, Debug)]
#[command(args_override_self = true)]
pub struct Deviceplugin {
    /// Directory of the kubelet's device plugin socket
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
    pub kubelet_dir: PathBuf,
    /// Read the configuration from this file, whenever it changes, instead of DP_MACVTAP_CONF
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Learn on which node a MAC is, so that VMs stay reachable during migration (needs
    /// CAP_NET_RAW and CAP_SYS_ADMIN)
    #[arg(long, value_name = "WHEN", default_value = "on")]
    pub learning: Switch,
    /// Directory of the pods' network namespaces
    #[arg(long, value_name = "DIR", default_value = NETNS_DIR)]
    pub netns_dir: PathBuf,
    /// The node's name, which keeps its taps apart from those of other nodes on the same kernel
    /// [default: the variable NODE_NAME, or else a random seed kept in the kubelet's directory]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Give taps to containers by NRI: off, auto, or the runtime's socket
    #[arg(long, value_name = "SOCKET", default_value = "off")]
    pub nri: Nri,
    /// Write the node's lower devices into this directory of node-feature-discovery, which makes
    /// node labels of them
    #[arg(long, value_name = "DIR")]
    pub feature_dir: Option<PathBuf>,
    /// Serve /healthz, /readyz and /metrics on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub status_address: Option<ListenAddress>,
    /// Log verbosity (4 = debug, 6 = trace); RUST_LOG overrides it
    #[arg(
        short,
        value_name = "LEVEL",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub verbosity: i64,
}

/// What to do with macvtaps.
#[derive(Clone, Debug, Subcommand)]
pub enum Link {
    /// List the macvtaps in all network namespaces, and the lower devices (other network
    /// namespaces need CAP_SYS_ADMIN)
    #[command(visible_aliases = ["ls", "show"], after_long_help = LIST_EXAMPLES)]
    List(List),
    /// Create a macvtap (needs CAP_NET_ADMIN)
    Add(Add),
    /// Delete macvtaps (needs CAP_NET_ADMIN)
    #[command(visible_aliases = ["del", "rm"])]
    Delete {
        /// Names of the interfaces
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Network namespace of the interfaces, by name or path
        #[arg(long, value_name = "NETNS", value_parser = netns)]
        netns: Option<PathBuf>,
    },
    /// Change a macvtap (needs CAP_NET_ADMIN)
    #[command(override_usage = "macvtap link set [OPTIONS] <NAME>")]
    #[command(group = ArgGroup::new("changes")
        .args(["mode", "mac", "mtu", "promisc_mode", "all_multicast", "up"])
        .args(["rate", "ingress_rate", "egress_rate"])
        .multiple(true)
        .required(true))]
    Set {
        /// Name of the interface
        name: String,
        /// Mode
        #[arg(long, value_enum)]
        mode: Option<Mode>,
        /// Its rates.
        #[command(flatten)]
        rates: Rates,
        /// Its other attributes.
        #[command(flatten)]
        change: LinkChange,
    },
    /// Print changes as they happen
    Watch {
        /// Print JSON, one line for each change
        #[arg(long)]
        json: bool,
        /// Directory of the kubelet's device plugin socket
        #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
        kubelet_dir: PathBuf,
    },
    /// Show the traffic of each macvtap; q ends it
    Top(Top),
}

/// The options of `link list`.
#[derive(Args, Clone, Debug)]
pub struct List {
    /// Only macvtaps with one of these interface names or tap numbers
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only macvtaps of this pod
    #[arg(long, value_name = "[NAMESPACE/]POD")]
    pub pod: Option<String>,
    /// Only macvtaps on this lower device
    #[arg(long, value_name = "NAME")]
    pub lower_device: Option<String>,
    /// Directory of the kubelet's device plugin socket
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
    pub kubelet_dir: PathBuf,
    /// Show all columns, even if they do not fit in the terminal
    #[arg(long)]
    pub wide: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The options of `link add`.
#[derive(Args, Clone, Debug)]
pub struct Add {
    /// Name of the interface
    #[arg(value_parser = new_name)]
    pub name: String,
    /// Lower device
    #[arg(long, value_name = "NAME")]
    pub lower_device: String,
    /// Mode
    #[arg(long, value_enum, default_value_t)]
    pub mode: Mode,
    /// Number of the tap, which is also the interface index
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(TAPS))]
    pub tap: Option<u32>,
    /// Its other attributes.
    #[command(flatten)]
    pub change: LinkChange,
}

/// The options of link top.
#[derive(Args, Clone, Debug)]
pub struct Top {
    /// Seconds between updates
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub interval: f64,
    /// Number of updates [default: unlimited]
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,
    /// Directory of the kubelet's device plugin socket
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
    pub kubelet_dir: PathBuf,
    /// Print JSON, one line for each update
    #[arg(long)]
    pub json: bool,
}

/// The rates of a macvtap.
#[derive(Args, Clone, Debug)]
pub struct Rates {
    /// Bits per second in each direction: 0 for no limit, or from 1000, as in 500k, 100M, 10G
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// Bits per second towards the guest, instead of --rate
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub ingress_rate: Option<u64>,
    /// Bits per second from the guest, instead of --rate
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub egress_rate: Option<u64>,
}

/// Attributes of a macvtap, named as in the CNI configuration.
#[derive(Args, Clone, Debug)]
pub struct LinkChange {
    /// Network namespace of the interface, by name or path
    #[arg(long, value_name = "NETNS", value_parser = netns)]
    pub netns: Option<PathBuf>,
    /// MAC address
    #[arg(long, value_parser = interface_mac)]
    pub mac: Option<MacAddr>,
    /// MTU in bytes
    #[arg(long, value_parser = value_parser!(u32).range(MTUS))]
    pub mtu: Option<u32>,
    /// Promiscuous mode
    #[arg(long, value_name = "WHEN")]
    pub promisc_mode: Option<Switch>,
    /// Receive all multicast frames
    #[arg(long, value_name = "WHEN")]
    pub all_multicast: Option<Switch>,
    /// Set the interface up or down
    #[arg(long, value_name = "WHEN")]
    pub up: Option<Switch>,
}

/// A directory, absolute: its path must not depend on where a process runs.
fn directory(text: &str) -> io::Result<PathBuf> {
    absolute(Path::new(text))
}

/// The path of a network namespace. A name is one of `ip netns`.
fn netns(text: &str) -> Result<PathBuf, &'static str> {
    match text {
        "" | "." | ".." => Err("must be the name or the path of a network namespace"),
        path if path.contains('/') => Ok(path.into()),
        name => Ok(Path::new(NETNS_DIR).join(name)),
    }
}

/// The name of an interface that is to be created.
fn new_name(text: &str) -> Result<String, String> {
    match LinkName::flaw(text) {
        Some(flaw) => Err(format!("the name {flaw}")),
        None if text.len() > MAX_NAME => Err(format!("the name is longer than {MAX_NAME} bytes")),
        None => Ok(text.to_owned()),
    }
}

fn interface_mac(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error| format!("{error:#}"))?;
    if mac.is_assignable() {
        Ok(mac)
    } else {
        Err("no interface can have it: it is a group address or zero".to_owned())
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("must be a number from 0.1 to 3600".to_owned()),
    }
}

/// The options of doctor.
#[derive(Args, Clone, Debug)]
pub struct Doctor {
    /// Directory of the kubelet's device plugin socket
    #[arg(long, value_name = "DIR", default_value = KUBELET_DIR, value_parser = directory)]
    pub kubelet_dir: PathBuf,
    /// CNI directory [default: the first one of the known distributions that has the plugin]
    #[arg(long, value_name = "DIR")]
    pub cni_dir: Option<PathBuf>,
    /// Directory of the CNI configurations [default: the first one of the known distributions that
    /// exists]
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// NRI socket of the container runtime
    #[arg(long, value_name = "SOCKET", default_value = NRI_SOCKET)]
    pub nri_socket: PathBuf,
    /// Directory of containerd/config.toml or crio/crio.conf
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    pub runtime_conf_dir: PathBuf,
    /// Send ARP requests for this IPv4 address from a temporary MAC, to find out whether the
    /// network drops frames of MACs that it does not know
    #[arg(long, value_name = "ADDRESS", requires = "lower_device")]
    pub probe_network: Option<Ipv4Addr>,
    /// Lower device for --probe-network
    #[arg(long, value_name = "NAME", requires = "probe_network")]
    pub lower_device: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    #[value(help = None)]
    On,
    /// Off.
    #[value(help = None)]
    Off,
}

/// Whether containers get taps by NRI, and by which socket of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nri {
    /// They do not.
    Off,
    /// By the usual socket, if the runtime has one.
    Auto,
    /// By this socket.
    Socket(PathBuf),
}

impl FromStr for Nri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            _ => bail!("neither \"auto\", \"off\" nor an absolute path"),
        }
    }
}

/// The options of the installer.
#[derive(Args, Clone, Debug)]
pub struct Install {
    /// Where the binary is installed.
    #[command(flatten)]
    pub target: InstallTarget,
    /// File of the device plugin's seccomp profile, to install or remove with the binary; its
    /// directory has to exist
    #[arg(long, value_name = "FILE")]
    pub seccomp_profile: Option<PathBuf>,
}

/// Where the binary is installed.
#[derive(Args, Clone, Debug)]
pub struct InstallTarget {
    /// CNI directory; can be given several times [default: /host/opt/cni/bin if it exists, else
    /// /opt/cni/bin]
    #[arg(long, value_name = "DIR")]
    pub dir: Vec<PathBuf>,
    /// Name of the file, which is the type in CNI configurations
    #[arg(long, default_value = crate::dispatch::NAME)]
    pub name: String,
}

/// Show the macvtaps of the nodes of a cluster, and diagnose them
///
/// Runs macvtap link list, link top, doctor and probe by kubectl exec in the pods of the
/// DaemonSet, on all nodes at the same time.
#[derive(Debug, Parser)]
#[command(name = "kubectl-macvtap", bin_name = "kubectl macvtap", version)]
#[command(arg_required_else_help = true, after_help = EXIT_STATUS)]
#[command(after_long_help = KUBECTL_EXAMPLES)]
pub struct Kubectl {
    /// Which cluster and which nodes.
    #[command(flatten)]
    pub cluster: Cluster,
    /// The command.
    #[command(subcommand)]
    pub command: KubectlCommand,
}

/// A cluster and nodes of it.
#[derive(Args, Clone, Debug)]
pub struct Cluster {
    /// Only this node; can be given several times
    #[arg(long, value_name = "NODE", global = true)]
    pub node: Vec<String>,
    /// Namespace of the DaemonSet [default: all]
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig file [default: the current one]
    #[arg(long, value_name = "NAME", global = true)]
    pub context: Option<String>,
    /// The kubeconfig file [default: as kubectl]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Seconds that a node may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = seconds, global = true)]
    pub timeout: f64,
}

/// What is run on the nodes.
#[derive(Debug, Subcommand)]
pub enum KubectlCommand {
    /// List macvtaps, or show their traffic
    Link {
        /// The command.
        #[command(subcommand)]
        command: KubectlLink,
    },
    /// Show the traffic of each macvtap; q ends it
    Top(Top),
    /// Diagnose the nodes and suggest fixes
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that the device plugins are registered and healthy
    Probe,
}

/// The commands of `link` that make sense on many nodes.
#[derive(Debug, Subcommand)]
pub enum KubectlLink {
    /// List the macvtaps and lower devices of the nodes
    #[command(visible_aliases = ["ls", "show"])]
    List(List),
    /// Show the traffic of each macvtap; q ends it
    Top(Top),
}
