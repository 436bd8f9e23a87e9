//! What an IPAM plugin answers to ADD, in the shape of whatever version; and what results say of
//! an interface's addresses. Pure.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::version::{Family, Version, supported};
use crate::types::{
    ip_config::{InterfaceAddress, IpConfig, Route},
    json::{Fields, Invalid},
    prefix::{Prefix, is_ipv6_link_local},
};

/// Addresses and routes that are accepted at most.
const MAX_ENTRIES: usize = 256;

/// The addresses of an interface, with what belongs to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpamResult {
    /// The addresses, with the gateways of their networks.
    pub ips: Vec<Ip>,
    /// The routes, and as they are written.
    pub routes: Vec<(Route, Value)>,
    /// `dns`, if there is any.
    pub dns: Option<Value>,
}

/// An address, and the gateway of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// The address.
    pub address: InterfaceAddress,
    /// The gateway, if the network has one.
    pub gateway: Option<IpAddr>,
}

/// What is wrong with a result.
type Flaw = String;

impl IpamResult {
    /// Reads what an IPAM plugin answered to ADD of a configuration in `version`.
    pub fn read(bytes: &[u8], version: Version) -> Result<Self, Flaw> {
        let json: Value = serde_json::from_slice(bytes).map_err(|error| {
            let length = bytes.len().min(100);
            let start = String::from_utf8_lossy(&bytes[..length]);
            format!("it is no JSON ({error}): {start:?}")
        })?;
        let fields = Fields::of(&json).ok_or("it is no JSON object")?;
        let result = match family(&fields, version)? {
            Family::V02 => Self::of_old(&fields)?,
            Family::V03 | Family::V1 => Self {
                ips: list(&fields, "ips")?
                    .map(of_ipam)
                    .collect::<Result<_, _>>()?,
                routes: list(&fields, "routes")?
                    .map(route)
                    .collect::<Result<_, _>>()?,
                dns: dns(&fields),
            },
        };
        if result.ips.is_empty() {
            return Err("it has no addresses".into());
        }
        Ok(result)
    }

