//! What a call of the binary means: by the name of the file, the arguments and `CNI_COMMAND`. Pure.

use std::{ffi::OsString, path::Path};

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
/// The names by which a call is one of a shell.
const SHELLS: [&str; 2] = ["bash", "sh"];
/// The beginning of the names of the original's sockets.
const SOCKETS: &str = "macvtap.network.kubevirt.io";
/// Flags of glog 1.2.4 that take a value and have no meaning here; existing manifests have them.
const GLOG_VALUES: [&str; 6] = [
    "log_backtrace_at",
    "log_dir",
    "log_link",
    "logbuflevel",
    "stderrthreshold",
    "vmodule",
];
/// Flags of glog that are on or off, and have no meaning here.
const GLOG_SWITCHES: [&str; 2] = ["alsologtostderr", "logtostderr"];

/// What a call means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A container runtime calls the CNI plugin.
    Cni,
    /// The CNI plugin is called by hand, and says what it is.
    About,
    /// A shell is called, which this is not.
    NoShell,
    /// A command line for clap.
    CommandLine(Vec<OsString>),
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
        Some(name) if SHELLS.contains(&name) => return shell(arguments),
        Some("cp") => return copy(arguments),
        Some(KUBECTL) => return Call::Kubectl(args.to_vec()),
        Some("ls" | "test" | "[") if is_probe(arguments) => return probe(arguments),
        _ => line.extend(applet(name).map(OsString::from)),
    }
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

/// Reads flags as Go's `flag` package and glog do: with one dash or two, with `=value` or the
/// value as next word, the last one of several, up to the first word that is no flag.
fn without_glog(line: Vec<OsString>) -> Vec<OsString> {
    let mut words = line.into_iter();
    let mut kept: Vec<OsString> = words.by_ref().take(2).collect();
    let mut verbosity = None;
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let Some((name, value)) = flag(&text) else {
            break;
        };
        let mut value_or_next = || value.map(OsString::from).or_else(|| words.next());
        if name == "v" {
            verbosity = value_or_next();
        } else if GLOG_VALUES.contains(&name) {
            value_or_next();
        } else if !GLOG_SWITCHES.contains(&name) {
            // One of ours, each of which but --help has a value.
            let next = (value.is_none() && !is_help(name)).then(|| words.next());
            kept.push(word);
            kept.extend(next.flatten());
        }
    }
    if let Some(verbosity) = verbosity {
        kept.extend(["-v".into(), verbosity]);
    }
    kept
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

/// The image has no shell, but existing manifests call one with a simple command: they probe the
/// device plugin, as in `sh -c 'ls DIR/macvtap.network.kubevirt.io* >/dev/null 2>&1'`, and copy
/// the CNI plugin.
fn shell(arguments: &[OsString]) -> Call {
    let Some(script) = script(arguments) else {
        return Call::NoShell;
    };
    let unquoted = script.replace(['"', '\''], "");
    let words: Vec<OsString> = unquoted
        .split_whitespace()
        .take_while(|word| !matches!(*word, "&&" | "||"))
        .filter(|word| !word.contains(['<', '>']) && *word != "/dev/null" && *word != "exec")
        .map(|word| word.trim_end_matches(';').into())
        .collect();
    match words.split_first() {
        Some((name, rest)) if *name == "cp" && !script.contains("&&") => copy(rest),
        Some((name, rest)) if is_test(name) && is_probe(rest) => probe(rest),
        _ => Call::NoShell,
    }
}

/// The script of `sh -c SCRIPT`, `sh -ec SCRIPT` and the like.
fn script(arguments: &[OsString]) -> Option<&str> {
    let (options, rest) = match arguments {
        [options, rest @ ..] => (options.to_str()?, rest),
        [] => return None,
    };
    let is_script = options.starts_with('-') && options.ends_with('c');
    rest.first().filter(|_| is_script)?.to_str()
}

fn is_test(name: &OsString) -> bool {
    ["ls", "test", "[", "/bin/ls", "/usr/bin/test"]
        .iter()
        .any(|known| name == known)
}

/// Whether a listing or a test is about the device plugin's sockets.
fn is_probe(arguments: &[OsString]) -> bool {
    directory_of_sockets(arguments).is_some()
}

fn directory_of_sockets(arguments: &[OsString]) -> Option<&str> {
    let paths = arguments.iter().filter_map(|word| word.to_str());
    let mut directories = paths.filter_map(|path| {
        let (directory, name) = path.rsplit_once('/')?;
        name.starts_with(SOCKETS).then_some(directory)
    });
    directories.next()
}

/// A socket of the device plugin exists while it runs; `probe` also finds out whether it works.
fn probe(arguments: &[OsString]) -> Call {
    let directory = directory_of_sockets(arguments).unwrap_or_default();
    let words = [NAME, "probe", "--kubelet-dir", directory];
    Call::CommandLine(words.map(OsString::from).to_vec())
}

