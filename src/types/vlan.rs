//! Numbers of VLANs. Pure.

use super::json::{Fields, Invalid};

/// The highest number; 0 and 4095 are reserved (IEEE 802.1Q).
pub const MAX_VLAN: u64 = 4094;

/// The number in the key `vlan`.
pub fn read(fields: &Fields<'_>) -> Result<Option<u16>, Invalid> {
    let Some(value) = fields.value("vlan") else {
        return Ok(None);
    };
    let number = value
        .as_u64()
        .filter(|number| (1..=MAX_VLAN).contains(number));
    let number = number.and_then(|number| u16::try_from(number).ok());
    let wanted = format!("a whole number from 1 to {MAX_VLAN}");
    let refused = || Invalid::new("vlan", value, &wanted);
    number.ok_or_else(refused).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_numbers_that_vlans_have() {
        let read = |value: &serde_json::Value| {
            let json = json!({ "vlan": value });
            read(&Fields::of(&json).unwrap())
        };
        assert_eq!(read(&json!(null)).unwrap(), None);
        assert_eq!(read(&json!(1)).unwrap(), Some(1));
        assert_eq!(read(&json!(4094)).unwrap(), Some(4094));
        for wrong in [
            json!(0),
            json!(4095),
            json!(-1),
            json!("100"),
            json!(1.5),
            json!([1]),
        ] {
            let error = read(&wrong).unwrap_err().to_string();
            assert!(error.contains("from 1 to 4094"), "{wrong}: {error}");
        }
    }
}
