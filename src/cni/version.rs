//! The versions of the CNI specification, and what each allows. Pure.
//!
//! Checks, codes and texts are those of the reference implementation's `skel` package.

use serde_json::Value;

use super::error::{CniError, Result, code};
use crate::types::json::Fields;

/// The versions that this plugin speaks.
pub const SUPPORTED: [&str; 7] = [
    "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
];
/// The newest of them.
pub const NEWEST: &str = "1.1.0";

/// Versions whose results have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 0.1.0 and 0.2.0: addresses only.
    V02,
    /// 0.3.0 to 0.4.0: interfaces.
    V03,
    /// 1.0.0 and 1.1.0.
    V1,
}

impl Family {
    /// The versions of the family.
    #[must_use]
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::V02 => &SUPPORTED[..2],
            Self::V03 => &SUPPORTED[2..5],
            Self::V1 => &SUPPORTED[5..],
        }
    }
}

/// One of the supported versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(&'static str);

impl Version {
    /// The version as text.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.0
    }

    /// The family that the version belongs to.
    #[must_use]
    pub fn family(self) -> Family {
        [Family::V02, Family::V03, Family::V1]
            .into_iter()
            .find(|family| family.versions().contains(&self.0))
            .unwrap_or(Family::V1)
    }
}

/// The `cniVersion` of a configuration as it stands there; 0.1.0 if there is none.
pub fn configured(config: &Value) -> Result<&str> {
    match Fields::of(config).and_then(|fields| fields.value("cniVersion")) {
        None => Ok("0.1.0"),
        Some(Value::String(version)) if version.is_empty() => Ok("0.1.0"),
        Some(Value::String(version)) => Ok(version),
        Some(other) => Err(CniError::new(
            code::DECODING,
            format!("decoding version from network config: cniVersion is {other}, not a string"),
        )),
    }
}

/// The configured version, if it is one of ours.
pub fn supported(configured: &str) -> Result<Version> {
    let found = SUPPORTED.iter().find(|version| **version == configured);
    found.copied().map(Version).ok_or_else(|| {
        let ours = SUPPORTED.map(|version| format!("{version:?}")).join(" ");
        let details = format!("config is {configured:?}, plugin supports [{ours}]");
        CniError::detailed(
            code::INCOMPATIBLE_VERSION,
            "incompatible CNI versions",
            details,
        )
    })
}

/// As [`supported`], for a verb that came into the specification with version `since`.
pub fn supported_since(configured: &str, verb: &str, since: &str) -> Result<Version> {
    let refuse = |who: &str| {
        let text = format!("{who} version does not allow {verb}");
        CniError::new(code::INCOMPATIBLE_VERSION, text)
    };
    let version = numbers(configured)?;
    if version < numbers(since)? {
        return Err(refuse("config"));
    }
    if version > numbers(NEWEST)? {
        return Err(refuse("plugin"));
    }
    supported(configured)
}

/// Major, minor and micro number; those that are left out are 0.
fn numbers(version: &str) -> Result<[u32; 3]> {
    let wrong = || {
        let text = format!("invalid version {version:?}: not of the form 1.2.3");
        CniError::new(code::DECODING, text)
    };
    let mut numbers = [0; 3];
    let mut parts = version.split('.');
    for (number, part) in numbers.iter_mut().zip(&mut parts) {
        *number = part.parse().map_err(|_| wrong())?;
    }
    match parts.next() {
        None => Ok(numbers),
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn code_and_text(error: &CniError) -> (u32, String) {
        (error.code, error.msg.clone())
    }

    #[test]
    fn no_version_means_the_first_one() {
        for config in [
            json!({}),
            json!({"cniVersion": null}),
            json!({"cniVersion": ""}),
        ] {
            assert_eq!(configured(&config).unwrap(), "0.1.0");
        }
        assert_eq!(
            configured(&json!({"CNIVersion": "1.0.0"})).unwrap(),
            "1.0.0"
        );
        let error = configured(&json!({"cniVersion": 1})).unwrap_err();
        assert_eq!(code_and_text(&error).0, 6);
    }

    #[test]
    fn says_what_is_supported_as_go_prints_it() {
        for version in SUPPORTED {
            assert_eq!(supported(version).unwrap().text(), version);
        }
        let error = supported("9.9.9").unwrap_err();
        assert_eq!(error.code, 1);
        assert_eq!(error.msg, "incompatible CNI versions");
        assert_eq!(
            error.details,
            "config is \"9.9.9\", plugin supports \
             [\"0.1.0\" \"0.2.0\" \"0.3.0\" \"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]"
        );
    }

    #[test]
    fn verbs_need_the_version_that_brought_them() {
        let of = |version, verb, since| {
            supported_since(version, verb, since)
                .map(Version::text)
                .map_err(|error| code_and_text(&error))
        };
        assert_eq!(of("0.4.0", "CHECK", "0.4.0"), Ok("0.4.0"));
        assert_eq!(of("1.1.0", "GC", "1.1.0"), Ok("1.1.0"));
        let refused = |text: &str| Err((1, text.to_owned()));
        let config = "config version does not allow CHECK";
        assert_eq!(of("0.3.1", "CHECK", "0.4.0"), refused(config));
        let config = "config version does not allow STATUS";
        assert_eq!(of("1.0.0", "STATUS", "1.1.0"), refused(config));
        let plugin = "plugin version does not allow CHECK";
        assert_eq!(of("1.2.0", "CHECK", "0.4.0"), refused(plugin));
        let neither = "incompatible CNI versions";
        assert_eq!(of("0.4.1", "CHECK", "0.4.0"), refused(neither));
        for version in ["one", "1.x", "1.0.0.0", "-1.0.0", "1..0"] {
            assert_eq!(of(version, "GC", "1.1.0").unwrap_err().0, 6, "{version}");
        }
    }

    #[test]
    fn families() {
        let family = |version| supported(version).unwrap().family();
        assert_eq!(family("0.1.0"), Family::V02);
        assert_eq!(family("0.3.0"), Family::V03);
        assert_eq!(family("0.4.0"), Family::V03);
        assert_eq!(family("1.0.0"), Family::V1);
    }
}
