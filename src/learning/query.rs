//! What ADD asks the device plugin before it makes a macvtap in bridge mode: shall it be
//! parked? One request and one answer, each a line of JSON, by an abstract Unix socket of the
//! host's network namespace: it needs neither file nor mount.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};

use crate::{host::peer, types::mac::MacAddr};

/// The socket's name.
const NAME: &str = "macvtap-learning";
/// The only version there is. An answer of another one is none.
const VERSION: u64 = 1;
/// How long either end waits for the other.
const PATIENCE: Duration = Duration::from_millis(20);
/// The longest line that is read, in bytes. A path has up to 4096.
const LONGEST: u64 = 8192;

/// A macvtap about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Path of the pod's network namespace, as the runtime gave it.
    pub netns: String,
    /// Device and inode of that namespace, to know it again.
    pub identity: (u64, u64),
    /// The interface index that the macvtap gets, which is its tap's number.
    pub tap: u32,
    /// The name that it gets.
    pub ifname: String,
    /// The MAC that it gets.
    pub mac: MacAddr,
    /// The index of its lower device.
    pub lower: u32,
}

/// A device plugin that listens.
pub struct Client(UnixStream);

/// Whether there is a device plugin that can be asked. Never waits.
#[must_use]
pub fn find() -> Option<Client> {
    // Not by std, whose connect waits while the other end's backlog is full.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let address = UnixAddr::new_abstract(NAME.as_bytes()).ok()?;
    connect(socket.as_raw_fd(), &address).ok()?;
    let stream = UnixStream::from(socket);
    // Only root may have a say in the node's network.
    peer::is_root(&stream).then_some(Client(stream))
}

impl Client {
    /// Asks, and does not wait for the answer. None if the device plugin cannot be asked.
    #[must_use]
    pub fn ask(self, question: &Query) -> Option<PendingReply> {
        let Self(mut stream) = self;
        let line = format!("{}\n", question.to_json());
        set_patience(&stream).ok()?;
        stream.write_all(line.as_bytes()).ok()?;
        Some(PendingReply(stream))
    }
}

/// A question whose answer is on the way.
pub struct PendingReply(UnixStream);

impl PendingReply {
    /// Whether the macvtap is to be parked. False too if there is no answer in time.
    #[must_use]
    pub fn is_to_be_parked(self) -> bool {
        let answer = read(&self.0);
        answer.is_ok_and(|answer| answer["version"] == VERSION && answer["mode"] == "vepa")
    }
}

/// Begins to listen.
pub fn listen() -> Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(NAME)?;
    let listener = UnixListener::bind_addr(&address);
    let listener = listener.with_context(|| format!("making the abstract socket {NAME:?}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who asks, and what.
pub struct Request {
    /// The question.
    pub question: Query,
    stream: UnixStream,
}

/// Reads a question. It waits, but not long: whoever asks has it ready.
pub fn read_query(stream: UnixStream) -> Result<Request> {
    ensure!(peer::is_root(&stream), "somebody else than root asks");
    set_patience(&stream)?;
    let question = Query::from_json(&read(&stream)?)?;
    Ok(Request { question, stream })
}

impl Request {
    /// Answers.
    pub fn answer(mut self, parked: bool) -> Result<()> {
        let mode = if parked { "vepa" } else { "bridge" };
        let line = format!("{}\n", json!({"version": VERSION, "mode": mode}));
        self.stream
            .write_all(line.as_bytes())
            .context("answering ADD")
    }
}

impl Query {
    fn to_json(&self) -> Value {
        json!({
            "version": VERSION,
            "netns": self.netns,
            "identity": [self.identity.0, self.identity.1],
            "tap": self.tap,
            "ifname": self.ifname,
            "mac": self.mac.to_string(),
            "lower": self.lower,
        })
    }

    fn from_json(value: &Value) -> Result<Self> {
        ensure!(value["version"] == VERSION, "a question of another version");
        let number = |value: &Value| value.as_u64().context("a number is missing");
        let index = |value: &Value| Ok::<u32, anyhow::Error>(number(value)?.try_into()?);
        let text = |value: &Value| {
            value
                .as_str()
                .map(str::to_owned)
                .context("a text is missing")
        };
        Ok(Self {
            netns: text(&value["netns"])?,
            identity: (
                number(&value["identity"][0])?,
                number(&value["identity"][1])?,
            ),
            tap: index(&value["tap"])?,
            ifname: text(&value["ifname"])?,
            mac: text(&value["mac"])?.parse()?,
            lower: index(&value["lower"])?,
        })
    }
}

/// Neither end waits for ever.
fn set_patience(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn read(stream: &UnixStream) -> Result<Value> {
    let mut line = String::new();
    BufReader::new(std::io::Read::take(stream, LONGEST)).read_line(&mut line)?;
    serde_json::from_str(&line).context("reading a line of JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_comes_back_as_it_was() {
        let question = Query {
            netns: "/run/netns/a \"b\"".into(),
            identity: (4, 4_026_532_000),
            tap: 1 << 24,
            ifname: "net1".into(),
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            lower: 2,
        };
        let json = question.to_json();
        assert_eq!(Query::from_json(&json).unwrap(), question);
        for key in [
            "version", "netns", "identity", "tap", "ifname", "mac", "lower",
        ] {
            let mut broken = json.clone();
            broken[key] = Value::Null;
            assert!(Query::from_json(&broken).is_err(), "{key}");
        }
    }
}
