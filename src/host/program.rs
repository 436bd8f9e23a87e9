//! Another program: run with bounds on its time and output. It is killed where it goes beyond them;
//! if this process is killed itself, it runs on to its end.

use std::{
    fmt,
    fs::File,
    io::{self, ErrorKind, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Error};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};

/// How often it is looked whether a program has ended that keeps its output open.
const POLL_MILLISECONDS: u16 = 20;
/// The same of one that has closed it, and is about to end.
const END_POLL: Duration = Duration::from_micros(200);
/// How long a file that is being written is waited for, and how often it is tried.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const BUSY_POLL: Duration = Duration::from_millis(50);
/// Bytes of standard error that are kept.
const MAX_STDERR_BYTES: usize = 64 << 10;

/// How long a program may take, and how much it may print.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The time until it is killed.
    pub timeout: Duration,
    /// Bytes of standard output.
    pub max_bytes: usize,
}

impl Bounds {
    /// Of a program that prints a line or two, such as its version.
    pub const SHORT: Self = Self {
        timeout: Duration::from_secs(5),
        max_bytes: 64 << 10,
    };
}

/// What a program that ended left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// The beginning of what it printed to standard error.
    pub stderr: Vec<u8>,
}

/// Why a program did not run to its end.
#[derive(Debug)]
pub enum ProgramError {
    /// It could not be started.
    NotStarted(io::Error),
    /// It took longer than it may, and was killed.
    TimedOut(Duration),
    /// It printed more than it may, and was killed.
    TooLong(usize),
    /// It could not be watched, and was killed.
    Failed(Error),
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStarted(error) => write!(f, "it could not be started: {error}"),
            Self::TimedOut(timeout) => {
                write!(f, "it did not end within {timeout:.0?} and was killed")
            }
            Self::TooLong(bytes) => write!(f, "it printed more than {bytes} bytes and was killed"),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for ProgramError {}

impl From<Error> for ProgramError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs `command` with `input` as its standard input. If it goes beyond `bounds`, it is killed with
/// all processes of its group.
pub fn run(command: &mut Command, input: &[u8], bounds: Bounds) -> Result<Output, ProgramError> {
    let deadline = Instant::now() + bounds.timeout;
    let mut running = Running::start(command, input, deadline)?;
    loop {
        running.receive(deadline)?;
        if running.stdout.bytes.len() > bounds.max_bytes {
            return Err(ProgramError::TooLong(bounds.max_bytes));
        }
        if let Some(status) = running.try_wait()? {
            return running.finish(status, bounds);
        }
        if Instant::now() >= deadline {
            return Err(ProgramError::TimedOut(bounds.timeout));
        }
    }
}

/// A program that runs. It is killed with its group if this is dropped before it ended.
struct Running {
    child: Child,
    ended: bool,
    stdout: Pipe,
    stderr: Pipe,
}

/// One end of a pipe, and what came out of it.
struct Pipe {
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Running {
    fn start(command: &mut Command, input: &[u8], deadline: Instant) -> Result<Self, ProgramError> {
        command
            .stdin(in_memory(input)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = spawn(command, deadline).map_err(ProgramError::NotStarted)?;
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let mut running = Self {
            child,
            ended: false,
            stdout: Pipe::none(),
            stderr: Pipe::none(),
        };
        running.stdout = Pipe::of(stdout)?;
        running.stderr = Pipe::of(stderr)?;
        Ok(running)
    }

    /// Waits a moment for output, and takes what there is.
    fn receive(&mut self, deadline: Instant) -> Result<(), ProgramError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        let pipes = [&self.stdout.file, &self.stderr.file];
        let open = pipes.into_iter().flatten().map(AsFd::as_fd);
        let mut open: Vec<PollFd<'_>> = open.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if open.is_empty() {
            sleep(END_POLL);
            return Ok(());
        }
        let timeout = PollTimeout::from(left.min(POLL_MILLISECONDS));
        // Interrupted, it is tried again.
        let _ = poll(&mut open, timeout);
        self.stdout.read()?;
        self.read_stderr()
    }

