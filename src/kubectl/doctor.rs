//! `kubectl macvtap doctor`.

use anyhow::Result;
use serde::Serialize;

use super::{
    call::{Kubectl, Output},
    cluster,
    node::Node,
};
use crate::{
    doctor::finding::{Finding, summary},
    host::stdout::print_report,
    link::terminal,
};

/// A finding on a node.
#[derive(Serialize)]
struct OnNode<'a> {
    node: &'a str,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// How what concerns all nodes is marked.
const CLUSTER: &str = "(cluster)";

/// Diagnoses the nodes. False if one has a problem or does not answer.
pub fn doctor(kubectl: &Kubectl, nodes: &[Node], json: bool) -> Result<bool> {
    let of_cluster = cluster::finding(kubectl).into_iter();
    let mut found: Vec<(&str, Finding)> = of_cluster.map(|each| (CLUSTER, each)).collect();
    let answers = kubectl.exec(nodes, &["doctor", "--json"].map(str::to_owned));
    for (node, answer) in nodes.iter().zip(answers) {
        let findings = answer.and_then(Output::parse).unwrap_or_else(|error| {
            let fix = "see kubectl describe pod, and check that kubectl exec works";
            vec![Finding::fail("node", format!("{error:#}"), fix)]
        });
        found.extend(findings.into_iter().map(|each| (&node.name[..], each)));
    }
    print_report(&if json {
        to_json(&found)?
    } else {
        to_text(&found)
    })?;
    Ok(!found.iter().any(|(_, finding)| finding.is_failure()))
}

fn to_json(found: &[(&str, Finding)]) -> Result<String> {
    let all = found.iter().map(|(node, finding)| OnNode { node, finding });
    let all: Vec<OnNode> = all.collect();
    Ok(format!("{}\n", serde_json::to_string_pretty(&all)?))
}

fn to_text(found: &[(&str, Finding)]) -> String {
    let width = terminal::width().unwrap_or(usize::MAX);
    let of_node = found.chunk_by(|(one, _), (next, _)| one == next);
    let parts = of_node.map(|findings| {
        let lines = findings.iter().map(|(_, finding)| finding.lines(width));
        let node = findings.first().map_or("", |(node, _)| node);
        format!("{node}\n{}\n", lines.collect::<String>())
    });
    let lines: String = parts.collect();
    let findings: Vec<Finding> = found.iter().map(|(_, finding)| finding.clone()).collect();
    format!("{lines}{}\n", summary(&findings))
}
