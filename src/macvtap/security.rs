//! What a guest may send: from the configuration to a filter. Pure.
//!
//! What is not known to be allowed is dropped: a frame that is too short for its headers, or
//! whose headers hide what has to be looked at, passes no rule.

use std::{fmt, net::Ipv6Addr};

use crate::{
    netlink::filter::{Chain, Condition, Filter, Name, Rule, Verdict},
    types::{mac::MacAddr, prefix::Prefix},
};

/// Why a frame was dropped. These are the names of the counters.
const MAC: &str = "mac";
const ARP: &str = "arp";
const NEIGHBOR_DISCOVERY: &str = "neighbor_discovery";
const ADDRESS: &str = "address";
const DHCP_SERVER: &str = "dhcp_server";
const ROUTER_ADVERTISEMENT: &str = "router_advertisement";
const VLAN: &str = "vlan";
const ETHERTYPE: &str = "ethertype";
const MALFORMED: &str = "malformed";

/// Ethertypes.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP_TYPE: [u8; 2] = [0x08, 0x06];
const RARP_TYPE: [u8; 2] = [0x80, 0x35];
const TAG: [u8; 2] = [0x81, 0x00];
const SERVICE_TAG: [u8; 2] = [0x88, 0xa8];
/// Tags of switches from before 802.1ad, from the first to the last.
const FORMER_TAGS: (u16, u16) = (0x9100, 0x9300);
/// Lower ones are lengths: an LLC header follows.
const LOWEST_ETHERTYPE: u16 = 0x0600;
/// LLC and SNAP headers, behind which an ethertype follows after all.
const SNAP: [u8; 6] = [0xaa, 0xaa, 0x03, 0, 0, 0];
/// Ethernet and IPv4: what an ARP packet speaks of.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// IP protocols, and next headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
/// Headers behind which another one follows, for any receiver: hop-by-hop options; routing and
/// fragment; destination options. From the first number to the second.
const EXTENSIONS: [(u8, u8); 3] = [(HOP_BY_HOP, HOP_BY_HOP), (43, FRAGMENT), (60, 60)];

/// Addresses that a guest may have at most, behind all numbers of tags together: each makes rules,
/// which each frame may have to pass, and which have to fit into one request of nf_tables.
const MAX_ADDRESSES: usize = 64;
/// Ranges of VLANs that a guest may have at most.
pub const MAX_VLAN_RANGES: usize = 32;
/// MACs that a guest may have at most besides its own.
pub const MAX_MACS: usize = 8;
/// Units of 8 bytes, which options begin at, that are looked at in a router advertisement, behind
/// at most so many tags: each makes a rule. A longer advertisement is dropped. No condition may look
/// beyond byte 255, for before Linux 6.2 nf_tables takes no further offset.
const MAX_OPTION_UNITS: u16 = 23;
const MAX_TAGS_OF_OPTIONS: u16 = 1;

/// Tags that a frame may have at most, one in another: where any may be, and where there is a
/// list of those of the outer one.
const MAX_TAGS: u16 = 2;
const MAX_LISTED_TAGS: u16 = 1;

/// What a guest may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// The MACs that it may use besides its own; any if none.
    pub macs: Option<Vec<MacAddr>>,
    /// The addresses that it may use; any if none.
    pub addresses: Option<Vec<Prefix>>,
    /// Whether it may answer DHCP and DHCPv6.
    pub dhcp_server: bool,
    /// Whether it may announce itself as a router.
    pub router_advertisements: bool,
    /// The VLANs that it may tag frames with, from the first number to the second; any if none.
    pub vlans: Option<Vec<(u16, u16)>>,
}

impl Security {
    /// Its own MAC only.
    #[must_use]
    pub fn mac() -> Self {
        Self {
            macs: Some(Vec::new()),
            addresses: None,
            dhcp_server: true,
            router_advertisements: true,
            vlans: None,
        }
    }

