//! The keys by which a configuration chooses lower devices: `lowerDevice` and `discover`. Pure.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    host::hardware,
    macvtap::{
        discovery::Discovery,
        selector::{Criteria, Selector},
    },
    types::{
        glob::Glob,
        json::{Fields, Invalid},
        link_name::LinkName,
    },
};

/// The keys of an object that stands for a lower device.
const CRITERIA: [&str; 9] = [
    "name",
    "altName",
    "mac",
    "pciAddress",
    "driver",
    "vendor",
    "kind",
    "defaultRoute",
    "address",
];
/// The keys of `discover`.
const DISCOVER: [&str; 3] = ["allow", "deny", "kinds"];

/// The lower device of an entry.
pub fn selector(fields: &Fields<'_>) -> Result<Selector> {
    let value = |key| fields.value(key).filter(|value| **value != "");
    let (key, value) = match value("lowerDevice") {
        Some(value) => ("lowerDevice", value),
        None => ("master", value("master").context("it has no lowerDevice")?),
    };
    let criteria = match value {
        Value::String(name) if !Glob::is_pattern(name) => {
            return Ok(Selector::Named(name.parse().context(key)?));
        }
        Value::Array(list) if !list.is_empty() => list.iter().map(criteria).collect(),
        Value::String(_) | Value::Object(_) => criteria(value).map(|only| vec![only]),
        _ => {
            let wanted = "a name, a pattern, an object, or a list of these";
            bail!(Invalid::new(key, value, wanted));
        }
    };
    Ok(Selector::Matching {
        criteria: criteria.context(key)?,
        text: value.to_string(),
    })
}

/// What one name, pattern or object looks for.
fn criteria(value: &Value) -> Result<Criteria> {
    if let Value::String(name) = value {
        return Ok(Criteria {
            name: Some(pattern(name)?),
            ..Criteria::default()
        });
    }
    let wanted = "a name, a pattern or an object";
    let fields = Fields::of(value).ok_or_else(|| Invalid::new("element", value, wanted))?;
    check_keys(&fields, &CRITERIA)?;
    let glob = |text: Option<&str>| text.map(pattern).transpose();
    let vendor = fields.text("vendor")?.map(|text| {
        let wanted = "a PCI vendor, such as \"0x15b3\"";
        hardware::vendor(text).ok_or_else(|| Invalid::new("vendor", &text.into(), wanted))
    });
    let mac = fields.text("mac")?.map(str::parse).transpose();
    let address = fields.text("address")?.map(str::parse).transpose();
    let default_route = fields.flag("defaultRoute")?;
    ensure!(
        default_route != Some(false),
        "invalid defaultRoute false: it must be true, or left out"
    );
    let found = Criteria {
        name: glob(fields.text("name")?)?,
        alt_name: glob(fields.text("altName")?)?,
        mac: mac.context("mac")?,
        pci_address: glob(fields.text("pciAddress")?)?,
        driver: glob(fields.text("driver")?)?,
        vendor: vendor.transpose()?,
        kind: glob(fields.text("kind")?)?,
        default_route: default_route.is_some(),
        address: address.context("address")?,
    };
    ensure!(
        found != Criteria::default(),
        "the object is empty, and would match every interface; its keys are {}",
        CRITERIA.join(", ")
    );
    Ok(found)
}

/// A key that is not known would be a condition that is not checked.
fn check_keys(fields: &Fields<'_>, known: &[&str]) -> Result<()> {
    for key in fields.keys() {
        let is_known = known.iter().any(|known| key.eq_ignore_ascii_case(known));
        ensure!(
            is_known,
            "unknown key {key:?}; the keys are {}",
            known.join(", ")
        );
    }
    Ok(())
}

/// A pattern is of the characters of names, and `:` as PCI addresses have it.
fn pattern(text: &str) -> Result<Glob> {
    match LinkName::flaw(&text.replace(':', "")) {
        None => Ok(Glob::new(text)),
        Some(flaw) => bail!("the pattern {text:?} {flaw}"),
    }
}

/// What discovery looks for, of an entry that has `discover`.
pub fn discovery(fields: &Fields<'_>) -> Result<Option<Discovery>> {
    let Some(fields) = fields.object("discover")? else {
        return Ok(None);
    };
    check_keys(&fields, &DISCOVER).context("discover")?;
    Ok(Some(Discovery {
        allow: globs(fields.texts("allow")?).context("discover.allow")?,
        deny: globs(fields.texts("deny")?).context("discover.deny")?,
        kinds: match fields.texts("kinds")? {
            None => Discovery::default().kinds,
            kinds => globs(kinds).context("discover.kinds")?,
        },
    }))
}

fn globs(texts: Option<Vec<&str>>) -> Result<Vec<Glob>> {
    let texts = texts.unwrap_or_default().into_iter();
    texts.map(pattern).collect()
}

