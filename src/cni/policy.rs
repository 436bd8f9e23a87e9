//! What a configuration lets the guest send and receive: `security`, `macspoofchk` and
//! `bandwidth`. Pure.
//!
//! Nothing of `security` and `bandwidth` is left out because it cannot be understood: an attachment
//! without the limits that were configured is worse than none. Beside a device ID, `macspoofchk` and
//! `runtimeConfig.bandwidth` are: networks and pods have them for other plugins, and
//! kubevirt/macvtap-cni attaches them.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    error::{CniError, Result, code},
    pod_keys::PodKeys,
};
use crate::{
    macvtap::{
        bandwidth::{Bandwidth, Limit, MAX_BURST, RATES},
        security::{MAX_MACS, MAX_VLAN_RANGES, Security},
    },
    types::{
        json::{Fields, Invalid},
        keys::Keys,
        mac::MacAddr,
        prefix::Prefix,
        vlan::MAX_VLAN,
    },
};

const ANY: &str = "any";

// === security ===

/// Where the addresses of an interface come from.
pub struct Sources<'a> {
    /// What the runtime adds for the pod.
    pub pod_keys: &'a PodKeys<'a>,
    /// The result of the plugin before.
    pub prev_result: Option<&'a Value>,
    /// Whether an IPAM plugin gives some, which [`with_addresses`] adds.
    pub has_ipam: bool,
}

/// What the guest may send; none if anything.
pub fn security(
    fields: &Fields<'_>,
    sources: &Sources<'_>,
    keys: &mut Keys,
) -> Result<Option<Security>> {
    let given = || Given::read(sources);
    read_security(fields, given, sources.has_ipam, keys)
}

/// The security of whatever guest; none if it may send anything. Its addresses are not all known:
/// only ADD is given them. Fails if no ADD could have these limits.
pub fn check(json: &Value) -> Result<Option<Security>> {
    let Some(fields) = Fields::of(json) else {
        return Ok(None);
    };
    let mut keys = Keys::new(false);
    bandwidth(&fields, &PodKeys::default(), &mut keys)?;
    read_security(&fields, || Ok(Given::default()), true, &mut keys)
}

fn read_security(
    fields: &Fields<'_>,
    given: impl Fn() -> Result<Given>,
    has_ipam: bool,
    keys: &mut Keys,
) -> Result<Option<Security>> {
    // A key of the bridge plugin, which networks have that were made after its.
    let only_mac = keys.take(macspoofchk(fields))?.unwrap_or(false);
    let security = match fields.value("security") {
        None => return Ok(only_mac.then(Security::mac)),
        Some(Value::String(name)) => match name.as_str() {
            "off" => None,
            "mac" => Some(Security::mac()),
            "strict" => Some(Security::strict(known(given()?.all(), has_ipam)?)),
            _ => return Err(not_security(&Value::from(name.as_str()))),
        },
        Some(value) => {
            let keys = Fields::of(value).ok_or_else(|| not_security(value))?;
            Some(custom(&keys, given()?, has_ipam)?)
        }
    };
    if only_mac
        && security
            .as_ref()
            .is_none_or(|security| security.macs.is_none())
    {
        let text = "macspoofchk true contradicts security, which lets the guest use any MAC; \
                    leave one of them out";
        return Err(CniError::new(code::CONFIG, text));
    }
    security.map(bounded).transpose()
}

/// Templates often quote it.
fn macspoofchk(fields: &Fields<'_>) -> std::result::Result<Option<bool>, Invalid> {
    match fields.value("macspoofchk").and_then(Value::as_str) {
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        _ => fields.flag("macspoofchk"),
    }
}

/// The same security for a guest that has these addresses too.
pub fn with_addresses(security: &Security, more: impl Iterator<Item = Prefix>) -> Result<Security> {
    let mut security = security.clone();
    if let Some(addresses) = security.addresses.take() {
        security.addresses = Some(known(addresses.into_iter().chain(more).collect(), false)?);
    }
    bounded(security)
}