    /// Its own MAC and these addresses, and what no guest has to do.
    #[must_use]
    pub fn strict(addresses: Vec<Prefix>) -> Self {
        Self {
            macs: Some(Vec::new()),
            addresses: Some(addresses),
            dhcp_server: false,
            router_advertisements: false,
            vlans: Some(Vec::new()),
        }
    }

    /// Addresses that a guest with such VLANs may have at most.
    #[must_use]
    pub fn max_addresses(&self) -> usize {
        MAX_ADDRESSES / usize::from(1 + self.max_tags())
    }

    fn max_tags(&self) -> u16 {
        match &self.vlans {
            None => MAX_TAGS,
            Some(vlans) if vlans.is_empty() => 0,
            Some(_) => MAX_LISTED_TAGS,
        }
    }

    /// The filter for what a guest with this MAC sends.
    #[must_use]
    pub fn filter(&self, mac: MacAddr) -> Filter {
        let macs = self.macs.as_ref().map(|more| {
            let mut macs = vec![mac];
            macs.extend(more);
            macs
        });
        let mut addresses = self.addresses.clone();
        if let Some(addresses) = &mut addresses {
            let macs = macs.iter().flatten().chain([&mac]);
            addresses.extend(macs.map(|mac| link_local(*mac)));
            addresses.sort_unstable();
            addresses.dedup();
        }
        let mut chains = vec![source(macs.as_deref())];
        for tags in 0..=self.max_tags() {
            let layer = Layer {
                security: self,
                macs: macs.as_deref(),
                addresses: addresses.as_deref(),
                tags,
            };
            chains.extend(layer.chains());
        }
        simplified(chains)
    }
}

/// As configurations name it.
impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let strict = |addresses: &Vec<Prefix>| *self == Self::strict(addresses.clone());
        let name = if *self == Self::mac() {
            "mac"
        } else if self.addresses.as_ref().is_some_and(strict) {
            "strict"
        } else {
            "custom"
        };
        f.write_str(name)
    }
}

/// What the rules in force say of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The security's name.
    pub name: String,
    /// The MACs that the guest may use; any if none.
    pub macs: Vec<MacAddr>,
}

/// Between the name and the MACs.
const FOR: &str = " for ";

impl Description {
    /// Of `security` in force for a guest with this MAC.
    #[must_use]
    pub fn of(security: &Security, mac: MacAddr) -> Self {
        let further = security.macs.iter();
        Self {
            name: security.to_string(),
            macs: further
                .flat_map(|more| [&[mac], &more[..]].concat())
                .collect(),
        }
    }

    /// Reads what it is written as.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (name, macs) = text.split_once(FOR).unwrap_or((text, ""));
        Self {
            name: name.to_owned(),
            macs: macs
                .split(", ")
                .filter_map(|mac| mac.parse().ok())
                .collect(),
        }
    }

    /// Whether a guest with this MAC may send from it.
    #[must_use]
    pub fn allows(&self, mac: MacAddr) -> bool {
        self.macs.is_empty() || self.macs.contains(&mac)
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let macs: Vec<String> = self.macs.iter().map(MacAddr::to_string).collect();
        match macs.as_slice() {
            [] => f.write_str(&self.name),
            macs => write!(f, "{}{FOR}{}", self.name, macs.join(", ")),
        }
    }
}

/// The address that a guest makes from its MAC (RFC 4291, appendix A).
fn link_local(mac: MacAddr) -> Prefix {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[8..11].copy_from_slice(&mac.0[..3]);
    address[11..13].copy_from_slice(&[0xff, 0xfe]);
    address[13..].copy_from_slice(&mac.0[3..]);
    address[8] ^= 2;
    Prefix::host(Ipv6Addr::from(address).into())
}

/// Where every frame begins.
fn source(macs: Option<&[MacAddr]>) -> Chain {
    let to = goto("ethertype", 0);
    let of = |mac: &MacAddr| rule([Condition::is(6, &mac.0)], to);
    Chain {
        name: Name {
            word: "egress",
            tags: 0,
        },
        rules: macs.unwrap_or_default().iter().map(of).collect(),
        last: macs.map_or(to, |_| Verdict::Drop(MAC)),
    }
}

