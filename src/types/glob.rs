//! Patterns of names, as shells have them.

use std::fmt;

/// A pattern: `*` stands for any text, `?` for one character, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// The pattern that `text` is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether it can match other texts than itself.
    #[must_use]
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?'])
    }

    /// Whether it matches the whole of `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let pieces = self.0.split('*').map(|piece| piece.chars().collect());
        let pieces: Vec<Vec<char>> = pieces.collect();
        let [first, middle @ .., last] = pieces.as_slice() else {
            return pieces.first().is_some_and(|only| is_alike(only, &text));
        };
        let (start, end) = (first.len(), text.len().saturating_sub(last.len()));
        let Some(mut rest) = text.get(start..end) else {
            return false;
        };
        // The leftmost place of a piece leaves the most for those after it.
        let in_order = middle.iter().all(|piece| {
            let place = (0..=rest.len()).find(|at| starts_with(&rest[*at..], piece));
            rest = place.map_or(&[], |at| &rest[at + piece.len()..]);
            place.is_some()
        });
        in_order && starts_with(&text, first) && is_alike(last, &text[end..])
    }
}

fn starts_with(text: &[char], piece: &[char]) -> bool {
    text.get(..piece.len())
        .is_some_and(|start| is_alike(piece, start))
}

fn is_alike(piece: &[char], text: &[char]) -> bool {
    let alike = |(a, b): (&char, &char)| *a == '?' || a == b;
    piece.len() == text.len() && piece.iter().zip(text).all(alike)
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_whole_names() {
        for (pattern, matching, others) in [
            ("eth0", &["eth0"][..], &["eth00", "eth", ""][..]),
            ("eth?", &["eth0", "ethé"], &["eth", "eth10"]),
            ("eth*", &["eth", "eth0", "eth0.100"], &["et", "beth0"]),
            ("*", &["", "eth0"], &[]),
            ("en*f0*np?", &["ens1f0np1", "enp1f0xf0np2"], &["ens1np1"]),
            ("*.100", &["eth0.100", ".100"], &["eth0.1000", "100"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("a*b*c", &["abc", "axbxbxc"], &["acb", "ab"]),
            ("**", &["", "x"], &[]),
            ("", &[""], &["x"]),
        ] {
            let glob = Glob::new(pattern);
            for text in matching {
                assert!(glob.matches(text), "{pattern:?} {text:?}");
            }
            for text in others {
                assert!(!glob.matches(text), "{pattern:?} {text:?}");
            }
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let glob = Glob::new(&"*a".repeat(60));
        assert!(!glob.matches(&"a".repeat(59)));
        assert!(glob.matches(&"ab".repeat(59).repeat(2).replace('b', "aa")));
    }
}
