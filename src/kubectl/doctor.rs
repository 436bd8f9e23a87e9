//! `kubectl macvtap doctor`.

use anyhow::Result;
use serde::Serialize;

use super::{
    call::{Kubectl, Output},
    node::Node,
};
use crate::{
    doctor::finding::{Finding, summary},
    host::stdout::print_report,
};

/// A finding on a node.
#[derive(Serialize)]
struct OnNode<'a> {
    node: &'a str,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// Diagnoses the nodes. False if one has a problem or does not answer.
pub fn doctor(kubectl: &Kubectl, nodes: &[Node], json: bool) -> Result<bool> {
    let answers = kubectl.exec(nodes, &["doctor", "--json"].map(str::to_owned));
    let findings: Vec<Vec<Finding>> = answers
        .into_iter()
        .map(|answer| {
            let parsed = answer.and_then(Output::parse);
            parsed.unwrap_or_else(|error| {
                let fix = "see kubectl describe pod, and check that kubectl exec works";
                vec![Finding::fail("node", format!("{error:#}"), fix)]
            })
        })
        .collect();
    let found = || nodes.iter().zip(&findings);
    let text = if json {
        let all = found().flat_map(|(node, findings)| {
            let node = &node.name;
            findings.iter().map(move |finding| OnNode { node, finding })
        });
        format!(
            "{}\n",
            serde_json::to_string_pretty(&all.collect::<Vec<_>>())?
        )
    } else {
        let width = nodes.iter().map(|node| node.name.len()).max().unwrap_or(0);
        let lines = found().flat_map(|(node, findings)| {
            let lines = findings.iter().map(Finding::lines).collect::<String>();
            let lines = lines
                .lines()
                .map(|line| format!("{:width$}{line}\n", node.name));
            lines.collect::<Vec<_>>()
        });
        let lines: String = lines.collect();
        format!("{lines}\n{}\n", summary(&findings.concat()))
    };
    print_report(&text)?;
    Ok(!findings.iter().flatten().any(Finding::is_failure))
}
