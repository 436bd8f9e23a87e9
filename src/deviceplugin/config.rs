//! `DP_MACVTAP_CONF`: the resources that a node offers. Pure.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use jsonc_parser::{ParseOptions, parse_to_serde_value};
use serde_json::Value;

use super::config_selector::{discovery, is_for_node, selector};
use crate::{
    macvtap::{discovery::Discovery, selector::Selector, sub_interface::SubInterface},
    netlink::Link,
    types::{
        device_id::MAX_SLOTS,
        json::Fields,
        keys::Keys,
        link_name::LinkName,
        mode::Mode,
        resource_name,
        resource_options::{self, ResourceOptions},
        vlan,
    },
};

/// The number of devices of a resource without a capacity, as in the original.
pub const DEFAULT_CAPACITY: usize = 100;
/// The maximum number of devices of a resource. The kubelet accepts lists of up to 4 MiB, where
/// a device takes about 100 bytes, or 250 with all options, and writes each list into its checkpoint.
pub const MAX_CAPACITY: usize = MAX_SLOTS as usize;

/// The keys of an entry.
const KEYS: [&str; 10] = [
    "name",
    "lowerDevice",
    "master",
    "discover",
    "mode",
    "capacity",
    "nodes",
    "volumeHotplug",
    "vlan",
    "hostAccess",
];

/// A configuration, as far as it is for this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// What is to be offered.
    pub entries: Vec<Entry>,
    /// How many entries are for other nodes.
    pub for_others: usize,
}

/// An entry: one resource, or those that discovery finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub target: Target,
    /// The mode of the macvtaps.
    pub mode: Mode,
    /// What else they are set to, unless a network says otherwise.
    pub options: ResourceOptions,
    /// The number of devices.
    pub capacity: usize,
    /// Give containers each tap under `/dev/vfio` as well.
    pub volume_hotplug: bool,
    /// Let the node and the VMs reach each other.
    pub host_access: bool,
    /// The VLAN of the lower device that the macvtaps are in; none if in no VLAN of ours.
    pub vlan: Option<u16>,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A resource with a name.
    Resource {
        /// The name, without `macvtap.network.kubevirt.io/`.
        name: String,
        /// How its lower device is chosen.
        lower: Selector,
    },
    /// A resource for each interface that discovery finds, named after it.
    Discovered(Discovery),
}

/// A resource: macvtaps of one kind, offered under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceConfig {
    /// The name, without `macvtap.network.kubevirt.io/`.
    pub name: String,
    /// The name of the interface that the macvtaps stand on.
    pub lower: LinkName,
    /// What the interface was chosen by, if not by its name.
    pub selector: Option<String>,
    /// The mode of the macvtaps.
    pub mode: Mode,
    /// What else they are set to, unless a network says otherwise.
    pub options: ResourceOptions,
    /// The number of devices.
    pub capacity: usize,
    /// Give containers each tap under `/dev/vfio` as well.
    pub volume_hotplug: bool,
    /// Let the node and the VMs reach each other.
    pub host_access: bool,
    /// The VLAN interface that `lower` is, if it is made where there is none.
    pub vlan: Option<SubInterface>,
}

/// What a configuration is read with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The name of this node.
    pub node: &'a str,
    /// The entries of the configuration before.
    pub former: &'a [Entry],
}

impl Configuration {
    /// The configuration of an empty list: every NIC and bond of the node.
    #[must_use]
    pub fn discover() -> Self {
        Self {
            entries: vec![Entry {
                target: Target::Discovered(Discovery::default()),
                mode: Mode::default(),
                options: ResourceOptions::NONE,
                capacity: DEFAULT_CAPACITY,
                volume_hotplug: false,
                host_access: false,
                vlan: None,
            }],
            for_others: 0,
        }
    }

    /// The resources that have a name, with how their lower devices are chosen.
    pub fn resources(&self) -> impl Iterator<Item = (&str, &Selector, &Entry)> {
        self.entries.iter().filter_map(|entry| match &entry.target {
            Target::Resource { name, lower } => Some((name.as_str(), lower, entry)),
            Target::Discovered(_) => None,
        })
    }

