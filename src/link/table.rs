//! Tables for people: aligned, and no wider than the terminal.

use anyhow::Result;

use super::terminal::{heading, print_sentence, printable, width};
use crate::host::stdout::print;

/// Spaces between columns.
const GAP: usize = 2;

/// A table. Columns that are named first are the last to be left out.
pub struct Table {
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

/// The part of a table that fits.
#[derive(Debug, PartialEq, Eq)]
pub struct Fitted {
    /// The lines, the first of them with the names of the columns.
    pub lines: Vec<String>,
    /// The names of the columns that did not fit.
    pub hidden: Vec<String>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&name| name.to_owned()).collect();
        Self {
            rows: vec![head],
            notes: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[String]) {
        let cells = cells.iter().map(|cell| printable(cell)).collect();
        self.rows.push(cells);
    }

    /// The table with sentences below it.
    pub fn notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// As many columns as fit in lines of `limit` characters, but at least one, which is cut.
    pub fn fit(&self, limit: Option<usize>) -> Fitted {
        let limit = limit.unwrap_or(usize::MAX);
        let widths = self.widths();
        let ends = widths.iter().scan(0, |end, width| {
            *end += width;
            let here = *end;
            *end += GAP;
            Some(here)
        });
        let shown = ends.take_while(|end| *end <= limit).count().max(1);
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).take(shown);
            let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
            line.trim_end().chars().take(limit).collect()
        };
        let notes = self.notes.iter().map(|note| printable(note));
        Fitted {
            lines: self.rows.iter().map(line).chain(notes).collect(),
            hidden: self.rows[0].iter().skip(shown).cloned().collect(),
        }
    }

    fn widths(&self) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..self.rows[0].len()).map(width).collect()
    }

    /// Prints it, whole if it is `wide`, and the names of columns that do not fit.
    pub fn print(&self, wide: bool) -> Result<()> {
        let fitted = self.fit(width().filter(|_| !wide));
        print(&fitted.text())?;
        if fitted.hidden.is_empty() {
            return Ok(());
        }
        let hidden = fitted.hidden.join(", ");
        print_sentence(&format!(
            "Hidden columns: {hidden}. Use --wide to show them."
        ))
    }
}

impl Fitted {
    /// The lines as one text.
    pub fn text(&self) -> String {
        let mut lines = self.lines.iter();
        let head = lines.next().map(|line| heading(line));
        let lines: Vec<String> = head.into_iter().chain(lines.cloned()).collect();
        lines.join("\n") + "\n"
    }
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
        let fitted = table.fit(None);
        assert_eq!(
            fitted.lines,
            ["TAP  INTERFACE  MAC", "1    a?[2J      02:00"]
        );
        assert!(fitted.hidden.is_empty());
        assert_eq!(table.fit(Some(21)), fitted);
        let fitted = table.fit(Some(20));
        assert_eq!(fitted.lines, ["TAP  INTERFACE", "1    a?[2J"]);
        assert_eq!(fitted.hidden, ["MAC"]);
        let fitted = table.fit(Some(2));
        assert_eq!(fitted.lines, ["TA", "1"]);
        assert_eq!(fitted.hidden, ["INTERFACE", "MAC"]);
    }

    #[test]
    fn counts_bytes_as_people_do() {
        let texts = [0, 999, 1000, 1_234_567, 2_000_000_000_000_000].map(bytes);
        assert_eq!(texts, ["0 B", "999 B", "1.0 kB", "1.2 MB", "2000.0 TB"]);
    }
}
