//! `kubectl macvtap top`.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::{
    call::{Kubectl, Output, on_node},
    node::Node,
};
use crate::{
    cli,
    link::{
        table::Table,
        terminal::timestamp,
        top::{Display, Update},
        traffic::{COLUMNS, Traffic},
    },
};

/// The traffic of one macvtap of a node.
#[derive(Serialize)]
struct Row {
    node: String,
    #[serde(flatten)]
    traffic: Traffic,
}

/// An update of all nodes.
#[derive(Serialize)]
struct Merged {
    time: String,
    macvtaps: Vec<Row>,
    /// Nodes that did not answer, and why.
    errors: Vec<String>,
}

/// Shows the traffic of all nodes, the busiest macvtaps first. False if one did not answer.
pub fn top(kubectl: &Kubectl, nodes: &[Node], options: &cli::Top) -> Result<bool> {
    let display = Display::open(options.json)?;
    let (mut updates, mut ok) = (0, true);
    while options.count.is_none_or(|count| updates < count) {
        let merged = measure(kubectl, nodes, options);
        display.show(&merged, &table(&merged), merged.macvtaps.len())?;
        ok &= merged.errors.is_empty();
        updates += 1;
        if !display.wait(Duration::ZERO)? {
            break;
        }
    }
    Ok(ok)
}

/// Each node measures for one interval.
fn measure(kubectl: &Kubectl, nodes: &[Node], options: &cli::Top) -> Merged {
    let interval = options.interval.to_string();
    let words = [
        "link",
        "top",
        "--json",
        "--count",
        "1",
        "--interval",
        &interval,
    ];
    let words = words.map(str::to_owned).into_iter();
    let words: Vec<String> = words.chain(on_node(&options.kubelet_dir)).collect();
    let duration = Duration::from_secs_f64(options.interval);
    let answers = kubectl.exec_long(nodes, &words, duration);
    let mut merged = Merged {
        time: timestamp(),
        macvtaps: Vec::new(),
        errors: Vec::new(),
    };
    for (node, answer) in nodes.iter().zip(answers) {
        match answer.and_then(Output::parse::<Update>) {
            Ok(update) => merged
                .macvtaps
                .extend(update.macvtaps.into_iter().map(|traffic| Row {
                    node: node.name.clone(),
                    traffic,
                })),
            Err(error) => merged.errors.push(format!("{}: {error:#}", node.name)),
        }
    }
    merged.macvtaps.sort_by_key(|row| row.traffic.rank());
    merged
}

/// The rows, and below them the nodes that did not answer.
fn table(merged: &Merged) -> Table {
    let mut table = Table::new(&[&["NODE"], &COLUMNS[..]].concat());
    for row in &merged.macvtaps {
        table.row(&[vec![row.node.clone()], row.traffic.row()].concat());
    }
    table.notes(merged.errors.clone())
}