    fn read_stderr(&mut self) -> Result<(), ProgramError> {
        self.stderr.read()?;
        self.stderr.bytes.truncate(MAX_STDERR_BYTES);
        Ok(())
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>, ProgramError> {
        let status = self.child.try_wait().context("waiting for it")?;
        self.ended = status.is_some();
        Ok(status)
    }

    /// Takes what the program left in the pipes, which a process that it started may keep open.
    fn finish(mut self, status: ExitStatus, bounds: Bounds) -> Result<Output, ProgramError> {
        while self.stdout.read()? > 0 && self.stdout.bytes.len() <= bounds.max_bytes {}
        self.read_stderr()?;
        if self.stdout.bytes.len() > bounds.max_bytes {
            return Err(ProgramError::TooLong(bounds.max_bytes));
        }
        Ok(Output {
            status,
            stdout: std::mem::take(&mut self.stdout.bytes),
            stderr: std::mem::take(&mut self.stderr.bytes),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Its number is its group's, unless it has left that. Neither can be another's by now: it was
        // not waited for.
        if let Ok(number) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(number), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pipe {
    fn none() -> Self {
        Self {
            file: None,
            bytes: Vec::new(),
        }
    }

    fn of(end: Option<OwnedFd>) -> Result<Self, ProgramError> {
        if let Some(end) = &end {
            let set = fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            set.context("preparing to read its output")?;
        }
        Ok(Self {
            file: end.map(File::from),
            bytes: Vec::new(),
        })
    }

    /// Takes some of what there is; how much.
    fn read(&mut self) -> Result<usize, ProgramError> {
        let Some(file) = &mut self.file else {
            return Ok(0);
        };
        let mut buffer = [0; 16 << 10];
        match file.read(&mut buffer) {
            Ok(0) => self.file = None,
            Ok(length) => {
                self.bytes.extend_from_slice(&buffer[..length]);
                return Ok(length);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(Error::new(error).context("reading its output").into()),
        }
        Ok(0)
    }
}

/// A file of the kernel's memory: what is not read of it keeps no one waiting.
fn in_memory(input: &[u8]) -> Result<Stdio, ProgramError> {
    let write = || {
        let mut file = File::from(memfd_create(c"stdin", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(input)?;
        file.rewind()?;
        Ok::<_, io::Error>(file)
    };
    Ok(write().context("preparing its input")?.into())
}

/// Starts a program. The file may be open for writing still: one that is being installed, or,
/// in a process with threads, one that another child has inherited for a moment.
fn spawn(command: &mut Command, deadline: Instant) -> io::Result<Child> {
    let deadline = deadline.min(Instant::now() + BUSY_TIMEOUT);
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == ErrorKind::ExecutableFileBusy && Instant::now() < deadline =>
            {
                sleep(BUSY_POLL);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        timeout: Duration::from_mins(1),
        max_bytes: 100_000,
    };

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn takes_input_and_gives_output() {
        let input = vec![b'x'; 90_000];
        let output = run(&mut sh("cat; echo oops >&2; exit 3"), &input, BOUNDS).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, input);
        assert_eq!(output.stderr, b"oops\n");
    }

    #[test]
    fn input_that_is_not_read_is_no_obstacle() {
        let output = run(&mut sh("echo done"), &vec![0; 1 << 20], BOUNDS).unwrap();
        assert_eq!(output.stdout, b"done\n");
    }

    #[test]
    fn a_process_that_keeps_the_output_open_is_not_waited_for() {
        let output = run(&mut sh("sleep 1000 & echo $!"), b"", BOUNDS).unwrap();
        let sleeper = String::from_utf8(output.stdout).unwrap();
        let sleeper = Pid::from_raw(sleeper.trim().parse().unwrap());
        nix::sys::signal::kill(sleeper, Signal::SIGKILL).unwrap();
    }

    #[test]
    fn one_that_hangs_is_killed_with_what_it_started() {
        let pids = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 1000 & echo $! > {}; wait", pids.path().display());
        let mut bounds = Bounds {
            timeout: Duration::from_millis(300),
            ..BOUNDS
        };
        // A slow machine may take longer until the shell has started anything.
        let sleeper = loop {
            let error = run(&mut sh(&script), b"", bounds).unwrap_err();
            assert!(matches!(error, ProgramError::TimedOut(_)), "{error}");
            let sleeper = std::fs::read_to_string(pids.path()).unwrap();
            if sleeper.ends_with('\n') {
                break sleeper;
            }
            bounds.timeout *= 2;
        };
        let proc = format!("/proc/{}/stat", sleeper.trim());
        // The process that adopts orphans may leave it a zombie.
        let gone = || {
            let stat = std::fs::read_to_string(&proc);
            stat.map_or(true, |stat| stat.contains(") Z"))
        };
        let start = Instant::now();
        while !gone() && start.elapsed() < Duration::from_secs(30) {
            sleep(Duration::from_millis(1));
        }
        assert!(gone(), "{sleeper}");
    }

    #[test]
    fn one_that_leaves_its_group_is_killed() {
        let bounds = Bounds {
            timeout: Duration::from_millis(300),
            ..BOUNDS
        };
        let start = Instant::now();
        let script = "exec perl -e 'setpgrp(0, getpgrp(getppid)); sleep 60'";
        let error = run(&mut sh(script), b"", bounds).unwrap_err();
        assert!(matches!(error, ProgramError::TimedOut(_)), "{error}");
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it was waited for"
        );
    }

    #[test]
    fn output_without_end_is_cut_off() {
        for script in ["exec yes", "yes | head -c 200000"] {
            let error = run(&mut sh(script), b"", BOUNDS).unwrap_err();
            assert!(matches!(error, ProgramError::TooLong(100_000)), "{error}");
        }
        let noise = "yes | head -c 200000 >&2; echo done";
        let output = run(&mut sh(noise), b"", BOUNDS).unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(output.stderr.len() <= MAX_STDERR_BYTES);
    }

    #[test]
    fn one_that_cannot_be_started_is_no_output() {
        let error = run(&mut Command::new("/nonexistent"), b"", BOUNDS).unwrap_err();
        assert!(matches!(error, ProgramError::NotStarted(_)), "{error}");
    }
}
