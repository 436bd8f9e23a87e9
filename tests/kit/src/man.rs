//! The man pages, from the same source as the help.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use macvtap::cli::{Cli, Kubectl};

/// Writes a page for each command into a directory. `date` is that of the sources.
pub fn write(dir: &Path, date: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // A word for kubectl, two for man.
    let kubectl = Kubectl::command().bin_name("kubectl-macvtap");
    for command in [Cli::command(), kubectl] {
        let mut command = command.disable_help_subcommand(true);
        command.build();
        write_all(&command, dir, date)?;
    }
    Ok(())
}

fn write_all(command: &Command, dir: &Path, date: &str) -> io::Result<()> {
    let visible = command.get_subcommands().filter(|each| !each.is_hide_set());
    for subcommand in visible {
        write_all(subcommand, dir, date)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    let version = Cli::command().render_version();
    let page = Man::new(command.clone()).title(name.to_uppercase());
    let page = page.date(date).source(version.trim()).manual("macvtap");
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    // Three lines for one empty one, and what is at the end of the help.
    let text = text.replace(".br\n\n.br\n", ".sp\n");
    let text = text.replace(".SH EXTRA\n", ".SH NOTES\n");
    fs::write(dir.join(format!("{name}.1")), text)
}