    /// The entry of the resource that has this name.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&Entry> {
        let mut resources = self.resources();
        let found = resources.find(|(found, ..)| *found == name);
        found.map(|(_, _, entry)| entry)
    }

    /// What is discovered.
    pub fn discoveries(&self) -> impl Iterator<Item = (&Discovery, &Entry)> {
        self.entries.iter().filter_map(|entry| match &entry.target {
            Target::Discovered(discovery) => Some((discovery, entry)),
            Target::Resource { .. } => None,
        })
    }

    /// Whether a resource of the configuration before is still what it was: its entry is in both,
    /// or a discovery that may have found it.
    #[must_use]
    pub fn keeps(&self, resource: &ResourceConfig, former: &Self) -> bool {
        let name = resource.name.as_str();
        match (former.resource(name), self.resource(name)) {
            (None, None) if self.discoveries().eq(former.discoveries()) => true,
            (None, None) => self.discoveries().any(|(discovery, entry)| {
                former.entries.contains(entry)
                    && discovery.allows(&[name])
                    && entry.resource(name, resource.lower.clone()) == *resource
            }),
            (before, now) => before == now,
        }
    }

    /// Whether lower devices are chosen by more than the links themselves.
    #[must_use]
    pub fn needs_facts(&self) -> bool {
        self.resources().any(|(_, lower, _)| lower.needs_facts())
    }

    /// Whether changes of addresses and routes concern any resource.
    #[must_use]
    pub fn follows_addresses(&self) -> bool {
        self.needs_addresses() || self.entries.iter().any(|entry| entry.host_access)
    }

    /// Whether lower devices are chosen by addresses or the default route.
    #[must_use]
    pub fn needs_addresses(&self) -> bool {
        self.resources()
            .any(|(_, lower, _)| lower.needs_addresses())
    }
}

impl Entry {
    /// The resource of this entry with a name, on a lower device or its VLAN.
    pub fn resource_on(
        &self,
        name: &str,
        lower: LinkName,
        links: &[Link],
    ) -> Result<ResourceConfig> {
        let Some(id) = self.vlan else {
            return Ok(self.resource(name, lower));
        };
        let vlan = SubInterface::vlan(lower, id);
        Ok(ResourceConfig {
            vlan: Some(vlan.clone()),
            ..self.resource(name, vlan.name_among(links)?)
        })
    }

    /// The resource of this entry with a name, on an interface.
    #[must_use]
    pub fn resource(&self, name: &str, lower: LinkName) -> ResourceConfig {
        let selector = match &self.target {
            Target::Resource { lower, .. } => lower.text().map(str::to_owned),
            Target::Discovered(_) => None,
        };
        ResourceConfig {
            name: name.to_owned(),
            lower,
            selector,
            mode: self.mode,
            options: self.options.clone(),
            capacity: self.capacity,
            volume_hotplug: self.volume_hotplug,
            host_access: self.host_access,
            vlan: None,
        }
    }

    fn name(&self) -> Option<&str> {
        match &self.target {
            Target::Resource { name, .. } => Some(name),
            Target::Discovered(_) => None,
        }
    }
}

/// Parses a configuration. Returns it with warnings about its entries.
///
/// A wrong entry keeps its definition in the configuration before. If there is none, it is left
/// out, or without what kubevirt/macvtap-cni does not know and is wrong, where it can be. If it has no
/// name, the former resources that are not mentioned stay. Of two entries with one name the last
/// counts, as in the original.
///
/// JSON, tolerant of a byte order mark, comments and trailing commas: the original's own guide
/// has one. An error names line and column.
pub fn parse(text: &str, context: Context<'_>) -> Result<(Configuration, Vec<String>)> {
    let json = parse_json(text.trim_start_matches('\u{feff}'))?;
    let list = match &json {
        Value::Null => return Ok((Configuration::discover(), Vec::new())),
        Value::Array(list) if list.is_empty() => {
            return Ok((Configuration::discover(), Vec::new()));
        }
        Value::Array(list) => list,
        _ => bail!("line 1, column 1: it is not a list of resources, such as [] for every NIC"),
    };
    let mut configuration = Configuration::default();
    let mut warnings = Vec::new();
    let mut is_unclear = false;
    for (index, json) in list.iter().enumerate() {
        let mut warn = |text: String| warnings.push(format!("entry {}: {text}", index + 1));
        match entry(json, context, &mut warn) {
            Read::Entry(entry) => add(&mut configuration.entries, entry, &mut warn),
            Read::ForOthers => configuration.for_others += 1,
            Read::Wrong => {}
            Read::Unnamed => is_unclear = true,
        }
    }
    if is_unclear {
        keep_former(&mut configuration.entries, list, context.former);
    }
    Ok((configuration, warnings))
}

