//! The network configuration and `CNI_ARGS`, checked. Pure.

use std::{collections::HashMap, path::PathBuf};

use log::LevelFilter;
use serde_json::Value;

use super::{
    error::{CniError, Result, code},
    ipam_config::{self, Ipam},
    mac_policy::{self, Choice, MacPolicy, Names},
    options,
    pod_keys::PodKeys,
    policy, result,
    version::Version,
};
use crate::{
    macvtap::{
        bandwidth::Bandwidth, lower::LowerDevice, security::Security, sub_interface::SubInterface,
    },
    netlink::Link,
    types::{
        device_id::DeviceId,
        json::{Fields, Invalid},
        keys::Keys,
        link_name::LinkName,
        mac::MacAddr,
        mode::Mode,
        owner::{Access, Owner, QEMU},
        port_options::PortOptions,
        resource_options::{MIN_MTU, NO_RESOURCE_OPTIONS, ResourceOptions},
        vlan,
    },
};

/// The key in `CNI_ARGS` in which Kubernetes' runtimes pass a pod's UID.
const POD_UID: &str = "K8S_POD_UID";

/// The user and the group to which the kernel gives a tap.
const ROOT: u32 = 0;

/// What an ADD or CHECK is to do, beside the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The version that the configuration is in, and the result has to be.
    pub version: Version,
    /// Where the macvtap comes from.
    pub source: Source,
    /// The MTU in bytes; that of the lower device if none.
    pub mtu: Option<u32>,
    /// The hardware address that is asked for; none if none.
    pub mac: Option<MacAddr>,
    /// What else the macvtap is set to.
    pub options: PortOptions,
    /// Which one the interface gets if none is asked for.
    pub mac_policy: MacPolicy,
    /// The pod's namespace and name; none outside of Kubernetes.
    pub pod: Option<(String, String)>,
    /// The network's name.
    pub network: String,
    /// Receive frames for every address.
    pub promiscuous: bool,
    /// Receive every multicast frame.
    pub all_multicast: bool,
    /// Leave ARP and IPv6 of the pod's own IP stack on the interface.
    pub host_stack: bool,
    /// Who may open the tap.
    pub access: Access,
    /// The pod's UID; none outside of Kubernetes.
    pub pod_uid: Option<String>,
    /// What the guest may send; none if anything.
    pub security: Option<Security>,
    /// How much it may send and receive; none if anything.
    pub bandwidth: Option<Bandwidth>,
    /// Where its IP addresses come from; none if it gets none.
    pub ipam: Option<Ipam>,
    /// The result of the plugin before.
    pub prev_result: Option<Value>,
    /// What is wrong with keys that do not matter.
    pub warnings: Vec<String>,
}

/// Where the macvtap comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A device ID of our device plugin: it says which macvtap to make.
    Allocated(DeviceId),
    /// It exists on the host and is handed over.
    Existing(Existing),
    /// No device plugin: the configuration names the lower device.
    Configured {
        /// The lower device's name.
        lower: LinkName,
        /// The macvtap's mode.
        mode: Mode,
        /// Whether the lower device is in the pod's network namespace.
        in_pod: bool,
        /// The VLAN of it that the macvtap is in, which is made if need be.
        vlan: Option<SubInterface>,
    },
}

impl Source {
    /// What its resource sets it to.
    fn resource_options(&self) -> &ResourceOptions {
        match self {
            Self::Allocated(device) => &device.options,
            Self::Configured { .. } | Self::Existing(_) => &NO_RESOURCE_OPTIONS,
        }
    }

    /// The mode of the macvtap; none if it exists already.
    fn mode(&self) -> Option<Mode> {
        match self {
            Self::Allocated(device) => Some(device.mode),
            Self::Configured { mode, .. } => Some(*mode),
            Self::Existing(_) => None,
        }
    }
}

/// A macvtap that exists on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// The device ID: one of the original, or the macvtap's name.
    pub id: String,
    /// Whether a macvtap may be taken over that neither the original nor our device plugin made.
    pub any: bool,
}