/// Whether a configuration has a key about security, without judging it.
#[must_use]
pub fn has_security(json: &Value) -> bool {
    let keys = ["security", "macspoofchk"];
    Fields::of(json).is_some_and(|fields| keys.iter().any(|key| fields.value(key).is_some()))
}

fn not_security(value: &Value) -> CniError {
    let wanted = "\"off\", \"mac\", \"strict\", or an object of mac, addresses, dhcpServer, \
                  routerAdvertisements and vlans";
    Invalid::new("security", value, wanted).into()
}

/// As strict, but for what these keys say.
fn custom(keys: &Fields<'_>, given: Given, has_ipam: bool) -> Result<Security> {
    let names = [
        "mac",
        "addresses",
        "dhcpServer",
        "routerAdvertisements",
        "vlans",
    ];
    check_names("security", keys, &names)?;
    let vlans = match list(keys, "vlans", "VLANs from 0 to 4094", vlan)? {
        List::Any => None,
        List::Missing => Some(Vec::new()),
        List::Of(numbers) => Some(ranges(numbers)),
    };
    Ok(Security {
        macs: macs(keys)?,
        vlans,
        dhcp_server: keys.flag("dhcpServer")?.unwrap_or(false),
        router_advertisements: keys.flag("routerAdvertisements")?.unwrap_or(false),
        addresses: match list(keys, "addresses", "addresses or prefixes", prefix)? {
            List::Any => None,
            List::Missing => Some(known(given.all(), has_ipam)?),
            List::Of(listed) => Some(known(given.within(listed)?, has_ipam)?),
        },
    })
}

fn macs(keys: &Fields<'_>) -> Result<Option<Vec<MacAddr>>> {
    let macs = match list(keys, "mac", "further MACs", mac)? {
        List::Any => return Ok(None),
        List::Missing => Vec::new(),
        List::Of(macs) => macs,
    };
    let count = macs.len();
    if count > MAX_MACS {
        let text = format!(
            "security.mac has {count} further MACs; at most {MAX_MACS} are possible, or \"any\""
        );
        return Err(CniError::new(code::CONFIG, text));
    }
    Ok(Some(macs))
}

/// The value of a key that is a list or `"any"`.
enum List<T> {
    Missing,
    Any,
    Of(Vec<T>),
}

fn list<T>(
    keys: &Fields<'_>,
    key: &str,
    of: &str,
    read: fn(&Value) -> Option<T>,
) -> Result<List<T>> {
    let name = format!("security.{key}");
    let wanted = format!("\"any\" or a list of {of}");
    match keys.value(key) {
        None => Ok(List::Missing),
        Some(Value::String(word)) if word == ANY => Ok(List::Any),
        Some(Value::Array(values)) => {
            let read = |value| read(value).ok_or_else(|| Invalid::new(&name, value, &wanted));
            let list = values
                .iter()
                .map(read)
                .collect::<std::result::Result<_, _>>()?;
            Ok(List::Of(list))
        }
        Some(other) => Err(Invalid::new(&name, other, &wanted).into()),
    }
}

fn prefix(value: &Value) -> Option<Prefix> {
    value.as_str()?.parse().ok()
}

fn mac(value: &Value) -> Option<MacAddr> {
    let mac: MacAddr = value.as_str()?.parse().ok()?;
    mac.is_assignable().then_some(mac)
}

/// 0 is a tag with a priority only.
fn vlan(value: &Value) -> Option<u16> {
    let number = value.as_u64().filter(|number| *number <= MAX_VLAN)?;
    u16::try_from(number).ok()
}

/// The numbers in their order, neighbours as one range.
fn ranges(mut numbers: Vec<u16>) -> Vec<(u16, u16)> {
    numbers.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, high)) if number <= *high + 1 => *high = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// A guest is bound to addresses only if some are known: without any it could not even be
