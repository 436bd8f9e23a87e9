//! What passes between the node and its macvlan on a lower device. Pure.
//!
//! The macvlan receives what is sent to all hosts of the link, and has the node's addresses as well:
//! without a barrier it would answer the wire beside the lower device, with another hardware
//! address.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::{
    netlink::{
        Direction, compile,
        filter::{Chain, Condition, Filter, Name, Rule, Verdict},
    },
    types::mac::MacAddr,
};

/// Guests at most: as many as the kernel takes in one program.
pub const MAX_GUESTS: usize = 500;

/// Where the parts of a frame are.
const SOURCE: u16 = 6;
const ETHERTYPE: u16 = 12;
/// In IPv4: version and length, flags and the place of a fragment, protocol, ICMP type without
/// options before it.
const LENGTH: u16 = 14;
const FRAGMENT: u16 = 20;
const PROTOCOL: u16 = 23;
const ICMP_TYPE: u16 = 34;
const NEXT_HEADER: u16 = 20;
const TYPE: u16 = 54;
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMP: u8 = 1;
/// The type of a redirect in ICMP.
const IPV4_REDIRECT: u8 = 5;
const ICMPV6: u8 = 58;
/// Router advertisements and redirects: they change the routes of the host that takes them.
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;
/// Headers behind which either of them may be: hop-by-hop options, routing, destination options.
/// In fragments no host takes them (RFC 6980).
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const DROP: Verdict = Verdict::Drop("dropped");

/// The program for each direction: in come the frames of `guests`, but nothing that changes the
/// node's routes; out go frames to one host, which are to guests.
pub fn programs(guests: &BTreeSet<MacAddr>) -> Result<[(Direction, Vec<u8>); 2]> {
    Ok([
        (Direction::Ingress, compile(&from(guests))?),
        (Direction::Egress, compile(&to_one_host())?),
    ])
}

fn from(guests: &BTreeSet<MacAddr>) -> Filter {
    let ipv6 = |next: u8| {
        let kind = Condition::is(ETHERTYPE, &IPV6);
        vec![kind, Condition::is(NEXT_HEADER, &[next])]
    };
    let extensions = EXTENSIONS.map(ipv6);
    let messages = [ROUTER_ADVERTISEMENT, REDIRECT].map(|message| {
        let mut conditions = ipv6(ICMPV6);
        conditions.push(Condition::is(TYPE, &[message]));
        conditions
    });
    let dropped = extensions.into_iter().chain(messages);
    let dropped = dropped.chain(ipv4_redirects());
    let dropped = dropped.map(|conditions| rule(conditions, DROP));
    let guests = guests.iter().take(MAX_GUESTS);
    let passed = guests.map(|mac| rule(vec![Condition::is(SOURCE, &mac.0)], Verdict::Accept));
    filter(dropped.chain(passed).collect(), DROP)
}

/// ICMP redirects. ICMP behind options is dropped whatever it is: only routers need it.
fn ipv4_redirects() -> [Vec<Condition>; 2] {
    let icmp = || {
        let kind = Condition::is(ETHERTYPE, &IPV4);
        vec![kind, Condition::is(PROTOCOL, &[ICMP])]
    };
    let (mut redirect, mut options) = (icmp(), icmp());
    redirect.push(Condition::masked(FRAGMENT, &[0x1f, 0xff], &[0, 0]));
    redirect.push(Condition::is(ICMP_TYPE, &[IPV4_REDIRECT]));
    options.push(Condition::masked(LENGTH, &[0x0f], &[5]).negated());
    [options, redirect]
}

fn to_one_host() -> Filter {
    let group = Condition::masked(0, &[1], &[1]);
    filter(vec![rule(vec![group], DROP)], Verdict::Accept)
}

fn rule(conditions: Vec<Condition>, verdict: Verdict) -> Rule {
    Rule {
        conditions,
        verdict,
    }
}

fn filter(rules: Vec<Rule>, last: Verdict) -> Filter {
    let name = Name {
        word: "barrier",
        tags: 0,
    };
    Filter {
        chains: vec![Chain { name, rules, last }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_a_program_for_each_guest() {
        let mac = |n: u16| {
            let [high, low] = n.to_be_bytes();
            MacAddr([2, 0, 0, 0, high, low])
        };
        let guests = (0..2000).map(mac).collect();
        let [(_, ingress), (_, egress)] = programs(&guests).unwrap();
        assert!(ingress.len() / 8 > MAX_GUESTS && ingress.len() / 8 <= 4096);
        assert!(egress.len() / 8 < 10);
    }
}
