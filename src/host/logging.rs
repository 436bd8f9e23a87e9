//! Log lines in logfmt (`key=value`): one line for each record, on standard error or appended
//! to a file.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    time::SystemTime,
};

use env_logger::{Builder, Target};
use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, mkdirat},
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
                let path = path.to_string_lossy();
                let _ = writeln!(
                    io::stderr(),
                    "macvtap: nothing is logged to logFile {path:?}: {error}; a log file is \
                     /var/log/macvtap/NAME.log or /var/log/macvtap*.log"
                );
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

/// A value as logfmt writes it: in quotes unless it is plain, with characters that mean something
/// to a terminal or a shell escaped as in JSON: no value looks like a line, a key or a command.
fn quoted(value: &str) -> String {
    let plain = |char: char| char.is_alphanumeric() || "-_./:@,+%".contains(char);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.chars().map(|char| match char {
        '"' | '\\' => format!("\\{char}"),
        '\n' => "\\n".to_owned(),
        '\t' => "\\t".to_owned(),
        char if acts(char) => format!("\\u{:04x}", u32::from(char)),
        char => char.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// Whether a terminal, a shell or a reader of lines acts on a character in quotes.
fn acts(char: char) -> bool {
    char.is_control() || matches!(char, '$' | '`' | '\u{2028}' | '\u{2029}')
}

/// The directories that log files are in, and how the name of one in each begins.
const PLACES: [(&str, &str); 2] = [("/var/log", OWN_DIR), ("/var/log/macvtap", "")];
/// The directory that is made for them.
const OWN_DIR: &str = "macvtap";

/// Directory and name of a log file. Who writes a configuration may be no administrator of the
/// node: root must not write lines to a file of any other program, some of which run what they
/// read.
fn place_of(path: &str) -> Option<(&'static str, &str)> {
    let (dir, name) = path.rsplit_once('/')?;
    let (place, start) = PLACES.into_iter().find(|(place, _)| *place == dir)?;
    let stem = name.strip_suffix(".log")?;
    let proper = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
    let named = stem.starts_with(start) && stem.starts_with(|char: char| char != '.');
    (named && stem.chars().all(proper)).then_some((place, name))
}

fn open(path: &Path) -> io::Result<File> {
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let Some((dir, name)) = path.to_str().and_then(place_of) else {
        return refuse("it is no such file");
    };
    let file = open_without_links(dir, name)?;
    let found = file.metadata()?;
    if found.is_file() && found.nlink() == 1 {
        return Ok(file);
    }
    refuse("it is no regular file, or has several names")
}

/// Opens a file to append to, by one component of its directory's path after the other: a user
/// who can write to one of the directories must not lead root elsewhere by a symbolic link.
fn open_without_links(dir: &str, name: &str) -> io::Result<File> {
    let mut parent = OwnedFd::from(File::open("/")?);
    for part in dir.split('/').skip(1) {
        if part == OWN_DIR {
            make_dir(&parent, part)?;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        parent = openat(&parent, part, flags, Mode::empty())?;
    }
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(openat(&parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

fn make_dir(parent: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
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
            ("x$(id)`id`", r#""x\u0024(id)\u0060id\u0060""#),
            ("x;id", r#""x;id""#),
            ("x|id&", r#""x|id&""#),
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
    fn only_logs_of_this_program_are_written_to() {
        for (path, place) in [
            ("/var/log/macvtap.log", ("/var/log", "macvtap.log")),
            ("/var/log/macvtap-a.b.log", ("/var/log", "macvtap-a.b.log")),
            (
                "/var/log/macvtap/lan_1.log",
                ("/var/log/macvtap", "lan_1.log"),
            ),
        ] {
            assert_eq!(place_of(path), Some(place), "{path}");
        }
        for path in [
            "/etc/bash_completion.d/x.log",
            "/tmp/macvtap.log",
            "/tmp/macvtap/x.log",
            "/root/.ssh/authorized_keys",
            "/var/log/wtmp",
            "/var/log/dpkg.log",
            "/var/log/macvtap",
            "/var/log/macvtap/",
            "/var/log/macvtap/x",
            "/var/log/macvtap/.log",
            "/var/log/macvtap/.x.log",
            "/var/log/macvtap/x y.log",
            "/var/log/macvtap/x\n.log",
            "/var/log/macvtap/../x.log",
            "/var/log/macvtap/../../etc/x.log",
            "/var/log/macvtap/pods/x.log",
            "/var/log/macvtap.d/x.log",
            "/var/log/./macvtap.log",
            "//var/log/macvtap.log",
            "/var/logs/macvtap.log",
            "var/log/macvtap.log",
            "macvtap.log",
            "",
        ] {
            assert_eq!(place_of(path), None, "{path}");
        }
    }
}