/// reached. They `may_come` later.
fn known(mut addresses: Vec<Prefix>, may_come: bool) -> Result<Vec<Prefix>> {
    addresses.sort_unstable();
    addresses.dedup();
    if !addresses.is_empty() || may_come {
        return Ok(addresses);
    }
    let text = "security binds the guest to its addresses, and none are known: \
              not by ipam, runtimeConfig.ips, args.cni.ips or the previous result; list them or their \
              network, as in \"security\": {\"addresses\": [\"192.0.2.0/24\"]}, or set \
              security.addresses to \"any\"";
    Err(CniError::new(code::CONFIG, text))
}

/// Fails if the guest has too many addresses or VLANs.
fn bounded(security: Security) -> Result<Security> {
    let addresses = security.addresses.as_ref().map_or(0, Vec::len);
    let (ranges, most) = (
        security.vlans.as_ref().map_or(0, Vec::len),
        security.max_addresses(),
    );
    let text = if ranges > MAX_VLAN_RANGES {
        format!(
            "security.vlans has {ranges} ranges; at most {MAX_VLAN_RANGES} are possible, or \"any\""
        )
    } else if addresses > most {
        format!(
            "security has {addresses} addresses; at most {most} are possible with security.vlans \
             as it is; list prefixes in place of addresses"
        )
    } else {
        return Ok(security);
    };
    Err(CniError::new(code::CONFIG, text))
}

/// The addresses that the interface was given.
#[derive(Default)]
struct Given {
    /// By the plugin before.
    chain: Vec<Prefix>,
    /// By the pod, which wishes to have them: by which key, and which.
    pod: Vec<(&'static str, IpAddr)>,
}

impl Given {
    /// An IPAM plugin decides which of the pod's wishes are granted.
    fn read(sources: &Sources<'_>) -> Result<Self> {
        let PodKeys { runtime, args } = sources.pod_keys;
        let mut pod = Vec::new();
        for (name, given) in [("runtimeConfig.ips", runtime), ("args.cni.ips", args)] {
            let ips = given.as_ref().and_then(|given| given.value("ips"));
            let addresses = interface_addresses(name, ips)?.into_iter();
            pod.extend(addresses.map(|address| (name, address)));
        }
        pod.retain(|_| !sources.has_ipam);
        let ips = sources
            .prev_result
            .and_then(|result| result["ips"].as_array());
        // With an index they are another interface's.
        let ours = ips
            .into_iter()
            .flatten()
            .filter(|ip| ip["interface"].is_null());
        let ours: Value = ours.map(|ip| ip["address"].clone()).collect();
        let chain = interface_addresses("prevResult.ips", Some(&ours))?.into_iter();
        Ok(Self {
            chain: chain.map(Prefix::host).collect(),
            pod,
        })
    }

    fn all(self) -> Vec<Prefix> {
        let pod = self
            .pod
            .into_iter()
            .map(|(_, address)| Prefix::host(address));
        self.chain.into_iter().chain(pod).collect()
    }

    /// What the network lists, beside what the plugin before gave. What the network allows is not
    /// for the pod to extend.
    fn within(self, listed: Vec<Prefix>) -> Result<Vec<Prefix>> {
        let outside = |address: IpAddr| !listed.iter().any(|prefix| prefix.contains(address));
        if let Some((key, address)) = self.pod.iter().find(|(_, address)| outside(*address)) {
            let text = format!(
                "{key} has {address}, which is not among security.addresses of the network; \
                 give the pod one of those, or list {address} there"
            );
            return Err(CniError::new(code::CONFIG, text));
        }
        Ok([self.chain, listed].concat())
    }
}

/// Addresses as of an interface: with or without the length of their network's prefix.
fn interface_addresses(name: &str, list: Option<&Value>) -> Result<Vec<IpAddr>> {
    let Some(list) = list.filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let read = |value: &Value| {
        let text = value.as_str()?;
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        address.parse().ok()
    };
    let addresses = list.as_array().map(|list| list.iter().map(read).collect());
    let wanted = "a list of addresses, such as 192.0.2.5/24";
    let addresses: Option<Vec<IpAddr>> = addresses.flatten();
    Ok(addresses.ok_or_else(|| Invalid::new(name, list, wanted))?)
}

// === bandwidth ===

/// The rates; none if there are none. What the network says is not for the pod to change, so
/// `bandwidth` comes before `runtimeConfig.bandwidth`, which pods ask for in whatever network.
pub fn bandwidth(
    fields: &Fields<'_>,
    pod_keys: &PodKeys<'_>,
    keys: &mut Keys,
) -> Result<Option<Bandwidth>> {
    if let Some(own) = fields.object("bandwidth")? {
        return limits(&own);
    }
    let Some(runtime) = &pod_keys.runtime else {
        return Ok(None);
    };
    let asked = keys.take(runtime.object("bandwidth"))?;
    let asked = asked.map(|asked| keys.take(limits(&asked)));
    Ok(asked.transpose()?.flatten())
}

fn limits(keys: &Fields<'_>) -> Result<Option<Bandwidth>> {
    let names = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];
    check_names("bandwidth", keys, &names)?;
    let bandwidth = Bandwidth {
        ingress: limit(keys, "ingress")?,
        egress: limit(keys, "egress")?,
    };
    Ok((bandwidth != Bandwidth::default()).then_some(bandwidth))
}

