//! The network configuration and `CNI_ARGS`, checked. Pure.

use std::{collections::HashMap, path::PathBuf};

use anyhow::{Context, Result};
use log::LevelFilter;
use serde_json::Value;

use super::{
    error::{CniError, code},
    result,
    version::Version,
};
use crate::{
    host::tap::Owner,
    types::{
        device_id::{self, DeviceId},
        json::{Fields, Invalid},
        mac::MacAddr,
        mode::Mode,
    },
};

/// User and group of QEMU in `KubeVirt`'s images.
const QEMU: u64 = 107;
/// The smallest MTU of a macvtap (`ETH_MIN_MTU` of the kernel).
const MIN_MTU: u64 = 68;

/// What an ADD or CHECK is to do, beside the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The version that the configuration is in, and the result has to be.
    pub version: Version,
    /// Where the macvtap comes from.
    pub source: Source,
    /// The MTU in bytes; that of the lower device if none.
    pub mtu: Option<u32>,
    /// The hardware address; a random one if none.
    pub mac: Option<MacAddr>,
    /// Receive frames for every address.
    pub promiscuous: bool,
    /// Receive every multicast frame.
    pub all_multicast: bool,
    /// Leave the pod kernel's own IPv6 on the interface.
    pub host_ipv6: bool,
    /// Who may open the tap.
    pub owner: Owner,
    /// The result of the plugin before.
    pub prev_result: Option<Value>,
}

/// Where the macvtap comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A device ID of our device plugin: the macvtap is made as promised.
    Allocated(DeviceId),
    /// It exists on the host and is handed over.
    Existing(Existing),
    /// No device plugin: the configuration names the lower device.
    Configured {
        /// The lower device's name.
        lower: String,
        /// The macvtap's mode.
        mode: Mode,
    },
}

/// A macvtap that exists on the host, and what the configuration says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// The device ID: one of the original, or the macvtap's name.
    pub id: String,
    /// The mode that it has to be in, if the configuration says so.
    pub mode: Option<Mode>,
    /// The lower device that it has to be on, if the configuration says so.
    pub lower: Option<String>,
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
    pub fn read(json: &Value, args: &str, version: Version) -> Result<Self> {
        let fields = fields(json)?;
        let args = Args::parse(args)?;
        Ok(Self {
            version,
            source: source(&fields)?,
            mtu: mtu(&fields)?,
            mac: mac(&fields, &args)?,
            promiscuous: fields.flag("promiscMode")?.unwrap_or(false),
            all_multicast: fields.flag("allMulticast")?.unwrap_or(true),
            host_ipv6: fields.flag("hostIPv6")?.unwrap_or(false),
            owner: owner(&fields)?,
            prev_result: result::previous(json, version)?,
        })
    }
}

/// The device ID of a configuration, if it has one, without judging it.
#[must_use]
pub fn device_id(json: &Value) -> Option<&str> {
    let fields = Fields::of(json)?;
    let runtime = fields.object("runtimeConfig").ok().flatten();
    let runtime = runtime.and_then(|runtime| runtime.text("deviceID").ok().flatten());
    runtime.or_else(|| fields.text("deviceID").ok().flatten())
}

/// The lower device of a configuration without device ID, without judging it.
#[must_use]
pub fn lower_device(json: &Value) -> Option<&str> {
    lower(&Fields::of(json)?).ok().flatten()
}

/// `logLevel` and `logFile`; none if the configuration has neither.
pub fn logging(json: &Value) -> Result<Option<Logging>> {
    let fields = fields(json)?;
    let file = fields.text("logFile")?.map(PathBuf::from);
    let level = match fields.text("logLevel")? {
        None if file.is_none() => return Ok(None),
        None => LevelFilter::Info,
        Some(word) => level(word)?,
    };
    Ok(Some(Logging { level, file }))
}

/// The levels of `log`, and those by which Multus and the SR-IOV plugin call them.
fn level(word: &str) -> Result<LevelFilter> {
    let level = match word.to_ascii_lowercase().as_str() {
        "panic" | "error" => LevelFilter::Error,
        "warn" | "warning" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "verbose" | "debug" => LevelFilter::Debug,
        _ => {
            let wanted = "error, warning, info or debug";
            return Err(Invalid::new("logLevel", &word.into(), wanted).into());
        }
    };
    Ok(level)
}

fn fields(json: &Value) -> Result<Fields<'_>> {
    let text = "error unmarshall network config: it is not a JSON object";
    Ok(Fields::of(json).ok_or_else(|| CniError::new(code::DECODING, text))?)
}

