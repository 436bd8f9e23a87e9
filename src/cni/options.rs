//! The keys that set up a macvtap beside its mode. Pure.

use serde_json::Value;

use super::{
    error::{CniError, Result, code},
    keys::Keys,
};
use crate::types::{
    json::{Fields, Invalid},
    mac::MacAddr,
    mode::Mode,
    port_options::PortOptions,
};

/// Frames in a tap's ring, which is allocated at once.
const MAX_QUEUE_LENGTH: u64 = 65_536;
/// `MAX_TAP_QUEUES` of the kernel.
const MAX_QUEUES: u64 = 256;
/// Addresses that a port in source mode receives from.
const MAX_SOURCES: usize = 256;

/// Reads them for a macvtap in this mode; none if it exists already.
pub fn read(fields: &Fields<'_>, mode: Option<Mode>, keys: &mut Keys) -> Result<PortOptions> {
    let Some(mode) = mode else {
        return Ok(ignored(fields, keys));
    };
    Ok(PortOptions {
        queue_length: number(fields, "txQueueLen", (1, MAX_QUEUE_LENGTH), keys)?,
        queues: number(fields, "queues", (1, MAX_QUEUES), keys)?,
        broadcast_queue_length: number(fields, "bcQueueLen", (0, u32::MAX.into()), keys)?,
        broadcast_cutoff: keys.take(cutoff(fields))?,
        allowed_sources: sources(fields, mode, keys)?,
    })
}

/// A macvtap that exists is taken as it is.
fn ignored(fields: &Fields<'_>, keys: &mut Keys) -> PortOptions {
    let all = [
        "txQueueLen",
        "queues",
        "bcQueueLen",
        "broadcastCutoff",
        "allowedSources",
    ];
    for key in all.into_iter().filter(|key| fields.has(key)) {
        let text = format!("{key} is ignored: the macvtap exists already");
        keys.warnings.push(text);
    }
    PortOptions::NONE
}

fn number(
    fields: &Fields<'_>,
    key: &str,
    (lowest, highest): (u64, u64),
    keys: &mut Keys,
) -> Result<Option<u32>> {
    let number = fields
        .integer(key)
        .map_err(CniError::from)
        .and_then(|number| {
            let Some(number) = number else {
                return Ok(None);
            };
            let within = u64::try_from(number).ok();
            let within = within.filter(|number| (lowest..=highest).contains(number));
            let within = within.and_then(|number| u32::try_from(number).ok());
            let wanted = format!("a whole number from {lowest} to {highest}");
            let refused = || Invalid::new(key, &number.into(), &wanted).into();
            within.ok_or_else(refused).map(Some)
        });
    keys.take(number)
}

fn cutoff(fields: &Fields<'_>) -> Result<Option<i32>> {
    let Some(number) = fields.integer("broadcastCutoff")? else {
        return Ok(None);
    };
    let within = i32::try_from(number).ok().filter(|number| *number >= -1);
    let wanted = format!("a whole number from -1 to {}", i32::MAX);
    let refused = || Invalid::new("broadcastCutoff", &number.into(), &wanted);
    Ok(Some(within.ok_or_else(refused)?))
}

/// A macvtap in source mode without a list of sources receives nothing.
fn sources(fields: &Fields<'_>, mode: Mode, keys: &mut Keys) -> Result<Vec<MacAddr>> {
    let refuse = |text: &str| Err(CniError::new(code::CONFIG, text));
    let sources = keys.take(read_sources(fields))?;
    match (mode, sources) {
        (Mode::Source, None) => refuse(
            "mode source needs allowedSources, a list of MAC addresses: without it the macvtap \
             receives nothing",
        ),
        (Mode::Source, Some(sources)) => Ok(sources),
        (_, None) => Ok(Vec::new()),
        (mode, Some(_)) => {
            let text = format!("allowedSources needs mode source, not {mode}");
            keys.take(Err::<Option<()>, _>(CniError::new(code::CONFIG, text)))?;
            Ok(Vec::new())
        }
    }
}

