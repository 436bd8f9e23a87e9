//! Log lines: one for each fact, on standard error or added to a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path},
    time::SystemTime,
};

use env_logger::{Builder, Target};
use log::LevelFilter;
use nix::fcntl::OFlag;

/// Starts logging for a program that runs on: to standard error, at `level` unless `RUST_LOG`
/// says otherwise.
pub fn start(level: LevelFilter) {
    let mut builder = Builder::new();
    // What the libraries log is theirs: protocol chatter.
    builder.filter_module(module_path!().split(':').next().unwrap_or_default(), level);
    builder.parse_default_env();
    write_lines(builder, String::new());
}

/// Starts logging for the CNI plugin, where a configuration asks for it: a runtime throws
/// standard error away when there is an error on standard output.
///
/// Each line has `context`: which attachment it is about. A log file that cannot be opened
/// must not cost a pod its network: it is complained about on standard error, where the
/// lines go then.
pub fn start_for_call(level: LevelFilter, file: Option<&Path>, context: &str) {
    let mut builder = Builder::new();
    builder.filter_level(level);
    if let Some(path) = file {
        match open(path) {
            Ok(file) => {
                builder.target(Target::Pipe(Box::new(file)));
            }
            Err(error) => {
                let path = path.display();
                let _ = writeln!(io::stderr(), "macvtap: opening logFile {path}: {error}");
            }
        }
    }
    write_lines(builder, format!("{context} "));
}

fn write_lines(mut builder: Builder, context: String) {
    builder.format(move |line, record| {
        #[expect(clippy::disallowed_methods, reason = "a line says what time it is")]
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let (level, text) = (
            record.level(),
            one_line(&format!("{context}{}", record.args())),
        );
        writeln!(line, "{time} level={level} {text}")
    });
    // Fails only if there is a logger already, and then that one serves.
    let _ = builder.try_init();
}

/// What others named, such as a device ID, must not look like a line of its own.
fn one_line(text: &str) -> String {
    let shown = |char: char| -> String {
        if char.is_control() {
            char.escape_default().collect()
        } else {
            char.into()
        }
    };
    text.chars().map(shown).collect()
}

/// Whether root may add lines there for whoever writes a configuration: that one may be no
/// administrator of the node, and some files would become programs by a line.
fn is_log(path: &Path) -> bool {
    let proper = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    proper && (path.starts_with("/var/log") || path.extension().is_some_and(|end| end == "log"))
}

fn open(path: &Path) -> io::Result<File> {
    if !is_log(path) {
        let why = "it is neither below /var/log nor does its name end in .log";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one() {
        assert_eq!(one_line("a\nb \u{1b}[1m é"), "a\\nb \\u{1b}[1m é");
    }

    #[test]
    fn only_logs_are_written_to() {
        for path in ["/var/log/x", "/var/log/pods/macvtap", "/tmp/a/macvtap.log"] {
            assert!(is_log(Path::new(path)), "{path}");
        }
        for path in [
            "/etc/cron.d/x",
            "/root/.ssh/authorized_keys",
            "/var/log/../../etc/profile",
            "x.log",
            "/var/logs",
            "/tmp/.log",
        ] {
            assert!(!is_log(Path::new(path)), "{path}");
        }
    }
}
