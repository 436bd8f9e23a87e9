//! The man pages.

use std::{collections::BTreeSet, process::Command};

use clap::CommandFactory;
use kit::{
    man,
    netns::{names, skipped},
};
use macvtap::cli::{Cli, Kubectl};

/// The names of the pages of a command and its subcommands.
fn pages(command: &clap::Command, name: &str) -> Vec<String> {
    let visible = command.get_subcommands().filter(|each| !each.is_hide_set());
    let below = visible.flat_map(|each| pages(each, &format!("{name}-{}", each.get_name())));
    let all: Vec<String> = below.chain([format!("{name}.1")]).collect();
    all
}

#[test]
fn each_command_has_a_page_without_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    man::write(dir.path(), "2026-11-26").unwrap();
    let own = pages(&Cli::command(), "macvtap");
    let expected = own
        .into_iter()
        .chain(pages(&Kubectl::command(), "kubectl-macvtap"));
    let written = names(dir.path()).into_iter();
    assert_eq!(written.collect::<BTreeSet<_>>(), expected.collect());
    let mut command = Command::new("mandoc");
    command
        .args(["-T", "lint", "-W", "warning"])
        .args(names(dir.path()));
    match command.current_dir(&dir).output() {
        Ok(output) => assert!(output.stdout.is_empty(), "{output:?}"),
        Err(error) => skipped(&format!("mandoc: {error}")),
    }
}