/// What is behind a number of tags.
struct Layer<'a> {
    security: &'a Security,
    macs: Option<&'a [MacAddr]>,
    addresses: Option<&'a [Prefix]>,
    tags: u16,
}

impl Layer<'_> {
    fn chains(&self) -> Vec<Chain> {
        vec![
            self.ethertype(),
            self.tag(),
            self.arp(),
            self.arp_sender(),
            self.rarp(),
            self.ipv4(),
            self.ipv4_payload(),
            self.ipv4_udp(),
            self.ipv6(),
            self.ipv6_unspecified(),
            self.ipv6_payload(),
            self.reports(),
            self.hop_by_hop(),
            self.extension(),
            self.fragment(),
            self.first_fragment_icmp(),
            self.first_fragment_udp(),
            self.icmp(),
            self.solicitation(),
            self.duplicate_detection(),
            self.solicitation_options(),
            self.advertisement(),
            self.advertisement_options(),
            self.router_solicitation(),
            self.router_advertisement(),
            self.redirect(),
            self.ipv6_udp(),
        ]
    }

    /// Where the network header begins.
    fn network(&self) -> u16 {
        14 + 4 * self.tags
    }

    /// Where that begins which follows an IPv6 header.
    fn behind_ipv6(&self) -> u16 {
        self.network() + 40
    }

    fn goto(&self, word: &'static str) -> Verdict {
        goto(word, self.tags)
    }

    fn chain(&self, word: &'static str, rules: Vec<Rule>, last: Verdict) -> Chain {
        let tags = self.tags;
        let name = Name { word, tags };
        Chain { name, rules, last }
    }

    fn addresses(&self, ipv4: bool) -> impl Iterator<Item = &Prefix> {
        let all = self.addresses.into_iter().flatten();
        all.filter(move |prefix| prefix.is_ipv4() == ipv4)
    }

    // === Ethernet ===

    fn ethertype(&self) -> Chain {
        let at = self.network() - 2;
        let is = |ethertype: [u8; 2], to| rule([Condition::is(at, &ethertype)], to);
        let (tag, service_tag) = match &self.security.vlans {
            _ if self.tags == self.security.max_tags() => {
                (Verdict::Drop(VLAN), Verdict::Drop(VLAN))
            }
            None => (self.goto("tag"), self.goto("tag")),
            Some(_) => (self.goto("tag"), Verdict::Drop(VLAN)),
        };
        let former_tag = Condition::bits(at, 0xffff, FORMER_TAGS.0, FORMER_TAGS.1);
        let length = Condition::bits(at, 0xffff, 0, LOWEST_ETHERTYPE - 1);
        let mut rules = vec![
            is(IPV4, self.goto("ipv4")),
            is(IPV6, self.goto("ipv6")),
            is(ARP_TYPE, self.goto("arp")),
            is(RARP_TYPE, self.goto("rarp")),
            is(TAG, tag),
            is(SERVICE_TAG, service_tag),
            rule([former_tag], service_tag),
        ];
        if self.addresses.is_some() {
            return self.chain("ethertype", rules, Verdict::Drop(ETHERTYPE));
        }
        // Some receivers take IP and ARP out of it.
        let snap = Condition::is(self.network(), &SNAP);
        rules.push(rule([length, snap], Verdict::Drop(ETHERTYPE)));
        self.chain("ethertype", rules, Verdict::Accept)
    }

    fn tag(&self) -> Chain {
        let next = goto("ethertype", self.tags + 1);
        let Some(vlans) = &self.security.vlans else {
            return self.chain("tag", vec![], next);
        };
        let of = |(low, high): &(u16, u16)| {
            let condition = Condition::bits(self.network(), 0x0fff, *low, *high);
            rule([condition], next)
        };
        self.chain("tag", vlans.iter().map(of).collect(), Verdict::Drop(VLAN))
    }

    // === ARP ===

    fn arp(&self) -> Chain {
        let operation = Condition::bits(self.network() + 6, 0xffff, 1, 2);
        let to = self.goto("arp_sender");
        self.of_sender("arp", &[operation], to)
    }

    /// By a RARP packet QEMU announces to switches where a guest is after its migration.
    fn rarp(&self) -> Chain {
        let operation = Condition::bits(self.network() + 6, 0xffff, 3, 3);
        let mut conditions = vec![operation];
        if self.addresses.is_some() {
            conditions.push(Condition::is(self.network() + 14, &[0; 4]));
        }
        self.of_sender("rarp", &conditions, Verdict::Accept)
    }

    /// The packets of an Ethernet with IPv4, whose sender is one of the guest's MACs.
    fn of_sender(&self, name: &'static str, conditions: &[Condition], to: Verdict) -> Chain {
        if self.macs.is_none() && self.addresses.is_none() {
            return self.chain(name, vec![], Verdict::Accept);
        }
        let network = self.network();
        let mut all = vec![Condition::is(network, &ARP_ETHERNET_IPV4)];
        all.extend_from_slice(conditions);
        let with = |mac: &MacAddr| {
            let sender = Condition::is(network + 8, &mac.0);
            rule(all.iter().copied().chain([sender]), to)
        };
        let rules = match self.macs {
            Some(macs) => macs.iter().map(with).collect(),
            None => vec![rule(all, to)],
        };
        self.chain(name, rules, Verdict::Drop(ARP))
    }

    /// The sender's address; that which it probes before it has one (RFC 5227).
    fn arp_sender(&self) -> Chain {
        let (sender, target) = (self.network() + 14, self.network() + 24);
        if self.addresses.is_none() {
            return self.chain("arp_sender", vec![], Verdict::Accept);
        }
        let own = self.addresses(true);
        let own = own.map(|prefix| rule([within(sender, prefix)], Verdict::Accept));
        let probed = self.addresses(true).map(|prefix| {
            let none = Condition::is(sender, &[0; 4]);
            rule([none, within(target, prefix)], Verdict::Accept)
        });
        self.chain(
            "arp_sender",
            own.chain(probed).collect(),
            Verdict::Drop(ARP),
        )
    }

    // === IPv4 ===

    fn ipv4(&self) -> Chain {
        let payload = self.goto("ipv4_payload");
        if self.addresses.is_none() {
            return self.chain("ipv4", vec![], payload);
        }
        let source = self.network() + 12;
        let own = self.addresses(true);
        let mut rules: Vec<Rule> = own
            .map(|prefix| rule([within(source, prefix)], payload))
            .collect();
        // Without an address: a DHCP client (RFC 2131), and who joins a group (RFC 3376).
        let none = Condition::is(source, &[0; 4]);
        let protocol = self.network() + 9;
        let client = [
            none,
            Condition::is(self.network(), &[0x45]),
            Condition::is(protocol, &[UDP]),
            Condition::bits(self.network() + 6, 0x1fff, 0, 0),
            Condition::is(self.network() + 20, &[0, 68, 0, 67]),
        ];
        rules.push(rule(client, Verdict::Accept));
        let member = [none, Condition::is(protocol, &[IGMP])];
        rules.push(rule(member, Verdict::Accept));
        self.chain("ipv4", rules, Verdict::Drop(ADDRESS))
    }

    fn ipv4_payload(&self) -> Chain {
        if self.security.dhcp_server {
            return self.chain("ipv4_payload", vec![], Verdict::Accept);
        }
        let protocol = self.network() + 9;
        let rules = vec![
            rule([Condition::is(protocol, &[UDP])], self.goto("ipv4_udp")),
            rule([Condition::exists(self.network() + 19)], Verdict::Accept),
        ];
        self.chain("ipv4_payload", rules, Verdict::Drop(MALFORMED))
    }

    /// Ports are looked for behind a header without options only, and in first fragments.
    /// Clients take an answer from whatever port.
    fn ipv4_udp(&self) -> Chain {
        let network = self.network();
        let plain = Condition::is(network, &[0x45]);
        let ports = network + 20;
        let rules = vec![
            rule(
                [Condition::bits(network + 6, 0x1fff, 1, 0x1fff)],
                Verdict::Accept,
            ),
            rule([Condition::is(ports, &[0, 67])], Verdict::Drop(DHCP_SERVER)),
            rule(
                [Condition::is(ports + 2, &[0, 68])],
                Verdict::Drop(DHCP_SERVER),
            ),
            rule([plain, Condition::exists(ports + 7)], Verdict::Accept),
        ];
        self.chain("ipv4_udp", rules, Verdict::Drop(MALFORMED))
    }

    // === IPv6 ===

    fn ipv6(&self) -> Chain {
        let payload = self.goto("ipv6_payload");
        if self.addresses.is_none() {
            return self.chain("ipv6", vec![], payload);
        }
        let source = self.network() + 8;
        let own = self.addresses(false);
        let mut rules: Vec<Rule> = own
            .map(|prefix| rule([within(source, prefix)], payload))
            .collect();
        let none = Condition::is(source, &[0; 16]);
        rules.push(rule([none], self.goto("ipv6_unspecified")));
        self.chain("ipv6", rules, Verdict::Drop(ADDRESS))
    }

    /// Without an address: who looks whether one is free, asks for routers, joins a group.
    fn ipv6_unspecified(&self) -> Chain {
        let next = self.network() + 6;
        let icmp = |kind| {
            let kind = Condition::is(self.behind_ipv6(), &[kind]);
            [Condition::is(next, &[ICMPV6]), kind]
        };
        let rules = vec![
            rule(icmp(135), self.goto("solicitation")),
            rule(icmp(133), self.goto("router_solicitation")),
            rule([Condition::is(next, &[HOP_BY_HOP])], self.goto("reports")),
        ];
        self.chain("ipv6_unspecified", rules, Verdict::Drop(ADDRESS))
    }

    /// Whether anything behind an IPv6 header matters.
    fn looks_behind_ipv6(&self) -> bool {
        let Security {
            dhcp_server,
            router_advertisements,
            ..
        } = self.security;
        self.macs.is_some() || self.addresses.is_some() || !dhcp_server || !router_advertisements
    }

    fn ipv6_payload(&self) -> Chain {
        if !self.looks_behind_ipv6() {
            return self.chain("ipv6_payload", vec![], Verdict::Accept);
        }
        let next = self.network() + 6;
        let is = |header, to| rule([Condition::is(next, &[header])], self.goto(to));
        let mut rules = vec![
            is(ICMPV6, "icmp"),
            is(UDP, "ipv6_udp"),
            is(HOP_BY_HOP, "hop_by_hop"),
            is(FRAGMENT, "fragment"),
        ];
        rules.extend(
            EXTENSIONS.map(|(low, high)| {
                rule([Condition::byte(next, low, high)], self.goto("extension"))
            }),
        );
        rules.push(rule(
            [Condition::exists(self.network() + 39)],
            Verdict::Accept,
        ));
        self.chain("ipv6_payload", rules, Verdict::Drop(MALFORMED))
    }

    /// Without an address nothing else is behind such options.
    fn reports(&self) -> Chain {
        self.membership("reports", Verdict::Drop(ADDRESS))
    }

    fn hop_by_hop(&self) -> Chain {
        self.membership("hop_by_hop", self.goto("extension"))
    }

    /// Group membership is reported behind hop-by-hop options (RFC 3810).
    fn membership(&self, name: &'static str, otherwise: Verdict) -> Chain {
        let at = self.behind_ipv6();
        let report = |low, high| {
            let header = Condition::is(at, &[ICMPV6, 0]);
            rule(
                [header, Condition::byte(at + 8, low, high)],
                Verdict::Accept,
            )
        };
        let rules = vec![report(130, 132), report(143, 143)];
        self.chain(name, rules, otherwise)
    }

    /// Behind any other header there must not be what has to be looked at, for it would not be
    /// where it is looked for.
    fn extension(&self) -> Chain {
        let at = self.behind_ipv6();
        let mut rules = hidden(at);
        rules.push(is_behind(at, ICMPV6, Verdict::Drop(MALFORMED)));
        if !self.security.dhcp_server {
            rules.push(is_behind(at, UDP, Verdict::Drop(MALFORMED)));
        }
        rules.push(rule([Condition::exists(at)], Verdict::Accept));
        self.chain("extension", rules, Verdict::Drop(MALFORMED))
    }

    /// What is in a fragment shows in the first one. Neighbour discovery is never fragmented
    /// (RFC 6980).
    fn fragment(&self) -> Chain {
        let at = self.behind_ipv6();
        let mut rules = hidden(at);
        let later = Condition::bits(at + 2, 0xfff8, 8, 0xfff8);
        rules.push(rule([later], Verdict::Accept));
        rules.push(is_behind(at, ICMPV6, self.goto("first_fragment_icmp")));
        rules.push(is_behind(at, UDP, self.goto("first_fragment_udp")));
        rules.push(rule([Condition::exists(at + 7)], Verdict::Accept));
        self.chain("fragment", rules, Verdict::Drop(MALFORMED))
    }

    fn first_fragment_icmp(&self) -> Chain {
        let kind = self.behind_ipv6() + 8;
        let rules = vec![
            rule(
                [Condition::byte(kind, 133, 137)],
                Verdict::Drop(NEIGHBOR_DISCOVERY),
            ),
            rule([Condition::exists(kind)], Verdict::Accept),
        ];
        self.chain("first_fragment_icmp", rules, Verdict::Drop(MALFORMED))
    }

    fn first_fragment_udp(&self) -> Chain {
        self.udp("first_fragment_udp", self.behind_ipv6() + 8)
    }

    fn ipv6_udp(&self) -> Chain {
        self.udp("ipv6_udp", self.behind_ipv6())
    }

    fn udp(&self, name: &'static str, ports: u16) -> Chain {
        if self.security.dhcp_server {
            return self.chain(name, vec![], Verdict::Accept);
        }
        let (server, client) = (547_u16.to_be_bytes(), 546_u16.to_be_bytes());
        let rules = vec![
            rule([Condition::is(ports, &server)], Verdict::Drop(DHCP_SERVER)),
            rule(
                [Condition::is(ports + 2, &client)],
                Verdict::Drop(DHCP_SERVER),
            ),
            rule([Condition::exists(ports + 7)], Verdict::Accept),
        ];
        self.chain(name, rules, Verdict::Drop(MALFORMED))
    }

    // === neighbour discovery (RFC 4861) ===

    fn icmp(&self) -> Chain {
        let kind = self.behind_ipv6();
        let is = |number, verdict| rule([Condition::is(kind, &[number])], verdict);
        let of_router = |name| {
            if self.security.router_advertisements {
                self.goto(name)
            } else {
                Verdict::Drop(ROUTER_ADVERTISEMENT)
            }
        };
        let rules = vec![
            is(133, self.goto("router_solicitation")),
            is(134, of_router("router_advertisement")),
            is(135, self.goto("solicitation")),
            is(136, self.goto("advertisement")),
            is(137, of_router("redirect")),
            rule([Condition::exists(kind)], Verdict::Accept),
        ];
        self.chain("icmp", rules, Verdict::Drop(MALFORMED))
    }

    fn solicitation(&self) -> Chain {
        let none = Condition::is(self.network() + 8, &[0; 16]);
        let rules = match self.addresses {
            Some(_) => vec![rule([none], self.goto("duplicate_detection"))],
            None => vec![],
        };
        self.chain("solicitation", rules, self.goto("solicitation_options"))
    }

    fn duplicate_detection(&self) -> Chain {
        self.target("duplicate_detection", "solicitation_options")
    }

    fn advertisement(&self) -> Chain {
        self.target("advertisement", "advertisement_options")
    }

    /// The target has to be an address of the guest.
    fn target(&self, name: &'static str, then: &'static str) -> Chain {
        if self.addresses.is_none() {
            return self.chain(name, vec![], self.goto(then));
        }
        let target = self.behind_ipv6() + 8;
        let own = self.addresses(false);
        let own = own.map(|prefix| rule([within(target, prefix)], self.goto(then)));
        self.chain(name, own.collect(), Verdict::Drop(NEIGHBOR_DISCOVERY))
    }

    /// The guest's MAC, and a nonce (RFC 7527), in whatever order, or neither.
    fn solicitation_options(&self) -> Chain {
        let at = self.behind_ipv6() + 24;
        let nonce = |at| Condition::is(at, &[14, 1]);
        let mut forms = vec![vec![], vec![nonce(at)]];
        for mac in self.macs.into_iter().flatten() {
            forms.push(vec![link_address(at, 1, *mac)]);
            forms.push(vec![link_address(at, 1, *mac), nonce(at + 8)]);
            forms.push(vec![nonce(at), link_address(at + 8, 1, *mac)]);
        }
        self.options("solicitation_options", 24, forms)
    }

    fn advertisement_options(&self) -> Chain {
        let at = self.behind_ipv6() + 24;
        self.options("advertisement_options", 24, self.address_forms(at, 2))
    }

    fn router_solicitation(&self) -> Chain {
        let at = self.behind_ipv6() + 8;
        self.options("router_solicitation", 8, self.address_forms(at, 1))
    }

    /// The options are many, in whatever order and of whatever length: none of the units where
    /// one can begin may look like that of another MAC.
    fn router_advertisement(&self) -> Chain {
        let (word, at) = ("router_advertisement", self.behind_ipv6() + 16);
        let macs = match self.macs {
            Some(macs) if self.tags <= MAX_TAGS_OF_OPTIONS => macs,
            _ => return self.options(word, 16, self.address_forms(at, 1)),
        };
        let other = |unit: u16| {
            let at = at + 8 * unit;
            let others = macs.iter().map(|mac| link_address(at, 1, *mac).negated());
            let option = Condition::is(at, &[1, 1]);
            rule(others.chain([option]), Verdict::Drop(NEIGHBOR_DISCOVERY))
        };
        let mut rules: Vec<Rule> = (0..MAX_OPTION_UNITS).map(other).collect();
        let length = 16 + 8 * MAX_OPTION_UNITS;
        let payload = Condition::bits(self.network() + 4, 0xffff, 16, length);
        rules.push(rule([payload], Verdict::Accept));
        self.chain(word, rules, Verdict::Drop(NEIGHBOR_DISCOVERY))
    }

    /// Another router's MAC is another's. What is behind the packet that the redirect is about
    /// cannot be looked at, so there must be none.
    fn redirect(&self) -> Chain {
        let at = self.behind_ipv6() + 40;
        self.options("redirect", 40, self.address_forms(at, 2))
    }

    fn address_forms(&self, at: u16, option: u8) -> Vec<Vec<Condition>> {
        let macs = self.macs.into_iter().flatten();
        let with = macs.map(|mac| vec![link_address(at, option, *mac)]);
        [vec![]].into_iter().chain(with).collect()
    }

    /// A message of `length` bytes with options of 8 bytes each, in one of these forms.
    fn options(&self, name: &'static str, length: u16, forms: Vec<Vec<Condition>>) -> Chain {
        if self.macs.is_none() {
            return self.chain(name, vec![], Verdict::Accept);
        }
        let payload = self.network() + 4;
        let rules = forms.into_iter().map(|form| {
            let options = form.iter().fold(length, |length, _| length + 8);
            let length = Condition::is(payload, &options.to_be_bytes());
            rule([length].into_iter().chain(form), Verdict::Accept)
        });
        self.chain(name, rules.collect(), Verdict::Drop(NEIGHBOR_DISCOVERY))
    }
}

