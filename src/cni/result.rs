//! The result of ADD, in the shape of each version of the specification. Pure.

use serde_json::{Map, Value, json};

use super::{
    error::{CniError, Result, code},
    ipam_result::IpamResult,
    output::to_text,
    version::{Family, Version},
};
use crate::types::{json::Fields, mac::MacAddr};

/// What ADD reports of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported<'a> {
    /// The interface's name in the pod.
    pub name: &'a str,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The value of `CNI_NETNS`.
    pub sandbox: &'a str,
}

/// The order of keys that the reference implementation prints in each family. It always prints
/// `dns` in the older ones.
fn keys(family: Family) -> &'static [&'static str] {
    match family {
        Family::V02 => &["cniVersion", "ip4", "ip6", "dns"],
        Family::V03 => &["cniVersion", "interfaces", "ips", "routes", "dns"],
        Family::V1 => &["cniVersion", "dns", "interfaces", "ips", "routes"],
    }
}

/// Refuses what no result can be printed for, so that nothing is done in vain: before 0.3.0
/// a result is nothing but addresses, which an earlier plugin has given or an IPAM plugin will.
pub fn check_printable(
    version: Version,
    prev_result: Option<&Value>,
    has_ipam: bool,
) -> Result<()> {
    let has_address = prev_result.is_some_and(|prev| {
        let present = |key| prev.get(key).is_some_and(Value::is_object);
        present("ip4") || present("ip6")
    });
    if version.family() == Family::V02 && !has_address && !has_ipam {
        let ours = [Family::V03, Family::V1].map(|family| family.versions().join(", "));
        let text = format!(
            "cannot convert: no valid IP addresses; a result of cniVersion {} cannot have \
             interfaces: set cniVersion to one of {}",
            version.text(),
            ours.join(", ")
        );
        return Err(CniError::new(code::INTERNAL, text));
    }
    Ok(())
}

/// The document that ADD prints: the previous plugin's result with our interface added, and with
/// its addresses.
#[must_use]
pub fn print(
    version: Version,
    prev_result: Option<&Value>,
    interface: &Reported<'_>,
    ipam: Option<&IpamResult>,
) -> String {
    let family = version.family();
    let mut fields = prev_result
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    fields.insert("cniVersion".into(), version.text().into());
    let mut interfaces = list(fields.get("interfaces"));
    let index = interfaces.len();
    if family != Family::V02 {
        interfaces.push(describe(family, interface));
        fields.insert("interfaces".into(), interfaces.into());
    }
    if let Some(ipam) = ipam {
        ipam.add_to(&mut fields, family, index);
    }
    if family != Family::V1 {
        fields.entry("dns").or_insert_with(|| json!({}));
    }
    to_text(&Value::Object(in_order(fields, family)))
}

fn describe(family: Family, interface: &Reported<'_>) -> Value {
    let Reported {
        name,
        mac,
        mtu,
        sandbox,
    } = interface;
    let mac = mac.to_string();
    if family == Family::V1 {
        json!({"name": name, "mac": mac, "mtu": mtu, "sandbox": sandbox})
    } else {
        json!({"name": name, "mac": mac, "sandbox": sandbox})
    }
}

/// The known keys in the family's order, then the unknown ones. Empty ones are left out.
fn in_order(mut fields: Map<String, Value>, family: Family) -> Map<String, Value> {
    let mut ordered = Map::new();
    for key in keys(family) {
        if let Some(value) = fields.shift_remove(*key) {
            ordered.insert((*key).to_owned(), value);
        }
    }
    ordered.extend(fields);
    ordered.retain(|key, value| !is_empty(value) || (key == "dns" && family != Family::V1));
    ordered
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn list(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

/// The previous result in a configuration, if there is one, checked for its shape and version.
pub fn previous(config: &Value, version: Version) -> Result<Option<Value>> {
    let Some(prev) = Fields::of(config).and_then(|fields| fields.value("prevResult")) else {
        return Ok(None);
    };
    let wrong = |why: String| {
        let text = format!("could not parse prevResult: {why}");
        CniError::new(code::DECODING, text)
    };
    let fields = prev
        .as_object()
        .ok_or_else(|| wrong("it is not an object".into()))?;
    let family = version.family().versions();
    match fields.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(theirs)) if theirs.is_empty() || family.contains(&&**theirs) => {}
        Some(theirs) => {
            let family = family.join(" ");
            let text =
                format!("result type supports [{family}] but unmarshalled CNIVersion is {theirs}");
            return Err(wrong(text));
        }
    }
    for key in ["interfaces", "ips", "routes"] {
        if fields
            .get(key)
            .is_some_and(|value| !value.is_array() && !value.is_null())
        {
            return Err(wrong(format!("{key} is not a list")));
        }
    }
    Ok(Some(prev.clone()))
}

