//! Runs the applet that a command line names.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::{CommandFactory, error::ErrorKind};
use clap_complete::{generate, shells};

use crate::{
    cli::{Cli, Command, Kubectl, Shell},
    cni, deviceplugin, dispatch, doctor,
    host::{signals, stdout},
    install, kubectl, link, selftest, usage,
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

/// Runs a command line to its end.
pub fn run(line: Vec<OsString>) -> Result<ExitCode> {
    if let Some(options) = usage::deviceplugin(&line) {
        return run_command(&Command::Deviceplugin(options));
    }
    match usage::parse::<Cli>(line) {
        Ok(cli) => run_command(&cli.command),
        Err(error) => explain(&error),
    }
}

fn run_command(command: &Command) -> Result<ExitCode> {
    signals::keep_exit_statuses()?;
    match command {
        Command::Cni => Ok(cni::main()),
        Command::Deviceplugin(options) => deviceplugin::main(&options.into()),
        Command::Probe { kubelet_dir, live } => deviceplugin::status::probe(kubelet_dir, *live),
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

/// Runs a command line of the kubectl plugin to its end.
pub fn run_kubectl(line: Vec<OsString>) -> Result<ExitCode> {
    match usage::parse::<Kubectl>(line) {
        Ok(options) => {
            signals::keep_exit_statuses()?;
            kubectl::main(&options)
        }
        Err(error) => explain(&error),
    }
}

/// Refuses a command line, as clap refuses one.
pub fn refuse(text: &str) -> Result<ExitCode> {
    explain(&Cli::command().error(ErrorKind::InvalidValue, text))
}

/// Prints help or the version, or says what is wrong with a command line.
fn explain(error: &clap::Error) -> Result<ExitCode> {
    let text = error.render().to_string();
    if !error.use_stderr() {
        stdout::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The exit status says the same.
    let _ = io::stderr().write_all(text.as_bytes());
    Ok(u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Prints the completions of a shell. Generated whole first: clap panics if it cannot write.
fn completions(shell: Shell) -> Result<ExitCode> {
    let (mut text, mut command) = (Vec::new(), Cli::command());
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, dispatch::NAME, &mut text),
        Shell::Fish => generate(shells::Fish, &mut command, dispatch::NAME, &mut text),
        Shell::Zsh => generate(shells::Zsh, &mut command, dispatch::NAME, &mut text),
    }
    stdout::print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