/// Adds the former entries that the list does not mention: one that became wrong may be any of
/// them.
fn keep_former(entries: &mut Vec<Entry>, list: &[Value], former: &[Entry]) {
    let names: Vec<&str> = list.iter().filter_map(name_of).collect();
    let discovers = entries.iter().any(|entry| entry.name().is_none());
    let is_mentioned = |entry: &&Entry| match entry.name() {
        Some(name) => names.contains(&name),
        None => discovers,
    };
    entries.extend(former.iter().filter(|entry| !is_mentioned(entry)).cloned());
}

/// Adds an entry in place of one with the same name.
fn add(entries: &mut Vec<Entry>, entry: Entry, warn: &mut impl FnMut(String)) {
    let same_name = |other: &Entry| entry.name().is_some() && other.name() == entry.name();
    if let Some(earlier) = entries.iter().position(same_name) {
        entries.remove(earlier);
        let name = entry.name().unwrap_or_default();
        warn(format!(
            "it replaces an earlier entry with the name {name:?}"
        ));
    }
    entries.push(entry);
}

/// What an entry turned out to be.
enum Read {
    Entry(Entry),
    ForOthers,
    Wrong,
    /// It is wrong, and does not say which resource it is about.
    Unnamed,
}

/// Reads an entry. A wrong one is what it was before.
fn entry(json: &Value, context: Context<'_>, warn: &mut impl FnMut(String)) -> Read {
    let name = name_of(json);
    let mut former = context.former.iter();
    let former = former.find(|entry| name.is_some() && entry.name() == name);
    let mut keys = Keys::new(former.is_none());
    let read = Fields::of(json).context("it is not an object");
    let read = read.and_then(|fields| {
        if !is_for_node(&fields, context.node)? {
            return Ok(Read::ForOthers);
        }
        Ok(Read::Entry(read_entry(&fields, &mut keys, warn)?))
    });
    let error = match read {
        Ok(read) => {
            keys.warnings.into_iter().for_each(&mut *warn);
            return read;
        }
        Err(error) => error,
    };
    let (action, read) = match (former, name) {
        (Some(entry), _) => ("keeps its former definition", Read::Entry(entry.clone())),
        (None, None) if !context.former.is_empty() => (
            "is left out, and former resources that no entry names stay",
            Read::Unnamed,
        ),
        (None, _) => ("is left out", Read::Wrong),
    };
    warn(format!("{error:#}; it {action} (it is {json})"));
    read
}