/// Where log lines go, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// The least important level that is logged.
    pub level: LevelFilter,
    /// The file that lines are added to; standard error if none.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration `json`, with `args` being `CNI_ARGS`.
    ///
    /// With a device ID the allocation decides, and users' networks have keys that
    /// kubevirt/macvtap-cni never read: what makes no sense there is a warning.
    pub fn read(json: &Value, args: &str, version: Version) -> Result<Self> {
        let fields = fields(json)?;
        let args = Args::parse(args)?;
        let mut keys = Keys::new(device_id(json).is_some());
        let pod_keys = PodKeys::read(&fields, &mut keys)?;
        let prev_result = result::previous(json, version)?;
        let ipam = ipam_config::read(&fields, keys.lenient, &mut keys.warnings)?;
        let assign = ipam.as_ref().is_some_and(|ipam| ipam.assign);
        let sources = policy::Sources {
            pod_keys: &pod_keys,
            prev_result: prev_result.as_ref(),
            has_ipam: ipam.is_some(),
        };
        let source = source(&fields, &pod_keys, &mut keys)?;
        let resource = source.resource_options();
        Ok(Self {
            version,
            options: options::read(&fields, source.mode(), &resource.port, &mut keys)?,
            mtu: mtu(&fields, resource.mtu)?,
            source,
            mac: mac(&fields, &pod_keys, &args, &mut keys)?,
            mac_policy: keys.take(mac_policy::read(&fields))?.unwrap_or_default(),
            pod: pod(&args),
            network: fields.text("name")?.unwrap_or_default().to_owned(),
            promiscuous: fields.flag("promiscMode")?.unwrap_or(false),
            all_multicast: keys.take(fields.flag("allMulticast"))?.unwrap_or(true),
            host_stack: host_stack(&fields, assign, &mut keys)?,
            access: access(&fields)?,
            pod_uid: args.get(POD_UID).map(str::to_owned),
            bandwidth: policy::bandwidth(&fields, &pod_keys, &mut keys)?,
            security: policy::security(&fields, &sources, &mut keys)?,
            ipam,
            prev_result,
            warnings: keys.warnings,
        })
    }

    /// What decides the MAC of the interface `ifname`.
    #[must_use]
    pub fn mac_choice<'a>(&'a self, ifname: &'a str, mode: Mode) -> Choice<'a> {
        let names = |(namespace, pod): &'a (String, String)| Names {
            namespace,
            pod,
            network: &self.network,
            ifname,
        };
        Choice {
            asked: self.mac,
            policy: self.mac_policy,
            mode,
            names: self.pod.as_ref().map(names),
        }
    }

    /// Fails if the configured MTU is above that of the lower device.
    pub fn check_mtu(&self, lower: &Link) -> Result<()> {
        let flaw = self.mtu.and_then(|mtu| LowerDevice::mtu_flaw(lower, mtu));
        flaw.map_or(Ok(()), |flaw| Err(CniError::new(code::CONFIG, flaw)))
    }
}

fn pod(args: &Args) -> Option<(String, String)> {
    let names = ["K8S_POD_NAMESPACE", "K8S_POD_NAME"].map(|key| args.get(key).map(str::to_owned));
    let [namespace, name] = names;
    Some((namespace?, name?))
}

/// The pod's UID, which its attachments without a device ID derive their taps' numbers from.
#[must_use]
pub fn pod_uid(args: &str) -> Option<String> {
    let args = Args::parse(args).ok()?;
    args.get(POD_UID).map(str::to_owned)
}

/// The device ID of a configuration, if it has one, without judging it.
#[must_use]
pub fn device_id(json: &Value) -> Option<&str> {
    let fields = Fields::of(json)?;
    let runtime = fields.object("runtimeConfig").ok().flatten();
    let runtime = runtime.and_then(|runtime| runtime.text("deviceID").ok().flatten());
    runtime.or_else(|| fields.text("deviceID").ok().flatten())
}

/// The IPAM plugin of a configuration, without judging it; none if ADD does not call it.
#[must_use]
pub fn ipam_plugin(json: &Value) -> Option<String> {
    ipam_config::used(&Fields::of(json)?, device_id(json).is_some())
}