    /// Before 0.3.0: one address of each family at most, which has the routes.
    fn of_old(fields: &Fields<'_>) -> Result<Self, Flaw> {
        let mut result = Self {
            dns: dns(fields),
            ..Self::default()
        };
        for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(part) = fields.object(key)? else {
                continue;
            };
            let ip = ip(&part, "ip")?;
            if ip.address.ip.is_ipv4() != is_ipv4 {
                return Err(format!("{} of {key} is of the other family", ip.address));
            }
            result.ips.push(ip);
            for value in list(&part, "routes")? {
                result.routes.push(route(value)?);
            }
        }
        Ok(result)
    }

    /// What a chain's result, that of ADD, says of the interface `name` of the sandbox `sandbox`.
    /// Routes belong to no interface: all of them are taken.
    pub fn of_chain(result: &Value, name: &str, sandbox: &str) -> Result<Self, Flaw> {
        let is_ours = |ip: &&Value| {
            let index = ip["interface"].as_u64();
            let index = index.and_then(|index| usize::try_from(index).ok());
            index.is_some_and(|index| {
                let interface = &result["interfaces"][index];
                interface["name"] == name && interface["sandbox"] == sandbox
            })
        };
        let fields = Fields::of(result).ok_or("it is no JSON object")?;
        let ips = list(&fields, "ips")?.filter(is_ours).map(|value| {
            let fields = Fields::of(value).ok_or("an entry of ips is no object")?;
            ip(&fields, "address")
        });
        Ok(Self {
            ips: ips.collect::<Result<_, _>>()?,
            routes: list(&fields, "routes")?
                .map(route)
                .collect::<Result<_, _>>()?,
            dns: None,
        })
    }

    /// What is configured on the interface. A route without a gateway has that of its family's
    /// first address, if there is one.
    #[must_use]
    pub fn ip_config(&self) -> IpConfig {
        let addresses: Vec<InterfaceAddress> = self.ips.iter().map(|ip| ip.address).collect();
        let default = |ipv4| {
            let gateways = self.ips.iter().filter_map(|ip| ip.gateway);
            gateways
                .into_iter()
                .find(|gateway| gateway.is_ipv4() == ipv4)
        };
        let is_near = |gateway: IpAddr| {
            let networks = addresses.iter().map(InterfaceAddress::network);
            is_ipv6_link_local(gateway) || networks.into_iter().any(|near| near.contains(gateway))
        };
        let routes = self.routes.iter().map(|(route, _)| {
            let is_on_link = route.scope.is_some_and(|scope| scope > 0);
            let default = default(route.destination.is_ipv4()).filter(|_| !is_on_link);
            let gateway = route.gateway.or(default);
            Route {
                gateway,
                onlink: gateway.is_some_and(|gateway| !is_near(gateway)),
                ..route.clone()
            }
        });
        IpConfig {
            routes: routes.collect(),
            addresses,
        }
    }

    /// The addresses alone.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ips.iter().map(|ip| ip.address.ip)
    }

    /// The addresses, each as what a guest may use.
    pub fn hosts(&self) -> impl Iterator<Item = Prefix> {
        self.addresses().map(Prefix::host)
    }

    /// Adds all of it to a chain's result in `family`, as that of the interface with this index in
    /// the list of interfaces.
    pub fn add_to(&self, fields: &mut Map<String, Value>, family: Family, interface: usize) {
        if let Some(dns) = &self.dns {
            fields.insert("dns".into(), dns.clone());
        }
        if family == Family::V02 {
            return self.add_to_old(fields);
        }
        let ips = self.ips.iter().map(|ip| ip.write(family, interface));
        extend(fields, "ips", ips);
        extend(
            fields,
            "routes",
            self.routes.iter().map(|(_, value)| value.clone()),
        );
    }

    fn add_to_old(&self, fields: &mut Map<String, Value>) {
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.ip.is_ipv4() == ipv4) else {
                continue;
            };
            let mut part = Map::new();
            part.insert("ip".into(), ip.address.to_string().into());
            part.extend(ip.written_gateway());
            let routes = self.routes.iter();
            let routes = routes.filter(|(route, _)| route.destination.is_ipv4() == ipv4);
            let routes = routes.map(|(_, value)| {
                let mut value = value.clone();
                if let Some(fields) = value.as_object_mut() {
                    fields.retain(|key, _| key == "dst" || key == "gw");
                }
                value
            });
            extend(&mut part, "routes", routes);
            fields.insert(key.into(), part.into());
        }
    }
}

impl Ip {
    /// In the order of keys of the reference implementation.
    fn write(&self, family: Family, interface: usize) -> Value {
        let mut fields = Map::new();
        if family == Family::V03 {
            let version = if self.address.ip.is_ipv4() { "4" } else { "6" };
            fields.insert("version".into(), version.into());
        }
        fields.insert("interface".into(), interface.into());
        fields.insert("address".into(), self.address.to_string().into());
        fields.extend(self.written_gateway());
        fields.into()
    }

    fn written_gateway(&self) -> Option<(String, Value)> {
        let gateway = self.gateway?;
        Some(("gateway".into(), gateway.to_string().into()))
    }
}

fn family(fields: &Fields<'_>, version: Version) -> Result<Family, Flaw> {
    match fields.text("cniVersion")? {
        None => Ok(version.family()),
        Some(theirs) => match supported(theirs) {
            Ok(theirs) => Ok(theirs.family()),
            Err(_) => Err(format!("its cniVersion {theirs:?} is not known")),
        },
    }
}

fn dns(fields: &Fields<'_>) -> Option<Value> {
    let dns = fields.value("dns").filter(|dns| dns.is_object());
    dns.filter(|dns| **dns != json!({})).cloned()
}

