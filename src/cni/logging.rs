//! Log lines of the CNI plugin, where the configuration asks for them: a runtime
//! throws standard error away when there is an error on standard output.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    time::SystemTime,
};

use env_logger::{Builder, Target};
use nix::fcntl::OFlag;

use super::config::Logging;

/// Starts logging. Each line begins with `context`: which attachment it is about.
///
/// A log file that cannot be opened must not cost a pod its network: it is
/// complained about on standard error, where the lines go then.
pub fn start(logging: &Logging, context: String) {
    let mut builder = Builder::new();
    builder.filter_level(logging.level);
    builder.format(move |line, record| {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let (level, text) = (record.level(), record.args());
        writeln!(line, "{time} level={level} {context}: {text}")
    });
    if let Some(path) = &logging.file {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(flags.bits())
            .open(path);
        match opened {
            Ok(file) => {
                builder.target(Target::Pipe(Box::new(file)));
            }
            Err(error) => {
                let path = path.display();
                let _ = writeln!(io::stderr(), "macvtap: opening logFile {path}: {error}");
            }
        }
    }
    // Fails only if there is a logger already, and then that one serves.
    let _ = builder.try_init();
}