/// The lower device of a configuration without device ID, without judging it.
#[must_use]
pub fn lower_device(json: &Value) -> Option<LinkName> {
    Fields::of(json).and_then(|fields| lower(&fields).ok().flatten())
}

/// The VLAN that a configuration without a device ID names, without judging it.
#[must_use]
pub fn vlan(json: &Value) -> Option<SubInterface> {
    let fields = Fields::of(json)?;
    let id = vlan::read(&fields).ok()??;
    let lower = lower(&fields).ok()??;
    let none = device_id(json).is_none() && !is_in_pod(json);
    none.then(|| SubInterface::vlan(lower, id))
}

/// Whether the lower device of a configuration is in the pod, without judging it.
#[must_use]
pub fn is_in_pod(json: &Value) -> bool {
    let flag = Fields::of(json).and_then(|fields| fields.flag("linkInContainer").ok()?);
    flag.unwrap_or(false)
}

/// The mode of a macvtap without a device ID, without judging it; none if it is not valid.
#[must_use]
pub fn standalone_mode(json: &Value) -> Option<Mode> {
    let mode = mode(&Fields::of(json)?).ok()?;
    Some(mode.unwrap_or_default())
}

/// The MAC that ADD gives the interface `ifname`, without judging the configuration; none if that
/// does not decide it.
#[must_use]
pub fn expected_mac(json: &Value, args: &str, ifname: &str, in_mode: Mode) -> Option<MacAddr> {
    let fields = Fields::of(json)?;
    let args = Args::parse(args).ok()?;
    let mut keys = Keys::new(device_id(json).is_some());
    let pod_keys = PodKeys::read(&fields, &mut keys).ok()?;
    let pod = pod(&args);
    let network = fields.text("name").ok()??;
    let names = pod.as_ref().map(|(namespace, pod)| Names {
        namespace,
        pod,
        network,
        ifname,
    });
    let choice = Choice {
        asked: mac(&fields, &pod_keys, &args, &mut keys).ok()?,
        policy: keys
            .take(mac_policy::read(&fields))
            .ok()?
            .unwrap_or_default(),
        mode: in_mode,
        names,
    };
    choice.mac()
}

/// `logLevel` and `logFile`, none if the configuration has neither, and what is wrong with them: a
/// wrong value is ignored.
#[must_use]
pub fn logging(json: &Value) -> (Option<Logging>, Vec<String>) {
    let mut keys = Keys::new(true);
    let logging = read_logging(json, &mut keys).unwrap_or_default();
    (logging, keys.warnings)
}

fn read_logging(json: &Value, keys: &mut Keys) -> Result<Option<Logging>> {
    let fields = fields(json)?;
    let file = keys.take(fields.text("logFile"))?.map(PathBuf::from);
    let word = keys.take(fields.text("logLevel"))?;
    let level = word
        .map(|word| keys.take(level(word).map(Some)))
        .transpose()?;
    Ok(match level.flatten() {
        None if file.is_none() => None,
        level => Some(Logging {
            level: level.unwrap_or(LevelFilter::Info),
            file,
        }),
    })
}

/// The levels of `log`, and those by which Multus and the SR-IOV plugin call them.
fn level(word: &str) -> std::result::Result<LevelFilter, Invalid> {
    match word.to_ascii_lowercase().as_str() {
        "panic" | "error" => Ok(LevelFilter::Error),
        "warn" | "warning" => Ok(LevelFilter::Warn),
        "info" => Ok(LevelFilter::Info),
        "verbose" | "debug" => Ok(LevelFilter::Debug),
        _ => {
            let wanted = "error, warning, info or debug";
            Err(Invalid::new("logLevel", &word.into(), wanted))
        }
    }
}

fn fields(json: &Value) -> Result<Fields<'_>> {
    let text = "error unmarshall network config: it is not a JSON object";
    Fields::of(json).ok_or_else(|| CniError::new(code::DECODING, text))
}

