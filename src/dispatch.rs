//! What a call of the binary means: by the name of the file, the arguments and `CNI_COMMAND`. Pure.

use std::{ffi::OsString, path::Path};

use crate::{
    glog,
    shell::{self, Meaning},
};

/// The name of the binary, and of its CNI plugin.
pub const NAME: &str = "macvtap";
/// The parts of the program that a link named `macvtap-<applet>` calls.
pub const APPLETS: [&str; 8] = [
    "cni",
    "deviceplugin",
    "doctor",
    "install",
    "link",
    "probe",
    "selftest",
    "uninstall",
];
/// The name by which kubectl finds a plugin for `kubectl macvtap`.
const KUBECTL: &str = "kubectl-macvtap";
/// The device plugin's own options, which glog does not have.
const OPTIONS: [&str; 8] = [
    "config",
    "feature-dir",
    "kubelet-dir",
    "learning",
    "netns-dir",
    "node-name",
    "nri",
    "status-address",
];
/// What a call means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A container runtime calls the CNI plugin.
    Cni,
    /// The CNI plugin is called by hand, and says what it is.
    About,
    /// A shell is called, which this is not.
    NoShell,
    /// A shell is called for a script that succeeds, or fails, whatever there is.
    Exit(bool),
    /// A command line for clap.
    CommandLine(Vec<OsString>),
    /// A flag has a value that it cannot have: what is wrong.
    WrongFlag(String),
    /// A command line of the kubectl plugin, for clap.
    Kubectl(Vec<OsString>),
}

/// Reads a call: `args` with the name of the file first, and whether `CNI_COMMAND` is set.
#[must_use]
pub fn read(args: &[OsString], cni_command: bool) -> Call {
    let arguments = args.get(1..).unwrap_or_default();
    let mut line = vec![OsString::from(NAME)];
    let name = file_name(args.first());
    match name {
        Some(name) if is_of_a_shell(name) => return tool(name, arguments, cni_command),
        Some(KUBECTL) => return Call::Kubectl(args.to_vec()),
        _ => line.extend(applet(name).map(OsString::from)),
    }
    // The original's CNI plugin does not look at its arguments.
    let is_plugin = line.len() > 1 && line[1] == "cni";
    line.extend_from_slice(arguments);
    match (arguments, cni_command) {
        // A runtime finds the plugin by whatever name the configuration's `type` says.
        ([], true) => Call::Cni,
        _ if is_plugin && cni_command => Call::Cni,
        _ if line.get(1..) == Some(&["cni".into()]) => {
            if cni_command {
                Call::Cni
            } else {
                Call::About
            }
        }
        _ if line.len() == 1 => Call::About,
        _ if line[1] == "deviceplugin" => {
            without_glog(line).map_or_else(Call::WrongFlag, Call::CommandLine)
        }
        _ => Call::CommandLine(line),
    }
}

/// Reads flags as Go's `flag` package and glog do: with one dash or two, with `=value` or the
/// value as next word, the last one of several, up to the first word that is no flag. What follows
/// it is ignored, but not where that is an option of ours: clap refuses the word then.
fn without_glog(line: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let mut words = line.into_iter();
    let mut kept: Vec<OsString> = words.by_ref().take(2).collect();
    let mut verbosity = None;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let Some((name, value)) = flag(&text) else {
            let rest: Vec<OsString> = [word].into_iter().chain(words).collect();
            kept.extend(
                rest.iter()
                    .any(is_ours)
                    .then_some(rest)
                    .into_iter()
                    .flatten(),
            );
            break;
        };
        // Of ours, each but --help has a value as well.
        let value = match value {
            Some(value) => Some(OsString::from(value)),
            None if glog::is_switch(name) => continue,
            None if is_help(name) => {
                kept.extend(ours(name, None));
                break;
            }
            None => words.next(),
        };
        let takes = value
            .as_ref()
            .and_then(|value| glog::takes(name, &value.to_string_lossy()));
        match (takes, value) {
            (Some(false), Some(value)) => {
                let value = value.to_string_lossy();
                return Err(format!("the flag -{name} cannot have the value {value:?}"));
            }
            (Some(true), value) if name == glog::VERBOSITY => verbosity = value,
            (Some(_), _) => {}
            (None, value) => kept.extend(ours(name, value)),
        }
    }
    kept.extend(verbosity.into_iter().flat_map(|level| ["-v".into(), level]));
    Ok(kept)
}

/// Whether a word is a long option of the device plugin that glog does not have.
fn is_ours(word: &OsString) -> bool {
    let text = word.to_string_lossy();
    flag(&text).is_some_and(|(name, _)| OPTIONS.contains(&name))
}

/// A flag of ours, or one that clap refuses: an unknown one, or one of glog without its value.
fn ours(name: &str, value: Option<OsString>) -> impl Iterator<Item = OsString> {
    let dashes = if name.len() == 1 { "-" } else { "--" };
    [OsString::from(format!("{dashes}{name}"))]
        .into_iter()
        .chain(value)
}