/// The interface `name` of the sandbox `sandbox` in a result.
#[must_use]
pub fn find<'a>(result: &'a Value, name: &str, sandbox: &str) -> Option<&'a Value> {
    let has = |interface: &&Value, key: &str, value: &str| {
        interface.get(key).and_then(Value::as_str) == Some(value)
    };
    let interfaces = result.get("interfaces")?.as_array()?;
    interfaces
        .iter()
        .find(|interface| has(interface, "name", name) && has(interface, "sandbox", sandbox))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::version::{SUPPORTED, supported};

    const OURS: Reported<'static> = Reported {
        name: "net1",
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        sandbox: "/run/netns/pod",
    };

    fn version(text: &str) -> Version {
        supported(text).unwrap()
    }

    #[test]
    fn prints_what_the_original_prints_at_0_3_1() {
        let text = print(version("0.3.1"), None, &OURS, None);
        let expected = r#"{
    "cniVersion": "0.3.1",
    "interfaces": [
        {
            "name": "net1",
            "mac": "02:00:00:00:00:01",
            "sandbox": "/run/netns/pod"
        }
    ],
    "dns": {}
}"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn prints_the_mtu_and_no_empty_dns_since_1_0_0() {
        let text = print(version("1.1.0"), Some(&json!({"dns": {}})), &OURS, None);
        let expected = r#"{
    "cniVersion": "1.1.0",
    "interfaces": [
        {
            "name": "net1",
            "mac": "02:00:00:00:00:01",
            "mtu": 1500,
            "sandbox": "/run/netns/pod"
        }
    ],
}"#
        .replace("],\n}", "]\n}");
        assert_eq!(text, expected);
    }

    #[test]
    fn passes_the_previous_result_through() {
        let prev = json!({
            "cniVersion": "0.3.0",
            "dns": {"nameservers": ["192.0.2.1"]},
            "routes": [],
            "ips": [{"version": "4", "interface": 0, "address": "192.0.2.2/24"}],
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/pod"}],
            "unknown": 1
        });
        let text = print(version("0.4.0"), Some(&prev), &OURS, None);
        let printed: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = printed.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["cniVersion", "interfaces", "ips", "dns", "unknown"]);
        assert_eq!(printed["cniVersion"], "0.4.0");
        assert_eq!(printed["interfaces"][0]["name"], "eth0");
        assert_eq!(printed["interfaces"][1]["name"], "net1");
        assert_eq!(printed["ips"], prev["ips"]);
        assert_eq!(printed["dns"], prev["dns"]);
    }

    #[test]
    fn before_0_3_0_only_addresses_can_be_printed() {
        let addresses = json!({"ip4": {"ip": "192.0.2.2/24"}});
        for old in &SUPPORTED[..2] {
            let error = check_printable(version(old), None, false).unwrap_err();
            let expected = format!(
                "cannot convert: no valid IP addresses; a result of cniVersion {old} cannot have \
                 interfaces: set cniVersion to one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"
            );
            assert_eq!(error.to_string(), expected);
            assert!(check_printable(version(old), Some(&json!({"dns": {}})), false).is_err());
            assert!(check_printable(version(old), Some(&addresses), false).is_ok());
            assert!(check_printable(version(old), None, true).is_ok());
            let printed: Value =
                serde_json::from_str(&print(version(old), Some(&addresses), &OURS, None)).unwrap();
            let expected = json!({"cniVersion": old, "ip4": {"ip": "192.0.2.2/24"}, "dns": {}});
            assert_eq!(printed, expected);
        }
        for new in &SUPPORTED[2..] {
            assert!(check_printable(version(new), None, false).is_ok());
        }
    }

    #[test]
    fn refuses_previous_results_of_another_family() {
        let of = |ours, prev: Value| previous(&json!({"prevResult": prev}), version(ours));
        assert_eq!(of("1.0.0", json!(null)).unwrap(), None);
        assert!(
            of("1.0.0", json!({"cniVersion": "1.1.0"}))
                .unwrap()
                .is_some()
        );
        assert!(of("1.0.0", json!({"interfaces": null})).unwrap().is_some());
        let error = of("0.4.0", json!({"cniVersion": "1.0.0"})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] \
             but unmarshalled CNIVersion is \"1.0.0\""
        );
        for broken in [
            json!([]),
            json!("x"),
            json!({"cniVersion": 1}),
            json!({"ips": {}}),
        ] {
            assert!(of("0.4.0", broken.clone()).is_err(), "{broken}");
        }
    }

    #[test]
    fn finds_the_interface_of_a_sandbox() {
        let result = json!({"interfaces": [
            {"name": "net1"},
            {"name": "net1", "sandbox": "/other"},
            {"name": "net1", "sandbox": "/ours", "mac": "02:00:00:00:00:01"},
        ]});
        assert!(find(&result, "net1", "/ours").unwrap().get("mac").is_some());
        assert!(find(&result, "net2", "/ours").is_none());
        assert!(find(&json!({}), "net1", "/ours").is_none());
    }
}