fn source(fields: &Fields<'_>, pod_keys: &PodKeys<'_>, keys: &mut Keys) -> Result<Source> {
    let runtime = pod_keys.runtime.as_ref();
    let runtime = runtime
        .map(|runtime| runtime.text("deviceID"))
        .transpose()?;
    let id = match runtime.flatten() {
        Some(id) => Some(id),
        None => fields.text("deviceID")?,
    };
    let lower = keys.take(lower(fields))?;
    let mode = keys.take(mode(fields))?;
    let (in_pod, vlan) = place(fields, id.is_some(), keys)?;
    let any = keys.take(fields.flag("takeOverByName"))?.unwrap_or(false);
    match (id, lower) {
        (Some(id), lower) if id.contains('@') => allocated(id, lower.as_deref(), mode, keys),
        (Some(id), _) => Ok(Source::Existing(Existing {
            id: id.to_owned(),
            any,
        })),
        (None, Some(lower)) => Ok(Source::Configured {
            vlan: vlan.map(|id| SubInterface::vlan(lower.clone(), id)),
            lower,
            mode: mode.unwrap_or_default(),
            in_pod,
        }),
        (None, None) => Err(no_device_id(fields)),
    }
}

/// Whether the lower device is in the pod, and the VLAN of it; neither with a device ID.
fn place(fields: &Fields<'_>, has_id: bool, keys: &mut Keys) -> Result<(bool, Option<u16>)> {
    let in_pod = keys.take(fields.flag("linkInContainer"))?.unwrap_or(false);
    let vlan = keys.take(vlan::read(fields))?;
    if in_pod && has_id {
        let text = "linkInContainer is ignored: a device ID is of a lower device of the node";
        keys.warnings.push(text.to_owned());
    }
    if vlan.is_some() && has_id {
        let text = "vlan is ignored: it belongs to the resource that the device ID is of";
        keys.warnings.push(text.to_owned());
    }
    if in_pod && vlan.is_some() && !has_id {
        let text = "vlan and linkInContainer cannot be combined: name the VLAN interface in \
            lowerDevice";
        return Err(CniError::new(code::CONFIG, text));
    }
    Ok((in_pod, vlan))
}

fn lower(fields: &Fields<'_>) -> Result<Option<LinkName>> {
    let (key, name) = match fields.text("lowerDevice")? {
        Some(name) => ("lowerDevice", Some(name)),
        None => ("master", fields.text("master")?),
    };
    let name = name.map(|name| {
        let refuse =
            |error| CniError::new(code::CONFIG, format!("invalid {key} {name:?}: {error:#}"));
        name.parse().map_err(refuse)
    });
    name.transpose()
}

fn mode(fields: &Fields<'_>) -> Result<Option<Mode>> {
    let mode = fields.text("mode")?.map(|word| {
        let refuse = |error| CniError::new(code::CONFIG, format!("invalid mode: {error:#}"));
        Mode::named(word).map_err(refuse)
    });
    mode.transpose()
}

/// The allocation decides; what the configuration says otherwise is not used.
fn allocated(id: &str, lower: Option<&str>, mode: Option<Mode>, keys: &mut Keys) -> Result<Source> {
    let device = id.parse::<DeviceId>();
    let device = device.map_err(|error| CniError::coded(code::CONFIG, &error))?;
    let mut ignore = |key: &str, ours: &str, theirs: &str| {
        if ours != theirs {
            keys.warnings.push(format!(
                "{key} {ours:?} is ignored: the resource decides it, and device ID {id:?} says {theirs:?}"
            ));
        }
    };
    if let Some(lower) = lower {
        ignore("lowerDevice", lower, &device.lower);
    }
    if let Some(mode) = mode {
        ignore("mode", mode.name(), device.mode.name());
    }
    Ok(Source::Allocated(device))
}

/// `hostStack`, or its former name for IPv6 alone. An interface with addresses has to answer for
/// them.
fn host_stack(fields: &Fields<'_>, assign: bool, keys: &mut Keys) -> Result<bool> {
    let stack = keys.take(fields.flag("hostStack"))?;
    let ipv6 = keys.take(fields.flag("hostIPv6"))?;
    if assign && stack == Some(false) {
        let text = "hostStack false contradicts ipamMode \"assign\", by which the pod's kernel has \
                    the addresses; leave one of them out, or set ipamMode to \"report\"";
        return Err(CniError::new(code::CONFIG, text));
    }
    Ok(assign || stack.or(ipv6).unwrap_or(false))
}

