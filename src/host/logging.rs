//! Log lines in logfmt (`key=value`): one line for each record, on standard error or appended
//! to a file.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Component, Path},
    time::SystemTime,
};

use env_logger::{Builder, Target};
use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource},
};
use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// Keys and values that every line of a process has, such as the attachment it is about.
pub type Context = Vec<(&'static str, String)>;

/// Starts logging for a long-running command: to standard error, at `level` unless `RUST_LOG`
/// overrides it.
pub fn start(level: LevelFilter) {
    let mut builder = Builder::new();
    // Libraries log protocol details; only RUST_LOG shows them.
    builder.filter_module(module_path!().split(':').next().unwrap_or_default(), level);
    builder.parse_default_env();
    init(builder, Context::new());
}

/// Starts logging for the CNI plugin, where the configuration asks for it: a runtime discards
/// standard error when there is an error on standard output.
///
/// Each line has `context`. A log file that cannot be opened must not cost a pod its network:
/// the reason is printed on standard error, and the lines go there too.
pub fn start_for_call(level: LevelFilter, file: Option<&Path>, context: Context) {
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
    init(builder, context);
}

/// Prints warnings and errors on standard error, and nothing else. Costs next to nothing: it is
/// for the CNI plugin, where nothing is configured.
pub fn start_for_warnings() {
    // Fails only if there is a logger already, and then that one serves.
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

struct Warnings;

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            #[expect(clippy::disallowed_methods, reason = "a line has the time of day")]
            let now = SystemTime::now();
            let _ = writeln!(io::stderr(), "{}", line(now, record, &[]));
        }
    }

    fn flush(&self) {}
}

fn init(mut builder: Builder, context: Context) {
    builder.format(move |out, record| {
        #[expect(clippy::disallowed_methods, reason = "a line has the time of day")]
        let now = SystemTime::now();
        writeln!(out, "{}", line(now, record, &context))
    });
    // Fails only if there is a logger already, and then that one serves.
    let _ = builder.try_init();
}

/// One record as one line of logfmt.
fn line(now: SystemTime, record: &Record, context: &[(&str, String)]) -> String {
    let time = humantime::format_rfc3339_millis(now);
    let level = record.level().as_str().to_lowercase();
    let mut line = Line(format!("ts={time} level={level}"));
    line.add("msg", &record.args().to_string());
    for (key, value) in context {
        line.add(key, value);
    }
    // `Line` accepts every pair.
    let _ = record.key_values().visit(&mut line);
    line.0
}

struct Line(String);

impl Line {
    fn add(&mut self, key: &str, value: &str) {
        self.0.extend([" ", key, "=", &quoted(value)]);
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.add(key.as_str(), &value.to_string());
        Ok(())
    }
}

/// A value as logfmt writes it: in quotes where its end would not be clear, with
/// control characters escaped as in JSON, so that no value looks like a line or a key.
fn quoted(value: &str) -> String {
    let plain = |char: char| !matches!(char, ' ' | '=' | '"' | '\\') && !breaks(char);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.chars().map(|char| match char {
        '"' | '\\' => format!("\\{char}"),
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        char if breaks(char) => format!("\\u{:04x}", u32::from(char)),
        char => char.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Whether a terminal or a reader of lines acts on a character instead of showing it.
fn breaks(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}')
}

/// Whether root may append lines there on behalf of the author of a configuration, who may not
/// be an administrator of the node: some files become programs by a line.
fn is_log(path: &Path) -> bool {
    let proper = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    proper && (path.starts_with("/var/log") || path.extension().is_some_and(|end| end == "log"))
}

fn open(path: &Path) -> io::Result<File> {
    if !is_log(path) {
        let why = "it is neither below /var/log nor does its name end in .log";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let file = open_without_links(path)?;
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 {
        return Ok(file);
    }
    let why = "it is no regular file, or has several names";
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Opens a file to append to, by one component of its absolute path after the other: a user
/// who can write to one of the directories must not lead root elsewhere by a symbolic link.
fn open_without_links(path: &Path) -> io::Result<File> {
    let mut names: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let file = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
    let mut dir = OwnedFd::from(File::open("/")?);
    for name in names {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        dir = openat(&dir, name, flags, Mode::empty())?;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(openat(&dir, file, flags, Mode::from_bits_truncate(0o640))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_needed() {
        for (value, expected) in [
            ("plain", "plain"),
            ("/var/run/netns/cni-1", "/var/run/netns/cni-1"),
            ("é", "é"),
            ("", r#""""#),
            ("two words", r#""two words""#),
            ("a=b", r#""a=b""#),
            (r#"say "hi""#, r#""say \"hi\"""#),
            (r"back\slash", r#""back\\slash""#),
            ("a\nb\tc \u{1b}[1m", r#""a\nb\tc \u001b[1m""#),
            ("\u{85}\u{2028}", r#""\u0085\u2028""#),
        ] {
            assert_eq!(quoted(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_record_is_one_line_with_its_context_and_pairs() {
        let pairs: &[(&str, Value)] = &[("mtu", 1500.into()), ("error", "no\nroute".into())];
        let context = [
            ("ifName", "net1".to_owned()),
            ("pod", "x level=error".to_owned()),
        ];
        let text = format_args!("it\nfailed").to_string();
        let args = format_args!("{text}");
        let record = Record::builder()
            .level(log::Level::Warn)
            .args(args)
            .key_values(&pairs)
            .build();
        assert_eq!(
            line(SystemTime::UNIX_EPOCH, &record, &context),
            "ts=1970-01-01T00:00:00.000Z level=warn msg=\"it\\nfailed\" ifName=net1 \
             pod=\"x level=error\" mtu=1500 error=\"no\\nroute\""
        );
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
