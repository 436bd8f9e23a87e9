//! Numbers of things, in English.

use std::fmt::Display;

/// `1 port`, `2 ports`: for nouns whose plural ends in s.
#[must_use]
pub fn count(number: impl Display, noun: &str) -> String {
    let number = number.to_string();
    let ending = if number == "1" { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// `a`, `a and b`, `a, b and c`.
#[must_use]
pub fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [only] => only.clone(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let texts = [0, 1, 2, 11].map(|number| count(number, "lower device"));
        let expected = [
            "0 lower devices",
            "1 lower device",
            "2 lower devices",
            "11 lower devices",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn lists_end_with_and() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let lists = [0, 1, 2, 3].map(|length| list(&names[..length]));
        assert_eq!(lists, ["", "a", "a and b", "a, b and c"]);
    }
}
