//! nf_tables: a table that guards what one device sends, in one transaction.

use anyhow::Result;
use neli::consts::socket::NlFamily;
use nix::errno::Errno;

use super::{
    Socket,
    attr::{attributes, nested, text},
    batch::{ACK, APPEND, Attributes, Batch, CREATE, DUMP, EXCLUSIVE},
    error::NetlinkError,
    filter::{Chain, Condition, Filter, Rule, Test, Verdict},
    message::Message,
};

/// `NFNL_SUBSYS_NFTABLES`, and the messages of `linux/netfilter/nf_tables.h`.
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = (SUBSYSTEM << 8) + 1;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) + 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) + 3;
const GET_CHAIN: u16 = (SUBSYSTEM << 8) + 4;
const NEW_RULE: u16 = (SUBSYSTEM << 8) + 6;
const GET_RULE: u16 = (SUBSYSTEM << 8) + 7;
const NEW_OBJECT: u16 = (SUBSYSTEM << 8) + 18;
const GET_OBJECT: u16 = (SUBSYSTEM << 8) + 19;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `struct nfgenmsg`: the family `NFPROTO_NETDEV`, a version, a resource.
const NETDEV: [u8; 4] = [5, 0, 0, 0];
const NETDEV_HEADER: usize = NETDEV.len();
/// The same at either end of a transaction: no family, and of which subsystem.
const TRANSACTION: [u8; 4] = [0, 0, 0, 10];

/// Attributes. What each belongs to stands in its name.
const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// `NF_NETDEV_EGRESS`: what the device is given to send, before any queue.
const EGRESS: u32 = 1;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// `NFT_REG_VERDICT` and `NFT_REG_1`.
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
/// `NF_DROP`, `NF_ACCEPT`, and `NFT_GOTO`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const GOTO: u32 = (-4_i32).cast_unsigned();
/// `NFT_PAYLOAD_LL_HEADER`.
const LINK_HEADER: u32 = 0;
/// What a masked value is combined with.
const NO_BITS: [u8; 16] = [0; 16];
/// Operators of `cmp`.
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;
/// The type of a comment in a table's user data, as the program nft writes and shows it.
const COMMENT: u8 = 0;

/// A table that guards what one device sends.
pub struct Table<'a> {
    /// The name, of which there is one in the netns.
    pub name: &'a str,
    /// The device whose frames it judges.
    pub device: &'a str,
    /// What is said of it.
    pub comment: &'a str,
    /// The rules.
    pub filter: &'a Filter,
}

/// What a counter has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A socket to the nf_tables of the network namespace that it was opened in.
pub struct Nft(Socket);

