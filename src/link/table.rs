//! Tables for people: aligned, and no wider than the terminal.

use std::io::{self, IsTerminal};

use anyhow::Result;
use terminal_size::{Width, terminal_size};

use crate::host::stdout::print;

/// Spaces between columns.
const GAP: usize = 2;

/// A table. Columns that are named first are the last to be left out.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&name| name.to_owned()).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[String]) {
        let cells = cells.iter().map(|cell| printable(cell)).collect();
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines, of up to `width` characters if there is a limit.
    pub fn lines(&self, width: Option<usize>) -> Vec<String> {
        let widths = self.widths();
        let mut shown = 0;
        let mut used = 0;
        for width_of in &widths {
            used += width_of + if shown == 0 { 0 } else { GAP };
            if shown > 0 && width.is_some_and(|limit| used > limit) {
                break;
            }
            shown += 1;
        }
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).take(shown);
            let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
            let line: String = line
                .trim_end()
                .chars()
                .take(width.unwrap_or(usize::MAX))
                .collect();
            line
        };
        self.rows.iter().map(line).collect()
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows[0].len();
        let width = |column| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row: &Vec<String>| row.get::<usize>(column));
            cells
                .map(|cell: &String| cell.chars().count())
                .max()
                .unwrap_or_default()
        };
        (0..columns).map(width).collect()
    }

    /// Prints it, with its head in bold on a terminal.
    pub fn print(&self) -> Result<()> {
        let width = width();
        let lines = self.lines(width);
        let bold = |line: &str| format!("\x1b[1m{line}\x1b[0m");
        let lines = lines
            .iter()
            .enumerate()
            .map(|(number, line)| match (number, width) {
                (0, Some(_)) => format!("{}\n", bold(line)),
                _ => format!("{line}\n"),
            });
        let text: String = lines.collect();
        print(&text)
    }
}

/// How many characters the terminal shows in a line; none if stdout is no terminal.
pub fn width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    terminal_size()
        .map(|(Width(width), _)| usize::from(width))
        .or(Some(80))
}

/// Prints a sentence, broken between words where the terminal ends.
pub fn print_sentence(text: &str) -> Result<()> {
    let lines = wrapped(text, width().unwrap_or(usize::MAX));
    print(&format!("{}\n", lines.join("\n")))
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let length = word.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + length <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The kernel takes nearly every byte in names; a terminal obeys some.
fn printable(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// Bytes in the unit that suits.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return match unit {
                "B" => format!("{value:.0} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_and_leaves_out_what_does_not_fit() {
        let mut table = Table::new(&["TAP", "INTERFACE", "MAC"]);
        table.row(&["1".into(), "a\x1b[2J".into(), "02:00".into()]);
        assert_eq!(
            table.lines(None),
            ["TAP  INTERFACE  MAC", "1    a?[2J      02:00"]
        );
        assert_eq!(table.lines(Some(16)), ["TAP  INTERFACE", "1    a?[2J"]);
        assert_eq!(table.lines(Some(2)), ["TA", "1"]);
    }

    #[test]
    fn breaks_sentences_between_words() {
        assert_eq!(wrapped("one two, three", 8), ["one two,", "three"]);
        assert_eq!(wrapped("one two", usize::MAX), ["one two"]);
        assert_eq!(wrapped("longer than that", 3), ["longer", "than", "that"]);
    }

    #[test]
    fn counts_bytes_as_people_do() {
        let texts = [0, 999, 1000, 1_234_567, 2_000_000_000_000_000].map(bytes);
        assert_eq!(texts, ["0 B", "999 B", "1.0 kB", "1.2 MB", "2000.0 TB"]);
    }
}
