//! Traffic control: classifiers at a device's ends, and the queue that shapes what it sends.

use anyhow::Context;
use nix::errno::Errno;

use super::{
    Socket,
    attr::{nested, number, text},
    batch::{Attributes, CREATE, DUMP, EXCLUSIVE, REPLACE},
    error::{NetlinkError, or_existing},
    message::Message,
};

/// Messages of `linux/rtnetlink.h`.
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
/// Bytes of `struct tcmsg`.
const HEADER: usize = 20;
/// `TC_H_ROOT`, `TC_H_CLSACT`, and what is below that for either direction.
const ROOT: u32 = 0xffff_ffff;
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ROOT_HANDLE: u32 = 0x0001_0000;
/// `TCM_INFO` of a filter: the priority 1, and `ETH_P_ALL` in network byte order.
const EVERY_PROTOCOL: u32 = 1 << 16 | ETH_P_ALL.to_be() as u32;
const ETH_P_ALL: u16 = 3;

/// Attributes. What each belongs to stands in its name.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const STATS2: u16 = 7;
const STATS_BASIC: u16 = 1;
const STATS_QUEUE: u16 = 3;
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const BPF_LENGTH: u16 = 4;
const BPF_PROGRAM: u16 = 5;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const U32_SELECTOR: u16 = 5;
const U32_ACTION: u16 = 7;
const MIRRED_PARAMETERS: u16 = 2;

/// `TCA_BPF_FLAG_ACT_DIRECT`: what the program returns is the verdict.
const DIRECT_ACTION: u32 = 1;
/// `TC_LINKLAYER_ETHERNET`. Without it the kernel needs a table of the time that each size takes.
const ETHERNET: u8 = 1;
/// `TC_U32_TERMINAL`, `TC_ACT_STOLEN`, `TCA_EGRESS_REDIR`.
const TERMINAL: u8 = 1;
const STOLEN: u32 = 4;
const REDIRECT: u32 = 1;

/// A token bucket: the rate at which a device sends, and what it does with more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes in a second.
    pub rate: u64,
    /// Bytes that may be sent at once after a pause.
    pub burst: u32,
    /// Bytes that may wait; what comes on top is dropped.
    pub limit: u32,
}

/// Which frames of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that it receives.
    Ingress,
    /// Those that it sends.
    Egress,
}

impl Direction {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => CLSACT_INGRESS,
            Self::Egress => CLSACT_EGRESS,
        }
    }
}

/// A queueing discipline, and what went through it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qdisc {
    /// The index of its device.
    pub index: u32,
    /// The kind: `tbf`, `clsact`...
    pub kind: String,
    /// What it is set to, if it is a token bucket.
    pub tbf: Option<Tbf>,
    /// Bytes that left it.
    pub sent_bytes: u64,
    /// Bytes that wait in it.
    pub backlog_bytes: u32,
    /// Frames that it dropped.
    pub dropped_frames: u32,
    /// How often a frame had to wait.
    pub throttled: u32,
}

impl Socket {
    /// Gives a device classifiers at its ends (`clsact`). A device that has them is left as it is.
    pub fn add_clsact(&mut self, index: u32) -> Result<(), NetlinkError> {
        let header = header(index, CLSACT_HANDLE, CLSACT, 0);
        let kind = |to: &mut Attributes<'_>| to.text(KIND, "clsact");
        or_existing(self.request_bytes((NEW_QDISC, CREATE | EXCLUSIVE), &header, kind))
    }

    /// Lets a classic BPF program judge the frames of one direction, in place of the one that
    /// was set so before: it returns the verdict. The kernel replaces it at once, without a gap.
    pub fn set_program(
        &mut self,
        index: u32,
        direction: Direction,
        program: &[u8],
    ) -> Result<(), NetlinkError> {
        let header = header(index, 1, direction.parent(), EVERY_PROTOCOL);
        let length = u16::try_from(program.len() / 8).context("a BPF program is too long")?;
        self.request_bytes((NEW_FILTER, CREATE), &header, |to| {
            to.text(KIND, "bpf");
            to.nest(OPTIONS, |to| {
                to.put(BPF_LENGTH, &length.to_ne_bytes());
                to.put(BPF_PROGRAM, program);
                to.text(BPF_NAME, "macvtap");
                to.put(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
            });
        })
    }

    /// The classic BPF programs that judge what a device sends.
    pub fn egress_programs(&mut self, index: u32) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.programs(index, Direction::Egress)
    }

    /// The classic BPF programs that judge the frames of one direction.
    pub fn programs(
        &mut self,
        index: u32,
        direction: Direction,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let header = header(index, 0, direction.parent(), 0);
        self.read_list(
            |batch| batch.add((GET_FILTER, DUMP), &header, |_| ()),
            |message| {
                let options = nested(message.payload().get(HEADER..)?, OPTIONS)?;
                nested(options, BPF_PROGRAM).map(<[u8]>::to_vec)
            },
        )
    }

    /// Sends what a device receives out by another one, which gives it back when that has sent it.
    pub fn redirect_ingress(&mut self, index: u32, to_index: u32) -> Result<(), NetlinkError> {
        let header = header(index, 0, CLSACT_INGRESS, EVERY_PROTOCOL);
        // Flags, and one key: any four bytes from the start.
        let mut selector = [0; 32];
        (selector[0], selector[2]) = (TERMINAL, 1);
        let mirred = [0, 0, STOLEN, 0, 0, REDIRECT, to_index].map(u32::to_ne_bytes);
        self.request_bytes((NEW_FILTER, CREATE | EXCLUSIVE), &header, |to| {
            to.text(KIND, "u32");
            to.nest(OPTIONS, |to| {
                to.put(U32_SELECTOR, &selector);
                to.nest(U32_ACTION, |to| {
                    to.nest(1, |to| {
                        to.text(KIND, "mirred");
                        to.nest(OPTIONS, |to| to.put(MIRRED_PARAMETERS, &mirred.concat()));
                    });
                });
            });
        })
    }

