//! The terminal on standard output, if there is one: its width, and whether it obeys escapes.

use std::{
    env,
    io::{self, IsTerminal},
    time::SystemTime,
};

use anyhow::Result;
use terminal_size::{Width, terminal_size};

use crate::host::stdout::print;

/// The width of a terminal that does not say its own.
const USUAL_WIDTH: usize = 80;

/// How many characters fit in a line: as many as `COLUMNS` says, or the terminal; none if there
/// is no limit because standard output is a file or a pipe.
pub fn width() -> Option<usize> {
    let columns = env::var("COLUMNS").ok();
    if let Some(columns) = columns.and_then(|text| text.parse().ok()) {
        return (columns > 0).then_some(columns);
    }
    let terminal = || terminal_size().map_or(USUAL_WIDTH, |(Width(width), _)| width.into());
    io::stdout().is_terminal().then(terminal)
}

/// Whether standard output is a terminal that moves its cursor on request.
pub fn is_screen() -> bool {
    io::stdout().is_terminal() && env::var_os("TERM").is_none_or(|name| name != "dumb")
}

/// A heading in bold, where that is wanted and possible (`NO_COLOR`: <https://no-color.org>).
pub fn heading(text: &str) -> String {
    let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !is_screen() {
        text.to_owned()
    } else {
        format!("\x1b[1m{text}\x1b[0m")
    }
}

/// The time of day, as the logs have it.
pub fn timestamp() -> String {
    #[expect(clippy::disallowed_methods, reason = "people read the time of day")]
    let now = SystemTime::now();
    humantime::format_rfc3339_millis(now).to_string()
}

/// Prints a sentence, broken between words where the terminal ends.
pub fn print_sentence(text: &str) -> Result<()> {
    let lines = wrapped(text, width().unwrap_or(usize::MAX));
    print(&format!("{}\n", lines.join("\n")))
}

/// A text without what a terminal obeys: the kernel accepts nearly every byte in names, and other
/// nodes answer what they like.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// The lines of a text, broken between words, as it can be printed.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace().map(printable) {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_sentences_between_words() {
        assert_eq!(wrapped("one two, three", 8), ["one two,", "three"]);
        assert_eq!(wrapped("one two", usize::MAX), ["one two"]);
        let escapes = "a\x1b[2J\u{9b}31m\nb\x07";
        assert_eq!(wrapped(escapes, usize::MAX), ["a?[2J?31m b?"]);
        assert_eq!(wrapped("longer than that", 3), ["longer", "than", "that"]);
    }
}
