//! QEMU's machine protocol, as far as a migration needs it.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use kit::netns::wait_until;
use serde_json::{Value, json};

/// A connection to a QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the socket that `-qmp` named.
    pub fn connect(path: &Path) -> Self {
        let mut stream = None;
        wait_until("QEMU listens", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut qmp = Self {
            reader: BufReader::new(stream),
            events: Vec::new(),
        };
        qmp.read();
        qmp.run("qmp_capabilities", &json!({}));
        qmp
    }

    /// Runs a command; what it returned.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments});
        let stream = self.reader.get_mut();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        loop {
            let answer = self.read();
            assert!(answer["error"].is_null(), "{command}: {answer}");
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
        }
    }

    /// When an event of this name happened; waits for it.
    pub fn wait_for(&mut self, name: &str) -> Instant {
        loop {
            let found = self.events.iter().find(|event| event["event"] == name);
            if let Some(event) = found {
                let stamp = &event["timestamp"];
                let seconds = Duration::from_secs(stamp["seconds"].as_u64().unwrap());
                let micros = Duration::from_micros(stamp["microseconds"].as_u64().unwrap());
                return instant(SystemTime::UNIX_EPOCH + seconds + micros);
            }
            self.read();
        }
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        assert!(read.unwrap() > 0, "QEMU is gone");
        let message: Value = serde_json::from_str(&line).unwrap();
        if message.get("event").is_some() {
            self.events.push(message.clone());
        }
        message
    }
}

/// A time of the clock as one that only goes forward.
pub fn instant(time: SystemTime) -> Instant {
    #[expect(clippy::disallowed_methods, reason = "QEMU gives it")]
    let (now, wall) = (Instant::now(), SystemTime::now());
    match wall.duration_since(time) {
        Ok(ago) => now.checked_sub(ago).unwrap(),
        Err(ahead) => now + ahead.duration(),
    }
}