/// A flag's name, and its value if the same word has it.
fn flag(word: &str) -> Option<(&str, Option<&str>)> {
    let flag = word.strip_prefix('-')?;
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    match flag.split_once('=') {
        _ if flag.is_empty() => None,
        Some((name, value)) => Some((name, Some(value))),
        None => Some((flag, None)),
    }
}

fn is_help(name: &str) -> bool {
    matches!(name, "h" | "help")
}

fn file_name(file: Option<&OsString>) -> Option<&str> {
    Path::new(file?).file_name()?.to_str()
}

fn applet(name: Option<&str>) -> Option<&'static str> {
    let applet = name?.strip_prefix(NAME)?.strip_prefix('-')?;
    APPLETS.into_iter().find(|known| *known == applet)
}

fn is_of_a_shell(name: &str) -> bool {
    let names = [&shell::SHELLS[..], &shell::COPIES, &shell::TESTS];
    names.iter().any(|names| names.contains(&name))
}

/// A call of a shell or of one of the tools beside it, which the image does not have.
fn tool(name: &str, arguments: &[OsString], cni_command: bool) -> Call {
    let words: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
    let meaning = words.and_then(|words| {
        if shell::SHELLS.contains(&name) {
            return shell::shell(&words);
        }
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        if shell::COPIES.contains(&name) {
            return shell::copy(&words);
        }
        shell::probe(&words).filter(|_| !words.iter().any(|word| word == "!"))
    });
    let line = |verb: &[&str], words: Vec<String>| {
        let verb = verb.iter().map(|word| (*word).to_owned());
        Call::CommandLine(verb.chain(words).map(OsString::from).collect())
    };
    match meaning {
        None => Call::NoShell,
        // A socket of the device plugin exists while it runs; probe also finds out whether it works.
        Some(Meaning::Probe(directory)) => line(&[NAME, "probe", "--kubelet-dir"], vec![directory]),
        Some(Meaning::Copy(operands)) => line(&[NAME, "cp", "--"], operands),
        Some(Meaning::Exit(succeeds)) => Call::Exit(succeeds),
        Some(Meaning::Program(words)) => {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            read(&words, cni_command)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

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
            "-v 3 -logtostderr",
            "-v=3 --logtostderr=true",
            "--v 3 -alsologtostderr",
            "--v=3 -log_dir /tmp -vmodule=a=1",
            "-stderrthreshold ERROR -v 3",
            "--log_backtrace_at a.go:1 -v 3",
            "-log_link /tmp -logbuflevel -1 -v 3",
            "-log_link=/tmp --logbuflevel=0 -v 3",
            "-v 5 -v=3",
            "-v 3 word -v 4 --no-such-flag",
            "-v 3 -- -v 4",
            "-v 3 -",
            "-v 3 3",
            "-v 3 -logtostderr true -v 4",
            "-v=3 -logtostderr=1 --alsologtostderr=false -logtostderr=t",
            "--logtostderr=True --stderrthreshold=INFO --v=3",
            "-stderrthreshold=2 -stderrthreshold fatal --v 3",
            "-vmodule plugin=4,lister=5 -log_backtrace_at=lister.go:99 -v 3",
            "-log_dir= -v 3 -vmodule=",
            "-log_dir -v -v 3",
            "-log_dir -- -v 3",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            for name in [&["/macvtap-deviceplugin"][..], &["macvtap", "deviceplugin"]] {
                assert_eq!(read(&[name, &words].concat(), false), plain, "{words:?}");
            }
        }
    }

    #[test]
    fn our_options_are_those_of_the_command_line() {
        let command = <crate::cli::Cli as clap::CommandFactory>::command();
        let command = command.find_subcommand("deviceplugin").unwrap();
        let names = command
            .get_arguments()
            .filter(|option| option.get_short().is_none());
        let mut names: Vec<&str> = names.filter_map(clap::Arg::get_long).collect();
        names.sort_unstable();
        assert_eq!(names, OPTIONS);
    }

    #[test]
    fn our_flags_are_kept_among_glogs() {
        let ours = line(&["macvtap", "deviceplugin", "--kubelet-dir", "/k"]);
        let words = ["macvtap-deviceplugin", "--kubelet-dir", "/k", "word"];
        assert_eq!(read(&words, false), ours);
        // Not dropped without a word.
        let words = [
            "macvtap",
            "deviceplugin",
            "word",
            "-v",
            "3",
            "--kubelet-dir",
            "/k",
        ];
        assert_eq!(read(&words, false), line(&words));
        let words = [
            "macvtap-deviceplugin",
            "-kubelet-dir=/k",
            "--help",
            "-v",
            "1",
        ];
        let expected = ["macvtap", "deviceplugin", "--kubelet-dir", "/k", "--help"];
        assert_eq!(read(&words, false), line(&expected));
        assert_eq!(
            read(&["macvtap-deviceplugin"], false),
            line(&["macvtap", "deviceplugin"])
        );
    }

    /// As Go's `flag` package.
    #[test]
    fn the_device_plugin_refuses_unknown_flags_and_missing_values() {
        let words = ["macvtap", "deviceplugin", "--kubelet-dri", "/k"];
        assert_eq!(read(&words, false), line(&words));
        for words in ["-v", "-v4", "-log_dir", "-no-such-flag=1", "---v=3"] {
            let words: Vec<&str> = words.split(' ').collect();
            let words = [&["macvtap-deviceplugin"], &words[..]].concat();
            let Call::CommandLine(line) = read(&words, false) else {
                panic!("{words:?}");
            };
            let refused = crate::cli::Cli::try_parse_from(line);
            assert_eq!(refused.unwrap_err().exit_code(), 2, "{words:?}");
        }
        for words in [
            "-v=",
            "-v x -v 3",
            "-v x -help",
            "-logtostderr=banana -v 3",
            "--alsologtostderr= -v 3",
            "-stderrthreshold WARN",
        ] {
            let words: Vec<&str> = words.split(' ').collect();
            let words = [&["macvtap", "deviceplugin"], &words[..]].concat();
            let Call::WrongFlag(text) = read(&words, false) else {
                panic!("{words:?}");
            };
            assert!(text.contains("the flag -"), "{text}");
        }
    }

    #[test]
    fn the_device_plugin_takes_every_verbosity_and_a_flag_twice() {
        for words in [
            &["-v", "-1"][..],
            &["-v=-9223372036854775808"],
            &["-v", "100", "-v=2147483648"],
            &["--kubelet-dir", "/a", "--kubelet-dir", "/b"],
        ] {
            let words = [&["macvtap-deviceplugin"], words].concat();
            let Call::CommandLine(line) = read(&words, false) else {
                panic!("{words:?}");
            };
            let parsed = crate::cli::Cli::try_parse_from(line);
            assert!(parsed.is_ok(), "{words:?}: {parsed:?}");
        }
    }

    #[test]
    fn kubectl_finds_its_plugin_by_its_name() {
        let words = ["/usr/local/bin/kubectl-macvtap", "link", "list"];
        let expected = Call::Kubectl(words.map(OsString::from).to_vec());
        assert_eq!(read(&words, false), expected);
    }

    #[test]
    fn existing_manifests_call_a_shell_and_its_tools() {
        let copied = "cp -- /macvtap-cni /host/opt/cni/bin/macvtap";
        let probed = "probe --kubelet-dir /k";
        #[rustfmt::skip]
        let table = [
            (&["cp", "/macvtap-cni", "/host/opt/cni/bin/macvtap"][..], copied),
            (&["/bin/cp", "-f", "/macvtap-cni", "/host/opt/cni/bin/macvtap"], copied),
            (&["install", "-m", "755", "/macvtap-cni", "/host/opt/cni/bin/macvtap"], copied),
            (&["sh", "-c", "cp /macvtap-cni /host/opt/cni/bin/macvtap"], copied),
            (&["sh", "-c", "ls /k/macvtap.network.kubevirt.io* >/dev/null 2>&1"], probed),
            (&["/bin/bash", "-ec", "test -S /k/macvtap.network.kubevirt.io*"], probed),
            (&["test", "-S", "/k/macvtap.network.kubevirt.io*"], probed),
            (&["[", "-S", "/k/macvtap.network.kubevirt.io_eth0", "]"], probed),
            (&["/usr/bin/ls", "/k/macvtap.network.kubevirt.io_eth0"], probed),
            (&["find", "/k", "-name", "macvtap.network.kubevirt.io*"], probed),
            (&["sh", "-c", "exec /macvtap-deviceplugin -v 3 -logtostderr"], "deviceplugin -v 3"),
        ];
        for (words, expected) in table {
            let expected: Vec<&str> = ["macvtap"].into_iter().chain(expected.split(' ')).collect();
            assert_eq!(read(words, false), line(&expected), "{words:?}");
        }
        let ignored = ["sh", "-c", "ls /k/macvtap.network.kubevirt.io* || true"];
        assert_eq!(read(&ignored, false), Call::Exit(true));
        let others = [
            "sh",
            "sh -c echo",
            "ls /",
            "test",
            "bash -i",
            "test ! -S /k/macvtap.network.kubevirt.io_eth0",
        ];
        for words in others {
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(read(&words, false), Call::NoShell, "{words:?}");
        }
    }

    /// As the original's, which is one without a look at them.
    #[test]
    fn the_cni_plugin_takes_any_arguments() {
        for words in [&["macvtap-cni", "-v", "3"][..], &["/macvtap-cni", "x"]] {
            assert_eq!(read(words, true), Call::Cni, "{words:?}");
        }
        let help = line(&["macvtap", "cni", "--help"]);
        assert_eq!(read(&["macvtap-cni", "--help"], false), help);
    }

    #[test]
    fn every_applet_is_a_subcommand() {
        let command = crate::cli::Cli::command();
        for applet in APPLETS {
            assert!(command.find_subcommand(applet).is_some(), "{applet}");
        }
    }
}