/// Whether a configuration has rates, without judging them.
#[must_use]
pub fn has_bandwidth(json: &Value) -> bool {
    Fields::of(json).is_some_and(|fields| fields.value("bandwidth").is_some())
}

/// As for the bandwidth plugin, 0 is as good as nothing.
fn limit(keys: &Fields<'_>, direction: &str) -> Result<Option<Limit>> {
    let (rate_key, burst_key) = (format!("{direction}Rate"), format!("{direction}Burst"));
    let number = |key: &str, wanted: &str, fits: &dyn Fn(u64) -> bool| match keys.value(key) {
        None => Ok(None),
        Some(value) => {
            let read = value
                .as_u64()
                .filter(|number| *number == 0 || fits(*number));
            let read = read.ok_or_else(|| Invalid::new(&format!("bandwidth.{key}"), value, wanted));
            read.map(|number| Some(number).filter(|number| *number > 0))
        }
    };
    let (low, high) = (RATES.start(), RATES.end());
    let wanted = format!("0 for no limit, or bits per second from {low} to {high}");
    let rate = number(&rate_key, &wanted, &|rate| RATES.contains(&rate))?;
    let wanted = format!("0 for one that suits the rate, or bits up to {MAX_BURST}");
    let burst = number(&burst_key, &wanted, &|burst| burst <= MAX_BURST)?;
    match (rate, burst) {
        (None, Some(burst)) => {
            let text = format!("bandwidth has {burst_key} {burst}, but no {rate_key}");
            Err(CniError::new(code::CONFIG, text))
        }
        (rate, burst) => Ok(rate.map(|rate| Limit { rate, burst })),
    }
}

