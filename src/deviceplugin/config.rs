//! `DP_MACVTAP_CONF`: the resources that a node offers. Pure.

use anyhow::{Context, Result, anyhow, bail, ensure};
use jsonc_parser::{ParseOptions, parse_to_serde_value};
use serde_json::Value;

use crate::types::{json::Fields, link_name::LinkName, mode::Mode, resource_name};

/// The number of devices of a resource without a capacity, as in the original.
pub const DEFAULT_CAPACITY: usize = 100;
/// The maximum number of devices of a resource. The kubelet accepts lists of up to 4 MiB, where
/// a device takes about 100 bytes, and writes each list into its checkpoint.
pub const MAX_CAPACITY: usize = 16_384;

/// The keys of an entry.
const KEYS: [&str; 5] = ["name", "lowerDevice", "master", "mode", "capacity"];

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// The list is empty: offer every NIC and bond of the node.
    Discover,
    /// Offer these.
    Listed(Vec<ResourceConfig>),
}

/// A resource: macvtaps of one kind, offered under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// The name, without `macvtap.network.kubevirt.io/`.
    pub name: String,
    /// The name of the interface that the macvtaps stand on.
    pub lower: LinkName,
    /// The mode of the macvtaps.
    pub mode: Mode,
    /// The number of devices.
    pub capacity: usize,
}

/// Parses a configuration. Returns it with warnings about its entries.
///
/// A wrong entry keeps its definition in `former`, the configuration before; it is left out if
/// there is none. Of two entries with one name the last counts, as in the original.
///
/// JSON, tolerant of a byte order mark, comments and trailing commas: the original's own guide
/// has one. An error names line and column.
pub fn parse(text: &str, former: &[ResourceConfig]) -> Result<(Configuration, Vec<String>)> {
    let json = parse_json(text.strip_prefix('\u{feff}').unwrap_or(text))?;
    let entries = match &json {
        Value::Null => return Ok((Configuration::Discover, Vec::new())),
        Value::Array(entries) if entries.is_empty() => {
            return Ok((Configuration::Discover, Vec::new()));
        }
        Value::Array(entries) => entries,
        _ => bail!("line 1, column 1: it is not a list of resources, such as [] for every NIC"),
    };
    let mut resources: Vec<ResourceConfig> = Vec::new();
    let mut warnings = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut warn = |text: String| warnings.push(format!("entry {}: {text}", index + 1));
        let Some(resource) = resource_or_former(entry, former, &mut warn) else {
            continue;
        };
        let earlier = resources
            .iter()
            .position(|other| other.name == resource.name);
        if let Some(earlier) = earlier {
            resources.remove(earlier);
            warn(format!(
                "it replaces an earlier entry with the name {:?}",
                resource.name
            ));
        }
        resources.push(resource);
    }
    Ok((Configuration::Listed(resources), warnings))
}

/// The resource of an entry, or what a wrong entry was before.
fn resource_or_former(
    entry: &Value,
    former: &[ResourceConfig],
    warn: &mut impl FnMut(String),
) -> Option<ResourceConfig> {
    let error = match resource(entry, warn) {
        Ok(resource) => return Some(resource),
        Err(error) => error,
    };
    let former = former_definition(entry, former);
    let action = match former {
        Some(_) => "keeps its former definition",
        None => "is left out",
    };
    warn(format!("{error:#}; it {action} (it is {entry})"));
    former
}

/// What a wrong entry was before.
fn former_definition(entry: &Value, former: &[ResourceConfig]) -> Option<ResourceConfig> {
    let name = Fields::of(entry)?.text("name").ok()??;
    former
        .iter()
        .find(|resource| resource.name == name)
        .cloned()
}

