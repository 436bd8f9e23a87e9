//! The keys of a configuration about IP addresses: `ipam`, `ipamMode` and `dns`. Pure.

use serde_json::Value;

use super::error::{CniError, Result, code};
use crate::types::json::{Fields, Invalid};

/// Where an interface's IP addresses come from, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    /// The plugin that gives them.
    pub plugin: String,
    /// Whether they are set on the interface; or else only reported.
    pub assign: bool,
    /// `dns` of the network, which comes before the plugin's.
    pub dns: Option<Value>,
}

/// Reads the keys. `ipam` of a network whose macvtap the device plugin allocates, which is for a
/// VM, is ignored unless `ipamMode` says what for, as in kubevirt/macvtap-cni: on the pod's side
/// the addresses would answer ARP with the MAC of the VM. `warnings` says so.
pub fn read(
    fields: &Fields<'_>,
    allocated: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<Ipam>> {
    let mode = mode(fields)?;
    let ignored = allocated && mode.is_none();
    let dns = match dns(fields) {
        Err(error) if ignored => {
            warnings.push(format!("{error}; it is ignored"));
            None
        }
        dns => dns?,
    };
    let plugin = match plugin(fields) {
        Err(error) if ignored => {
            warnings.push(format!("{error}; it is ignored"));
            return Ok(None);
        }
        plugin => plugin?,
    };
    match plugin {
        Some(_) if ignored => {
            warnings.push(
                "ipam is ignored, because a device ID says that this is a VM's network; set \
                 ipamMode to \"report\" to have addresses in the result, or to \"assign\" to have \
                 them on the pod's interface too"
                    .into(),
            );
            Ok(None)
        }
        Some(plugin) => Ok(Some(Ipam {
            plugin: plugin.to_owned(),
            assign: mode.unwrap_or(true),
            dns,
        })),
        None if mode.is_some() => {
            let text = "ipamMode is set, but no plugin that gives addresses: set ipam.type";
            Err(CniError::new(code::CONFIG, text))
        }
        None => Ok(None),
    }
}

/// The IPAM plugin of a configuration, without judging it, as DEL, STATUS and GC call it.
#[must_use]
pub fn used(fields: &Fields<'_>, allocated: bool) -> Option<String> {
    let names_lower = fields.has("lowerDevice") || fields.has("master");
    let used = fields.has("ipamMode") || (names_lower && !allocated);
    let plugin = plugin(fields).ok().flatten().filter(|_| used);
    plugin.map(str::to_owned)
}

/// An empty `ipam` means none, as for the macvlan plugin.
fn plugin<'a>(fields: &Fields<'a>) -> std::result::Result<Option<&'a str>, Invalid> {
    let ipam = fields.object("ipam")?;
    let plugin = ipam.map(|ipam| ipam.text("type")).transpose();
    let named = |_| {
        let value = fields.value("ipam").unwrap_or(&Value::Null);
        Invalid::new("ipam", value, "an object whose type is a text")
    };
    Ok(plugin.map_err(named)?.flatten())
}

/// Whether addresses are set on the interface; none if it is not said.
fn mode(fields: &Fields<'_>) -> Result<Option<bool>> {
    match fields.value("ipamMode") {
        None => Ok(None),
        Some(Value::String(word)) if word == "assign" => Ok(Some(true)),
        Some(Value::String(word)) if word == "report" => Ok(Some(false)),
        Some(other) => {
            let wanted = "\"assign\" (on the interface and in the result) or \"report\" (in the \
                          result only)";
            Err(Invalid::new("ipamMode", other, wanted).into())
        }
    }
}

fn dns(fields: &Fields<'_>) -> Result<Option<Value>> {
    let empty = |dns: &Fields<'_>| dns.keys().next().is_none();
    let dns = fields.object("dns")?.filter(|dns| !empty(dns));
    Ok(dns.and(fields.value("dns")).cloned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(json: &Value, allocated: bool) -> (Result<Option<Ipam>>, Vec<String>) {
        let mut warnings = Vec::new();
        let read = read(&Fields::of(json).unwrap(), allocated, &mut warnings);
        (read, warnings)
    }

    #[test]
    fn addresses_are_set_where_the_network_is_no_vms() {
        for (mode, allocated, expected) in [
            (json!(null), false, Some(true)),
            (json!("assign"), false, Some(true)),
            (json!("report"), false, Some(false)),
            (json!(null), true, None),
            (json!("assign"), true, Some(true)),
            (json!("report"), true, Some(false)),
        ] {
            let json = json!({"ipam": {"type": "static"}, "ipamMode": mode, "lowerDevice": "eth0"});
            let (read, warnings) = of(&json, allocated);
            let read = read.unwrap();
            assert_eq!(read.as_ref().map(|ipam| ipam.assign), expected, "{json}");
            assert_eq!(warnings.is_empty(), read.is_some(), "{json}");
            let used = used(&Fields::of(&json).unwrap(), allocated);
            assert_eq!(used, read.map(|ipam| ipam.plugin), "{json}");
        }
        for none in [json!({}), json!({"type": ""}), json!(null)] {
            assert_eq!(of(&json!({"ipam": none}), true), (Ok(None), vec![]));
            assert_eq!(of(&json!({"ipam": none}), false), (Ok(None), vec![]));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        let ipam = json!({"type": "static"});
        for (json, parts) in [
            (
                json!({"ipam": ipam, "ipamMode": "Assign"}),
                ["ipamMode", "\"report\""],
            ),
            (
                json!({"ipam": ipam, "ipamMode": true}),
                ["ipamMode true", "\"assign\""],
            ),
            (json!({"ipamMode": "assign"}), ["ipamMode", "ipam.type"]),
            (
                json!({"ipam": {}, "ipamMode": "report"}),
                ["ipamMode", "ipam.type"],
            ),
            (
                json!({"ipam": "static", "ipamMode": "assign"}),
                ["ipam", "an object"],
            ),
            (
                json!({"ipam": {"type": 7}, "ipamMode": "assign"}),
                ["ipam", "type"],
            ),
            (
                json!({"ipam": ipam, "ipamMode": "assign", "dns": []}),
                ["dns", "an object"],
            ),
        ] {
            for allocated in [true, false] {
                let error = of(&json, allocated).0.unwrap_err();
                assert_eq!(error.code, code::CONFIG, "{json}");
                assert!(parts.iter().all(|part| error.msg.contains(part)), "{error}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_ignored_with_a_device_id_where_nothing_reads_it() {
        let dns = json!({"dns": "192.0.2.1"});
        assert!(of(&dns, false).0.unwrap_err().msg.contains("dns"));
        let (read, warnings) = of(&dns, true);
        assert!(
            read == Ok(None) && warnings[0].contains("dns"),
            "{warnings:?}"
        );
        // Existing networks of VMs attach all the same.
        for ipam in [json!("static"), json!({"type": []})] {
            let (read, warnings) = of(&json!({"ipam": ipam}), true);
            assert_eq!(read, Ok(None));
            assert!(warnings[0].contains("ignored"), "{warnings:?}");
            assert!(of(&json!({"ipam": ipam}), false).0.is_err());
        }
    }
}
