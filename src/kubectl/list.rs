//! `kubectl macvtap link list`.

use anyhow::Result;
use serde::Serialize;

use super::{
    call::{Kubectl, on_node},
    node::Node,
};
use crate::{
    cli,
    host::stdout::print,
    link::{
        list::{COLUMNS, LOWER_COLUMNS, lower_row, notes, row},
        listing::Listing,
        table::Table,
        terminal::print_sentence,
    },
};

/// What is printed as JSON of one node.
#[derive(Serialize)]
struct Answer<'a> {
    node: &'a str,
    error: Option<String>,
    #[serde(flatten)]
    listing: Option<&'a Listing>,
}

/// Lists the macvtaps and lower devices of the nodes. False if one did not answer.
pub fn list(kubectl: &Kubectl, nodes: &[Node], options: &cli::List) -> Result<bool> {
    let answers = kubectl.exec(nodes, &words(options)).into_iter();
    let listings: Vec<Result<Listing>> = answers.map(|answer| answer?.parse()).collect();
    if options.json {
        let answers: Vec<Answer> = nodes.iter().zip(&listings).map(Answer::new).collect();
        print(&format!("{}\n", serde_json::to_string_pretty(&answers)?))?;
    } else {
        tables(nodes, &listings, options.wide)?;
    }
    Ok(listings.iter().all(Result::is_ok))
}

/// The filter is applied on the nodes.
fn words(options: &cli::List) -> Vec<String> {
    let mut words = vec!["link".to_owned(), "list".to_owned(), "--json".to_owned()];
    words.extend(options.pod.iter().map(|pod| format!("--pod={pod}")));
    let lower = options.lower_device.iter();
    words.extend(lower.map(|name| format!("--lower-device={name}")));
    words.extend(on_node(&options.kubelet_dir));
    words.push("--".to_owned());
    words.extend(options.names.iter().cloned());
    words
}

fn tables(nodes: &[Node], listings: &[Result<Listing>], wide: bool) -> Result<()> {
    let mut macvtaps = Table::new(&[&["NODE"], &COLUMNS[..]].concat());
    let mut lowers = Table::new(&[&["NODE"], &LOWER_COLUMNS[..]].concat());
    let mut sentences = Vec::new();
    for (node, listing) in nodes.iter().zip(listings) {
        let name = || vec![node.name.clone()];
        match listing {
            Ok(listing) => {
                let rows = listing.macvtaps.iter().map(row);
                rows.for_each(|row| macvtaps.row(&[name(), row].concat()));
                let rows = listing.lower_devices.iter().map(lower_row);
                rows.for_each(|row| lowers.row(&[name(), row].concat()));
                let about = notes(listing).into_iter();
                sentences.extend(about.map(|note| format!("{}: {note}", node.name)));
            }
            Err(error) => sentences.push(format!("{}: {error:#}", node.name)),
        }
    }
    for table in [macvtaps, lowers] {
        if !table.is_empty() {
            table.print(wide)?;
            print("\n")?;
        }
    }
    sentences.iter().try_for_each(|text| print_sentence(text))
}

impl<'a> Answer<'a> {
    fn new((node, listing): (&'a Node, &'a Result<Listing>)) -> Self {
        Self {
            node: &node.name,
            error: listing.as_ref().err().map(|error| format!("{error:#}")),
            listing: listing.as_ref().ok(),
        }
    }
}
