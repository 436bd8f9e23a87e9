//! Maps a call to an applet, and its outcome to an exit code.

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

use anyhow::{Result, anyhow};
use macvtap::{
    applets, cni,
    dispatch::{self, Call},
    host::signals,
};

fn main() -> ExitCode {
    applets::exit_code(run())
}

fn run() -> Result<ExitCode> {
    signals::unblock()?;
    let args: Vec<OsString> = env::args_os().collect();
    let cni_command = env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    match dispatch::read(&args, cni_command) {
        Call::Cni => Ok(cni::main()),
        Call::About => Ok(cni::about(&mut io::stderr())),
        Call::NoShell => Err(anyhow!("this image has no shell; try: macvtap --help")),
        Call::Exit(succeeds) => Ok(ExitCode::from(u8::from(!succeeds))),
        Call::CommandLine(line) => applets::run(line),
        Call::WrongFlag(text) => applets::refuse(&text),
        Call::Kubectl(line) => applets::run_kubectl(line),
    }
}