fn read_sources(fields: &Fields<'_>) -> Result<Option<Vec<MacAddr>>> {
    let Some(value) = fields.value("allowedSources") else {
        return Ok(None);
    };
    let wanted =
        format!("a list of up to {MAX_SOURCES} MAC addresses, none of them a multicast one");
    let refused = || Invalid::new("allowedSources", value, &wanted);
    let mac = |value: &Value| {
        let mac: MacAddr = value.as_str()?.parse().ok()?;
        mac.is_assignable().then_some(mac)
    };
    let list = value
        .as_array()
        .filter(|list| (1..=MAX_SOURCES).contains(&list.len()));
    let macs: Option<Vec<MacAddr>> = list.and_then(|list| list.iter().map(mac).collect());
    let mut macs = macs.ok_or_else(refused)?;
    macs.sort_unstable();
    macs.dedup();
    Ok(Some(macs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &Value, mode: Option<Mode>, lenient: bool) -> (Result<PortOptions>, Vec<String>) {
        let mut keys = Keys {
            lenient,
            warnings: Vec::new(),
        };
        let fields = Fields::of(json).unwrap();
        (super::read(&fields, mode, &mut keys), keys.warnings)
    }

    #[test]
    fn reads_what_the_kernel_takes() {
        let json = json!({
            "txQueueLen": 500, "queues": 4, "bcqueuelen": 4_294_967_295_u32,
            "broadcastCutoff": -1,
            "allowedSources": ["02:00:00:00:00:02", "02-00-00-00-00-01", "02:00:00:00:00:02"],
        });
        let (options, warnings) = read(&json, Some(Mode::Source), false);
        let expected = PortOptions {
            queue_length: Some(500),
            queues: Some(4),
            broadcast_queue_length: Some(u32::MAX),
            broadcast_cutoff: Some(-1),
            allowed_sources: vec![MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])],
        };
        assert_eq!((options.unwrap(), warnings.len()), (expected, 0));
        let (options, _) = read(&json!({}), Some(Mode::Bridge), false);
        assert_eq!(options.unwrap(), PortOptions::NONE);
    }

    #[test]
    fn wrong_values_are_refused_by_name_or_left_out_with_a_device_id() {
        #[rustfmt::skip]
        let table = [
            (json!({"txQueueLen": 0}), ["txQueueLen 0", "from 1 to 65536"]),
            (json!({"txQueueLen": "9"}), ["txQueueLen", "whole number"]),
            (json!({"queues": 257}), ["queues 257", "from 1 to 256"]),
            (json!({"queues": -1}), ["queues -1", "from 1"]),
            (json!({"bcQueueLen": -1}), ["bcQueueLen -1", "from 0"]),
            (json!({"broadcastCutoff": -2}), ["broadcastCutoff -2", "from -1"]),
            (json!({"broadcastCutoff": 1 << 31_u64}), ["broadcastCutoff", "2147483647"]),
            (json!({"allowedSources": []}), ["allowedSources []", "list of up to 256"]),
            (json!({"allowedSources": "x"}), ["allowedSources", "list of up to 256"]),
            (json!({"allowedSources": ["01:00:5e:00:00:01"]}), ["allowedSources", "multicast"]),
            (json!({"allowedSources": ["02:00:00:00:00:01"]}), ["allowedSources", "needs mode source, not vepa"]),
        ];
        for (json, parts) in table {
            let (refused, _) = read(&json, Some(Mode::Vepa), false);
            let error = refused.unwrap_err();
            assert_eq!(error.code, code::CONFIG);
            let (left_out, warnings) = read(&json, Some(Mode::Vepa), true);
            assert_eq!(left_out.unwrap(), PortOptions::NONE);
            for part in parts {
                assert!(error.msg.contains(part), "{json}: {error}");
                assert!(warnings[0].contains(part), "{json}: {warnings:?}");
            }
        }
    }

    #[test]
    fn a_macvtap_that_exists_is_taken_as_it_is() {
        let (options, warnings) = read(&json!({"queues": 4, "txQueueLen": "x"}), None, true);
        assert_eq!(options.unwrap(), PortOptions::NONE);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