/// Whether an entry is for this node: one of its `nodes` has the node's name.
pub fn is_for_node(fields: &Fields<'_>, node: &str) -> Result<bool> {
    let Some(texts) = fields.texts("nodes")? else {
        return Ok(true);
    };
    Ok(texts.into_iter().any(|text| Glob::new(text).matches(node)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(lower: &Value) -> Result<Selector> {
        let entry = json!({ "lowerDevice": lower });
        selector(&Fields::of(&entry).unwrap())
    }

    #[test]
    fn a_plain_name_is_what_it_was() {
        let named = Selector::Named("eth0".parse().unwrap());
        assert_eq!(read(&json!("eth0")).unwrap(), named);
        let entry = json!({"lowerDevice": "", "MASTER": "eth0"});
        assert_eq!(selector(&Fields::of(&entry).unwrap()).unwrap(), named);
    }

    #[test]
    fn patterns_objects_and_lists_of_them_are_criteria() {
        let count = |lower| match read(&lower).unwrap() {
            Selector::Named(_) => 0,
            Selector::Matching { criteria, .. } => criteria.len(),
        };
        assert_eq!(count(json!("ens*")), 1);
        assert_eq!(count(json!(["eth0"])), 1);
        assert_eq!(count(json!(["eth0", "ens?f0", {"driver": "ice"}])), 3);
        let all = json!({
            "name": "e*", "altName": "x", "mac": "02:00:00:00:00:01",
            "pciAddress": "0000:3b:00.*", "driver": "mlx5_core", "vendor": "0x15b3",
            "kind": "physical", "defaultRoute": true, "address": "10.0.0.0/8",
        });
        assert_eq!(all.as_object().unwrap().len(), CRITERIA.len());
        let Selector::Matching { criteria, text } = read(&all).unwrap() else {
            panic!("a name");
        };
        let Criteria { mac, vendor, .. } = &criteria[0];
        assert!(mac.is_some() && *vendor == Some(0x15b3) && criteria[0].default_route);
        assert!(text.contains("mlx5_core"), "{text}");
    }

    #[test]
    fn says_what_is_wrong_with_a_selector() {
        for (lower, parts) in [
            (json!(7), ["lowerDevice 7", "or a list of these"]),
            (json!([]), ["lowerDevice []", "or a list of these"]),
            (json!([["eth0"]]), ["lowerDevice", "[\"eth0\"]"]),
            (json!(["a/b"]), ["lowerDevice", "a/b"]),
            (json!("a b*"), ["lowerDevice", "white space"]),
            (json!({}), ["would match every interface", "pciAddress"]),
            (json!({"drivr": "ice"}), ["drivr", "the keys are name"]),
            (json!({"mac": "02"}), ["mac", "02"]),
            (json!({"vendor": "Intel"}), ["vendor", "0x15b3"]),
            (json!({"vendor": 5555}), ["vendor", "text"]),
            (json!({"defaultRoute": false}), ["defaultRoute", "true"]),
            (json!({"address": "10.0.0.1/8"}), ["address", "behind"]),
        ] {
            let error = format!("{:#}", read(&lower).unwrap_err());
            for part in parts {
                assert!(error.contains(part), "{lower}: {error}");
            }
        }
    }

    #[test]
    fn discovery_has_globs_and_kinds() {
        let read = |discover: Value| {
            let entry = json!({ "discover": discover });
            discovery(&Fields::of(&entry).unwrap())
        };
        assert_eq!(read(json!(null)).unwrap(), None);
        assert_eq!(read(json!({})).unwrap(), Some(Discovery::default()));
        let found = read(json!({"allow": "ens*", "deny": ["a", "b"], "kinds": ["vlan"]}));
        let found = found.unwrap().unwrap();
        assert_eq!((found.allow.len(), found.deny.len()), (1, 2));
        assert_eq!(found.kinds, [Glob::new("vlan")]);
        for (discover, part) in [
            (json!(true), "an object"),
            (json!({"alow": "x"}), "alow"),
            (json!({"kinds": 7}), "kinds"),
            (json!({"deny": "a b"}), "white space"),
        ] {
            let error = format!("{:#}", read(discover).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_entry_may_be_for_some_nodes() {
        let is_for = |nodes: Value| {
            let entry = json!({ "nodes": nodes });
            is_for_node(&Fields::of(&entry).unwrap(), "worker-1")
        };
        assert!(is_for(json!(null)).unwrap());
        assert!(is_for(json!("worker-*")).unwrap());
        assert!(is_for(json!(["master", "worker-1"])).unwrap());
        assert!(!is_for(json!("master-*")).unwrap());
        assert!(!is_for(json!([])).unwrap());
        assert!(is_for(json!(7)).is_err());
    }
}
