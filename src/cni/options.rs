//! The keys that set up a macvtap beside its mode. Pure.

use super::error::{CniError, Result, code};
use crate::types::{
    json::Fields,
    keys::Keys,
    mac::MacAddr,
    mode::Mode,
    port_options::{self, PortOptions},
};

/// Addresses that a port in source mode receives from.
const MAX_SOURCES: usize = 256;

/// Reads them for a macvtap in this mode; none if it exists already. What is not given is as the
/// resource has it.
pub fn read(
    fields: &Fields<'_>,
    mode: Option<Mode>,
    resource: &PortOptions,
    keys: &mut Keys,
) -> Result<PortOptions> {
    let Some(mode) = mode else {
        return Ok(ignored(fields, keys));
    };
    let queue_length = keys.take(port_options::queue_length(fields))?;
    let queues = keys.take(port_options::queues(fields))?;
    let broadcast_queue_length = keys.take(port_options::broadcast_queue_length(fields))?;
    let broadcast_cutoff = keys.take(port_options::broadcast_cutoff(fields))?;
    Ok(PortOptions {
        queue_length: queue_length.or(resource.queue_length),
        queues: queues.or(resource.queues),
        broadcast_queue_length: broadcast_queue_length.or(resource.broadcast_queue_length),
        broadcast_cutoff: broadcast_cutoff.or(resource.broadcast_cutoff),
        allowed_sources: sources(fields, mode, &resource.allowed_sources, keys)?,
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

/// A macvtap in source mode without a list of sources receives nothing.
fn sources(
    fields: &Fields<'_>,
    mode: Mode,
    resource: &[MacAddr],
    keys: &mut Keys,
) -> Result<Vec<MacAddr>> {
    let sources = keys.take(port_options::sources(fields, MAX_SOURCES))?;
    match (mode, sources) {
        (Mode::Source, None) if resource.is_empty() => {
            let text = "mode source needs allowedSources, a list of MAC addresses: without it the \
                        macvtap receives nothing";
            Err(CniError::new(code::CONFIG, text))
        }
        (Mode::Source, sources) => Ok(sources.unwrap_or_else(|| resource.to_vec())),
        (_, None) => Ok(Vec::new()),
        (mode, Some(_)) => {
            let text = format!("allowedSources needs mode source, not {mode}");
            keys.take(Err::<Option<()>, _>(CniError::new(code::CONFIG, text)))?;
            Ok(Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read_on(
        resource: &PortOptions,
        json: &Value,
        mode: Option<Mode>,
        lenient: bool,
    ) -> (Result<PortOptions>, Vec<String>) {
        let mut keys = Keys::new(lenient);
        let fields = Fields::of(json).unwrap();
        (
            super::read(&fields, mode, resource, &mut keys),
            keys.warnings,
        )
    }

    fn read(json: &Value, mode: Option<Mode>, lenient: bool) -> (Result<PortOptions>, Vec<String>) {
        read_on(&PortOptions::NONE, json, mode, lenient)
    }

    #[test]
    fn a_key_of_the_network_wins_over_the_resource() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let resource = PortOptions {
            queue_length: Some(500),
            queues: Some(2),
            broadcast_queue_length: Some(7),
            broadcast_cutoff: Some(-1),
            allowed_sources: vec![mac(1)],
        };
        let of = |json: &Value| {
            read_on(&resource, json, Some(Mode::Source), true)
                .0
                .unwrap()
        };
        assert_eq!(of(&json!({})), resource);
        // A wrong one is left out.
        assert_eq!(of(&json!({"queues": "8"})), resource);
        let own = json!({
            "txQueueLen": 1, "queues": 8, "bcQueueLen": 0, "broadcastCutoff": 3,
            "allowedSources": ["02:00:00:00:00:02"],
        });
        let expected = PortOptions {
            queue_length: Some(1),
            queues: Some(8),
            broadcast_queue_length: Some(0),
            broadcast_cutoff: Some(3),
            allowed_sources: vec![mac(2)],
        };
        assert_eq!(of(&own), expected);
        let (existing, _) = read_on(&resource, &json!({}), None, true);
        assert_eq!(existing.unwrap(), PortOptions::NONE);
    }

    #[test]
    fn reads_what_the_kernel_takes() {
        let json = json!({
            "txQueueLen": 500, "queues": 4, "bcqueuelen": 65_536,
            "broadcastCutoff": -1,
            "allowedSources": ["02:00:00:00:00:02", "02-00-00-00-00-01", "02:00:00:00:00:02"],
        });
        let (options, warnings) = read(&json, Some(Mode::Source), false);
        let expected = PortOptions {
            queue_length: Some(500),
            queues: Some(4),
            broadcast_queue_length: Some(65_536),
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
            (json!({"bcQueueLen": 65_537}), ["bcQueueLen 65537", "from 0 to 65536"]),
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
