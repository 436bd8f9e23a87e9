//! The bytes between an NRI plugin and the runtime: ttrpc messages of two connections on one
//! socket. Pure.
//!
//! ```text
//! frame    connection: u32, length: u32, payload
//! message  length: u32, stream: u32, type: u8, flags: u8, payload       all big-endian
//! ```
//!
//! A message is cut into frames wherever its sender likes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// The connection on which the runtime calls the plugin.
pub const PLUGIN: u32 = 1;
/// The connection on which the plugin calls the runtime.
pub const RUNTIME: u32 = 2;
/// The types of messages that carry a call.
pub const REQUEST: u8 = 1;
/// The answer to a request.
pub const RESPONSE: u8 = 2;

const FRAME_HEADER: usize = 8;
const MESSAGE_HEADER: usize = 10;
/// Bytes of the longest frame that is sent, header included. containerd closes the connection
/// after a longer one.
const MAX_SENT_FRAME: usize = 4096;
/// Bytes of the longest message that is taken. containerd 1.7 sends the state of all pods in
/// one message, several megabytes on a full node. The memory of the device plugin's container is
/// limited, to 128 MiB by our manifests, and a message is decoded beside its bytes.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// A ttrpc message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// On which connection.
    pub connection: u32,
    /// The stream, which ties a response to its request.
    pub stream: u32,
    /// [`REQUEST`] or [`RESPONSE`].
    pub kind: u8,
    /// An encoded `Request` or `Response`.
    pub payload: Vec<u8>,
}

impl Message {
    /// The frames of the message.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut message = Vec::with_capacity(MESSAGE_HEADER + self.payload.len());
        message.extend(u32::try_from(self.payload.len())?.to_be_bytes());
        message.extend(self.stream.to_be_bytes());
        message.extend([self.kind, 0]);
        message.extend(&self.payload);
        let mut frames = Vec::with_capacity(message.len() + FRAME_HEADER);
        for piece in message.chunks(MAX_SENT_FRAME - FRAME_HEADER) {
            frames.extend(self.connection.to_be_bytes());
            frames.extend(u32::try_from(piece.len())?.to_be_bytes());
            frames.extend(piece);
        }
        Ok(frames)
    }
}

/// Puts messages together from what was read.
#[derive(Default)]
pub struct Decoder {
    /// What is not yet a whole frame.
    read: Vec<u8>,
    /// What is not yet a whole message, by connection.
    connections: BTreeMap<u32, Vec<u8>>,
}

impl Decoder {
    /// Takes what was read, and gives the messages that are complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>> {
        self.read.extend_from_slice(bytes);
        let (mut messages, mut taken) = (Vec::new(), 0);
        while let Some((connection, payload)) = next_frame(&self.read[taken..])? {
            taken += FRAME_HEADER + payload.len();
            let stream = self.connections.entry(connection).or_default();
            stream.extend_from_slice(payload);
            while let Some(message) = next_message(connection, stream)? {
                messages.push(message);
            }
        }
        self.read.drain(..taken);
        self.connections.retain(|_, stream| !stream.is_empty());
        Ok(messages)
    }
}

/// The connection and the payload of the frame at the start of `bytes`, if it is complete.
fn next_frame(bytes: &[u8]) -> Result<Option<(u32, &[u8])>> {
    let (Some(connection), Some(length)) = (number(bytes, 0), number(bytes, 4)) else {
        return Ok(None);
    };
    let end = FRAME_HEADER + check_length(length)?;
    let payload = bytes.get(FRAME_HEADER..end);
    Ok(payload.map(|payload| (connection, payload)))
}

fn next_message(connection: u32, stream: &mut Vec<u8>) -> Result<Option<Message>> {
    let Some(length) = number(stream, 0) else {
        return Ok(None);
    };
    let length = check_length(length)?;
    let (Some(id), Some(&kind)) = (number(stream, 4), stream.get(8)) else {
        return Ok(None);
    };
    if stream.len() < MESSAGE_HEADER + length {
        return Ok(None);
    }
    let rest = stream.split_off(MESSAGE_HEADER + length);
    let mut message = std::mem::replace(stream, rest);
    Ok(Some(Message {
        connection,
        stream: id,
        kind,
        payload: message.split_off(MESSAGE_HEADER),
    }))
}