impl Nft {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Socket::of_family(NlFamily::Netfilter).map(Self)
    }

    /// Puts the table there, instead of one of the same name if there is one: all of it, or
    /// nothing.
    pub fn install(&mut self, table: &Table<'_>) -> Result<(), NetlinkError> {
        // A transaction that fails because there is one takes 20 ms.
        let exists = self.has(table.name)?;
        let replace = |batch: &mut Batch| {
            if exists {
                batch.add((DELETE_TABLE, 0), &NETDEV, |to| {
                    to.text(TABLE_NAME, table.name);
                });
            }
            table.write(batch);
        };
        let write = |batch: &mut Batch| transaction(batch, replace);
        self.0.exchange(write, |_| Ok(())).map(|_| ())
    }

    /// Deletes the table with this name. False if there is none.
    pub fn delete(&mut self, name: &str) -> Result<bool, NetlinkError> {
        // Each transaction waits until no processor uses the rules of before, 20 ms, even one that
        // fails because there is no such table.
        if !self.has(name)? {
            return Ok(false);
        }
        let delete = |batch: &mut Batch| {
            batch.add((DELETE_TABLE, ACK), &NETDEV, |to| {
                to.text(TABLE_NAME, name);
            });
        };
        let write = |batch: &mut Batch| transaction(batch, delete);
        none_is_false(self.0.exchange(write, |_| Ok(())))
    }

    /// Whether there is a table with this name.
    fn has(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let get = |batch: &mut Batch| {
            batch.add((GET_TABLE, ACK), &NETDEV, |to| to.text(TABLE_NAME, name));
        };
        match self.0.exchange(get, |_| Ok(())) {
            // nfnetlink says so where there is no nf_tables.
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(false),
            answer => none_is_false(answer),
        }
    }

    /// The tables of the family netdev: their names and comments.
    pub fn tables(&mut self) -> Result<Vec<(String, String)>, NetlinkError> {
        self.list(
            GET_TABLE,
            |_| (),
            |attributes| {
                let name = nested(attributes, TABLE_NAME).map(text)?;
                let comment = nested(attributes, TABLE_USERDATA).and_then(comment);
                Some((name, comment.unwrap_or_default()))
            },
        )
    }

    /// What the named counters of a table have counted.
    pub fn counters(&mut self, table: &str) -> Result<Vec<Counter>, NetlinkError> {
        let of_table = |to: &mut Attributes<'_>| {
            to.text(OBJECT_TABLE, table);
            to.big(OBJECT_TYPE, COUNTER);
        };
        self.list(GET_OBJECT, of_table, |attributes| {
            let data = nested(attributes, OBJECT_DATA)?;
            Some(Counter {
                name: nested(attributes, OBJECT_NAME).map(text)?,
                frames: nested(data, COUNTER_PACKETS).and_then(long)?,
                bytes: nested(data, COUNTER_BYTES).and_then(long)?,
            })
        })
    }

    /// Whether the table is there as it was installed: hooked to its device, with these rules
    /// and no others.
    pub fn is_installed(&mut self, table: &Table<'_>) -> Result<bool, NetlinkError> {
        let hooks = self.list(
            GET_CHAIN,
            |_| (),
            |attributes| {
                let of_table = nested(attributes, CHAIN_TABLE).map(text)? == table.name;
                let hook = nested(attributes, CHAIN_HOOK).filter(|_| of_table)?;
                let at = nested(hook, HOOK_NUMBER).map(<[u8]>::to_vec)?;
                let device = nested(hook, HOOK_DEVICE).map(text)?;
                Some((at, device))
            },
        )?;
        let expected = (EGRESS.to_be_bytes().to_vec(), table.device.to_owned());
        if hooks != [expected] {
            return Ok(false);
        }
        let of_table = |to: &mut Attributes<'_>| to.text(RULE_TABLE, table.name);
        let rules = self.list(GET_RULE, of_table, |attributes| {
            let chain = nested(attributes, RULE_CHAIN).map(text)?;
            Some((chain, nested(attributes, RULE_EXPRESSIONS)?.to_vec()))
        })?;
        Ok(table.has_rules(&rules))
    }

    fn list<R>(
        &mut self,
        kind: u16,
        select: impl Fn(&mut Attributes<'_>),
        read: impl Fn(&[u8]) -> Option<R>,
    ) -> Result<Vec<R>, NetlinkError> {
        self.0.read_list(
            |batch| batch.add((kind, DUMP), &NETDEV, |to| select(to)),
            |message: &Message<'_>| message.payload().get(NETDEV_HEADER..).and_then(&read),
        )
    }
}

/// Whether what was asked for is there.
fn none_is_false(outcome: Result<bool, NetlinkError>) -> Result<bool, NetlinkError> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Requests of which the kernel does all or none. The last one asks for the acknowledgement.
fn transaction(batch: &mut Batch, write: impl FnOnce(&mut Batch)) {
    batch.add((BATCH_BEGIN, 0), &TRANSACTION, |_| ());
    write(batch);
    batch.add((BATCH_END, 0), &TRANSACTION, |_| ());
}