fn parse_json(text: &str) -> Result<Value> {
    ensure!(
        !text.trim().is_empty(),
        "line 1, column 1: it is empty; write [] for every NIC"
    );
    let options = ParseOptions {
        allow_comments: true,
        allow_trailing_commas: true,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    parse_to_serde_value(text, &options).map_err(|error| {
        let (line, column) = (error.line_display(), error.column_display());
        anyhow!("line {line}, column {column}: {}", error.kind())
    })
}

fn resource(entry: &Value, warn: &mut impl FnMut(String)) -> Result<ResourceConfig> {
    let fields = Fields::of(entry).context("it is not an object")?;
    let name = fields.text("name")?.context("it has no name")?;
    resource_name::check(name)?;
    let lower = match fields.text("lowerDevice")? {
        Some(lower) => lower,
        None => fields.text("master")?.context("it has no lowerDevice")?,
    };
    let mode = match fields.text("mode")? {
        Some(word) => word.parse()?,
        None => Mode::default(),
    };
    for key in unknown_keys(entry) {
        warn(format!("unknown key {key:?} is ignored"));
    }
    Ok(ResourceConfig {
        name: name.to_owned(),
        lower: lower.parse().context("lowerDevice")?,
        mode,
        capacity: capacity(fields.integer("capacity")?, mode, warn),
    })
}

/// The number of devices, where `asked` is in the configuration.
fn capacity(asked: Option<i64>, mode: Mode, warn: &mut impl FnMut(String)) -> usize {
    let positive = asked.filter(|asked| *asked > 0);
    if mode == Mode::Passthru {
        if let Some(asked) = positive.filter(|asked| *asked > 1) {
            warn(format!(
                "capacity is 1, not {asked}: a passthru macvtap has its lower device to itself"
            ));
        }
        return 1;
    }
    let Some(asked) = positive else {
        return DEFAULT_CAPACITY;
    };
    let capacity = usize::try_from(asked).unwrap_or(usize::MAX);
    if capacity > MAX_CAPACITY {
        warn(format!(
            "capacity is {MAX_CAPACITY}, the maximum, not {asked}"
        ));
    }
    capacity.min(MAX_CAPACITY)
}

/// The keys of an entry that mean nothing, such as misspelt ones.
fn unknown_keys(entry: &Value) -> impl Iterator<Item = &str> {
    let keys = entry.as_object().into_iter().flat_map(|entry| entry.keys());
    let known = |key: &&String| KEYS.iter().any(|known| key.eq_ignore_ascii_case(known));
    keys.filter(move |key| !known(key)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> (Vec<ResourceConfig>, Vec<String>) {
        match parse(text, &[]).unwrap() {
            (Configuration::Listed(resources), warnings) => (resources, warnings),
            (Configuration::Discover, _) => panic!("{text} means discovery"),
        }
    }

    fn one(text: &str) -> ResourceConfig {
        let (mut resources, warnings) = listed(text);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(resources.len(), 1);
        resources.remove(0)
    }

    #[test]
    fn nothing_listed_means_discovery() {
        for text in ["[]", "null", " [ ] \n", "[ /* all */ ]", "\u{feff}[]"] {
            let discovered = (Configuration::Discover, Vec::new());
            assert_eq!(parse(text, &[]).unwrap(), discovered, "{text}");
        }
    }

    #[test]
    fn reads_the_guides_example_with_its_trailing_comma() {
        let text = r#"[ {
            "name"     : "dataplane",
            "lowerDevice" : "eth0",
            "mode"     : "bridge",
            "capacity" : 50,
        } ]"#;
        let expected = ResourceConfig {
            name: "dataplane".into(),
            lower: "eth0".parse().unwrap(),
            mode: Mode::Bridge,
            capacity: 50,
        };
        assert_eq!(one(text), expected);
        let text = r#"// all of them
            [{"NAME": "dataplane", "Master": "eth0", "Mode": "", "capacity": 50}, /* end */]"#;
        assert_eq!(one(text), expected);
    }

    #[test]
    fn defaults_are_the_originals() {
        for capacity in [
            "",
            r#", "capacity": 0"#,
            r#", "capacity": -7"#,
            r#", "capacity": null"#,
        ] {
            let text = format!(r#"[{{"name": "a", "lowerDevice": "eth0"{capacity}}}]"#);
            let resource = one(&text);
            assert_eq!((resource.mode, resource.capacity), (Mode::Bridge, 100));
        }
    }

    #[test]
    fn passthru_has_its_lower_device_to_itself() {
        let text = r#"[{"name": "a", "lowerDevice": "eth0", "mode": "passthru"}]"#;
        assert_eq!(one(text).capacity, 1);
        let text = r#"[{"name": "a", "lowerDevice": "eth0", "mode": "passthru", "capacity": 9}]"#;
        let (resources, warnings) = listed(text);
        assert_eq!(resources[0].capacity, 1);
        assert!(warnings[0].contains("not 9"), "{warnings:?}");
    }

    #[test]
    fn a_bad_entry_is_left_out_and_the_others_work() {
        for (entry, part) in [
            (r#"{"lowerDevice": "eth0"}"#, "no name"),
            (r#"{"name": "x@y", "lowerDevice": "eth0"}"#, "x@y"),
            (r#"{"name": "x.", "lowerDevice": "eth0"}"#, "x."),
            (
                r#"{"name": "x", "lowerDevice": "eth0", "mode": "hub"}"#,
                "hub",
            ),
            (
                r#"{"name": "x", "lowerDevice": "eth0", "capacity": "9"}"#,
                "capacity",
            ),
            (r#"{"name": "x"}"#, "no lowerDevice"),
            (r#"{"name": "x", "lowerDevice": "a/b"}"#, "a/b"),
            (r#"{"name": 7, "lowerDevice": "eth0"}"#, "name 7"),
            ("7", "not an object"),
        ] {
            let text = format!(r#"[{{"name": "good", "lowerDevice": "eth0"}}, {entry}]"#);
            let (resources, warnings) = listed(&text);
            assert_eq!(resources.len(), 1, "{entry}");
            assert_eq!(warnings.len(), 1, "{entry}");
            assert!(warnings[0].starts_with("entry 2: "), "{warnings:?}");
            assert!(warnings[0].contains(part), "{warnings:?}");
        }
    }

    #[test]
    fn what_can_be_offered_is_offered() {
        let eth0 = r#""lowerDevice": "eth0""#;
        let entry = |more: &str| format!(r#"{{"name": "a", {eth0}{more}}}"#);
        let one = |text: String| {
            let (mut resources, warnings) = listed(&format!("[{text}]"));
            assert_eq!(
                (resources.len(), warnings.len()),
                (1, 1),
                "{text}: {warnings:?}"
            );
            (resources.remove(0), warnings[0].clone())
        };
        let (resource, warning) = one(entry(r#", "capacity": 20000"#));
        assert_eq!(resource.capacity, MAX_CAPACITY);
        assert!(warning.contains("20000"), "{warning}");
        let (resource, _) = one(entry(r#", "capacity": 9223372036854775807"#));
        assert_eq!(resource.capacity, MAX_CAPACITY);
        let (resource, warning) = one(entry(r#", "capasity": 7"#));
        assert_eq!(resource.capacity, DEFAULT_CAPACITY);
        assert!(warning.contains(r#"unknown key "capasity""#), "{warning}");
        let two = format!("{}, {}", entry(""), entry(r#", "mode": "vepa""#));
        let (resource, warning) = one(two);
        assert_eq!(resource.mode, Mode::Vepa, "the last one");
        assert!(warning.contains("replaces an earlier entry"), "{warning}");
    }

    #[test]
    fn a_wrong_entry_keeps_its_former_definition() {
        let (former, _) = listed(r#"[{"name": "a", "lowerDevice": "eth0", "capacity": 7}]"#);
        for wrong in [
            r#"{"name": "a", "lowerDevice": "eth0", "capacity": "7"}"#,
            r#"{"name": "a", "lowerDevice": "eth0", "mode": "hub"}"#,
            r#"{"name": "a"}"#,
        ] {
            let text = format!(r#"[{{"name": "b", "lowerDevice": "eth1"}}, {wrong}]"#);
            let (configuration, warnings) = parse(&text, &former).unwrap();
            let Configuration::Listed(resources) = configuration else {
                panic!("{text} means discovery");
            };
            assert_eq!(resources[1..], former, "{wrong}");
            assert!(warnings[0].contains("former definition"), "{warnings:?}");
        }
    }

    #[test]
    fn what_cannot_be_parsed_has_line_and_column() {
        let column = |text: &str| format!("{:#}", parse(text, &[]).unwrap_err());
        assert!(column("[{\n  \"name\": }]").starts_with("line 2, column 11: "));
        for text in [
            "",
            " ",
            "{}",
            "\"x\"",
            "[",
            "[{]",
            "[1 2]",
            "eth0",
            "[{name: 1}]",
        ] {
            assert!(
                column(text).starts_with("line 1, column "),
                "{text}: {}",
                column(text)
            );
        }
        assert!(parse(&"[".repeat(100_000), &[]).is_err());
    }
}
