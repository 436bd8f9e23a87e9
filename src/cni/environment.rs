//! The environment variables of a CNI call, checked as the reference
//! implementation checks them: same order, codes and texts. Pure.

use std::time::Instant;

use super::error::{CniError, Result, code};
use crate::types::link_name::{Flaw, LinkName, MAX_NAME};

/// What a runtime asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare an attachment with what ADD set up.
    Check,
    /// Say whether ADD could work.
    Status,
    /// Remove what no attachment has any more.
    Gc,
    /// Say which versions of the specification are spoken.
    Version,
    /// None of these.
    Unknown(String),
}

impl Verb {
    fn named(name: &str) -> Self {
        match name {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "STATUS" => Self::Status,
            "GC" => Self::Gc,
            "VERSION" => Self::Version,
            other => Self::Unknown(other.to_owned()),
        }
    }

    /// Its name in `CNI_COMMAND`.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
            Self::Unknown(name) => name,
        }
    }
}

/// What the runtime says by environment variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: the path of the pod's network namespace.
    pub netns: String,
    /// `CNI_IFNAME`: the interface in it.
    pub ifname: String,
    /// `CNI_ARGS`: `K=V;K=V`, not yet parsed.
    pub args: String,
    /// `CNI_PATH`: directories of plugins, with colons between them.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the pod's network namespace may be the plugin's own.
    pub netns_override: bool,
    /// When it called.
    pub called: Instant,
}

/// A variable: its name, the verbs that need it, the check of its value.
type Variable = (&'static str, &'static [Verb], Check);
type Check = fn(&Verb, &str) -> Result<()>;

const VARIABLES: [Variable; 4] = [
    (
        "CNI_CONTAINERID",
        &[Verb::Add, Verb::Check, Verb::Del],
        container_id,
    ),
    ("CNI_NETNS", &[Verb::Add, Verb::Check], anything),
    ("CNI_IFNAME", &[Verb::Add, Verb::Check, Verb::Del], ifname),
    (
        "CNI_PATH",
        &[Verb::Add, Verb::Check, Verb::Del, Verb::Gc, Verb::Status],
        anything,
    ),
];

