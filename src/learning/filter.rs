//! The classic BPF programs by which learning receives the frames of its ports only.
//!
//! Opcodes by `linux/bpf_common.h`, offsets of what is beside the frame by `linux/filter.h`.
//!
//! The kernel charges a socket for its program, by `net.core.optmem_max`: 20480 bytes until
//! Linux 6.7, for the old and the new one together while one replaces the other. So a program
//! has one instruction for each MAC, which the kernel translates to at most 24 bytes.

use std::collections::BTreeSet;

use socket2::SockFilter;

use crate::{
    netlink::bpf::{JUMP, JUMP_EQUAL, LOAD_BYTE, LOAD_WORD, RETURN},
    types::mac::MacAddr,
};

/// `BPF_JMP | BPF_JSET | BPF_K`.
const ANY_BIT: u16 = 0x45;
/// `SKF_AD_OFF` + `SKF_AD_VLAN_TAG_PRESENT`: packet sockets see frames before VLANs are
/// separated.
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
/// The last four bytes of the source address.
const SOURCE_LOW: u32 = 8;
/// The kernel takes programs of up to `BPF_MAXINSNS`, 4096, instructions, of which others need some.
const MAX_VALUES: usize = 3800;
/// Comparisons before a return that they jump to: jumps reach 255 instructions.
const VALUES_PER_RETURN: usize = 250;
/// Bytes of a frame that are received at most.
const WHOLE: u32 = 1 << 16;

/// Lets through what may come from one of `macs`, tagged or not. Only the last four bytes are
/// compared, so the reader compares again.
#[must_use]
pub fn from(macs: &BTreeSet<MacAddr>) -> Vec<SockFilter> {
    by_source(Vec::new(), macs)
}

/// Lets through what may come from one of `macs` for a group of stations, untagged.
#[must_use]
pub fn untagged_to_group(macs: &BTreeSet<MacAddr>) -> Vec<SockFilter> {
    let head = vec![
        step(LOAD_WORD, VLAN_TAG_PRESENT, 0, 0),
        step(JUMP_EQUAL, 0, 1, 0),
        step(RETURN, 0, 0, 0),
        step(LOAD_BYTE, 0, 0, 0),
        step(ANY_BIT, 1, 1, 0),
        step(RETURN, 0, 0, 0),
    ];
    by_source(head, macs)
}

/// Lets everything through: what remains where the kernel has no room for more.
#[must_use]
pub fn all() -> Vec<SockFilter> {
    vec![step(RETURN, WHOLE, 0, 0)]
}

fn by_source(mut program: Vec<SockFilter>, macs: &BTreeSet<MacAddr>) -> Vec<SockFilter> {
    let low = |MacAddr([_, _, c, d, e, f]): &MacAddr| u32::from_be_bytes([*c, *d, *e, *f]);
    let low = macs.iter().map(low).collect();
    program.push(step(LOAD_WORD, SOURCE_LOW, 0, 0));
    program.extend(any_of(&low));
    program
}

/// The end of a program: lets through what has one of these values where the program has looked last.
#[must_use]
pub fn any_of(values: &BTreeSet<u32>) -> Vec<SockFilter> {
    if values.len() > MAX_VALUES {
        return all();
    }
    let (values, mut program) = (Vec::from_iter(values), Vec::new());
    for chunk in values.chunks(VALUES_PER_RETURN) {
        // Each jumps over the comparisons that follow it and the jump behind them.
        let distances = (1..=chunk.len()).rev();
        for (value, distance) in chunk.iter().zip(distances) {
            let distance = u8::try_from(distance).unwrap_or(u8::MAX);
            program.push(step(JUMP_EQUAL, **value, distance, 0));
        }
        program.extend([step(JUMP, 1, 0, 0), step(RETURN, WHOLE, 0, 0)]);
    }
    program.push(step(RETURN, 0, 0, 0));
    program
}

fn step(code: u16, k: u32, yes: u8, no: u8) -> SockFilter {
    SockFilter::new(code, yes, no, k)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use socket2::{Domain, Socket, Type};

    use super::*;

    fn macs(count: u32) -> BTreeSet<MacAddr> {
        let mac = |n: u32| {
            let [a, b, c, d] = (n * 7 + 0x8000_0000).to_be_bytes();
            MacAddr([2, 0, a, b, c, d])
        };
        (0..count).map(mac).collect()
    }

    /// A socket to write frames to, and one that receives those that the kernel lets pass.
    fn filtered(program: &[SockFilter]) -> (Socket, Socket) {
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        receiver.set_nonblocking(true).unwrap();
        receiver.attach_filter(program).unwrap();
        (sender, receiver)
    }

    fn passes((sender, receiver): &(Socket, Socket), source: MacAddr, group: bool) -> bool {
        let mut frame = [if group { 0xff } else { 2 }; 14];
        frame[6..12].copy_from_slice(&source.0);
        // The sender of a frame that does not pass may get an error.
        let _ = sender.send(&frame);
        receiver.recv(&mut [MaybeUninit::uninit(); 14]).is_ok()
    }

    #[test]
    fn lets_the_macs_pass_and_no_others() {
        for count in [0, 1, 249, 250, 251, 600] {
            let macs = macs(count);
            let all = filtered(&from(&macs));
            let groups = filtered(&untagged_to_group(&macs));
            for mac in &macs {
                assert!(passes(&all, *mac, false), "{mac} of {count}");
                assert!(passes(&groups, *mac, true), "{mac} of {count}");
                assert!(!passes(&groups, *mac, false), "{mac} of {count}");
            }
            assert!(!passes(&all, MacAddr([2, 0, 0x80, 0, 0, 1]), false));
        }
        let too_many = filtered(&from(&macs(3801)));
        assert!(passes(&too_many, MacAddr([2; 6]), false));
    }

    #[test]
    fn has_one_instruction_for_each_mac() {
        assert!(from(&macs(400)).len() < 410);
        assert!((3800..4000).contains(&from(&macs(3800)).len()));
    }
}
