//! The flags of glog 1.2.4, which kubevirt/macvtap-cni has and existing manifests set. Pure.
//!
//! But for `-v` they have no meaning here. A wrong value is wrong usage all the same, as there.

/// The flag that has a meaning here.
pub const VERBOSITY: &str = "v";

/// How a value is judged.
type Check = fn(&str) -> bool;

/// The flags that are on or off.
const SWITCHES: [&str; 2] = ["alsologtostderr", "logtostderr"];
/// The flags that have a value.
const VALUES: [(&str, Check); 7] = [
    ("log_backtrace_at", is_places),
    ("log_dir", is_anything),
    ("log_link", is_anything),
    ("logbuflevel", is_literal),
    ("stderrthreshold", is_severity),
    (VERBOSITY, is_number),
    ("vmodule", is_modules),
];
/// The words of `strconv.ParseBool`.
const BOOLEANS: [&str; 12] = [
    "0", "1", "F", "FALSE", "False", "T", "TRUE", "True", "f", "false", "t", "true",
];
/// Their numbers from 0 on stand for them as well.
const SEVERITIES: [&str; 4] = ["INFO", "WARNING", "ERROR", "FATAL"];

/// Whether there is such a flag, and it is on or off: a value stands in the same word only.
pub fn is_switch(name: &str) -> bool {
    SWITCHES.contains(&name)
}

/// Whether a flag can have a value; none if there is no such flag.
pub fn takes(name: &str, value: &str) -> Option<bool> {
    if is_switch(name) {
        return Some(BOOLEANS.contains(&value));
    }
    let (_, check) = VALUES.iter().find(|(known, _)| *known == name)?;
    Some(check(value))
}

fn is_anything(_: &str) -> bool {
    true
}

/// As `strconv.Atoi` reads it.
fn is_number(text: &str) -> bool {
    text.parse::<i64>().is_ok()
}

/// As `strconv.ParseInt` reads it with base 0, but for underscores.
fn is_literal(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let in_base = |base, prefixes: [&str; 2]| {
        let digits = prefixes
            .iter()
            .find_map(|prefix| digits.strip_prefix(prefix));
        digits.is_some_and(|digits| {
            digits.starts_with(|char: char| char.is_digit(base))
                && i64::from_str_radix(digits, base).is_ok()
        })
    };
    is_number(text)
        || in_base(16, ["0x", "0X"])
        || in_base(8, ["0o", "0O"])
        || in_base(2, ["0b", "0B"])
}

fn is_severity(text: &str) -> bool {
    let number = text.parse::<usize>();
    SEVERITIES
        .iter()
        .any(|name| name.eq_ignore_ascii_case(text))
        || number.is_ok_and(|it| it < SEVERITIES.len())
}

/// `file.go:234,other.go:7`
fn is_places(text: &str) -> bool {
    is_list(text, ':', |file, line| {
        file.contains('.') && line.parse::<u64>().is_ok()
    })
}

/// `pattern=2,other=1`
fn is_modules(text: &str) -> bool {
    is_list(text, '=', |pattern, level| {
        !pattern.is_empty() && is_number(level)
    })
}

fn is_list(text: &str, separator: char, is_pair: fn(&str, &str) -> bool) -> bool {
    let mut pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs.all(|pair| {
        let pair = pair.split_once(separator);
        pair.is_some_and(|(left, right)| is_pair(left, right))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_go_and_glog_take() {
        #[rustfmt::skip]
        let table: [(&str, &[&str], &[&str]); 8] = [
            ("logtostderr", &["true", "T", "1", "False", "0"], &["banana", "", "yes", "TrUe", " true", "2"]),
            ("v", &["3", "-1", "+3", "9223372036854775807"], &["", "x", "3.5", "0x10", " 3", "1_0"]),
            ("logbuflevel", &["0", "-1", "0x3", "017", "0b1"], &["", "x", "1.5", " 1", "0x", "0x-1", "99999999999999999999"]),
            ("stderrthreshold", &["INFO", "fatal", "0", "3"], &["", "WARN", "4", "-1", "1.0"]),
            ("vmodule", &["", "a=1", "a*=-1,", "/x/y=2,b=3"], &["a", "a=", "=1", "a=x", "a=1=2", "a=1.5"]),
            ("log_backtrace_at", &["", "a.go:1", "a.go:0,b.c:7"], &["a", "a:1", "a.go:", "a.go:-1", "a.go:1:2"]),
            ("log_dir", &["", "/tmp", "x=y"], &[]),
            ("log_link", &["", "/tmp"], &[]),
        ];
        for (name, right, wrong) in table {
            for value in right {
                assert_eq!(takes(name, value), Some(true), "-{name}={value}");
            }
            for value in wrong {
                assert_eq!(takes(name, value), Some(false), "-{name}={value}");
            }
        }
        assert_eq!(takes("log_file", "/x"), None);
    }
}