impl Environment {
    /// Reads and checks the variables; `get` gives a variable's value, empty if it is not set.
    ///
    /// A wrong value is answered at once; missing ones are collected and answered together.
    pub fn read(get: impl Fn(&str) -> String) -> Result<Self> {
        let command = get("CNI_COMMAND");
        let verb = Verb::named(&command);
        let mut missing = Vec::new();
        if command.is_empty() {
            missing.push("CNI_COMMAND");
        }
        for (name, needed_by, check) in VARIABLES {
            let needed = needed_by.contains(&verb);
            let value = get(name);
            match (value.is_empty(), needed) {
                (true, true) => missing.push(name),
                (false, true) => check(&verb, &value)?,
                _ => {}
            }
        }
        if !missing.is_empty() {
            let text = format!("required env variables [{}] missing", missing.join(","));
            return Err(CniError::new(code::ENVIRONMENT, text));
        }
        let netns_override = get("CNI_NETNS_OVERRIDE");
        Ok(Self {
            verb,
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            netns_override: netns_override == "1" || netns_override.eq_ignore_ascii_case("true"),
            called: Instant::now(),
        })
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where checks stand")]
fn anything(_: &Verb, _: &str) -> Result<()> {
    Ok(())
}

fn container_id(_: &Verb, value: &str) -> Result<()> {
    if is_name(value) {
        return Ok(());
    }
    let text = "invalid characters in containerID";
    Err(CniError::detailed(code::ENVIRONMENT, text, value))
}

/// The texts of the reference implementation. It lets `%` and bytes that are not UTF-8 (by now
/// U+FFFD) pass, with which ADD would make another interface than DEL looks for, and names that the
/// kernel refuses; so ADD refuses them, and DEL finds nothing.
fn ifname(verb: &Verb, value: &str) -> Result<()> {
    let (text, details) = match LinkName::flaw(value) {
        Some(Flaw::Dots) => ("interface name is . or ..", ""),
        Some(Flaw::TooLong) => too_long(),
        _ if value.len() > MAX_NAME => too_long(),
        Some(Flaw::Characters) => (
            "interface name contains / or : or whitespace characters",
            "",
        ),
        _ if *verb == Verb::Del => return Ok(()),
        _ if LinkName::is_reserved(value) => (
            "interface name is all or default",
            "the kernel has settings of that name",
        ),
        None | Some(Flaw::Empty) if !value.contains(char::REPLACEMENT_CHARACTER) => return Ok(()),
        Some(Flaw::Pattern) => (
            "interface name contains %",
            "the kernel takes it for a pattern",
        ),
        _ => ("interface name is not UTF-8", ""),
    };
    Err(CniError::detailed(code::ENVIRONMENT, text, details))
}

fn too_long() -> (&'static str, &'static str) {
    let details = "interface name should be less than 16 characters";
    ("interface name is too long", details)
}

/// The characters of container IDs and network names: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: [(&str, &str); 5] = [
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/run/netns/pod"),
        ("CNI_IFNAME", "net1"),
        ("CNI_ARGS", "K=V"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    fn read(command: &str, changes: &[(&str, &str)]) -> Result<Environment> {
        let command = [("CNI_COMMAND", command)];
        Environment::read(|name| {
            let mut all = changes.iter().chain(&WHOLE).chain(&command);
            let found = all.find(|(key, _)| *key == name);
            found.map_or_else(String::new, |(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn reads_a_whole_environment() {
        let environment = read("ADD", &[("CNI_NETNS_OVERRIDE", "tRuE")]).unwrap();
        assert_eq!(environment.verb, Verb::Add);
        assert_eq!(environment.container_id, "c0ffee");
        assert_eq!(environment.netns, "/run/netns/pod");
        assert_eq!(environment.ifname, "net1");
        assert_eq!(environment.args, "K=V");
        assert!(environment.netns_override);
        assert!(
            read("ADD", &[("CNI_NETNS_OVERRIDE", "1")])
                .unwrap()
                .netns_override
        );
        assert!(
            !read("ADD", &[("CNI_NETNS_OVERRIDE", "yes")])
                .unwrap()
                .netns_override
        );
    }

    #[test]
    fn each_verb_needs_its_variables() {
        for (name, needed_by) in [
            ("CNI_CONTAINERID", vec!["ADD", "CHECK", "DEL"]),
            ("CNI_NETNS", vec!["ADD", "CHECK"]),
            ("CNI_IFNAME", vec!["ADD", "CHECK", "DEL"]),
            ("CNI_PATH", vec!["ADD", "CHECK", "DEL", "GC", "STATUS"]),
            ("CNI_ARGS", vec![]),
        ] {
            for verb in ["ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION", "NOPE"] {
                assert_eq!(Verb::named(verb).name(), verb);
                let outcome = read(verb, &[(name, "")]);
                assert_eq!(outcome.is_err(), needed_by.contains(&verb), "{verb} {name}");
            }
        }
    }

    #[test]
    fn names_all_that_is_missing() {
        let missing = [("CNI_NETNS", ""), ("CNI_IFNAME", ""), ("CNI_PATH", "")];
        let error = read("ADD", &missing).unwrap_err();
        assert_eq!(error.code, 4);
        let text = "required env variables [CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        assert_eq!(error.msg, text);
        let error = read("", &[]).unwrap_err();
        assert_eq!(error.msg, "required env variables [CNI_COMMAND] missing");
    }

    #[test]
    fn a_wrong_value_comes_before_what_is_missing() {
        let error = read("ADD", &[("CNI_IFNAME", "a/b"), ("CNI_NETNS", "")]).unwrap_err();
        let text = "interface name contains / or : or whitespace characters";
        assert_eq!((error.code, error.msg.as_str()), (4, text));
    }

    #[test]
    fn checks_container_ids_and_interface_names() {
        let error = read("DEL", &[("CNI_CONTAINERID", "-x")]).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(error.msg, "invalid characters in containerID");
        assert_eq!(error.details, "-x");
        for (name, text) in [
            ("sixteencharacter", "interface name is too long"),
            (".", "interface name is . or .."),
            ("..", "interface name is . or .."),
            (
                "a:b",
                "interface name contains / or : or whitespace characters",
            ),
            (
                "a b",
                "interface name contains / or : or whitespace characters",
            ),
            (
                "a\u{a0}b",
                "interface name contains / or : or whitespace characters",
            ),
            ("net%d", "interface name contains %"),
            ("net\u{fffd}", "interface name is not UTF-8"),
            ("all", "interface name is all or default"),
            ("default", "interface name is all or default"),
        ] {
            assert_eq!(read("ADD", &[("CNI_IFNAME", name)]).unwrap_err().msg, text);
        }
        for name in ["net%d", "net\u{fffd}", "all"] {
            assert!(read("DEL", &[("CNI_IFNAME", name)]).is_ok(), "{name}");
        }
        // Verbs that do not need a variable do not look at it.
        assert!(read("STATUS", &[("CNI_IFNAME", "a/b")]).is_ok());
    }
}
