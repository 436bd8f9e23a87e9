//! The release of a program: major and minor number.

use std::fmt;

/// A release, such as 1.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl Release {
    /// The first one in a text such as `containerd github.com/containerd/containerd v1.7.24`.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split('.');
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?;
            let digits = minor.find(|c: char| !c.is_ascii_digit());
            let minor = &minor[..digits.unwrap_or(minor.len())];
            Some(Self(major, minor.parse().ok()?))
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_release_that_programs_print() {
        for (text, expected) in [
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4",
                Some(Release(1, 7)),
            ),
            ("containerd containerd.io v2.1.9 f9e1", Some(Release(2, 1))),
            ("crio version 1.30.0\nGitCommit: 1", Some(Release(1, 30))),
            ("Kubernetes v1.36.0-beta.1", Some(Release(1, 36))),
            ("v1.9.2", Some(Release(1, 9))),
            ("1.36+", Some(Release(1, 36))),
            ("devel", None),
            ("v1", None),
            ("1.x", None),
        ] {
            assert_eq!(Release::find(text), expected, "{text}");
        }
        assert!(Release(1, 10) > Release(1, 9) && Release(2, 0) > Release(1, 10));
        assert_eq!(Release(1, 10).to_string(), "1.10");
    }
}