// === parts ===

fn goto(word: &'static str, tags: u16) -> Verdict {
    Verdict::Goto(Name { word, tags })
}

fn rule(conditions: impl IntoIterator<Item = Condition>, verdict: Verdict) -> Rule {
    Rule {
        conditions: conditions.into_iter().collect(),
        verdict,
    }
}

fn within(offset: u16, prefix: &Prefix) -> Condition {
    Condition::masked(offset, &prefix.mask(), &prefix.bytes())
}

fn is_behind(at: u16, header: u8, verdict: Verdict) -> Rule {
    rule([Condition::is(at, &[header])], verdict)
}

/// An option with a link-layer address: its type, its length, the MAC.
fn link_address(at: u16, option: u8, mac: MacAddr) -> Condition {
    Condition::is(at, &[&[option, 1], &mac.0[..]].concat())
}

fn hidden(at: u16) -> Vec<Rule> {
    let drop = |(low, high)| rule([Condition::byte(at, low, high)], Verdict::Drop(MALFORMED));
    EXTENSIONS.map(drop).to_vec()
}

/// Without chains that decide nothing, and those that nothing leads to.
fn simplified(mut chains: Vec<Chain>) -> Filter {
    for index in (1..chains.len()).rev() {
        let (before, chain) = chains.split_at_mut(index);
        let Chain { name, rules, last } = &chain[0];
        if rules.is_empty() {
            let through = before.iter_mut().flat_map(verdicts);
            let through = through.filter(|verdict| **verdict == Verdict::Goto(*name));
            through.for_each(|verdict| *verdict = *last);
        }
    }
    let mut index = 1;
    while index < chains.len() {
        let name = Verdict::Goto(chains[index].name);
        let is_led_to = chains[..index]
            .iter_mut()
            .flat_map(verdicts)
            .any(|verdict| *verdict == name);
        if is_led_to {
            index += 1;
        } else {
            chains.remove(index);
        }
    }
    Filter { chains }
}