fn check_names(object: &str, keys: &Fields<'_>, names: &[&str]) -> Result<()> {
    let known = |key: &&str| names.iter().any(|name| name.eq_ignore_ascii_case(key));
    match keys.keys().find(|key| !known(key)) {
        None => Ok(()),
        Some(key) => {
            let names = names.join(", ");
            let text = format!("unknown key {key:?} in {object}; it may have {names}");
            Err(CniError::new(code::CONFIG, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_as(json: &Value, has_ipam: bool, keys: &mut Keys) -> Result<Option<Security>> {
        let fields = Fields::of(json).unwrap();
        let sources = Sources {
            pod_keys: &PodKeys::read(&fields, keys)?,
            prev_result: json.get("prevResult"),
            has_ipam,
        };
        security(&fields, &sources, keys)
    }

    fn read(json: &Value) -> Result<Option<Security>> {
        read_as(json, false, &mut Keys::new(false))
    }

    fn rates(json: &Value, keys: &mut Keys) -> Result<Option<Bandwidth>> {
        let fields = Fields::of(json).unwrap();
        let pod_keys = PodKeys::read(&fields, keys)?;
        bandwidth(&fields, &pod_keys, keys)
    }

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn security_by_name() {
        let of = |json: Value| read(&json).unwrap();
        assert_eq!(of(json!({})), None);
        assert_eq!(of(json!({"security": "off"})), None);
        assert_eq!(of(json!({"security": null})), None);
        assert_eq!(of(json!({"macspoofchk": false})), None);
        let mac = Some(Security::mac());
        assert_eq!(of(json!({"security": "mac"})), mac);
        assert_eq!(of(json!({"macspoofchk": true})), mac);
        assert_eq!(of(json!({"macspoofchk": true, "security": "mac"})), mac);
        let strict = of(json!({
            "security": "strict", "macspoofchk": true,
            "runtimeConfig": {"ips": ["192.0.2.5/24", "2001:db8::5"]},
            "args": {"cni": {"ips": ["192.0.2.6"]}},
            "prevResult": {"ips": [
                {"address": "192.0.2.7/24"}, {"address": "192.0.2.8/24", "interface": 0}
            ]},
        }));
        let known = ["192.0.2.5", "192.0.2.6", "192.0.2.7", "2001:db8::5"];
        assert_eq!(strict, Some(Security::strict(prefixes(&known))));
    }

    #[test]
    fn security_by_keys_is_strict_in_what_they_do_not_say() {
        let of = |keys: Value| read(&json!({"security": keys})).unwrap().unwrap();
        let listed = of(json!({"addresses": ["192.0.2.0/24"]}));
        assert_eq!(listed, Security::strict(prefixes(&["192.0.2.0/24"])));
        assert_eq!(listed.to_string(), "strict");
        let loose = of(json!({
            "mac": ["00:00:5e:00:01:01"], "addresses": "any", "dhcpServer": true,
            "routerAdvertisements": true, "vlans": [101, 100, 0, 300],
        }));
        let expected = Security {
            macs: Some(vec![MacAddr([0, 0, 0x5e, 0, 1, 1])]),
            addresses: None,
            dhcp_server: true,
            router_advertisements: true,
            vlans: Some(vec![(0, 0), (100, 101), (300, 300)]),
        };
        assert_eq!(loose, expected);
        assert_eq!(loose.to_string(), "custom");
        let any = of(json!({"mac": "any", "addresses": "any", "vlans": "any"}));
        assert_eq!((any.macs, any.addresses, any.vlans), (None, None, None));
    }

    #[test]
    fn a_pod_gets_no_address_that_the_network_does_not_allow() {
        let of = |keys: Value, has_ipam| {
            let mut json = json!({
                "args": {"cni": {"ips": ["192.0.2.6/24"]}},
                "runtimeConfig": {"ips": ["2001:db8::6"]},
                "prevResult": {"ips": [{"address": "203.0.113.7/24"}]},
            });
            json["security"] = keys;
            let security = read_as(&json, has_ipam, &mut Keys::new(false));
            security.map(|security| security.unwrap().addresses.unwrap())
        };
        let listed = |list: &[&str]| of(json!({"addresses": list}), false);
        let both = ["192.0.2.0/24", "2001:db8::/64"];
        let allowed = ["192.0.2.0/24", "203.0.113.7", "2001:db8::/64"];
        assert_eq!(listed(&both).unwrap(), prefixes(&allowed));
        for (list, outside) in [
            (
                ["192.0.2.0/30", "2001:db8::/64"],
                "args.cni.ips has 192.0.2.6,",
            ),
            (
                ["192.0.2.0/24", "fe80::/10"],
                "runtimeConfig.ips has 2001:db8::6,",
            ),
        ] {
            let error = listed(&list).unwrap_err();
            assert_eq!(error.code, code::CONFIG);
            assert!(error.msg.contains(outside), "{error}");
        }
        // The IPAM plugin says which ones the pod has.
        let chain = of(json!("strict"), true).unwrap();
        assert_eq!(chain, prefixes(&["203.0.113.7"]));
    }

    #[test]
    fn bandwidth_of_the_network_comes_before_that_of_the_pod() {
        let of = |json: Value| rates(&json, &mut Keys::new(false)).unwrap();
        let limit = |rate, burst| Some(Limit { rate, burst });
        assert_eq!(of(json!({})), None);
        assert_eq!(
            of(json!({"bandwidth": {"ingressRate": 0, "egressBurst": 0}})),
            None
        );
        let pod = json!({"ingressRate": 1_000_000, "ingressBurst": 2_147_483_647});
        let runtime = json!({"runtimeConfig": {"bandwidth": pod}});
        let expected = Bandwidth {
            ingress: limit(1_000_000, Some(2_147_483_647)),
            egress: None,
        };
        assert_eq!(of(runtime.clone()), Some(expected));
        let mut both = runtime;
        both["bandwidth"] = json!({"egressRate": 1000});
        let expected = Bandwidth {
            ingress: None,
            egress: limit(1000, None),
        };
        assert_eq!(of(both), Some(expected));
    }

    /// As kubevirt/macvtap-cni attaches them.
    #[test]
    fn keys_of_other_plugins_that_are_wrong_are_left_out_with_a_device_id() {
        let pod = |value: Value| json!({"runtimeConfig": {"bandwidth": value}});
        for (json, part) in [
            (json!({"macspoofchk": "yes"}), "macspoofchk"),
            (json!({"macspoofchk": 1}), "macspoofchk"),
            (json!({"macspoofchk": {}}), "macspoofchk"),
            (json!({"runtimeConfig": [7]}), "runtimeConfig [7]"),
            (json!({"args": "vm"}), "args \"vm\""),
            (json!({"args": {"cni": []}}), "cni []"),
            (pod(json!("10M")), "bandwidth"),
            (pod(json!({"ingressRate": "10M"})), "ingressRate"),
            // What Kubernetes allows in kubernetes.io/egress-bandwidth.
            (
                pod(json!({"egressRate": 1_000_000_000_000_000_u64})),
                "egressRate",
            ),
            (pod(json!({"ingressRate": 1})), "ingressRate 1"),
            (pod(json!({"egressBurst": i32::MAX})), "no egressRate"),
            (
                pod(json!({"ingressRate": 8000, "shapedSubnets": []})),
                "shapedSubnets",
            ),
        ] {
            let mut keys = Keys::new(true);
            assert_eq!(read_as(&json, false, &mut keys).unwrap(), None, "{json}");
            keys.warnings.clear();
            assert_eq!(rates(&json, &mut keys).unwrap(), None, "{json}");
            let strict = read(&json).is_ok() && rates(&json, &mut Keys::new(false)).is_ok();
            assert!(!strict, "{json}");
            read_as(&json, false, &mut keys).unwrap();
            assert!(keys.warnings.concat().contains(part), "{:?}", keys.warnings);
        }
    }

    #[test]
    fn keys_of_ours_that_are_wrong_are_refused_with_a_device_id() {
        for json in [
            json!({"security": "Strict"}),
            json!({"bandwidth": {"ingressRate": "10M"}}),
            json!({"macspoofchk": true, "security": "off"}),
        ] {
            let mut keys = Keys::new(true);
            let security = read_as(&json, false, &mut keys);
            assert!(
                security.is_err() || rates(&json, &mut keys).is_err(),
                "{json}"
            );
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn refuses_what_it_cannot_keep_naming_the_key_and_what_is_allowed() {
        let security_of = |value: Value| json!({"security": value});
        let bandwidth_of = |value: Value| json!({"bandwidth": value});
        let address = |value: Value| security_of(json!({"addresses": value}));
        for (json, parts) in [
            (security_of(json!("Strict")), ["security", "\"strict\""]),
            (security_of(json!(true)), ["security true", "\"mac\""]),
            (
                security_of(json!("strict")),
                ["none are known", "192.0.2.0/24"],
            ),
            (
                security_of(json!({})),
                ["none are known", "runtimeConfig.ips"],
            ),
            (
                security_of(json!({"vlan": [1]})),
                ["unknown key \"vlan\"", "vlans"],
            ),
            (address(json!([])), ["none are known", "any"]),
            (
                address(json!("all")),
                ["security.addresses", "list of addresses"],
            ),
            (
                address(json!(["192.0.2.5/24"])),
                ["security.addresses", "192.0.2.5/24"],
            ),
            (
                address(json!(["fe80::1%eth0"])),
                ["security.addresses", "prefixes"],
            ),
            (address(json!([1])), ["security.addresses 1", "prefixes"]),
            (
                address((0..=255).map(|n| format!("192.0.2.{n}")).collect()),
                ["256", "at most"],
            ),
            (
                security_of(json!({"mac": "02:00:00:00:00:01"})),
                ["security.mac", "further MACs"],
            ),
            (
                security_of(json!({"mac": ["01:00:5e:00:00:01"]})),
                ["security.mac", "01:00:5e"],
            ),
            (
                security_of(
                    json!({"mac": (0..=255).map(|n| format!("02:00:00:00:00:{n:02x}"))
                    .collect::<Vec<_>>()}),
                ),
                ["256 further MACs", "at most 8"],
            ),
            (
                security_of(json!({"addresses": "any", "vlans": [4095]})),
                ["vlans 4095", "4094"],
            ),
            (
                security_of(json!({"addresses": "any", "vlans": [-1]})),
                ["vlans -1", "4094"],
            ),
            (
                security_of(json!({"addresses": "any", "vlans": true})),
                ["vlans true", "any"],
            ),
            (
                security_of(json!({"addresses": "any", "dhcpServer": "no"})),
                ["dhcpServer", "true or"],
            ),
            (
                security_of(json!({"addresses": "any",
                    "vlans": (1..40).map(|n| 2 * n).collect::<Vec<_>>()})),
                ["39 ranges", "at most 32"],
            ),
            (
                json!({"macspoofchk": "yes"}),
                ["macspoofchk", "true or false"],
            ),
            (
                json!({"macspoofchk": true, "security": "off"}),
                ["macspoofchk", "contradicts"],
            ),
            (
                json!({"security": "strict", "runtimeConfig": {"ips": "192.0.2.5"}}),
                ["runtimeConfig.ips", "a list"],
            ),
            (
                json!({"security": "strict", "runtimeConfig": {"ips": ["192.0.2"]}}),
                ["runtimeConfig.ips", "192.0.2"],
            ),
            (bandwidth_of(json!(1000)), ["bandwidth 1000", "object"]),
            (
                bandwidth_of(json!({"rate": 1})),
                ["unknown key \"rate\"", "ingressRate"],
            ),
            (
                bandwidth_of(json!({"ingressRate": 1})),
                ["bandwidth.ingressRate 1", "from 1000"],
            ),
            (
                bandwidth_of(json!({"egressRate": "1G"})),
                ["bandwidth.egressRate", "bits per second"],
            ),
            (
                bandwidth_of(json!({"egressRate": 1.5e6})),
                ["bandwidth.egressRate", "bits per second"],
            ),
            (
                bandwidth_of(json!({"egressRate": -1})),
                ["bandwidth.egressRate -1", "0 for no limit"],
            ),
            (
                bandwidth_of(json!({"egressRate": 1_u64 << 63})),
                ["9223372036854775808", "1000000000000"],
            ),
            (
                bandwidth_of(json!({"egressBurst": 8})),
                ["egressBurst 8", "no egressRate"],
            ),
            (
                bandwidth_of(json!({"egressRate": 1000, "egressBurst": 1_u64 << 36})),
                ["bandwidth.egressBurst", "34359738360"],
            ),
            (
                json!({"runtimeConfig": {"bandwidth": []}}),
                ["bandwidth []", "object"],
            ),
        ] {
            let outcome = read(&json).map(|_| ());
            let error = outcome
                .and_then(|()| rates(&json, &mut Keys::new(false)).map(|_| ()))
                .unwrap_err();
            assert_eq!(error.code, code::CONFIG, "{json}");
            assert!(
                parts.iter().all(|part| error.msg.contains(part)),
                "{json}: {error}"
            );
        }
    }
}