    /// Whether what a device receives is redirected.
    pub fn redirects_ingress(&mut self, index: u32) -> Result<bool, NetlinkError> {
        let header = header(index, 0, CLSACT_INGRESS, 0);
        let filters = self.read_list(
            |batch| batch.add((GET_FILTER, DUMP), &header, |_| ()),
            |message| {
                let options = nested(message.payload().get(HEADER..)?, OPTIONS)?;
                nested(options, U32_ACTION).map(|_| ())
            },
        )?;
        Ok(!filters.is_empty())
    }

    /// Lets a device receive without a way by another one again.
    pub fn stop_redirecting(&mut self, index: u32) -> Result<(), NetlinkError> {
        let header = header(index, 0, CLSACT_INGRESS, EVERY_PROTOCOL);
        match self.request_bytes((DELETE_FILTER, 0), &header, |_| ()) {
            // It has no such filter, or no place for one, or it is gone.
            Err(error)
                if matches!(
                    error.errno(),
                    Some(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Shapes what a device sends, or changes how.
    pub fn set_rate(&mut self, index: u32, tbf: &Tbf) -> Result<(), NetlinkError> {
        let header = header(index, ROOT_HANDLE, ROOT, 0);
        self.request_bytes((NEW_QDISC, CREATE | REPLACE), &header, |to| {
            to.text(KIND, "tbf");
            to.nest(OPTIONS, |to| {
                to.put(TBF_PARAMETERS, &tbf.parameters());
                to.put(TBF_RATE64, &tbf.rate.to_ne_bytes());
                to.put(TBF_BURST, &tbf.burst.to_ne_bytes());
            });
        })
    }

    /// Lets a device send without a queue of ours again. False if it has none.
    pub fn delete_rate(&mut self, index: u32) -> Result<bool, NetlinkError> {
        self.delete_qdisc(&header(index, ROOT_HANDLE, ROOT, 0))
    }

    /// The queueing disciplines of the socket's network namespace.
    pub fn qdiscs(&mut self) -> Result<Vec<Qdisc>, NetlinkError> {
        let header = header(0, 0, 0, 0);
        self.read_list(
            |batch| batch.add((GET_QDISC, DUMP), &header, |_| ()),
            Qdisc::read,
        )
    }

    fn delete_qdisc(&mut self, header: &[u8]) -> Result<bool, NetlinkError> {
        match self.request_bytes((DELETE_QDISC, 0), header, |_| ()) {
            Ok(()) => Ok(true),
            // Without a qdisc of its own a device has one that cannot be deleted.
            Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct tcmsg`.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    for (place, number) in [(4, index), (8, handle), (12, parent), (16, info)] {
        bytes[place..place + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

impl Tbf {
    /// `struct tc_tbf_qopt`: two `struct tc_ratespec`, the second of no meaning here; limit,
    /// burst as a time and MTU, of which the last two are given otherwise.
    fn parameters(&self) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        bytes[1] = ETHERNET;
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.limit.to_ne_bytes());
        bytes
    }

    /// What the kernel says of a token bucket. It has the burst as the time that the bucket
    /// takes to fill, in ticks of 64 ns (`PSCHED_SHIFT` of `net/pkt_sched.h`).
    fn read(options: &[u8]) -> Option<Self> {
        let parameters = nested(options, TBF_PARAMETERS)?;
        let part = |place: usize| parameters.get(place..).and_then(number);
        let rate = nested(options, TBF_RATE64).and_then(long);
        let rate = rate.or_else(|| part(8).map(u64::from))?;
        let burst = u128::from(part(28)?) * 64 * u128::from(rate) / 1_000_000_000;
        Some(Self {
            rate,
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
            limit: part(24)?,
        })
    }
}

impl Qdisc {
    fn read(message: &Message<'_>) -> Option<Self> {
        let payload = message.payload();
        let attributes = payload.get(HEADER..)?;
        let stats = nested(attributes, STATS2).unwrap_or_default();
        let queue = nested(stats, STATS_QUEUE).unwrap_or_default();
        let queue = |place: usize| queue.get(4 * place..).and_then(number).unwrap_or_default();
        let options = nested(attributes, OPTIONS);
        let kind = nested(attributes, KIND).map(text)?;
        Some(Self {
            index: payload.get(4..).and_then(number)?,
            tbf: (kind == "tbf")
                .then_some(options)
                .flatten()
                .and_then(Tbf::read),
            kind,
            sent_bytes: nested(stats, STATS_BASIC)
                .and_then(long)
                .unwrap_or_default(),
            backlog_bytes: queue(1),
            dropped_frames: queue(2),
            throttled: queue(4),
        })
    }
}

fn long(payload: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(payload.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tcm_info` holds the protocol in network byte order, whatever the machine's order.
    #[test]
    fn filters_are_for_every_protocol_on_every_machine() {
        let protocol = u16::try_from(EVERY_PROTOCOL & 0xffff).unwrap();
        assert_eq!(protocol.to_ne_bytes(), [0, 3]);
        assert_eq!(EVERY_PROTOCOL >> 16, 1);
    }
}