fn verdicts(chain: &mut Chain) -> impl Iterator<Item = &mut Verdict> {
    let rules = chain.rules.iter_mut().map(|rule| &mut rule.verdict);
    rules.chain([&mut chain.last])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::compile;

    #[test]
    fn descriptions_are_read_as_they_are_written() {
        let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
        let any = Security {
            macs: None,
            ..Security::mac()
        };
        let more = Security {
            macs: Some((1..9).map(mac).collect()),
            ..Security::mac()
        };
        for (security, text) in [
            (Security::mac(), "mac for 02:00:00:00:00:00"),
            (any, "custom"),
            (more, "custom for 02:00:00:00:00:00, 02:00:00:00:00:01, "),
        ] {
            let description = Description::of(&security, mac(0));
            let written = description.to_string();
            assert!(
                written.starts_with(text) && written.len() < 256,
                "{written}"
            );
            assert_eq!(Description::parse(&written), description);
        }
    }

    #[test]
    fn no_condition_looks_further_than_any_kernel_takes() {
        let custom = Security {
            vlans: None,
            ..Security::strict(Vec::new())
        };
        let listed = Security {
            vlans: Some(vec![(1, 1)]),
            ..Security::mac()
        };
        for security in [
            Security::mac(),
            Security::strict(Vec::new()),
            custom,
            listed,
        ] {
            let chains = security.filter(MacAddr([2, 0, 0, 0, 0, 0])).chains;
            let rules = chains.iter().flat_map(|chain| &chain.rules);
            let conditions = rules.flat_map(|rule| &rule.conditions);
            let furthest = conditions.map(|condition| condition.offset).max();
            assert!(furthest <= Some(255), "{security:?}: {furthest:?}");
        }
    }

    /// Further MACs take more room, which may be too much.
    #[test]
    fn as_many_addresses_as_possible_fit_into_a_program() {
        let ranges = (1..=16).map(|number| (2 * number, 2 * number)).collect();
        for vlans in [Some(Vec::new()), Some(ranges), None] {
            let address = |n: usize| {
                let mut address = [0x20; 16];
                address[..8].copy_from_slice(&n.to_be_bytes());
                Prefix::host(Ipv6Addr::from(address).into())
            };
            let mut security = Security {
                vlans,
                ..Security::strict(Vec::new())
            };
            security.addresses = Some((1..=security.max_addresses()).map(address).collect());
            compile(&security.filter(MacAddr([2, 0, 0, 0, 0, 0]))).unwrap();
        }
    }
}
