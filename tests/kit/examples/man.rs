//! Writes the man pages, from the same source as the help: man DIRECTORY

use std::{env, fs, io, path::PathBuf};

use clap::CommandFactory;
use macvtap::cli::{Cli, Kubectl};

fn main() -> io::Result<()> {
    let dir = env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.ok_or_else(|| io::Error::other("usage: man DIRECTORY"))?;
    fs::create_dir_all(&dir)?;
    // A word for kubectl, two for man.
    let kubectl = Kubectl::command().bin_name("kubectl-macvtap");
    for command in [Cli::command(), kubectl] {
        clap_mangen::generate_to(command, &dir)?;
    }
    Ok(())
}
