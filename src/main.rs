//! Maps a call to a part of the program, and its outcome to an exit code.

#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::exit,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used
)]

use std::{env, ffi::OsString, io, process::ExitCode};

use anyhow::{Error, Result, anyhow};
use clap::{CommandFactory, Parser};
use macvtap::{
    cli::{Cli, Command},
    cni, deviceplugin,
    dispatch::{self, Call},
    doctor, install, link, selftest,
};

fn main() -> ExitCode {
    let args: Vec<OsString> = env::args_os().collect();
    let cni_command = env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    match dispatch::read(&args, cni_command) {
        Call::Cni => cni::main(),
        Call::About => cni::about(&mut io::stderr()),
        Call::NoShell => fail(&anyhow!(
            "there is no shell in this image; try: macvtap --help"
        )),
        Call::CommandLine(line) => {
            run(&Cli::parse_from(line).command).unwrap_or_else(|error| fail(&error))
        }
    }
}

fn fail(error: &Error) -> ExitCode {
    #[expect(
        clippy::print_stderr,
        reason = "the one place where errors are printed"
    )]
    {
        eprintln!("macvtap: {error:#}");
    }
    ExitCode::FAILURE
}

fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Cni => Ok(cni::main()),
        Command::Deviceplugin(options) => deviceplugin::main(&options.into()),
        Command::Probe { kubelet_dir } => deviceplugin::status::probe(kubelet_dir),
        Command::Install(options) => install::install(
            &(&options.target).into(),
            options.seccomp_profile.as_deref(),
        ),
        Command::Uninstall(options) => install::uninstall(&options.into()),
        Command::Cp { source, target } => install::cp(source, target),
        Command::Link { command } => link::main(command),
        Command::Doctor(options) => doctor::main(options),
        Command::Selftest { json } => selftest::main(*json),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(*shell, &mut command, dispatch::NAME, &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}
