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
    /// Somebody wants a shell, which this is not.
    NoShell,
    /// A command line for clap.
    CommandLine(Vec<OsString>),
}

/// Reads a call: `args` with the name of the file first, and whether `CNI_COMMAND` is set.
#[must_use]
pub fn read(args: &[OsString], cni_command: bool) -> Call {
    let arguments = args.get(1..).unwrap_or_default();
    let mut line = vec![OsString::from(NAME)];
    match file_name(args.first()) {
        Some("cp") => line.extend(["cp", "--"].map(OsString::from)),
        Some("sh") => return shell(arguments),
        name => line.extend(applet(name).map(OsString::from)),
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

fn file_name(file: Option<&OsString>) -> Option<&str> {
    Path::new(file?).file_name()?.to_str()
}

fn applet(name: Option<&str>) -> Option<&'static str> {
    let applet = name?.strip_prefix(NAME)?.strip_prefix('-')?;
    APPLETS.into_iter().find(|known| *known == applet)
}

/// There is no shell in the image, but existing manifests probe the device plugin by
/// `sh -c 'ls DIR/macvtap.network.kubevirt.io* ...'`. That question has a better answer.
fn shell(arguments: &[OsString]) -> Call {
    let script = match arguments {
        [option, script] if option == "-c" => script.to_string_lossy(),
        _ => "".into(),
    };
    let socket = script.split_whitespace().nth(1).unwrap_or_default();
    let (dir, name) = socket.rsplit_once('/').unwrap_or_default();
    if script.trim_start().starts_with("ls ") && name.starts_with("macvtap.network.kubevirt.io") {
        let words = [NAME, "probe", "--kubelet-dir", dir];
        return Call::CommandLine(words.map(OsString::from).to_vec());
    }
    Call::NoShell
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
    fn existing_manifests_copy_and_probe() {
        let cp = ["cp", "/macvtap-cni", "/host/opt/cni/bin/macvtap"];
        let expected = line(&["macvtap", "cp", "--", cp[1], cp[2]]);
        assert_eq!(read(&cp, false), expected);
        let dir = "/var/lib/kubelet/device-plugins";
        let probe = line(&["macvtap", "probe", "--kubelet-dir", dir]);
        let script = format!("ls {dir}/macvtap.network.kubevirt.io* >/dev/null 2>&1");
        assert_eq!(read(&["/bin/sh", "-c", &script], false), probe);
        for script in ["", "ls", "ls /", "rm -rf /x/macvtap.network.kubevirt.io*"] {
            assert_eq!(
                read(&["sh", "-c", script], false),
                Call::NoShell,
                "{script}"
            );
        }
        assert_eq!(read(&["sh"], false), Call::NoShell);
    }

    #[test]
    fn every_applet_is_a_subcommand() {
        let command = crate::cli::Cli::command();
        for applet in APPLETS {
            assert!(command.find_subcommand(applet).is_some(), "{applet}");
        }
    }
}
