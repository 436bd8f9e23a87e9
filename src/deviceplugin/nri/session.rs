//! One connection to the runtime, from the registration to its end.

use std::{
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use log::debug;
use prost::Message as _;

use crate::host::control_socket;

use super::{
    api::{RegisterPluginRequest, Request, Response, Status},
    frame::{Decoder, Message, PLUGIN, REQUEST, RESPONSE, RUNTIME},
    service::{CallError, Service},
};

/// The name by which the runtime's log and errors call us.
const NAME: &str = "macvtap";
/// The order among plugins: any. Each of two plugins that give the same device fails.
const INDEX: &str = "50";
/// How long a write may take. The runtime gives up a plugin after 2 s.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on which the plugin is registered, or is about to be.
pub struct Session {
    stream: UnixStream,
    decoder: Decoder,
}

impl Session {
    /// Connects, and asks to be registered.
    pub fn start(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        ensure!(control_socket::is_root(&stream), "the peer is not root");
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let mut session = Self {
            stream,
            decoder: Decoder::default(),
        };
        session.register().context("registering with the runtime")?;
        Ok(session)
    }

    fn register(&mut self) -> Result<()> {
        let payload = RegisterPluginRequest {
            plugin_name: NAME.to_owned(),
            plugin_idx: INDEX.to_owned(),
        };
        let request = Request {
            service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: payload.encode_to_vec(),
        };
        self.send(&Message {
            connection: RUNTIME,
            stream: 1,
            kind: REQUEST,
            payload: request.encode_to_vec(),
        })
    }

    /// Reads what has arrived, and has `service` answer it. False if the runtime closed the
    /// connection.
    pub fn receive(&mut self, service: &mut Service) -> Result<bool> {
        let mut buffer = [0; 1 << 14];
        let length = match self.stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(true),
            length => length.context("reading")?,
        };
        for message in self.decoder.push(&buffer[..length])? {
            self.handle(&message, service)?;
        }
        Ok(length > 0)
    }

    fn handle(&mut self, message: &Message, service: &mut Service) -> Result<()> {
        match (message.connection, message.kind) {
            (PLUGIN, REQUEST) => self.answer(message, service),
            (RUNTIME, RESPONSE) => registered(&message.payload),
            (connection, kind) => {
                debug!(connection, kind; "message of the runtime ignored");
                Ok(())
            }
        }
    }

    fn answer(&mut self, message: &Message, service: &mut Service) -> Result<()> {
        let outcome = match Request::decode(&message.payload[..]) {
            Ok(request) => service.call(&request),
            Err(error) => Err(CallError::malformed(error)),
        };
        let response = match outcome {
            Ok(payload) => Response {
                payload,
                status: None,
            },
            Err(CallError { code, error }) => Response {
                payload: Vec::new(),
                status: Some(Status {
                    code,
                    message: format!("{error:#}"),
                }),
            },
        };
        self.send(&Message {
            connection: PLUGIN,
            stream: message.stream,
            kind: RESPONSE,
            payload: response.encode_to_vec(),
        })?;
        service.after_answer();
        Ok(())
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        let frames = message.encode()?;
        self.stream.write_all(&frames).context("writing")
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The runtime keeps a connection open on which it refused the plugin.
fn registered(payload: &[u8]) -> Result<()> {
    let response = Response::decode(payload).context("decoding the answer")?;
    let status = response.status.unwrap_or_default();
    ensure!(
        status.code == 0,
        "the runtime refused the plugin: {}",
        status.message
    );
    Ok(())
}
