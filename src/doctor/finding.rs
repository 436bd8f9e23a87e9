//! What `doctor` found, and how it is printed.

use serde_json::{Value, json};

use crate::types::plural::count;

/// A finding of one check.
pub struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
    fix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
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
    pub fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            verdict: Verdict::Ok,
            text: text.into(),
            fix: None,
        }
    }

    pub fn note(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Note,
            ..Self::ok(check, text)
        }
    }

    pub fn fail(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
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

    fn line(&self) -> String {
        let (verdict, check) = (self.verdict.name(), self.check);
        let line = format!("  {verdict:4} {check:14} {}\n", self.text);
        let fix = self.fix.as_ref();
        let fix = fix.map(|fix| format!("{:22}fix: {fix}\n", ""));
        line + &fix.unwrap_or_default()
    }
}

/// The findings as text, with the number of problems at the end.
pub fn to_text(findings: &[Finding]) -> String {
    let lines: String = findings.iter().map(Finding::line).collect();
    let end = match findings.iter().filter(|each| each.is_failure()).count() {
        0 => "No problems found.".to_owned(),
        problems => format!("{} found.", count(problems, "problem")),
    };
    format!("{lines}\n{end}\n")
}

/// The findings as JSON. Keys are only ever added.
pub fn to_json(findings: &[Finding]) -> Value {
    let findings = findings.iter().map(|finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.name().to_lowercase(),
            "text": finding.text,
            "fix": finding.fix,
        })
    });
    findings.collect()
}
