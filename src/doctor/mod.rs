//! `macvtap doctor`: diagnoses a node and suggests fixes.

mod directories;
pub(crate) mod finding;
mod macvtaps;
mod network;
mod plugins;
pub(crate) mod requests;
mod runtime;

use std::{net::Ipv4Addr, process::ExitCode};

use anyhow::Result;

use self::{finding::Finding, network::Answer};
use crate::{cli, host::stdout, macvtap::inventory::Inventory};

/// Checks and prints. Fails if there is a problem.
pub fn main(options: &cli::Doctor) -> Result<ExitCode> {
    let findings = check(options);
    let text = if options.json {
        format!("{}\n", serde_json::to_string_pretty(&findings)?)
    } else {
        finding::to_text(&findings)
    };
    stdout::print_report(&text)?;
    Ok(if findings.iter().any(Finding::is_failure) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn check(options: &cli::Doctor) -> Vec<Finding> {
    let mut findings = vec![
        plugins::kernel(),
        plugins::security(),
        plugins::bandwidth(),
        plugins::kubelet_socket(&options.kubelet_dir),
    ];
    findings.extend(plugins::pod_resources(&options.kubelet_dir));
    let (device_plugin, named) = plugins::device_plugin(&options.kubelet_dir);
    findings.extend(device_plugin);
    findings.extend(runtime::findings(options));
    let cni_dir = options.cni_dir.clone();
    findings.push(plugins::cni_plugin(
        &cni_dir.unwrap_or_else(directories::cni),
    ));
    let cni_conf_dir = options.cni_conf_dir.clone();
    let cni_conf_dir = cni_conf_dir.unwrap_or_else(directories::cni_configurations);
    findings.push(plugins::cni_configuration(&cni_conf_dir));
    match Inventory::new() {
        Ok(inventory) => {
            findings.extend(macvtaps::lower_devices(&inventory, &named));
            findings.extend(macvtaps::macvtaps(&inventory));
        }
        Err(error) => findings.push(Finding::fail(
            "macvtaps",
            format!("they cannot be listed: {error:#}"),
            "run doctor as root",
        )),
    }
    if let (Some(address), Some(lower)) = (options.probe_network, &options.lower_device) {
        findings.push(probe_network(lower, address));
    }
    findings
}

fn probe_network(lower: &str, address: Ipv4Addr) -> Finding {
    let check = "network";
    match network::probe(lower, address) {
        Ok(Answer::ToAny) => Finding::ok(check, format!("{address} answers a new MAC on {lower}")),
        Ok(Answer::None) => Finding::fail(
            check,
            format!("{address} answers neither a new MAC on {lower} nor the MAC of {lower}"),
            "give an address that answers ARP, such as that of the gateway",
        ),
        Ok(Answer::ToLowerDevice) => Finding::fail(
            check,
            format!("{address} answers the MAC of {lower}, but no new MAC on it"),
            "if the node is a VM, allow other MACs on its virtual switch (VMware: forged \
             transmits and promiscuous mode); if the switch port has port security, raise its \
             limit of MACs",
        ),
        Err(error) => Finding::fail(
            check,
            format!("{error:#}"),
            "run doctor as root in the node's network namespace",
        ),
    }
}