/// An IPAM plugin does not choose the interface: its result has none, so only the first index can
/// be meant for ours.
fn of_ipam(value: &Value) -> Result<Ip, Flaw> {
    let fields = Fields::of(value).ok_or("an entry of ips is no object")?;
    let ip = ip(&fields, "address")?;
    match fields.value("interface") {
        Some(index) if index.as_u64() != Some(0) => {
            let address = ip.address;
            Err(format!(
                "address {address} is of interface {index}, which is not the one asked for"
            ))
        }
        _ => Ok(ip),
    }
}

fn ip(fields: &Fields<'_>, key: &str) -> Result<Ip, Flaw> {
    let address = fields.text(key)?;
    let address = address.ok_or_else(|| format!("an address without the key {key}"))?;
    let address: InterfaceAddress = address.parse().map_err(|error| format!("{error:#}"))?;
    if !is_assignable(address.ip) {
        return Err(format!(
            "{address} is no address that an interface can have"
        ));
    }
    let is_ipv4 = address.ip.is_ipv4();
    match fields.value("version") {
        None => {}
        Some(version) if *version == (if is_ipv4 { "4" } else { "6" }) => {}
        Some(version) => return Err(format!("address {address} has version {version}")),
    }
    let gateway = gateway(fields, "gateway")?;
    match gateway {
        Some(gateway) if gateway.is_ipv4() != is_ipv4 => Err(format!(
            "gateway {gateway} of {address} is of the other family"
        )),
        _ => Ok(Ip { address, gateway }),
    }
}

fn gateway(fields: &Fields<'_>, key: &str) -> Result<Option<IpAddr>, Flaw> {
    let Some(gateway) = fields.text(key)? else {
        return Ok(None);
    };
    let parsed = gateway.parse::<IpAddr>();
    parsed
        .map(Some)
        .map_err(|_| format!("{key} {gateway:?} is no address"))
}

fn route(value: &Value) -> Result<(Route, Value), Flaw> {
    let fields = Fields::of(value).ok_or("an entry of routes is no object")?;
    let destination = fields.text("dst")?;
    let destination = destination.ok_or("a route without the key dst")?;
    let destination: InterfaceAddress =
        destination.parse().map_err(|error| format!("{error:#}"))?;
    let gateway = gateway(&fields, "gw")?;
    if gateway.is_some_and(|gateway| gateway.is_ipv4() != destination.ip.is_ipv4()) {
        return Err(format!(
            "the gateway of route {destination} is of the other family"
        ));
    }
    let number = |key| {
        let number = fields.number(key, u32::MAX.into())?;
        Ok::<_, Flaw>(number.and_then(|number| u32::try_from(number).ok()))
    };
    let scope = fields.number("scope", u8::MAX.into())?;
    // The reference implementation leaves out a 0 of these, which means the default.
    let set = |key| Ok::<_, Flaw>(number(key)?.filter(|number| *number > 0));
    let route = Route {
        destination: destination.network(),
        gateway,
        onlink: false,
        mtu: set("mtu")?,
        advmss: set("advmss")?,
        priority: set("priority")?,
        table: number("table")?,
        scope: scope.and_then(|scope| u8::try_from(scope).ok()),
    };
    Ok((route, value.clone()))
}

fn list<'a>(
    fields: &Fields<'a>,
    key: &str,
) -> Result<impl Iterator<Item = &'a Value> + use<'a>, Flaw> {
    let value = fields.value(key);
    let wanted = "a list of objects";
    let list = match value {
        None => &[][..],
        Some(Value::Array(list)) => list,
        Some(other) => return Err(Invalid::new(key, other, wanted).into()),
    };
    if list.len() > MAX_ENTRIES {
        let count = list.len();
        return Err(format!(
            "it has {count} {key}; at most {MAX_ENTRIES} are possible"
        ));
    }
    Ok(list.iter())
}

fn extend(fields: &mut Map<String, Value>, key: &str, new: impl Iterator<Item = Value>) {
    let list = fields.entry(key).or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(new);
    }
}