/// `cp` as existing manifests call it. Its options, such as -f, say what it does here anyway.
fn copy(arguments: &[OsString]) -> Call {
    let operands = arguments
        .iter()
        .filter(|word| !word.to_string_lossy().starts_with('-'));
    let words = [NAME, "cp", "--"].map(OsString::from).into_iter();
    Call::CommandLine(words.chain(operands.cloned()).collect())
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
            &["-v", "3", "-logtostderr"][..],
            &["-v=3", "--logtostderr=true"],
            &["--v", "3", "-alsologtostderr"],
            &["--v=3", "-log_dir", "/tmp", "-vmodule=a=1"],
            &["-stderrthreshold", "ERROR", "-v", "3"],
            &["--log_backtrace_at", "a:1", "-v", "3"],
            &["-log_link", "/tmp", "-logbuflevel", "-1", "-v", "3"],
            &["-log_link=/tmp", "--logbuflevel=0", "-v", "3"],
            &["-v", "5", "-v=3"],
            &["-v", "3", "word", "-v", "4", "--no-such-flag"],
            &["-v", "3", "--", "-v", "4"],
            &["-v", "3", "-"],
            &["-v", "3", "-logtostderr", "true", "-v", "4"],
        ] {
            for name in [&["/macvtap-deviceplugin"][..], &["macvtap", "deviceplugin"]] {
                assert_eq!(read(&[name, words].concat(), false), plain, "{words:?}");
            }
        }
    }

    #[test]
    fn our_flags_are_kept_among_glogs() {
        let ours = line(&["macvtap", "deviceplugin", "--kubelet-dir", "/k"]);
        let words = ["macvtap-deviceplugin", "--kubelet-dir", "/k", "word"];
        assert_eq!(read(&words, false), ours);
        let words = [
            "macvtap-deviceplugin",
            "--kubelet-dir=/k",
            "--help",
            "-v",
            "1",
        ];
        let expected = [
            "macvtap",
            "deviceplugin",
            "--kubelet-dir=/k",
            "--help",
            "-v",
            "1",
        ];
        assert_eq!(read(&words, false), line(&expected));
        assert_eq!(
            read(&["macvtap-deviceplugin"], false),
            line(&["macvtap", "deviceplugin"])
        );
        // What clap then refuses.
        let words = ["macvtap", "deviceplugin", "--kubelet-dri", "/k"];
        assert_eq!(read(&words, false), line(&words));
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
    fn existing_manifests_copy() {
        let cp = ["cp", "/macvtap-cni", "/host/opt/cni/bin/macvtap"];
        let expected = line(&["macvtap", "cp", "--", cp[1], cp[2]]);
        assert_eq!(read(&cp, false), expected);
        assert_eq!(read(&["/bin/cp", "-f", cp[1], cp[2]], false), expected);
        for script in [cp.join(" "), format!("exec {};", cp.join(" "))] {
            assert_eq!(read(&["sh", "-c", &script], false), expected, "{script}");
        }
        let script = format!("{} && chmod 755 {}", cp.join(" "), cp[2]);
        assert_eq!(read(&["sh", "-c", &script], false), Call::NoShell);
    }

    #[test]
    fn existing_manifests_probe() {
        let dir = "/var/lib/kubelet/device-plugins";
        let probe = line(&["macvtap", "probe", "--kubelet-dir", dir]);
        let glob = format!("{dir}/macvtap.network.kubevirt.io*");
        for script in [
            format!("ls {glob} >/dev/null 2>&1"),
            format!("ls -l {glob} > /dev/null"),
            format!("ls {dir}/macvtap.network.kubevirt.io_eth0"),
            format!("test -S {glob}"),
            format!("test -e \"{glob}\""),
            format!("[ -S {glob} ]"),
            format!("exec ls {glob}"),
            format!("ls {glob} || exit 1"),
        ] {
            for shell in [["/bin/sh", "-c"], ["bash", "-c"], ["sh", "-ec"]] {
                let words = [&shell[..], &[&script]].concat();
                assert_eq!(read(&words, false), probe, "{script}");
            }
        }
        assert_eq!(read(&["test", "-S", &glob], false), probe);
        assert_eq!(read(&["/usr/bin/ls", &glob], false), probe);
        let probes = [
            "",
            "ls",
            "ls /",
            "test -S /x",
            "rm -rf /x/macvtap.network.kubevirt.io*",
        ];
        for script in probes {
            assert_eq!(
                read(&["sh", "-c", script], false),
                Call::NoShell,
                "{script}"
            );
        }
        for words in [&["sh"][..], &["sh", "-x"], &["sh", "x", "ls /"]] {
            assert_eq!(read(words, false), Call::NoShell, "{words:?}");
        }
    }

    #[test]
    fn every_applet_is_a_subcommand() {
        let command = crate::cli::Cli::command();
        for applet in APPLETS {
            assert!(command.find_subcommand(applet).is_some(), "{applet}");
        }
    }
}
