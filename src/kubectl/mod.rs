//! `kubectl macvtap`: commands of this program on the nodes of a cluster, by `kubectl exec`.

mod call;
mod cluster;
mod doctor;
mod list;
mod node;
mod nodes;
mod probe;
mod top;

use std::process::ExitCode;

use anyhow::Result;

use self::call::Kubectl;
use crate::cli::{self, KubectlCommand, KubectlLink};

/// Runs a command on every node that is asked for. Fails if one of them does.
pub fn main(options: &cli::Kubectl) -> Result<ExitCode> {
    let kubectl = Kubectl::new(&options.cluster);
    let nodes = nodes::find(&kubectl, &options.cluster)?;
    let ok = match &options.command {
        KubectlCommand::Link {
            command: KubectlLink::List(options),
        } => list::list(&kubectl, &nodes, options)?,
        KubectlCommand::Link {
            command: KubectlLink::Top(options),
        }
        | KubectlCommand::Top(options) => top::top(&kubectl, &nodes, options)?,
        KubectlCommand::Doctor { json } => doctor::doctor(&kubectl, &nodes, *json)?,
        KubectlCommand::Probe => probe::probe(&kubectl, &nodes)?,
    };
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