fn is_assignable(ip: IpAddr) -> bool {
    let broadcast = IpAddr::from([255; 4]);
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || ip == broadcast)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &Value) -> Result<IpamResult, Flaw> {
        IpamResult::read(json.to_string().as_bytes(), supported("1.0.0").unwrap())
    }

    /// Two addresses and routes, as each family of versions writes them.
    fn results() -> [Value; 4] {
        let routes = json!([
            {"dst": "0.0.0.0/0"},
            {"dst": "2001:db8:1::/48", "gw": "fe80::1"},
        ]);
        let old = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "192.0.2.5/24", "gateway": "192.0.2.1", "routes": [routes[0]]},
            "ip6": {"ip": "2001:db8::5/64", "routes": [routes[1]]},
            "dns": {},
        });
        let ips = json!([
            {"version": "4", "address": "192.0.2.5/24", "gateway": "192.0.2.1"},
            {"version": "6", "address": "2001:db8::5/64"},
        ]);
        let middle = json!({"cniVersion": "0.3.1", "ips": ips, "routes": routes, "dns": {}});
        let mut new = json!({"cniVersion": "1.1.0", "ips": ips, "routes": routes});
        for ip in new["ips"].as_array_mut().unwrap() {
            ip.as_object_mut().unwrap().remove("version");
        }
        let mut unversioned = new.clone();
        unversioned.as_object_mut().unwrap().remove("cniVersion");
        [old, middle, new, unversioned]
    }

    #[test]
    fn results_of_all_versions_say_the_same() {
        let all = results().map(|json| read(&json).unwrap());
        for result in &all {
            assert_eq!(*result, all[0]);
        }
        let config = all[0].ip_config();
        let texts = config.addresses.iter().map(ToString::to_string);
        let expected = ["192.0.2.5/24", "2001:db8::5/64"];
        assert_eq!(texts.collect::<Vec<_>>(), expected);
        let texts = config.routes.iter().map(ToString::to_string);
        let expected = ["0.0.0.0/0 via 192.0.2.1", "2001:db8:1::/48 via fe80::1"];
        assert_eq!(texts.collect::<Vec<_>>(), expected);
        assert!(config.routes.iter().all(|route| !route.onlink));
    }

    #[test]
    fn what_is_read_is_written_in_each_version() {
        let result = read(&results()[0]).unwrap();
        for (family, json) in [
            (Family::V02, &results()[0]),
            (Family::V03, &results()[1]),
            (Family::V1, &results()[2]),
        ] {
            let mut fields = Map::new();
            result.add_to(&mut fields, family, 0);
            let mut expected = json.clone();
            for ip in expected["ips"].as_array_mut().into_iter().flatten() {
                ip["interface"] = json!(0);
            }
            for key in ["cniVersion", "dns"] {
                expected.as_object_mut().unwrap().remove(key);
            }
            expected
                .as_object_mut()
                .unwrap()
                .retain(|_, value| !value.is_null());
            assert_eq!(Value::Object(fields), expected);
        }
    }

    #[test]
    fn options_of_routes_are_read() {
        let json = json!({"ips": [{"address": "192.0.2.5/32", "gateway": "192.0.2.1"}], "routes": [
            {"dst": "198.51.100.7/24", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 5,
             "scope": 0},
            {"dst": "203.0.113.0/24", "scope": 253, "mtu": 0},
        ]});
        let config = read(&json).unwrap().ip_config();
        let gateway = "192.0.2.1".parse().unwrap();
        let expected = Route {
            destination: "198.51.100.0/24".parse().unwrap(),
            gateway: Some(gateway),
            onlink: true,
            mtu: Some(1400),
            advmss: Some(1300),
            priority: Some(7),
            table: Some(5),
            scope: Some(0),
        };
        assert_eq!(config.routes[0], expected);
        assert_eq!(
            (config.routes[1].gateway, config.routes[1].mtu),
            (None, None)
        );
    }

    #[test]
    fn only_what_belongs_to_the_interface_is_taken_from_a_chain() {
        let interface = |name, sandbox| json!({"name": name, "sandbox": sandbox});
        let chain = json!({
            "interfaces": [interface("eth0", "/a"), interface("net1", "/a"), interface("net1", "/b")],
            "ips": [
                {"interface": 0, "address": "192.0.2.1/24"},
                {"interface": 1, "address": "192.0.2.2/24"},
                {"interface": 2, "address": "192.0.2.3/24"},
                {"interface": 9, "address": "192.0.2.4/24"},
                {"address": "192.0.2.5/24"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        let ours = IpamResult::of_chain(&chain, "net1", "/a").unwrap();
        let hosts: Vec<String> = ours.hosts().map(|host| host.to_string()).collect();
        assert_eq!(hosts, ["192.0.2.2"]);
        assert_eq!(ours.routes.len(), 1);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn what_makes_no_sense_is_refused() {
        let of = |address: &str, more: &Value| {
            let mut ip = json!({"address": address});
            let more = more.as_object().unwrap().clone();
            ip.as_object_mut().unwrap().extend(more);
            json!({"ips": [ip]})
        };
        let ok = "192.0.2.5/24";
        let routed = |route: &Value| json!({"ips": [{"address": ok}], "routes": [route]});
        for (json, part) in [
            (json!([]), "no JSON object"),
            (json!({}), "no addresses"),
            (json!({"ips": []}), "no addresses"),
            (json!({"ips": {}}), "a list"),
            (json!({"ips": ["192.0.2.5/24"]}), "no object"),
            (json!({"ips": [{}]}), "key address"),
            (
                json!({"cniVersion": "0.2.0", "ips": [{"address": ok}]}),
                "no addresses",
            ),
            (json!({"cniVersion": "7.0.0"}), "7.0.0"),
            (
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "::1/64"}}),
                "::1/64",
            ),
            (
                json!({"cniVersion": "0.2.0", "ip4": {"ip": "fd00::1/64"}}),
                "other family",
            ),
            (of("192.0.2.5", &json!({})), "192.0.2.5"),
            (of("192.0.2.5/33", &json!({})), "192.0.2.5/33"),
            (of("0.0.0.0/0", &json!({})), "can have"),
            (of("224.0.0.1/24", &json!({})), "can have"),
            (of("127.0.0.1/8", &json!({})), "can have"),
            (of("::1/128", &json!({})), "can have"),
            (of("255.255.255.255/24", &json!({})), "can have"),
            (of(ok, &json!({"interface": 1})), "interface 1"),
            (of(ok, &json!({"interface": -1})), "interface -1"),
            (of(ok, &json!({"version": "6"})), "version"),
            (of(ok, &json!({"gateway": "fd00::1"})), "other family"),
            (of(ok, &json!({"gateway": "x"})), "\"x\""),
            (routed(&json!({})), "key dst"),
            (routed(&json!({"dst": "0.0.0.0"})), "0.0.0.0"),
            (
                routed(&json!({"dst": "0.0.0.0/0", "gw": "fd00::1"})),
                "other family",
            ),
            (routed(&json!({"dst": "0.0.0.0/0", "mtu": -1})), "mtu -1"),
            (
                routed(&json!({"dst": "0.0.0.0/0", "scope": 256})),
                "scope 256",
            ),
            (routed(&json!({"dst": "0.0.0.0/0", "table": "x"})), "table"),
            (json!({"ips": vec![json!({"address": ok}); 257]}), "257"),
        ] {
            let flaw = read(&json).unwrap_err();
            assert!(flaw.contains(part), "{json}: {flaw}");
        }
        let garbage = IpamResult::read(b"\xff{", supported("1.0.0").unwrap());
        assert!(garbage.unwrap_err().contains("no JSON"));
        assert!(read(&of(ok, &json!({"interface": 0}))).is_ok());
    }
}
