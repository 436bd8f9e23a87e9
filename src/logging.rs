//! Log lines: one for each fact, on standard error or added to a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
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
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let (level, text) = (record.level(), record.args());
        writeln!(line, "{time} level={level} {context}{text}")
    });
    // Fails only if there is a logger already, and then that one serves.
    let _ = builder.try_init();
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags.bits())
        .open(path)
}
