//! A filter as a classic BPF program, for `cls_bpf` in direct action mode. Pure.
//!
//! The kernel loads and checks such a program without bpf(2), compiles it, and has done so since
//! long before nf_tables could see what a device sends.

use anyhow::{Context, Result, ensure};

use super::filter::{Chain, Condition, Filter, Name, Test, Verdict};

/// Instructions of `linux/filter.h` and `linux/bpf_common.h`.
pub(crate) const LOAD_WORD: u16 = 0x20;
pub(crate) const LOAD_HALF: u16 = 0x28;
pub(crate) const LOAD_BYTE: u16 = 0x30;
const LOAD_LENGTH: u16 = 0x80;
const AND: u16 = 0x54;
pub(crate) const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_GREATER: u16 = 0x25;
pub(crate) const JUMP_AT_LEAST: u16 = 0x35;
pub(crate) const RETURN: u16 = 0x06;
/// `TC_ACT_OK` and `TC_ACT_SHOT` of `linux/pkt_cls.h`.
const PASS: u32 = 0;
const SHOT: u32 = 2;
/// `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;

/// `struct sock_filter`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    /// Instructions to skip if the comparison holds, and if not.
    then: u8,
    otherwise: u8,
    operand: u32,
}

/// What a comparison does to a rule.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    /// A load or mask, or a verdict: no comparison.
    Plain,
    /// The rule does not match unless it holds.
    Needed,
    /// The rule does not match if it holds.
    Excluded,
}

/// The program as the kernel takes it: an array of `struct sock_filter`.
pub fn compile(filter: &Filter) -> Result<Vec<u8>> {
    let mut program = Program::default();
    for chain in &filter.chains {
        program.add_chain(chain)?;
    }
    program.finish()
}

#[derive(Default)]
struct Program {
    instructions: Vec<Instruction>,
    /// Where each chain begins.
    chains: Vec<(Name, usize)>,
    /// Jumps to a chain that is still to come: where they are.
    jumps: Vec<(usize, Name)>,
}

impl Program {
    fn add_chain(&mut self, chain: &Chain) -> Result<()> {
        let start = self.instructions.len();
        self.chains.push((chain.name, start));
        for rule in &chain.rules {
            let steps = steps(&rule.conditions);
            // What follows the comparisons is one instruction: the verdict.
            let end = steps.len() + 1;
            for (index, (mut instruction, step)) in steps.into_iter().enumerate() {
                let away = u8::try_from(end - index - 1).context("a rule too long for BPF")?;
                match step {
                    Step::Plain => {}
                    Step::Needed => instruction.otherwise = away,
                    Step::Excluded => instruction.then = away,
                }
                self.instructions.push(instruction);
            }
            self.add_verdict(rule.verdict);
        }
        self.add_verdict(chain.last);
        Ok(())
    }

    fn add_verdict(&mut self, verdict: Verdict) {
        let instruction = match verdict {
            Verdict::Accept => plain(RETURN, PASS),
            Verdict::Drop(_) => plain(RETURN, SHOT),
            Verdict::Goto(chain) => {
                self.jumps.push((self.instructions.len(), chain));
                plain(JUMP, 0)
            }
        };
        self.instructions.push(instruction);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        for (at, name) in &self.jumps {
            let chain = self.chains.iter().find(|(chain, _)| chain == name);
            let (_, start) = chain.with_context(|| format!("the filter has no chain {name}"))?;
            let away = start.checked_sub(at + 1);
            let away = away.with_context(|| format!("chain {name} is led to from a later one"))?;
            self.instructions[*at].operand = u32::try_from(away)?;
        }
        let length = self.instructions.len();
        ensure!(
            length <= MAX_INSTRUCTIONS,
            "the filter has {length} instructions of classic BPF, of which the kernel takes \
             {MAX_INSTRUCTIONS}"
        );
        Ok(self.instructions.into_iter().flat_map(encode).collect())
    }
}

/// Fails, as it has to, where the frame ends early: a load beyond the end would end the program,
/// and let the frame pass.
fn steps(conditions: &[Condition]) -> Vec<(Instruction, Step)> {
    let mut steps = Vec::new();
    if let Some(extent) = conditions.iter().map(Condition::extent).max() {
        let extent = u32::try_from(extent).unwrap_or(u32::MAX);
        steps.push((plain(LOAD_LENGTH, 0), Step::Plain));
        steps.push((plain(JUMP_AT_LEAST, extent), Step::Needed));
    }
    for condition in conditions {
        match &condition.test {
            Test::Is(bytes) => steps.extend(equal(condition, bytes)),
            Test::IsNot(bytes) => steps.extend(unequal(condition, bytes)),
            Test::Between(low, high) => {
                steps.extend(load(condition.offset, &condition.mask));
                steps.push((plain(JUMP_AT_LEAST, number(low)), Step::Needed));
                steps.push((plain(JUMP_GREATER, number(high)), Step::Excluded));
            }
        }
    }
    steps
}

/// Compares word by word: the first that differs is enough, and skips the others.
fn unequal(condition: &Condition, bytes: &[u8]) -> Vec<(Instruction, Step)> {
    let mut steps = equal(condition, bytes);
    let count = steps.len();
    for (index, (instruction, step)) in steps.iter_mut().enumerate() {
        match (&step, count - index - 1) {
            (Step::Plain, _) => {}
            (_, 0) => *step = Step::Excluded,
            (_, left) => {
                instruction.otherwise = u8::try_from(left).unwrap_or(u8::MAX);
                *step = Step::Plain;
            }
        }
    }
    steps
}

/// Compares word by word.
fn equal(condition: &Condition, bytes: &[u8]) -> Vec<(Instruction, Step)> {
    let mut steps = Vec::new();
    let (mut offset, mut mask, mut bytes) = (condition.offset, &condition.mask[..], bytes);
    while !bytes.is_empty() {
        let (width, advance) = match bytes.len() {
            4.. => (4, 4),
            2.. => (2, 2),
            _ => (1, 1),
        };
        let (masked, value) = (&mask[..width], number(&bytes[..width]));
        if masked.iter().any(|mask| *mask != 0) {
            steps.extend(load(offset, masked));
            steps.push((plain(JUMP_EQUAL, value), Step::Needed));
        }
        (mask, bytes) = (&mask[width..], &bytes[width..]);
        offset = offset.saturating_add(advance);
    }
    steps
}

fn load(offset: u16, mask: &[u8]) -> Vec<(Instruction, Step)> {
    let code = match mask.len() {
        4 => LOAD_WORD,
        2 => LOAD_HALF,
        _ => LOAD_BYTE,
    };
    let mut steps = vec![(plain(code, offset.into()), Step::Plain)];
    if mask.iter().any(|mask| *mask != 0xff) {
        steps.push((plain(AND, number(mask)), Step::Plain));
    }
    steps
}

fn number(bytes: &[u8]) -> u32 {
    let shift = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
    bytes.iter().fold(0, shift)
}

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction {
        code,
        then: 0,
        otherwise: 0,
        operand,
    }
}

fn encode(instruction: Instruction) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&instruction.code.to_ne_bytes());
    bytes[2..4].copy_from_slice(&[instruction.then, instruction.otherwise]);
    bytes[4..].copy_from_slice(&instruction.operand.to_ne_bytes());
    bytes
}
