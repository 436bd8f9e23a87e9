//! Runs the applet that a command line names.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{
    cli::{self, Cli, Command},
    cni, deviceplugin, dispatch, doctor,
    host::{signals, stdout},
    install, kubectl, link, selftest,
};

/// The exit code of a command. Prints why it failed, unless the reader of standard output is gone.
#[must_use]
pub fn exit_code(outcome: Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) if stdout::is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do about an error here.
            let _ = writeln!(io::stderr(), "macvtap: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs it to its end.
pub fn run(command: &Command) -> Result<ExitCode> {
    signals::keep_exit_statuses()?;
    match command {
        Command::Cni => Ok(cni::main()),
        Command::Deviceplugin(options) => deviceplugin::main(&options.into()),
        Command::Probe { kubelet_dir } => deviceplugin::status::probe(kubelet_dir),
        Command::Install(options) => install::install(
            &(&options.target).into(),
            options.seccomp_profile.as_deref(),
        ),
        Command::Uninstall(options) => install::uninstall(
            &(&options.target).into(),
            options.seccomp_profile.as_deref(),
        ),
        Command::Cp { source, target } => install::cp(source, target),
        Command::Link { command } => link::main(command),
        Command::Doctor(options) => doctor::main(options),
        Command::Selftest { json } => selftest::main(*json),
        Command::Completions { shell } => completions(*shell),
    }
}

/// Runs the kubectl plugin to its end.
pub fn run_kubectl(options: &cli::Kubectl) -> Result<ExitCode> {
    signals::keep_exit_statuses()?;
    kubectl::main(options)
}

/// Prints the completions of a shell. Generated whole first: clap panics if it cannot write.
fn completions(shell: Shell) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), dispatch::NAME, &mut text);
    stdout::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
