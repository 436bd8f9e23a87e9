//! What wrong usage is answered, beyond what clap says.

use std::ffi::OsString;

use clap::{
    Command, CommandFactory, Error, Parser,
    error::{ContextKind, ContextValue},
};

/// Reads a command line. The error is help, the version, or what is wrong with it.
pub(crate) fn parse<T: Parser>(line: Vec<OsString>) -> Result<T, Error> {
    T::try_parse_from(line).map_err(located::<T>)
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
    use crate::cli::{Cli, Kubectl};

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