/// The name of an entry, if it can be read.
fn name_of(json: &Value) -> Option<&str> {
    Fields::of(json)?.text("name").ok()?
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

fn read_entry(
    fields: &Fields<'_>,
    keys: &mut Keys,
    warn: &mut impl FnMut(String),
) -> Result<Entry> {
    let target = match discovery(fields)? {
        Some(discovery) => {
            for key in ["name", "lowerDevice", "master", "vlan"] {
                let text = format!("{key} and discover are in one entry; use one of them");
                ensure!(!fields.has(key), text);
            }
            Target::Discovered(discovery)
        }
        None => resource(fields)?,
    };
    let mode = match fields.text("mode")? {
        Some(word) => Mode::named(word)?,
        None => Mode::default(),
    };
    for key in unknown_keys(fields) {
        warn(format!("unknown key {key:?} is ignored"));
    }
    let host_access = keys.take(fields.flag("hostAccess"))?.unwrap_or(false);
    ensure!(
        !host_access || mode == Mode::Bridge,
        "hostAccess needs mode bridge: in mode {mode} the kernel lets no interface of the node \
         reach a macvtap"
    );
    Ok(Entry {
        target,
        mode,
        options: ResourceOptions::read(fields, mode, keys)?,
        host_access,
        capacity: capacity(fields.amount("capacity")?, mode, warn),
        volume_hotplug: keys.take(fields.flag("volumeHotplug"))?.unwrap_or(false),
        vlan: vlan::read(fields)?,
    })
}

fn resource(fields: &Fields<'_>) -> Result<Target> {
    let name = fields.text("name")?.context("it has no name")?;
    resource_name::check(name)?;
    Ok(Target::Resource {
        name: name.to_owned(),
        lower: selector(fields)?,
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
fn unknown_keys<'a>(fields: &Fields<'a>) -> impl Iterator<Item = &'a str> {
    let known = |key: &&str| {
        let mut keys = KEYS.iter().chain(&resource_options::KEYS);
        keys.any(|known| key.eq_ignore_ascii_case(known))
    };
    fields.keys().filter(move |key| !known(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::macvtap::selector::Facts;

    fn listed(text: &str) -> (Vec<ResourceConfig>, Vec<String>) {
        let (configuration, warnings) = parse(text, Context::default()).unwrap();
        assert_ne!(configuration, Configuration::discover(), "{text}");
        let resources = configuration.resources();
        let resources = resources.map(|(name, lower, entry)| {
            let lower = lower.select(&[], &Facts::default());
            entry.resource(name, lower.unwrap())
        });
        (resources.collect(), warnings)
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
            let discovered = (Configuration::discover(), Vec::new());
            let parsed = parse(text, Context::default());
            assert_eq!(parsed.unwrap(), discovered, "{text}");
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
            selector: None,
            mode: Mode::Bridge,
            options: ResourceOptions::NONE,
            capacity: 50,
            volume_hotplug: false,
            host_access: false,
            vlan: None,
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
            (r#"{"name": "x", "lowerDevice": {"drivr": "ice"}}"#, "drivr"),
            (r#"{"name": "x", "discover": {}}"#, "name and discover"),
            (r#"{"vlan": 5, "discover": {}}"#, "vlan and discover"),
            (
                r#"{"name": "x", "lowerDevice": "e", "vlan": 4095}"#,
                "vlan 4095",
            ),
            (r#"{"name": "x", "lowerDevice": "e", "vlan": "5"}"#, "vlan"),
            (
                r#"{"name": "x", "lowerDevice": "e", "mode": "source", "allowedSources": 1}"#,
                "allowedSources",
            ),
            (r#"{"discover": {"kinds": 7}}"#, "kinds"),
            (r#"{"name": "x", "lowerDevice": "e", "nodes": 7}"#, "nodes"),
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
    fn host_access_is_for_bridge_mode() {
        let entry = |more: &str| format!(r#"[{{"name": "a", "lowerDevice": "eth0"{more}}}]"#);
        assert!(!one(&entry("")).host_access);
        assert!(one(&entry(r#", "hostAccess": true"#)).host_access);
        let more = r#", "hostAccess": true, "mode": "private""#;
        let (resources, warnings) = listed(&entry(more));
        assert!(resources.is_empty(), "{resources:?}");
        assert!(
            warnings[0].contains("hostAccess needs mode bridge"),
            "{warnings:?}"
        );
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
        for capacity in ["9223372036854775807", "99999999999999999999", "1e30"] {
            let (resource, _) = one(entry(&format!(r#", "capacity": {capacity}"#)));
            assert_eq!(resource.capacity, MAX_CAPACITY, "{capacity}");
        }
        let (resource, warning) = one(entry(r#", "capasity": 7"#));
        assert_eq!(resource.capacity, DEFAULT_CAPACITY);
        assert!(warning.contains(r#"unknown key "capasity""#), "{warning}");
        let two = format!("{}, {}", entry(""), entry(r#", "mode": "vepa""#));
        let (resource, warning) = one(two);
        assert_eq!(resource.mode, Mode::Vepa, "the last one");
        assert!(warning.contains("replaces an earlier entry"), "{warning}");
    }

    /// As kubevirt/macvtap-cni, which reads none of these keys, offers it.
    #[test]
    fn an_entry_without_a_former_definition_does_without_what_is_wrong_in_keys_of_ours() {
        let entry = |more: &str| {
            format!(r#"[{{"name": "a", "lowerDevice": "eth0", "txQueueLen": 7{more}}}]"#)
        };
        let former = parse(&entry(r#", "queues": 4"#), Context::default()).unwrap();
        let former = former.0.entries;
        for (more, part) in [
            (r#", "mtu": "9000""#, "mtu"),
            (r#", "queues": 0"#, "queues 0"),
            (r#", "bcQueueLen": true"#, "bcQueueLen"),
            (r#", "broadcastCutoff": -2"#, "broadcastCutoff"),
            (
                r#", "allowedSources": ["02:00:00:00:00:01"]"#,
                "mode source",
            ),
            (r#", "volumeHotplug": "yes""#, "volumeHotplug"),
            (r#", "hostAccess": 1"#, "hostAccess 1"),
        ] {
            let (mut resources, warnings) = listed(&entry(more));
            assert_eq!(resources.remove(0), one(&entry("")), "{more}");
            assert!(warnings[0].contains(part), "{warnings:?}");
            assert!(warnings[0].ends_with("it is ignored"), "{warnings:?}");
            let context = Context {
                former: &former,
                ..Context::default()
            };
            let (configuration, warnings) = parse(&entry(more), context).unwrap();
            assert_eq!(configuration.entries, former, "{more}");
            assert!(warnings[0].contains("former definition"), "{warnings:?}");
        }
    }

    #[test]
    fn what_is_wrong_in_an_entry_that_is_left_out_is_not_ignored() {
        let text = r#"[{"name": "a", "lowerDevice": "eth0", "queues": 0, "mode": "source",
            "hostAccess": true}]"#;
        let (resources, warnings) = listed(text);
        assert!(resources.is_empty() && warnings.len() == 1, "{warnings:?}");
        assert!(warnings[0].contains("it is left out"), "{warnings:?}");
    }

    #[test]
    fn a_wrong_entry_keeps_its_former_definition() {
        let text = r#"[{"name": "a", "lowerDevice": "eth*", "capacity": 7}]"#;
        let former = parse(text, Context::default()).unwrap().0.entries;
        for wrong in [
            r#"{"name": "a", "lowerDevice": "eth0", "capacity": "7"}"#,
            r#"{"name": "a", "lowerDevice": "eth0", "mode": "hub"}"#,
            r#"{"name": "a"}"#,
        ] {
            let text = format!(r#"[{{"name": "b", "lowerDevice": "eth1"}}, {wrong}]"#);
            let context = Context {
                former: &former,
                ..Context::default()
            };
            let (configuration, warnings) = parse(&text, context).unwrap();
            assert_eq!(configuration.entries[1..], former, "{wrong}");
            assert!(warnings[0].contains("former definition"), "{warnings:?}");
        }
    }

    #[test]
    fn numbers_are_those_of_any_notation() {
        for (capacity, expected) in [("1e1", 10), ("1e+01", 10), ("12.0", 12), ("-1e30", 100)] {
            let text =
                format!(r#"[{{"name": "a", "lowerDevice": "eth0", "capacity": {capacity}}}]"#);
            assert_eq!(one(&text).capacity, expected, "{capacity}");
        }
    }

    #[test]
    fn an_entry_that_lost_its_name_costs_no_resource() {
        let text = r#"[{"name": "a", "lowerDevice": "eth0"}, {"name": "b", "lowerDevice": "eth0"},
            {"discover": {"kinds": "vlan"}}, {"name": "c", "lowerDevice": "eth0"}]"#;
        let former = parse(text, Context::default()).unwrap().0.entries;
        let context = Context {
            former: &former,
            ..Context::default()
        };
        let parsed = |list: &str| {
            let (configuration, warnings) = parse(list, context).unwrap();
            let entries = configuration.entries.iter();
            let names: Vec<&str> = entries.map(|entry| entry.name().unwrap_or("?")).collect();
            (names.join(" "), warnings.len())
        };
        let b = r#"{"name": "b", "lowerDevice": "eth1"}"#;
        for (wrong, expected) in [
            (r#"{"nmae": "a", "lowerDevice": "eth0"}"#, "b a ? c"),
            (r#""a""#, "b a ? c"),
            (r#"{"discover": {"kinds": 7}}"#, "b a ? c"),
            (r#"{"discover": {}}, {"name": 7}"#, "b ? a c"),
            (
                r#"{"name": "c", "lowerDevice": "x", "nodes": "y"}, 7"#,
                "b a ?",
            ),
        ] {
            assert_eq!(
                parsed(&format!("[{b}, {wrong}]")),
                (expected.to_owned(), 1),
                "{wrong}"
            );
        }
        // A new one takes nothing along.
        let new = r#"{"name": "d", "mode": "hub"}"#;
        assert_eq!(parsed(&format!("[{b}, {new}]")), ("b".to_owned(), 1));
    }

    #[test]
    fn what_cannot_be_parsed_has_line_and_column() {
        let column = |text: &str| format!("{:#}", parse(text, Context::default()).unwrap_err());
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
        assert!(parse(&"[".repeat(100_000), Context::default()).is_err());
    }

    #[test]
    fn entries_for_other_nodes_are_not_read() {
        let text = r#"[
            {"name": "a", "lowerDevice": "eth0", "nodes": "worker-*"},
            {"name": "a", "lowerDevice": "eth1", "nodes": ["storage-*", "infra"]},
            {"name": "b", "mode": "hub", "nodes": "infra"},
            {"discover": {"kinds": "vlan"}, "mode": "vepa", "nodes": "worker-1"}
        ]"#;
        let parse = |node| {
            let context = Context {
                node,
                ..Context::default()
            };
            parse(text, context).unwrap()
        };
        let (worker, warnings) = parse("worker-1");
        assert_eq!((worker.entries.len(), worker.for_others), (2, 2));
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(worker.discoveries().next().unwrap().1.mode, Mode::Vepa);
        let (infra, warnings) = parse("infra");
        assert_eq!((infra.entries.len(), infra.for_others), (1, 2));
        assert!(warnings[0].starts_with("entry 3: "), "{warnings:?}");
        let (other, warnings) = parse("other");
        assert_eq!((other.entries.len(), other.for_others), (0, 4));
        assert!(warnings.is_empty(), "{warnings:?}");
    }

    #[test]
    fn an_edit_keeps_what_it_does_not_change() {
        let read = |text: &str| parse(text, Context::default()).unwrap().0;
        let keeps = |before: &str, now: &str, name: &str| {
            let (before, now) = (read(before), read(now));
            let found = before.resource(name);
            let entry = found.or(before.entries.first()).unwrap();
            let resource = entry.resource(name, "eth1".parse().unwrap());
            now.keeps(&resource, &before)
        };
        let named =
            |capacity| format!(r#"{{"name": "a", "lowerDevice": "eth1", "capacity": {capacity}}}"#);
        let list = |entries: &[&str]| format!("[{}]", entries.join(", "));
        let (three, four) = (named(3), named(4));
        assert!(keeps(&list(&[&three]), &list(&[&three]), "a"));
        assert!(!keeps(&list(&[&three]), &list(&[&four]), "a"));
        assert!(!keeps(&list(&[&three]), "[]", "a"));
        let (eth, ens) = (
            r#"{"discover": {"allow": "eth*"}, "capacity": 2}"#,
            r#"{"discover": {"allow": "ens*"}, "capacity": 2}"#,
        );
        assert!(keeps("[]", "[]", "eth1"));
        assert!(keeps(&list(&[eth, &three]), &list(&[eth, &four]), "eth1"));
        assert!(keeps(&list(&[eth, ens]), &list(&[eth]), "eth1"));
        assert!(!keeps(&list(&[eth, ens]), &list(&[ens]), "eth1"));
        assert!(!keeps(&list(&[eth]), "[]", "eth1"));
        assert!(!keeps("[]", &list(&[eth]), "eth1"));
    }
}