/// The causes that users meet. A typo shows among the keys that were found.
fn no_device_id(fields: &Fields<'_>) -> CniError {
    let found = fields.keys().collect::<Vec<_>>().join(", ");
    if fields.has("plugins") {
        let text = format!(
            "the configuration is a list of plugins; a plugin gets one entry of \"plugins\" \
             (keys found: {found})"
        );
        return CniError::new(code::CONFIG, text);
    }
    let text = format!(
        "the configuration has no deviceID (and no lowerDevice), \
         so no macvtap was allocated to this pod (keys found: {found}). Causes: \
         (1) the NetworkAttachmentDefinition lacks the annotation \
         k8s.v1.cni.cncf.io/resourceName: macvtap.network.kubevirt.io/<name>; \
         (2) the pod requests no such resource: \
         resources.limits must have macvtap.network.kubevirt.io/<name>: 1; \
         (3) the pod has several networks of one resource, and requests less than one for each; \
         (4) KubeVirt 1.9 and later requests no resource. Let the API server request it: \
         manifests/injection, or the network-resources-injector webhook. \
         Or write the limit into the VM. \
         Or let the container runtime give the tap: manifests/components/nri, with lowerDevice \
         in the network instead of the annotation"
    );
    CniError::new(code::CONFIG, text)
}

/// The MTU, where the resource has that of `resource`. 0 is that of the lower device.
fn mtu(fields: &Fields<'_>, resource: Option<u32>) -> Result<Option<u32>> {
    match fields.number("mtu", u64::from(u32::MAX >> 1))? {
        None => Ok(resource),
        Some(0) => Ok(None),
        Some(mtu) if mtu < MIN_MTU => {
            let text = format!("invalid mtu {mtu}: the smallest is {MIN_MTU}");
            Err(CniError::new(code::CONFIG, text))
        }
        Some(mtu) => Ok(u32::try_from(mtu).ok()),
    }
}

/// Owner and group of the tap; -1 is root, whose the kernel makes it. The group may open it if it is
/// configured: 107 is another group on the node, on Debian that of tcpdump.
fn access(fields: &Fields<'_>) -> Result<Access> {
    // The highest number means "leave as it is" to chown(2).
    let highest = u64::from(u32::MAX - 1);
    let id = |key| -> Result<Option<u32>> {
        if fields.integer(key) == Ok(Some(-1)) {
            return Ok(Some(ROOT));
        }
        let number = fields.number(key, highest)?;
        Ok(number.and_then(|number| u32::try_from(number).ok()))
    };
    let (user, group) = (id("owner")?, id("group")?);
    Ok(Access {
        owner: Owner {
            user: user.unwrap_or(QEMU.user),
            group: group.unwrap_or(QEMU.group),
        },
        group: group.is_some(),
    })
}

/// The MAC that the last of these gives: the configuration, `CNI_ARGS`, `runtimeConfig`,
/// `args.cni`.
fn mac(
    fields: &Fields<'_>,
    pod_keys: &PodKeys<'_>,
    args: &Args,
    keys: &mut Keys,
) -> Result<Option<MacAddr>> {
    let PodKeys { args: cni, runtime } = pod_keys;
    let cni = cni.as_ref().map(|keys| keys.text("mac")).transpose()?;
    let runtime = runtime.as_ref().map(|keys| keys.text("mac")).transpose()?;
    let given = [
        ("args.cni.mac", cni.flatten()),
        ("runtimeConfig.mac", runtime.flatten()),
        ("MAC in CNI_ARGS", args.get("MAC")),
    ];
    let given = given.into_iter().find_map(|(key, mac)| Some((key, mac?)));
    if let Some((key, text)) = given {
        return read_mac(key, text).map(Some);
    }
    let configured = keys.take(fields.text("mac"))?;
    let configured = configured.map(|text| keys.take(read_mac("mac", text).map(Some)));
    Ok(configured.transpose()?.flatten())
}