fn source(fields: &Fields<'_>) -> Result<Source> {
    let runtime = fields.object("runtimeConfig")?;
    let runtime = runtime
        .map(|runtime| runtime.text("deviceID"))
        .transpose()?;
    let id = match runtime.flatten() {
        Some(id) => Some(id),
        None => fields.text("deviceID")?,
    };
    let lower = lower(fields)?.map(str::to_owned);
    let mode = mode(fields)?;
    match (id, lower) {
        (Some(id), lower) if id.contains('@') => allocated(id, lower.as_deref(), mode),
        (Some(id), lower) => Ok(Source::Existing(Existing {
            id: id.to_owned(),
            mode,
            lower,
        })),
        (None, Some(lower)) => Ok(Source::Configured {
            lower,
            mode: mode.unwrap_or_default(),
        }),
        (None, None) => Err(no_device_id()),
    }
}

fn lower<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>> {
    let (key, name) = match fields.text("lowerDevice")? {
        Some(name) => ("lowerDevice", Some(name)),
        None => ("master", fields.text("master")?),
    };
    if let Some(name) = name {
        device_id::check_link_name(name).map_err(|error| {
            CniError::new(code::CONFIG, format!("invalid {key} {name:?}: {error:#}"))
        })?;
    }
    Ok(name)
}

fn mode(fields: &Fields<'_>) -> Result<Option<Mode>> {
    let mode = fields.text("mode")?;
    let mode = mode.map(|word| word.parse::<Mode>().context("invalid mode"));
    mode.transpose()
        .map_err(|error| CniError::coded(code::CONFIG, &error).into())
}

/// A promise is kept as it was given; what the configuration says must not contradict it.
fn allocated(id: &str, lower: Option<&str>, mode: Option<Mode>) -> Result<Source> {
    let device: DeviceId = id
        .parse()
        .map_err(|error| CniError::coded(code::CONFIG, &error))?;
    let contradiction = |key: &str, ours: &str, theirs: &str| {
        let text = format!(
            "{key} {ours:?} in the configuration contradicts {theirs:?} of device ID {id:?}; \
             leave {key} out, the resource decides it"
        );
        CniError::new(code::CONFIG, text)
    };
    if let Some(lower) = lower.filter(|lower| *lower != device.lower) {
        return Err(contradiction("lowerDevice", lower, &device.lower).into());
    }
    if let Some(mode) = mode.filter(|mode| *mode != device.mode) {
        return Err(contradiction("mode", mode.name(), device.mode.name()).into());
    }
    Ok(Source::Allocated(device))
}

/// The three causes that users meet.
fn no_device_id() -> anyhow::Error {
    let text = "the configuration has no deviceID (and no lowerDevice), \
        so no macvtap was allocated to this pod. Causes: \
        (1) the NetworkAttachmentDefinition lacks the annotation \
        k8s.v1.cni.cncf.io/resourceName: macvtap.network.kubevirt.io/<name>; \
        (2) the pod requests no such resource: \
        resources.limits must have macvtap.network.kubevirt.io/<name>: 1; \
        (3) KubeVirt 1.9 and later leaves that to the network-resources-injector webhook, \
        which is not installed";
    CniError::new(code::CONFIG, text).into()
}

fn mtu(fields: &Fields<'_>) -> Result<Option<u32>> {
    match fields.number("mtu", u64::from(u32::MAX >> 1))? {
        None | Some(0) => Ok(None),
        Some(mtu) if mtu < MIN_MTU => {
            let text = format!("invalid mtu {mtu}: the smallest is {MIN_MTU}");
            Err(CniError::new(code::CONFIG, text).into())
        }
        Some(mtu) => Ok(u32::try_from(mtu).ok()),
    }
}

fn owner(fields: &Fields<'_>) -> Result<Owner> {
    // The highest number means "leave as it is" to chown(2).
    let highest = u64::from(u32::MAX - 1);
    let id = |key| -> Result<u32> {
        let number = fields.number(key, highest)?.unwrap_or(QEMU);
        u32::try_from(number).context("an owner beyond its bound")
    };
    Ok(Owner {
        user: id("owner")?,
        group: id("group")?,
    })
}

