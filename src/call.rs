//! What a call of the binary means: by the name of the file, the arguments and `CNI_COMMAND`. Pure.

use std::{ffi::OsString, path::Path};

/// The name of the binary, and of its CNI plugin.
pub const NAME: &str = "macvtap";
/// The parts of the program that a link named `macvtap-<applet>` calls.
pub const APPLETS: [&str; 2] = ["cni", "selftest"];

/// What a call means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A container runtime calls the CNI plugin.
    Cni,
    /// Somebody calls the CNI plugin by hand: say what it is.
    About,
    /// A command line for clap.
    CommandLine(Vec<OsString>),
}

/// Reads a call: `args` with the name of the file first, and whether `CNI_COMMAND` is set.
#[must_use]
pub fn read(args: &[OsString], cni_command: bool) -> Call {
    let arguments = args.get(1..).unwrap_or_default();
    let mut line = vec![OsString::from(NAME)];
    line.extend(applet(args.first()).map(OsString::from));
    line.extend_from_slice(arguments);
    match (arguments, cni_command) {
        // A runtime finds the plugin by whatever name the configuration's `type` says.
        ([], true) => Call::Cni,
        _ if line.get(1..) == Some(&["cni".into()]) => {
            if cni_command {
                Call::Cni
            } else {
                Call::About
            }
        }
        _ if line.len() == 1 => Call::About,
        _ => Call::CommandLine(line),
    }
}

fn applet(file: Option<&OsString>) -> Option<&'static str> {
    let name = Path::new(file?).file_name()?.to_str()?;
    let applet = name.strip_prefix(NAME)?.strip_prefix('-')?;
    APPLETS.into_iter().find(|known| *known == applet)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(words: &[&str], cni_command: bool) -> Call {
        let args: Vec<OsString> = words.iter().map(OsString::from).collect();
        super::read(&args, cni_command)
    }

    fn line(words: &[&str]) -> Call {
        Call::CommandLine(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn a_runtime_reaches_the_plugin_by_any_name() {
        for name in [
            "/opt/cni/bin/macvtap",
            "macvtap-cni",
            "anything",
            "macvtap-selftest",
        ] {
            assert_eq!(read(&[name], true), Call::Cni, "{name}");
        }
        assert_eq!(read(&[], true), Call::Cni);
        assert_eq!(read(&["macvtap", "cni"], true), Call::Cni);
    }

    #[test]
    fn without_arguments_it_says_what_it_is() {
        for name in [
            "/opt/cni/bin/macvtap",
            "macvtap-cni",
            "anything",
            "macvtap-1.0",
        ] {
            assert_eq!(read(&[name], false), Call::About, "{name}");
        }
        assert_eq!(read(&["macvtap", "cni"], false), Call::About);
    }

    #[test]
    fn links_and_subcommands_lead_to_the_same() {
        let selftest = line(&["macvtap", "selftest", "--json"]);
        assert_eq!(read(&["./macvtap", "selftest", "--json"], false), selftest);
        assert_eq!(read(&["/bin/macvtap-selftest", "--json"], true), selftest);
        assert_eq!(
            read(&["macvtap-1.0", "--help"], false),
            line(&["macvtap", "--help"])
        );
        assert_eq!(
            read(&["macvtap", "--help"], true),
            line(&["macvtap", "--help"])
        );
    }

    #[test]
    fn every_applet_is_a_subcommand() {
        let command = crate::cli::Cli::command();
        for applet in APPLETS {
            assert!(command.find_subcommand(applet).is_some(), "{applet}");
        }
    }
}
