//! What ADD queries of the device plugin before it makes a macvtap in bridge mode: does it begin
//! parked?

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    host::{
        control_socket::{self, Connection},
        listener::Listener,
        netns::Netns,
    },
    types::mac::MacAddr,
};

/// The only version there is. A message of another one is not understood.
const VERSION: u64 = 1;
/// How long either end waits for the other.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(20);

/// A macvtap about to be made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
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

/// The addresses that IPAM gave to a macvtap, which ADD reports when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Addresses {
    /// The number of its tap.
    pub tap: u32,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

/// A query, or a report that is not answered.
#[derive(Deserialize, Serialize)]
struct QueryMessage {
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    query: Option<Query>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addresses: Option<Addresses>,
}

#[derive(Deserialize, Serialize)]
struct ReplyMessage {
    version: u64,
    parked: bool,
}

/// The name of the socket in this network namespace: several nodes may share a directory.
fn socket_name() -> Result<String> {
    let (_, inode) = Netns::current()?.identity()?;
    Ok(format!("learning-{inode}.sock"))
}

// === the CNI plugin's end ===

/// A device plugin that can be queried.
pub struct Client(Connection);

/// Finds a device plugin that can be queried. Never waits.
#[must_use]
pub fn find() -> Option<Client> {
    let name = socket_name().ok()?;
    let mut dirs = control_socket::client_dirs();
    dirs.find_map(|dir| Connection::open(&dir, &name).ok())
        .map(Client)
}

impl Client {
    /// Queries, and does not wait for the answer. None if the device plugin cannot be queried.
    #[must_use]
    pub fn ask(self, query: &Query) -> Option<PendingReply> {
        let query = Some(query.clone());
        let connection = self.send(query, None).ok()?;
        Some(PendingReply(connection))
    }

    /// Reports addresses.
    pub fn report(self, addresses: Addresses) -> Result<()> {
        self.send(None, Some(addresses)).map(drop)
    }

    fn send(self, query: Option<Query>, addresses: Option<Addresses>) -> Result<Connection> {
        let Self(mut connection) = self;
        let message = QueryMessage {
            version: VERSION,
            query,
            addresses,
        };
        connection.send(&message, Instant::now() + ANSWER_TIMEOUT)?;
        Ok(connection)
    }
}

/// A query whose answer is on its way.
pub struct PendingReply(Connection);

impl PendingReply {
    /// Whether the macvtap is to be parked. False too if there is no answer in time.
    #[must_use]
    pub fn is_to_be_parked(self) -> bool {
        let Self(mut connection) = self;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let reply = connection.receive::<ReplyMessage>(deadline);
        reply.is_ok_and(|reply| reply.version == VERSION && reply.parked)
    }
}

// === the device plugin's end ===

/// What ADD sent.
pub enum Received {
    /// A query.
    Query(Request),
    /// A report.
    Addresses(Addresses),
}

/// A query, and who waits for the answer.
pub struct Request {
    /// The query.
    pub query: Query,
    /// The process that waits; 0 if it cannot be seen from here.
    pub process: i32,
    connection: Connection,
}

/// The sockets on which the device plugin of this kubelet's directory is queried; none listens yet.
pub fn listener(kubelet_dir: &Path) -> Result<Listener> {
    let dirs = control_socket::server_dirs(kubelet_dir);
    Ok(Listener::new(socket_name()?, dirs))
}

impl Received {
    /// Receives what ADD sent. It is waited for, but not long: ADD sends it at once. None if there
    /// is nothing.
    pub fn by(mut connection: Connection) -> Result<Option<Self>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let Some(message) = connection.try_receive::<QueryMessage>(deadline)? else {
            return Ok(None);
        };
        ensure!(
            message.version == VERSION,
            "a query of version {}, this is {VERSION}",
            message.version
        );
        if let Some(addresses) = message.addresses {
            return Ok(Some(Self::Addresses(addresses)));
        }
        Ok(Some(Self::Query(Request {
            query: message.query.context("a message without a query")?,
            process: connection.peer_process()?,
            connection,
        })))
    }
}

impl Request {
    /// Answers.
    pub fn answer(mut self, parked: bool) -> Result<()> {
        let version = VERSION;
        let message = ReplyMessage { version, parked };
        self.connection
            .send(&message, Instant::now() + ANSWER_TIMEOUT)
    }
}