/// The MAC that the last of these gives: the configuration, `CNI_ARGS`, `runtimeConfig`,
/// `args.cni`.
fn mac(fields: &Fields<'_>, args: &Args) -> Result<Option<MacAddr>> {
    let runtime = fields.object("runtimeConfig")?;
    let runtime = runtime.map(|fields| fields.text("mac")).transpose()?;
    let cni = fields.object("args")?.map(|args| args.object("cni"));
    let cni = cni.transpose()?.flatten().map(|cni| cni.text("mac"));
    let given = [
        ("args.cni.mac", cni.transpose()?.flatten()),
        ("runtimeConfig.mac", runtime.flatten()),
        ("MAC in CNI_ARGS", args.get("MAC")),
        ("mac", fields.text("mac")?),
    ];
    let given = given.into_iter().find_map(|(key, mac)| Some((key, mac?)));
    given.map(|(key, text)| read_mac(key, text)).transpose()
}

fn read_mac(key: &str, text: &str) -> Result<MacAddr> {
    let refuse = |why: String| CniError::new(code::CONFIG, format!("invalid {key}: {why}"));
    let mac: MacAddr = text.parse().map_err(|error| refuse(format!("{error:#}")))?;
    if mac.is_assignable() {
        return Ok(mac);
    }
    let why = "is a multicast or zero address, which no interface can have";
    Err(refuse(format!("{mac} {why}")).into())
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
                return Err(refuse(format!("ARGS: {why}")).into());
            }
        };
        if !ignore && !unknown.is_empty() {
            let why = format!("ARGS: unknown args {unknown:?}");
            return Err(refuse(why).into());
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

    fn read(json: &Value, args: &str) -> Result<Config, CniError> {
        Config::read(json, args, supported("1.0.0").unwrap())
            .map_err(|error| CniError::from_chain(&error))
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
        assert!(!config.host_ipv6);
        let qemu = Owner {
            user: 107,
            group: 107,
        };
        assert_eq!(config.owner, qemu);
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
            lower: "eth0".into(),
            mode,
        };
        assert_eq!(
            configured(json!({"lowerDevice": "eth0"})),
            expected(Mode::Bridge)
        );
        let master = json!({"master": "eth0", "mode": "vepa"});
        assert_eq!(configured(master), expected(Mode::Vepa));
        let existing = Source::Existing(Existing {
            id: "eth0Mvp3".into(),
            mode: None,
            lower: None,
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
            (json!({"owner": -1}), ["owner", "-1"]),
            (json!({"group": 4_294_967_295_u32}), ["group", "4294967295"]),
            (json!({"owner": "qemu"}), ["owner", "qemu"]),
            (json!({"mtu": -5}), ["mtu", "-5"]),
            (json!({"mtu": 67}), ["mtu", "67"]),
            (json!({"mtu": 1500.5}), ["mtu", "1500.5"]),
            (json!({"promiscMode": "yes"}), ["promiscMode", "yes"]),
            (json!({"mode": "hub"}), ["mode", "hub"]),
            (json!({"mode": "vepa"}), ["mode", "vepa"]),
            (json!({"lowerDevice": "eth1"}), ["lowerDevice", "eth1"]),
            (json!({"master": "../x"}), ["master", "../x"]),
            (json!({"mac": "01:00:00:00:00:00"}), ["mac", "multicast"]),
            (json!({"mac": "00:00:00:00:00:00"}), ["mac", "zero"]),
            (json!({"mac": "02:00"}), ["mac", "02:00"]),
            (json!({"runtimeConfig": []}), ["runtimeConfig", "object"]),
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
    fn an_empty_device_id_is_explained() {
        for config in [
            json!({}),
            json!({"deviceID": ""}),
            json!({"deviceID": null}),
        ] {
            let error = read(&config, "").unwrap_err();
            assert_eq!(error.code, code::CONFIG);
            for cause in ["resourceName", "limits", "network-resources-injector"] {
                assert!(error.msg.contains(cause), "{error}");
            }
        }
    }

    #[test]
    fn reads_cni_args_as_the_reference_does() {
        let error = |text| CniError::from_chain(&Args::parse(text).err().unwrap());
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
        assert_eq!(logging(&json!({})).unwrap(), None);
        let to_file = logging(&json!({"logFile": "/x"})).unwrap().unwrap();
        assert_eq!(to_file.level, LevelFilter::Info);
        let verbose = logging(&json!({"logLevel": "DEBUG"})).unwrap().unwrap();
        assert_eq!((verbose.level, verbose.file), (LevelFilter::Debug, None));
        assert!(logging(&json!({"logLevel": "loud"})).is_err());
    }
}