impl Table<'_> {
    fn write(&self, batch: &mut Batch) {
        let header = &NETDEV;
        batch.add((NEW_TABLE, CREATE | EXCLUSIVE), header, |to| {
            to.text(TABLE_NAME, self.name);
            to.put(TABLE_USERDATA, &user_data(self.comment));
        });
        for counter in self.filter.counters() {
            batch.add((NEW_OBJECT, CREATE | EXCLUSIVE), header, |to| {
                to.text(OBJECT_TABLE, self.name);
                to.text(OBJECT_NAME, counter);
                to.big(OBJECT_TYPE, COUNTER);
                to.nest(OBJECT_DATA, |_| ());
            });
        }
        let names: Vec<String> = self.filter.names();
        for (index, name) in names.iter().enumerate() {
            batch.add((NEW_CHAIN, CREATE | EXCLUSIVE), header, |to| {
                to.text(CHAIN_TABLE, self.name);
                to.text(CHAIN_NAME, name);
                if index == 0 {
                    self.write_hook(to);
                }
            });
        }
        let chains = self.filter.chains.iter().zip(&names).enumerate();
        for (index, (chain, name)) in chains {
            let mut add = |flags, write: &dyn Fn(&mut Attributes<'_>)| {
                batch.add((NEW_RULE, CREATE | APPEND | flags), header, |to| {
                    to.text(RULE_TABLE, self.name);
                    to.text(RULE_CHAIN, name);
                    to.nest(RULE_EXPRESSIONS, write);
                });
            };
            for rule in &chain.rules {
                add(0, &|to| write_expressions(rule, to));
            }
            let acknowledge = if index + 1 == names.len() { ACK } else { 0 };
            add(acknowledge, &|to| write_verdict(chain.last, to));
        }
    }

    /// A frame that no rule decides about is dropped.
    fn write_hook(&self, to: &mut Attributes<'_>) {
        to.nest(CHAIN_HOOK, |to| {
            to.big(HOOK_NUMBER, EGRESS);
            to.big(HOOK_PRIORITY, 0);
            to.text(HOOK_DEVICE, self.device);
        });
        to.big(CHAIN_POLICY, DROP);
        to.text(CHAIN_TYPE, "filter");
    }

    /// Whether these are the table's rules. The kernel lists them by chain, in whatever order of
    /// the chains.
    fn has_rules(&self, listed: &[(String, Vec<u8>)]) -> bool {
        let chains = &self.filter.chains;
        let count: usize = chains.iter().map(|chain| chain.rules.len() + 1).sum();
        let has = |chain: &Chain| {
            let name = chain.name.to_string();
            let listed = listed.iter().filter(|(chain, _)| *chain == name);
            let listed: Vec<&Vec<u8>> = listed.map(|(_, rule)| rule).collect();
            let wanted = expressions(chain);
            let mut pairs = std::iter::zip(&wanted, &listed);
            wanted.len() == listed.len() && pairs.all(|(a, b)| same_expressions(a, b))
        };
        listed.len() == count && chains.iter().all(has)
    }
}

// === expressions ===

/// The expressions of each of the chain's rules.
fn expressions(chain: &Chain) -> Vec<Vec<u8>> {
    let written = |write: &dyn Fn(&mut Attributes<'_>)| {
        let mut bytes = Vec::new();
        write(&mut Attributes::to(&mut bytes));
        bytes
    };
    let rules = chain.rules.iter();
    let rules = rules.map(|rule| written(&|to| write_expressions(rule, to)));
    rules
        .chain([written(&|to| write_verdict(chain.last, to))])
        .collect()
}

fn write_expressions(rule: &Rule, to: &mut Attributes<'_>) {
    let mut loaded: Option<&Condition> = None;
    for condition in &rule.conditions {
        if !loaded.is_some_and(|loaded| begins_with(loaded, condition)) {
            write_load(condition, to);
            loaded = Some(condition);
        }
        write_test(condition, to);
    }
    write_verdict(rule.verdict, to);
}

fn write_verdict(verdict: Verdict, to: &mut Attributes<'_>) {
    let (code, chain) = match verdict {
        Verdict::Accept => (ACCEPT, None),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
        Verdict::Drop(counter) => {
            expression(to, "objref", |to| {
                to.big(1, COUNTER); // NFTA_OBJREF_IMM_TYPE
                to.text(2, counter); // NFTA_OBJREF_IMM_NAME
            });
            (DROP, None)
        }
    };
    expression(to, "immediate", |to| {
        to.big(1, VERDICT_REGISTER); // NFTA_IMMEDIATE_DREG
        to.nest(2, |to| {
            to.nest(DATA_VERDICT, |to| {
                to.big(VERDICT_CODE, code);
                if let Some(chain) = chain {
                    to.text(VERDICT_CHAIN, &chain.to_string());
                }
            });
        });
    });
}

