//! What a call of the binary means: by the name of the file, the arguments and `CNI_COMMAND`. Pure.

use std::{ffi::OsString, path::Path};

/// The name of the binary, and of its CNI plugin.
pub const NAME: &str = "macvtap";
/// The parts of the program that a link named `macvtap-<applet>` calls.
pub const APPLETS: [&str; 3] = ["cni", "deviceplugin", "selftest"];
/// Flags of glog that take a value and have no meaning here; existing manifests give them.
const GLOG_VALUES: [&str; 4] = ["log_backtrace_at", "log_dir", "stderrthreshold", "vmodule"];
/// Flags of glog that are on or off, and have no meaning here.
const GLOG_SWITCHES: [&str; 2] = ["alsologtostderr", "logtostderr"];

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
        _ if line[1] == "deviceplugin" => Call::CommandLine(without_glog(line)),
        _ => Call::CommandLine(line),
    }
}

/// Turns glog's flags into ours: with one dash or two, with `=value` or the value as next word.
fn without_glog(line: Vec<OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = line.into_iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let flag = text.strip_prefix('-').unwrap_or_default();
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (flag, None),
        };
        if GLOG_SWITCHES.contains(&name) {
            continue;
        }
        if GLOG_VALUES.contains(&name) {
            if value.is_none() {
                words.next();
            }
            continue;
        }
        if name == "v" {
            kept.push("-v".into());
            kept.extend(value.map(OsString::from));
            continue;
        }
        kept.push(word);
    }
    kept
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
    fn glogs_flags_are_understood() {
        let plain = line(&["macvtap", "deviceplugin", "-v", "3"]);
        for words in [
            &["/macvtap-deviceplugin", "-v", "3", "-logtostderr"][..],
            &["/macvtap-deviceplugin", "-v=3", "--logtostderr=true"],
            &["macvtap", "deviceplugin", "--v", "3", "-alsologtostderr"],
            &[
                "macvtap",
                "deviceplugin",
                "--v=3",
                "-log_dir",
                "/tmp",
                "-vmodule=a=1",
            ],
            &[
                "macvtap",
                "deviceplugin",
                "-stderrthreshold",
                "ERROR",
                "-v",
                "3",
            ],
            &[
                "macvtap",
                "deviceplugin",
                "--log_backtrace_at",
                "a:1",
                "-v",
                "3",
            ],
        ] {
            assert_eq!(read(words, false), plain, "{words:?}");
        }
        let ours = line(&["macvtap", "deviceplugin", "--kubelet-dir", "/k"]);
        let words = ["macvtap-deviceplugin", "--kubelet-dir", "/k"];
        assert_eq!(read(&words, false), ours);
        assert_eq!(
            read(&["macvtap-deviceplugin"], false),
            line(&["macvtap", "deviceplugin"])
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
