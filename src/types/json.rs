//! The fields of a JSON object, found and checked as users know it from the original. Pure.

use std::fmt;

use serde_json::{Map, Value};

/// A value that a key cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(String);

impl Invalid {
    /// Says which key has which value, and what it must be.
    #[must_use]
    pub fn new(key: &str, value: &Value, wanted: &str) -> Self {
        Self(format!("invalid {key} {value}: it must be {wanted}"))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

impl From<Invalid> for String {
    fn from(invalid: Invalid) -> Self {
        invalid.0
    }
}

/// A JSON object whose keys are found as Go finds them: exactly, or else in any
/// case. Null is as good as absent.
pub struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The fields of `json`, if it is an object.
    #[must_use]
    pub fn of(json: &'a Value) -> Option<Self> {
        json.as_object().map(Self)
    }

    /// The keys, as they are written.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is such a key.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The value of a key, whatever it is.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        let any_case = || {
            let same = |(name, value): &(&String, &Value)| {
                name.eq_ignore_ascii_case(key) && !value.is_null()
            };
            self.0.iter().find(same).map(|(_, value)| value)
        };
        let exact = self.0.get(key).filter(|value| !value.is_null());
        exact.or_else(any_case)
    }

    fn read<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Invalid> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let read = read(value).ok_or_else(|| Invalid::new(key, value, wanted));
        read.map(Some)
    }

    /// An object.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, Invalid> {
        self.read(key, "an object", Fields::of)
    }

    /// A text; none if it is empty.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Invalid> {
        let text = self.read(key, "a text", Value::as_str)?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// A list of texts, or one; none if that is empty.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Invalid> {
        let texts = self.read(key, "a text or a list of texts", |value| match value {
            Value::Array(list) => list.iter().map(Value::as_str).collect(),
            text => text.as_str().map(|text| vec![text]),
        })?;
        Ok(texts.filter(|texts| *texts != [""]))
    }

    /// True or false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Invalid> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// A whole number from 0 to `highest`.
    pub fn number(&self, key: &str, highest: u64) -> Result<Option<u64>, Invalid> {
        let wanted = format!("a whole number from 0 to {highest}");
        let within = |value: &Value| value.as_u64().filter(|number| *number <= highest);
        self.read(key, &wanted, within)
    }

    /// A whole number, which may be negative.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, Invalid> {
        self.read(key, "a whole number", Value::as_i64)
    }

    /// A whole number in any notation, as in `1e+06`, which templates write; those that an `i64`
    /// cannot have become the highest or lowest that it can.
    pub fn amount(&self, key: &str) -> Result<Option<i64>, Invalid> {
        self.read(key, "a whole number", |value| {
            value.as_i64().or_else(|| saturated(value.as_f64()?))
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a cast of a float saturates"
)]
fn saturated(number: f64) -> Option<i64> {
    (number.fract() == 0.0).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_keys_exactly_or_in_any_case() {
        let json = json!({"MTU": 1, "mtu": 2, "Name": "x", "none": null, "empty": "", "id": null, "ID": 7});
        let fields = Fields::of(&json).unwrap();
        assert_eq!(fields.number("mtu", 9).unwrap(), Some(2));
        assert_eq!(fields.number("MTU", 9).unwrap(), Some(1));
        assert_eq!(fields.text("name").unwrap(), Some("x"));
        assert_eq!(fields.number("id", 9).unwrap(), Some(7));
        assert_eq!(fields.flag("none").unwrap(), None);
        assert_eq!(fields.text("empty").unwrap(), None);
        assert!(Fields::of(&json!([])).is_none());
    }

    #[test]
    fn names_key_and_value_of_what_is_wrong() {
        let json = json!({"a": -1, "b": "x", "c": 1.5, "d": ["y", "z"], "e": ["y", 1], "f": ""});
        let fields = Fields::of(&json).unwrap();
        let error = fields.number("a", 7).unwrap_err().to_string();
        assert_eq!(error, "invalid a -1: it must be a whole number from 0 to 7");
        assert_eq!(fields.integer("a").unwrap(), Some(-1));
        assert!(fields.flag("b").unwrap_err().to_string().contains("\"x\""));
        assert!(fields.integer("c").is_err());
        assert!(fields.object("b").is_err());
        assert!(fields.text("a").is_err());
        assert_eq!(fields.texts("b").unwrap().unwrap(), ["x"]);
        assert_eq!(fields.texts("d").unwrap().unwrap(), ["y", "z"]);
        assert!(fields.texts("a").is_err() && fields.texts("e").is_err());
        assert_eq!(fields.texts("f").unwrap(), None);
    }

    #[test]
    fn an_amount_is_a_whole_number_in_any_notation() {
        let json = json!({
            "a": 10, "b": 1e1, "c": -7.0, "d": 1e30, "e": -1e30, "f": u64::MAX, "g": 1.5, "h": "1",
        });
        let fields = Fields::of(&json).unwrap();
        for (key, expected) in [
            ("a", 10),
            ("b", 10),
            ("c", -7),
            ("d", i64::MAX),
            ("e", i64::MIN),
            ("f", i64::MAX),
        ] {
            assert_eq!(fields.amount(key).unwrap(), Some(expected), "{key}");
        }
        assert!(fields.amount("g").is_err() && fields.amount("h").is_err());
    }
}