/// Whether the register still holds the bytes that a condition is about, from the first on.
fn begins_with(loaded: &Condition, condition: &Condition) -> bool {
    let whole = loaded.is_whole() && condition.is_whole();
    whole && loaded.offset == condition.offset && loaded.mask.len() >= condition.mask.len()
}

/// Loads bytes of the frame into the register, and masks them there.
fn write_load(condition: &Condition, to: &mut Attributes<'_>) {
    let length = u32::try_from(condition.mask.len()).unwrap_or(u32::MAX);
    expression(to, "payload", |to| {
        to.big(1, REGISTER); // NFTA_PAYLOAD_DREG
        to.big(2, LINK_HEADER); // NFTA_PAYLOAD_BASE
        to.big(3, condition.offset.into()); // NFTA_PAYLOAD_OFFSET
        to.big(4, length); // NFTA_PAYLOAD_LEN
    });
    if !condition.is_whole() {
        expression(to, "bitwise", |to| {
            to.big(1, REGISTER); // NFTA_BITWISE_SREG
            to.big(2, REGISTER); // NFTA_BITWISE_DREG
            to.big(3, length); // NFTA_BITWISE_LEN
            to.nest(4, |to| to.put(DATA_VALUE, &condition.mask)); // NFTA_BITWISE_MASK
            to.nest(5, |to| to.put(DATA_VALUE, &NO_BITS[..condition.mask.len()])); // NFTA_BITWISE_XOR
        });
    }
}

/// Compares what is in the register.
fn write_test(condition: &Condition, to: &mut Attributes<'_>) {
    match &condition.test {
        Test::Is(bytes) => compare(to, EQUAL, bytes),
        Test::IsNot(bytes) => compare(to, UNEQUAL, bytes),
        Test::Between(low, high) => {
            // What every number is, the kernel does not take.
            if low.iter().any(|byte| *byte != 0) {
                compare(to, AT_LEAST, low);
            }
            if high.iter().any(|byte| *byte != 0xff) {
                compare(to, AT_MOST, high);
            }
        }
    }
}

fn compare(to: &mut Attributes<'_>, operator: u32, bytes: &[u8]) {
    expression(to, "cmp", |to| {
        to.big(1, REGISTER); // NFTA_CMP_SREG
        to.big(2, operator); // NFTA_CMP_OP
        to.nest(3, |to| to.put(DATA_VALUE, bytes)); // NFTA_CMP_DATA
    });
}

fn expression(to: &mut Attributes<'_>, name: &str, data: impl FnOnce(&mut Attributes<'_>)) {
    to.nest(LIST_ELEMENT, |to| {
        to.text(EXPRESSION_NAME, name);
        to.nest(EXPRESSION_DATA, data);
    });
}

/// Whether the kernel lists what we wrote. It adds attributes of its own within expressions.
fn same_expressions(written: &[u8], listed: &[u8]) -> bool {
    attributes(written).count() == attributes(listed).count()
        && std::iter::zip(attributes(written), attributes(listed))
            .all(|(written, listed)| covers(written.payload, listed.payload))
}

fn covers(written: &[u8], listed: &[u8]) -> bool {
    attributes(written).all(|written| match nested(listed, written.kind) {
        Some(listed) if written.nested => covers(written.payload, listed),
        listed => listed == Some(written.payload),
    })
}

// === values ===

/// User data as the program nft writes them: type, length, text.
fn user_data(comment: &str) -> Vec<u8> {
    let text = [comment.as_bytes(), &[0]].concat();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[COMMENT, length], &text[..usize::from(length)]].concat()
}

fn comment(user_data: &[u8]) -> Option<String> {
    match user_data {
        [COMMENT, length, rest @ ..] => rest.get(..usize::from(*length)).map(text),
        _ => None,
    }
}

fn long(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
}
