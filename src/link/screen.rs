//! The alternate screen of a terminal, on which keys are read at once.

use std::{
    io::{IsTerminal, Read, Stdin, stdin},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use terminal_size::{Height, terminal_size};

use super::terminal;
use crate::host::stdout::print;

/// `xterm`'s alternate screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The alternate screen. The terminal is as before when it is dropped.
pub struct Screen {
    stdin: Stdin,
    /// How the terminal reads keys otherwise; none if standard input is no terminal.
    saved: Option<Termios>,
    ended: Arc<AtomicBool>,
}

impl Screen {
    /// Enters it; none if standard output has no such screen.
    pub fn open() -> Result<Option<Self>> {
        if !terminal::is_screen() {
            return Ok(None);
        }
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&ended)).context("handling signals")?;
        }
        let stdin = stdin();
        let saved = if stdin.is_terminal() {
            Some(tcgetattr(&stdin).context("reading the terminal's settings")?)
        } else {
            None
        };
        let screen = Self {
            stdin,
            saved,
            ended,
        };
        if let Some(saved) = &screen.saved {
            let mut keys = saved.clone();
            keys.local_flags
                .remove(LocalFlags::ICANON | LocalFlags::ECHO);
            screen.apply(&keys)?;
        }
        print(ENTER)?;
        Ok(Some(screen))
    }

    /// Waits for so long; false if the user ends it meanwhile, by q or a signal.
    pub fn wait(&self, time: Duration) -> Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.ended.load(Ordering::Relaxed) {
                return Ok(false);
            }
            // A poll of 0 ms would busy-wait for the last fraction of a millisecond.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1))?;
            let mut fds = [PollFd::new(self.stdin.as_fd(), PollFlags::POLLIN)];
            let fds = if self.saved.is_some() {
                &mut fds[..]
            } else {
                &mut []
            };
            match poll(fds, timeout) {
                Ok(0) => return Ok(true),
                Ok(_) if self.quits()? => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for a key"),
            }
        }
    }

    /// Reads the keys that were pressed. The terminal's end is as good as q.
    fn quits(&self) -> Result<bool> {
        let mut keys = [0; 64];
        let read = self.stdin.lock().read(&mut keys);
        let length = read.context("reading keys")?;
        Ok(length == 0 || keys[..length].contains(&b'q'))
    }

    fn apply(&self, settings: &Termios) -> Result<()> {
        tcsetattr(&self.stdin, SetArg::TCSADRAIN, settings).context("setting up the terminal")
    }
}

/// Shows a text from the top of the screen, as much as fits.
pub fn draw(text: &str) -> Result<()> {
    let height = terminal_size().map_or(24, |(_, Height(height))| usize::from(height));
    let lines: Vec<&str> = text.lines().take(height).collect();
    print(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n")))
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Fails only if the terminal is gone.
        let _ = print(LEAVE);
        if let Some(saved) = &self.saved {
            let _ = self.apply(saved);
        }
    }
}
