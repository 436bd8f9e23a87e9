//! The classic BPF programs by which the kernel shows learning the frames of its ports only.
//!
//! Opcodes by `linux/bpf_common.h`, offsets of what is beside the frame by `linux/filter.h`.

use std::collections::BTreeSet;

use socket2::SockFilter;

use crate::types::mac::MacAddr;

/// `BPF_LD | BPF_W | BPF_ABS`, and for half-words and bytes.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
/// `BPF_JMP | BPF_JEQ | BPF_K`, and `BPF_JSET`.
const EQUAL: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF` + `SKF_AD_VLAN_TAG_PRESENT`: taps see frames before VLANs are told apart.
const VLAN_TAG_PRESENT: u32 = 0xffff_f000 + 48;
/// The kernel takes programs of up to `BPF_MAXINSNS`, 4096, instructions.
const MOST: usize = 800;
/// Bytes of a frame that are taken at most.
const WHOLE: u32 = 1 << 16;

/// A program that lets untagged frames through whose source is one of `macs`, and only those
/// to groups if `group`. With more than 800 of them it lets all through: who reads looks again.
#[must_use]
pub fn by_source(macs: &BTreeSet<MacAddr>, group: bool) -> Vec<SockFilter> {
    let step = |code, k, yes, no| SockFilter::new(code, yes, no, k);
    let mut program = vec![
        step(LOAD_WORD, VLAN_TAG_PRESENT, 0, 0),
        step(EQUAL, 0, 1, 0),
        step(RETURN, 0, 0, 0),
    ];
    if group {
        program.extend([
            step(LOAD_BYTE, 0, 0, 0),
            step(ANY_BIT, 1, 1, 0),
            step(RETURN, 0, 0, 0),
        ]);
    }
    if macs.len() > MOST {
        program.push(step(RETURN, WHOLE, 0, 0));
        return program;
    }
    program.push(step(LOAD_WORD, 8, 0, 0));
    for MacAddr([a, b, c, d, e, f]) in macs.iter().copied() {
        program.extend([
            step(EQUAL, u32::from_be_bytes([c, d, e, f]), 0, 4),
            step(LOAD_HALF, 6, 0, 0),
            step(EQUAL, u32::from_be_bytes([0, 0, a, b]), 0, 1),
            step(RETURN, WHOLE, 0, 0),
            step(LOAD_WORD, 8, 0, 0),
        ]);
    }
    program.push(step(RETURN, 0, 0, 0));
    program
}
