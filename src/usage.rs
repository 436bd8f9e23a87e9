//! Reads command lines, and what wrong usage is answered beyond what clap says.

use std::ffi::OsString;

use clap::{
    Args, Command, CommandFactory, Error, FromArgMatches, Parser,
    error::{ContextKind, ContextValue},
};

use crate::{cli::Deviceplugin, dispatch::NAME};

/// Reads a command line. The error is help, the version, or what is wrong with it.
pub(crate) fn parse<T: Parser>(line: Vec<OsString>) -> Result<T, Error> {
    T::try_parse_from(line).map_err(located::<T>)
}

/// Reads a command line of the device plugin that has nothing but valid options. None for any
/// other: [`parse`] says what that is.
///
/// clap describes all commands in 0.1 MB, which this process would keep as long as it runs.
pub(crate) fn deviceplugin(line: &[OsString]) -> Option<Deviceplugin> {
    let [_, command, options @ ..] = line else {
        return None;
    };
    if command != "deviceplugin" {
        return None;
    }
    let parser = Deviceplugin::augment_args(Command::new(NAME).no_binary_name(true));
    let matches = parser.try_get_matches_from(options).ok()?;
    Deviceplugin::from_arg_matches(&matches).ok()
}

/// The same error. For an unknown command of the name of a subcommand it also says where that is.
fn located<T: CommandFactory>(mut error: Error) -> Error {
    let unknown = error.get(ContextKind::InvalidSubcommand);
    if let Some(ContextValue::String(unknown)) = unknown
        && let Some(command) = place(&T::command(), unknown)
    {
        let tip = vec![format!("the command is '{command}'").into()];
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tip));
    }
    error
}

/// The command with a subcommand of this name or alias, and that subcommand.
fn place(command: &Command, subcommand: &str) -> Option<String> {
    command.get_subcommands().find_map(|outer| {
        let inner = outer.find_subcommand(subcommand)?;
        Some(format!("{} {}", outer.get_name(), inner.get_name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Cli, Kubectl};

    #[test]
    fn the_device_plugins_options_alone_are_read_as_among_all_commands() {
        let words = |line: &str| line.split_whitespace().map(OsString::from).collect();
        for options in [
            "",
            "-v 3",
            "-v -1 -v 4",
            "--kubelet-dir k --config /c --learning off --netns-dir /n --node-name a --node-name b",
            "--nri auto --feature-dir /f --status-address [::1]:9403",
        ] {
            let line: Vec<OsString> = words(&format!("macvtap deviceplugin {options}"));
            let alone = deviceplugin(&line).unwrap();
            let cli::Command::Deviceplugin(among_all) = parse::<Cli>(line).unwrap().command else {
                panic!("{options}");
            };
            assert_eq!(format!("{alone:?}"), format!("{among_all:?}"));
        }
        for line in [
            "macvtap",
            "macvtap deviceplugin --help",
            "macvtap deviceplugin --no-such-option",
            "macvtap deviceplugin word",
            "macvtap deviceplugin -v x",
            "macvtap probe",
            "macvtap link list",
        ] {
            assert!(deviceplugin(&words(line)).is_none(), "{line}");
        }
    }

    fn refused<T: Parser>(line: &str) -> String {
        let line = line.split(' ').map(OsString::from).collect();
        let error = parse::<T>(line).err();
        error.expect("a wrong command line").to_string()
    }

    #[test]
    fn a_command_that_belongs_to_another_is_named_with_it() {
        for (line, expected) in [
            ("macvtap list", "tip: the command is 'link list'"),
            ("macvtap show --wide", "tip: the command is 'link list'"),
            ("macvtap rm tap0", "tip: the command is 'link delete'"),
            ("macvtap watch", "tip: the command is 'link watch'"),
            ("macvtap lnk", "tip: a similar subcommand exists: 'link'"),
            ("macvtap link lst", "tip: some similar subcommands exist: "),
        ] {
            let error = refused::<Cli>(line);
            assert!(error.contains(expected), "{line}: {error}");
            assert_eq!(error.matches("tip: ").count(), 1, "{line}: {error}");
        }
        let error = refused::<Kubectl>("kubectl-macvtap list");
        assert!(error.contains("tip: the command is 'link list'"), "{error}");
    }
}
