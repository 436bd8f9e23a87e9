//! `kubectl macvtap probe`.

use anyhow::Result;

use super::{
    call::{Kubectl, Output},
    node::Node,
};
use crate::link::table::Table;

/// Probes the device plugins. False if one is not healthy or does not answer.
pub fn probe(kubectl: &Kubectl, nodes: &[Node]) -> Result<bool> {
    let answers = kubectl.exec(nodes, &["probe".to_owned()]);
    let mut table = Table::new(&["NODE", "PROBE", "DETAILS"]);
    let mut ok = true;
    for (node, answer) in nodes.iter().zip(answers) {
        let (healthy, details) = judge(answer);
        ok &= healthy;
        let verdict = if healthy { "ok" } else { "FAIL" };
        for line in details.lines() {
            table.row(&[node.name.clone(), verdict.to_owned(), line.to_owned()]);
        }
    }
    table.print(true)?;
    Ok(ok)
}

fn judge(answer: Result<Output>) -> (bool, String) {
    match answer {
        Ok(output) if output.is_ok() => (true, output.stdout),
        Ok(output) => (false, output.message()),
        Err(error) => (false, format!("{error:#}")),
    }
}
