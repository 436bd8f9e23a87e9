//! What `doctor` found, and how it is printed.

use serde::{Deserialize, Serialize};

use crate::{
    link::terminal::{printable, width, wrapped},
    types::plural::count,
};

/// Characters of the shortest line into which a text is broken.
const MIN_WIDTH: usize = 30;

/// A finding of one check. As JSON its keys are only ever added.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Finding {
    check: String,
    verdict: Verdict,
    text: String,
    fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Not as usual, but possibly intended.
    Note,
    Fail,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fail => "FAIL",
        }
    }
}

impl Finding {
    pub fn ok(check: &str, text: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            verdict: Verdict::Ok,
            text: text.into(),
            fix: None,
        }
    }

    pub fn note(check: &str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Note,
            ..Self::ok(check, text)
        }
    }

    pub fn fail(check: &str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            fix: Some(fix.into()),
            ..Self::ok(check, text)
        }
    }

    pub fn is_ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }

    pub fn is_failure(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    /// Its text and its fix, in lines of `width` characters.
    pub fn lines(&self, width: usize) -> String {
        let (verdict, check) = (self.verdict.name(), printable(&self.check));
        let text = paragraph(&format!("  {verdict:4} {check:14} "), &self.text, width);
        let fix = self.fix.as_ref();
        let fix = fix.map(|fix| paragraph(&format!("{:22}fix: ", ""), fix, width));
        text + &fix.unwrap_or_default()
    }
}

/// A text beside its heading. It breaks only where more than a word fits in a line.
fn paragraph(heading: &str, text: &str, width: usize) -> String {
    let indent = heading.chars().count();
    let rest = width.checked_sub(indent).filter(|rest| *rest >= MIN_WIDTH);
    let lines = wrapped(text, rest.unwrap_or(usize::MAX));
    let between = format!("\n{:indent$}", "");
    format!("{heading}{}\n", lines.join(&between))
}

/// The findings as text, with the number of problems at the end.
pub fn to_text(findings: &[Finding]) -> String {
    let width = width().unwrap_or(usize::MAX);
    let lines: String = findings.iter().map(|each| each.lines(width)).collect();
    format!("{lines}\n{}\n", summary(findings))
}

/// The number of problems, as a sentence.
pub fn summary(findings: &[Finding]) -> String {
    match findings.iter().filter(|each| each.is_failure()).count() {
        0 => "No problems found.".to_owned(),
        problems => format!("{} found.", count(problems, "problem")),
    }
}