fn read_mac(key: &str, text: &str) -> Result<MacAddr> {
    let refuse = |why: String| CniError::new(code::CONFIG, format!("invalid {key}: {why}"));
    let mac: MacAddr = text.parse().map_err(|error| refuse(format!("{error:#}")))?;
    if mac.is_assignable() {
        return Ok(mac);
    }
    let why = "is a multicast or zero address, which no interface can have";
    Err(refuse(format!("{mac} {why}")))
}

/// `CNI_ARGS`, by the rules of the reference implementation.
pub struct Args(HashMap<String, String>);

impl Args {
    /// Reads `K=V;K=V`. Unknown keys are an error unless `IgnoreUnknown` is set.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| CniError::new(code::ENVIRONMENT, format!("CNI_ARGS: {why}"));
        let mut args = HashMap::new();
        let mut unknown = Vec::new();
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .filter(|(_, value)| !value.contains('='))
                .ok_or_else(|| refuse(format!("ARGS: invalid pair {pair:?}")))?;
            if key != "MAC" && key != "IgnoreUnknown" {
                unknown.push(pair);
            }
            args.insert(key.to_owned(), value.to_owned());
        }
        let ignore = match args
            .get("IgnoreUnknown")
            .map(|word| word.to_ascii_lowercase())
        {
            None => false,
            Some(word) if word == "1" || word == "true" => true,
            Some(word) if word == "0" || word == "false" => false,
            Some(word) => {
                let why = format!("IgnoreUnknown={word}: it must be true, false, 1 or 0");
                return Err(refuse(format!("ARGS: {why}")));
            }
        };
        if !ignore && !unknown.is_empty() {
            let why = format!("ARGS: unknown args {unknown:?}");
            return Err(refuse(why));
        }
        Ok(Self(args))
    }

    /// The value of a key; none if it is empty.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cni::version::supported;

    const ID: &str = "dataplaneMvp7@eth0:bridge:16777301";

    fn read(json: &Value, args: &str) -> Result<Config> {
        Config::read(json, args, supported("1.0.0").unwrap())
    }

    fn with(extra: &Value) -> Value {
        let mut config = json!({"deviceID": ID});
        let extra = extra.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(extra);
        config
    }

    #[test]
    fn defaults_are_those_of_the_original_and_the_design() {
        let config = read(&json!({"deviceID": ID}), "").unwrap();
        assert_eq!(config.source, Source::Allocated(ID.parse().unwrap()));
        assert_eq!(config.mtu, None);
        assert_eq!(config.mac, None);
        assert!(!config.promiscuous);
        assert!(config.all_multicast);
        assert!(!config.host_stack);
        assert_eq!(config.access.owner.to_string(), "107:107");
        assert_eq!(config.access.mode(), 0o600);
        let shared = read(&with(&json!({"group": 107})), "").unwrap();
        assert_eq!(shared.access.mode(), 0o660);
    }

    #[test]
    fn owner_and_group_are_left_to_root_by_the_number_of_chown() {
        let config = read(&with(&json!({"owner": -1, "group": -1})), "").unwrap();
        assert_eq!(config.access.owner.to_string(), "0:0");
    }

    #[test]
    fn finds_keys_in_any_case_and_prefers_the_exact_one() {
        let config = json!({"DEVICEID": ID, "MTU": 1400, "mtu": 1300, "PromiscMode": true});
        let config = read(&config, "").unwrap();
        assert_eq!(config.mtu, Some(1300));
        assert!(config.promiscuous);
    }

    #[test]
    fn the_runtime_overrides_the_device_id() {
        let other = "dataplaneMvp8@eth0:bridge:16777302";
        let config = with(&json!({"runtimeConfig": {"deviceID": other}}));
        let read = read(&config, "").unwrap();
        assert_eq!(read.source, Source::Allocated(other.parse().unwrap()));
        assert_eq!(device_id(&config), Some(other));
    }

    #[test]
    fn takes_the_lower_device_where_there_is_no_device_plugin() {
        let configured = |json: Value| read(&json, "").unwrap().source;
        let expected = |mode| Source::Configured {
            lower: "eth0".parse().unwrap(),
            mode,
            in_pod: false,
            vlan: None,
        };
        assert_eq!(
            configured(json!({"lowerDevice": "eth0"})),
            expected(Mode::Bridge)
        );
        let master = json!({"master": "eth0", "mode": "vepa"});
        assert_eq!(configured(master), expected(Mode::Vepa));
        let existing = Source::Existing(Existing {
            id: "eth0Mvp3".into(),
            any: false,
        });
        assert_eq!(configured(json!({"deviceID": "eth0Mvp3"})), existing);
    }

    #[test]
    fn the_last_word_on_the_mac_wins() {
        let mac = |n: u8| format!("02:00:00:00:00:0{n}");
        let mut config = with(&json!({"mac": mac(1)}));
        let got = |config: &Value, args: &str| read(config, args).unwrap().mac.unwrap().0[5];
        assert_eq!(got(&config, ""), 1);
        let args = format!("MAC={}", mac(2));
        assert_eq!(got(&config, &args), 2);
        config["runtimeConfig"] = json!({"mac": mac(3)});
        assert_eq!(got(&config, &args), 3);
        config["args"] = json!({"cni": {"mac": mac(4)}});
        assert_eq!(got(&config, &args), 4);
        config["args"] = json!({"cni": {"mac": ""}});
        assert_eq!(got(&config, &args), 3);
    }

    #[test]
    fn refuses_wrong_values_naming_key_and_value() {
        for (extra, parts) in [
            (json!({"owner": -2}), ["owner", "-2"]),
            (json!({"owner": "107"}), ["owner", "107"]),
            (json!({"group": 4_294_967_295_u32}), ["group", "4294967295"]),
            (json!({"owner": "qemu"}), ["owner", "qemu"]),
            (json!({"mtu": -5}), ["mtu", "-5"]),
            (json!({"mtu": 67}), ["mtu", "67"]),
            (json!({"mtu": 1500.5}), ["mtu", "1500.5"]),
            (json!({"promiscMode": "yes"}), ["promiscMode", "yes"]),
            (
                json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}),
                ["runtimeConfig.mac", "multicast"],
            ),
            (
                json!({"args": {"cni": {"mac": "00:00:00:00:00:00"}}}),
                ["args.cni.mac", "zero"],
            ),
            (
                json!({"deviceID": "xMvp0@eth0:source:16777301"}),
                ["mode source", "receives nothing"],
            ),
            (json!({"runtimeConfig": {"mac": 7}}), ["mac 7", "a text"]),
            (
                json!({"deviceID": "xMvp0@eth0:bridge"}),
                ["device ID", "xMvp0"],
            ),
        ] {
            let error = read(&with(&extra), "").unwrap_err();
            assert_eq!(error.code, code::CONFIG, "{extra}");
            assert!(parts.iter().all(|part| error.msg.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_vlan_is_of_a_network_that_names_its_lower_device() {
        let network = |extra: Value| {
            let mut json = json!({"deviceID": null, "lowerDevice": "eth0"});
            let extra = extra.as_object().unwrap().clone();
            json.as_object_mut().unwrap().extend(extra);
            with(&json)
        };
        let json = network(json!({"vlan": 100}));
        let Source::Configured { vlan, .. } = read(&json, "").unwrap().source else {
            panic!("it is allocated");
        };
        assert_eq!(vlan, super::vlan(&json));
        assert_eq!(vlan.unwrap().to_string(), "VLAN 100 of eth0");
        for (extra, part) in [
            (
                json!({"vlan": 4095}),
                "vlan 4095: it must be a whole number from 1",
            ),
            (
                json!({"vlan": 5, "linkInContainer": true}),
                "cannot be combined",
            ),
        ] {
            let error = read(&network(extra), "").unwrap_err();
            assert!(error.msg.contains(part), "{error}");
        }
        let allocated = with(&json!({"vlan": 100}));
        let config = read(&allocated, "").unwrap();
        assert!(config.warnings[0].contains("vlan is ignored"));
        assert_eq!(super::vlan(&allocated), None);
    }

    #[test]
    fn keys_that_the_original_does_not_read_are_no_reason_to_refuse() {
        for (extra, part) in [
            (json!({"mode": "hub"}), "hub"),
            (json!({"mode": "vepa"}), "vepa"),
            (json!({"mode": 7}), "mode 7"),
            (json!({"lowerDevice": "eth1"}), "eth1"),
            (json!({"master": "../x"}), "../x"),
            (json!({"master": ["eth1"]}), "master"),
            (json!({"mac": "02:00"}), "02:00"),
            (json!({"mac": {}}), "mac"),
            (json!({"allMulticast": "no"}), "allMulticast"),
            (json!({"hostStack": 1}), "hostStack"),
            (json!({"hostIPv6": "true"}), "hostIPv6"),
        ] {
            let config = read(&with(&extra), "").unwrap();
            assert_eq!(config.source, Source::Allocated(ID.parse().unwrap()));
            assert_eq!(config.warnings.len(), 1, "{extra}");
            assert!(config.warnings[0].contains(part), "{:?}", config.warnings);
            // Without a device plugin nothing else says what is meant.
            let mut network = json!({"lowerDevice": "eth0"});
            network
                .as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            let strict = read(&network, "");
            let valid = matches!(part, "vepa" | "eth1" | "../x") || extra["master"].is_array();
            assert_eq!(strict.is_ok(), valid, "{network}");
        }
        let agreeing = with(&json!({"mode": "bridge", "lowerDevice": "eth0", "removeparents": 1}));
        assert!(read(&agreeing, "").unwrap().warnings.is_empty());
    }

    #[test]
    fn an_empty_device_id_is_explained() {
        for config in [
            json!({}),
            json!({"deviceID": ""}),
            json!({"deviceID": null}),
        ] {
            let error = read(&config, "").unwrap_err();
            assert_eq!(error.code, code::CONFIG);
            for cause in ["resourceName", "limits", "several networks", "webhook"] {
                assert!(error.msg.contains(cause), "{error}");
            }
        }
        let typo = read(&json!({"type": "macvtap", "devicId": ID}), "").unwrap_err();
        assert!(typo.msg.contains("keys found: type, devicId"), "{typo}");
        let list = read(&json!({"name": "n", "plugins": [{"deviceID": ID}]}), "").unwrap_err();
        assert!(list.msg.contains("is a list of plugins"), "{list}");
    }

    #[test]
    fn reads_cni_args_as_the_reference_does() {
        let error = |text| Args::parse(text).err().unwrap();
        assert!(Args::parse("").is_ok());
        assert!(Args::parse("MAC=02:00:00:00:00:01").is_ok());
        for ignore in ["1", "true", "TRUE"] {
            let text = format!("IgnoreUnknown={ignore};K8S_POD_NAME=vm;X=");
            assert_eq!(Args::parse(&text).unwrap().get("K8S_POD_NAME"), Some("vm"));
        }
        assert_eq!(error("K=V").msg, "CNI_ARGS: ARGS: unknown args [\"K=V\"]");
        assert_eq!(error("IgnoreUnknown=0;K=V").code, code::ENVIRONMENT);
        for text in ["K", "K=V=W", "K=V;", ";", "IgnoreUnknown=maybe"] {
            assert_eq!(error(text).code, code::ENVIRONMENT, "{text}");
        }
        assert_eq!(error("K").msg, "CNI_ARGS: ARGS: invalid pair \"K\"");
    }

    #[test]
    fn logs_only_when_asked() {
        assert_eq!(logging(&json!({})), (None, Vec::new()));
        let to_file = logging(&json!({"logFile": "/x"})).0.unwrap();
        assert_eq!(to_file.level, LevelFilter::Info);
        let verbose = logging(&json!({"logLevel": "DEBUG"})).0.unwrap();
        assert_eq!((verbose.level, verbose.file), (LevelFilter::Debug, None));
        for wrong in [json!({"logLevel": "trace"}), json!({"logFile": 7})] {
            let (logging, warnings) = logging(&wrong);
            assert_eq!(logging, None, "{wrong}");
            assert!(warnings[0].contains("invalid log"), "{warnings:?}");
        }
    }
}