/// The number at an offset, if it is there.
fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn check_length(length: u32) -> Result<usize> {
    let length = usize::try_from(length)?;
    ensure!(
        length <= MAX_MESSAGE_BYTES,
        "the runtime announced a message of {length} bytes"
    );
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(connection: u32, stream: u32, payload: Vec<u8>) -> Message {
        Message {
            connection,
            stream,
            kind: REQUEST,
            payload,
        }
    }

    /// The registration as containerd 1.7.24 and 2.1.9 took it.
    #[test]
    fn a_message_is_encoded_as_the_runtimes_do() {
        let encoded = message(RUNTIME, 1, vec![0xab; 3]).encode().unwrap();
        let expected = [
            &[0, 0, 0, 2, 0, 0, 0, 13][..],
            &[0, 0, 0, 3, 0, 0, 0, 1, 1, 0],
            &[0xab; 3],
        ];
        assert_eq!(encoded, expected.concat());
    }

    #[test]
    fn no_frame_is_longer_than_the_runtimes_take() {
        for length in [0, 1, 4077, 4078, 4079, 5000, 1 << 20] {
            let sent = message(PLUGIN, 7, vec![1; length]);
            let encoded = sent.encode().unwrap();
            let mut rest = &encoded[..];
            while !rest.is_empty() {
                let size = FRAME_HEADER + number(rest, 4).unwrap() as usize;
                assert!(size <= MAX_SENT_FRAME, "{size}");
                rest = &rest[size..];
            }
            assert_eq!(Decoder::default().push(&encoded).unwrap(), [sent]);
        }
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let sent = [
            message(PLUGIN, 1, vec![1; 9000]),
            message(RUNTIME, 1, Vec::new()),
            message(PLUGIN, 3, vec![2; 10]),
        ];
        let encoded: Vec<u8> = sent.iter().flat_map(|m| m.encode().unwrap()).collect();
        for size in [1, 2, 7, 8, 9, 4096, encoded.len()] {
            let mut decoder = Decoder::default();
            let pieces = encoded.chunks(size);
            let got: Vec<Message> = pieces.flat_map(|p| decoder.push(p).unwrap()).collect();
            assert_eq!(got, sent, "{size}");
        }
    }

    #[test]
    fn connections_may_be_interleaved() {
        let (one, two) = (
            message(PLUGIN, 1, vec![1; 20]),
            message(RUNTIME, 1, vec![2; 20]),
        );
        let frame = |connection: u32, bytes: &[u8]| {
            let length = u32::try_from(bytes.len()).unwrap();
            [&connection.to_be_bytes(), &length.to_be_bytes(), bytes].concat()
        };
        let raw = |message: &Message| message.encode().unwrap()[FRAME_HEADER..].to_vec();
        let (first, second) = (raw(&one), raw(&two));
        let mut decoder = Decoder::default();
        let mut got = Vec::new();
        for (a, b) in first.chunks(7).zip(second.chunks(7)) {
            got.extend(decoder.push(&frame(PLUGIN, a)).unwrap());
            got.extend(decoder.push(&frame(9, &[])).unwrap());
            got.extend(decoder.push(&frame(RUNTIME, b)).unwrap());
        }
        assert_eq!(got, [one, two]);
    }

    #[test]
    fn five_megabytes_pass_and_four_gigabytes_do_not() {
        let large = message(PLUGIN, 1, vec![3; 5 << 20]);
        let got = Decoder::default().push(&large.encode().unwrap()).unwrap();
        assert_eq!(got, [large]);
        let mut decoder = Decoder::default();
        assert!(decoder.push(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        let mut decoder = Decoder::default();
        let header = [0, 0, 0, 1, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff];
        assert!(decoder.push(&header).is_err());
    }
}
