// SPDX-License-Identifier: Apache-2.0
//! Allowed IPs: which peer a packet's address belongs to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// "No node": the tables hold far fewer.
const NONE: u32 = u32::MAX;

/// Prefixes of both families, each owned by one peer; the longest that contains an address decides.
///
/// A lookup visits at most one node per prefix length and allocates nothing. Memory is at most two nodes per prefix.
#[derive(Clone, Debug)]
pub struct AllowedIps<T> {
    v4: Trie<T>,
    v6: Trie<T>,
}

impl<T: Clone + Eq> AllowedIps<T> {
    /// No prefix.
    #[must_use]
    pub fn new() -> Self {
        Self { v4: Trie::new(), v6: Trie::new() }
    }

    /// Gives the prefix to `owner`; host bits of `net` do not count. Returns the owner it was taken from, as WireGuard
    /// moves a prefix that two peers claim to the later one.
    pub fn insert(&mut self, net: IpNet, owner: T) -> Option<T> {
        let (trie, prefix) = self.of_family_mut(net);
        trie.insert(prefix, owner)
    }

    /// Takes exactly this prefix out and returns its owner.
    pub fn remove(&mut self, net: &IpNet) -> Option<T> {
        let (trie, prefix) = self.of_family_mut(*net);
        trie.remove(prefix)
    }

    /// Takes all prefixes of `owner` out.
    pub fn remove_all(&mut self, owner: &T) {
        let nets: Vec<IpNet> = self.of(owner).collect();
        for net in nets {
            self.remove(&net);
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// Owner of the longest prefix that contains `address`. An IPv4-mapped IPv6 address is an IPv6 address here.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&T> {
        match address {
            IpAddr::V4(address) => self.v4.lookup(bits_v4(address)),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }

    /// All prefixes and their owners: IPv4 first, by address, shorter prefixes first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        let v4 = self.v4.iter().filter_map(|(prefix, owner)| {
            let address = Ipv4Addr::from_bits((prefix.bits >> 96) as u32);
            Some((Ipv4Net::new(address, prefix.len).ok()?.into(), owner))
        });
        let v6 = self.v6.iter().filter_map(|(prefix, owner)| {
            Some((Ipv6Net::new(Ipv6Addr::from_bits(prefix.bits), prefix.len).ok()?.into(), owner))
        });
        v4.chain(v6)
    }

    /// Prefixes of one owner, in the order of [`AllowedIps::iter`].
    pub fn of(&self, owner: &T) -> impl Iterator<Item = IpNet> {
        self.iter().filter(move |(_, other)| *other == owner).map(|(net, _)| net)
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.prefixes + self.v6.prefixes
    }

    /// Whether there is no prefix.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn of_family_mut(&mut self, net: IpNet) -> (&mut Trie<T>, Prefix) {
        match net {
            IpNet::V4(net) => (&mut self.v4, Prefix::new(bits_v4(net.addr()), net.prefix_len())),
            IpNet::V6(net) => (&mut self.v6, Prefix::new(net.addr().to_bits(), net.prefix_len())),
        }
    }
}

impl<T: Clone + Eq> Default for AllowedIps<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The first `len` bits of an address, the first one on top; the others are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    bits: u128,
    len: u8,
}

/// A path-compressed binary trie (Patricia): a node is a prefix that has an owner or at which two others part.
#[derive(Clone, Debug)]
struct Trie<T> {
    nodes: Vec<Node<T>>,
    /// Places in `nodes` that are not used.
    free: Vec<u32>,
    root: u32,
    prefixes: usize,
}

#[derive(Clone, Debug)]
struct Node<T> {
    prefix: Prefix,
    owner: Option<T>,
    /// By the first bit behind the prefix.
    children: [u32; 2],
}

impl Prefix {
    fn new(bits: u128, len: u8) -> Self {
        Self { bits: bits & mask(len), len }
    }

    fn contains(self, bits: u128) -> bool {
        (self.bits ^ bits) & mask(self.len) == 0
    }

    /// Which child of this prefix leads to `bits`.
    fn side(self, bits: u128) -> usize {
        usize::from(bits << (self.len & 127) >> 127 != 0)
    }

    /// The longest prefix of both.
    fn common(self, other: Self) -> Self {
        let same = (self.bits ^ other.bits).leading_zeros() as u8;
        Self::new(self.bits, same.min(self.len).min(other.len))
    }
}

impl<T> Trie<T> {
    fn new() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, prefixes: 0 }
    }

    fn insert(&mut self, prefix: Prefix, owner: T) -> Option<T> {
        let (mut parent, mut at) = (NONE, self.root);
        while let Some(node) = self.nodes.get_mut(at as usize) {
            if node.prefix == prefix {
                let former = node.owner.replace(owner);
                self.prefixes += usize::from(former.is_none());
                return former;
            }
            if node.prefix.len >= prefix.len || !node.prefix.contains(prefix.bits) {
                break;
            }
            (parent, at) = (at, node.children[node.prefix.side(prefix.bits)]);
        }
        self.prefixes += 1;
        let mut new = self.add(prefix, Some(owner));
        if let Some(below) = self.nodes.get(at as usize).map(|node| node.prefix) {
            let common = prefix.common(below);
            if common == prefix {
                self.nodes[new as usize].children[prefix.side(below.bits)] = at;
            } else {
                let fork = self.add(common, None);
                self.nodes[fork as usize].children[common.side(below.bits)] = at;
                self.nodes[fork as usize].children[common.side(prefix.bits)] = new;
                new = fork;
            }
        }
        self.relink(parent, prefix.bits, new);
        None
    }

    fn remove(&mut self, prefix: Prefix) -> Option<T> {
        let (mut above, mut parent, mut at) = (NONE, NONE, self.root);
        while let Some(node) = self.nodes.get(at as usize) {
            if node.prefix == prefix || node.prefix.len >= prefix.len {
                break;
            }
            (above, parent, at) = (parent, at, node.children[node.prefix.side(prefix.bits)]);
        }
        let node = self.nodes.get_mut(at as usize).filter(|node| node.prefix == prefix)?;
        let owner = node.owner.take()?;
        self.prefixes -= 1;
        self.fold(parent, at, prefix.bits);
        // A fork that lost one of its two sides is no fork any more.
        if self.nodes.get(parent as usize).is_some_and(|node| node.owner.is_none()) {
            self.fold(above, parent, prefix.bits);
        }
        Some(owner)
    }

    fn lookup(&self, bits: u128) -> Option<&T> {
        let mut best = None;
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            if !node.prefix.contains(bits) {
                break;
            }
            best = node.owner.as_ref().or(best);
            at = node.children[node.prefix.side(bits)];
        }
        best
    }

    /// Depth first, which is the order of addresses.
    fn iter(&self) -> impl Iterator<Item = (Prefix, &T)> {
        let mut path = vec![self.root];
        std::iter::from_fn(move || {
            while let Some(at) = path.pop() {
                let Some(node) = self.nodes.get(at as usize) else { continue };
                path.extend(node.children.iter().rev());
                if let Some(owner) = &node.owner {
                    return Some((node.prefix, owner));
                }
            }
            None
        })
    }

    /// Takes the ownerless node `at` out if it has at most one child, which takes its place.
    fn fold(&mut self, parent: u32, at: u32, bits: u128) {
        let child = match self.nodes[at as usize].children {
            [child, NONE] | [NONE, child] => child,
            _ => return,
        };
        self.nodes[at as usize].children = [NONE; 2];
        self.free.push(at);
        self.relink(parent, bits, child);
    }

    /// Puts `child` below `parent` (or at the root) on the way to `bits`.
    fn relink(&mut self, parent: u32, bits: u128, child: u32) {
        match self.nodes.get_mut(parent as usize) {
            Some(node) => node.children[node.prefix.side(bits)] = child,
            None => self.root = child,
        }
    }

    fn add(&mut self, prefix: Prefix, owner: Option<T>) -> u32 {
        let node = Node { prefix, owner, children: [NONE; 2] };
        if let Some(at) = self.free.pop() {
            self.nodes[at as usize] = node;
            return at;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }
}

fn bits_v4(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits()) << 96
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn owner(table: &AllowedIps<&'static str>, address: &str) -> Option<&'static str> {
        table.lookup(address.parse().unwrap()).copied()
    }

    #[test]
    fn the_longest_prefix_decides() {
        let mut table = AllowedIps::new();
        for (prefix, peer) in [
            ("10.0.0.0/8", "a"),
            ("10.1.0.0/16", "b"),
            ("10.1.2.3/32", "c"),
            ("fd00::/8", "d"),
            ("fd00::1/128", "e"),
        ] {
            assert_eq!(table.insert(net(prefix), peer), None);
        }
        assert_eq!(owner(&table, "10.9.9.9"), Some("a"));
        assert_eq!(owner(&table, "10.1.9.9"), Some("b"));
        assert_eq!(owner(&table, "10.1.2.3"), Some("c"));
        assert_eq!(owner(&table, "11.0.0.0"), None);
        assert_eq!(owner(&table, "fd00::2"), Some("d"));
        assert_eq!(owner(&table, "fd00::1"), Some("e"));
        assert_eq!(owner(&table, "::ffff:10.1.2.3"), None);
        table.insert(net("0.0.0.0/0"), "all");
        assert_eq!(owner(&table, "11.0.0.0"), Some("all"));
        assert_eq!(owner(&table, "fe80::1"), None, "the families are apart");
        table.insert(net("::/0"), "all6");
        assert_eq!(owner(&table, "fe80::1"), Some("all6"));
    }

    #[test]
    fn a_prefix_moves_to_the_peer_that_claims_it_last() {
        let mut table = AllowedIps::new();
        table.insert(net("10.1.0.0/16"), "a");
        assert_eq!(table.insert(net("10.1.7.7/16"), "b"), Some("a"), "host bits do not count");
        assert_eq!(table.len(), 1);
        assert_eq!(table.of(&"a").count(), 0);
        table.remove_all(&"a");
        assert_eq!(owner(&table, "10.1.0.1"), Some("b"));
        table.remove_all(&"b");
        assert!(table.is_empty());
        assert_eq!(table.v4.free.len(), table.v4.nodes.len());
    }

    #[test]
    fn a_thousand_peers_are_found_within_the_depth_of_an_address() {
        let mut table = AllowedIps::new();
        for peer in 0..1000_u32 {
            for part in 0..4 {
                let prefix =
                    Prefix::new(bits_v4(Ipv4Addr::from_bits(0x0a00_0000 + peer * 1024 + part * 64)), 26);
                table.v4.insert(prefix, peer);
            }
        }
        assert_eq!(table.len(), 4000);
        for peer in 0..1000_u32 {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + peer * 1024 + 100);
            assert_eq!(table.lookup(address.into()), Some(&peer));
        }
        assert!(table.v4.nodes.len() < 8000, "at most two nodes per prefix");
    }

    /// Prefixes that lie close together, so that they nest and part in all ways.
    fn any_net() -> impl Strategy<Value = IpNet> {
        let v4 =
            (prop::sample::select(vec![0_u32, 0x0a00_0000, 0x0a00_ff00, 0xffff_ffff]), 0_u32..16, 0_u8..=32)
                .prop_map(|(base, low, len)| {
                    Ipv4Net::new(Ipv4Addr::from_bits(base ^ low), len).unwrap().into()
                });
        let v6 = (prop::sample::select(vec![0_u128, 0xfd << 120, 0xfd01 << 112]), 0_u128..16, 0_u8..=128)
            .prop_map(|(base, low, len)| Ipv6Net::new(Ipv6Addr::from_bits(base ^ low), len).unwrap().into());
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_that_is_searched_from_end_to_end(
            steps in prop::collection::vec((0_u8..8, any_net(), 0_u8..5), 1..120),
            probes in prop::collection::vec(any_net(), 1..40),
        ) {
            let mut table = AllowedIps::new();
            let mut list = BTreeMap::<IpNet, u8>::new();
            for (kind, net, peer) in steps {
                match kind {
                    0 | 1 => prop_assert_eq!(table.remove(&net), list.remove(&net.trunc())),
                    2 => {
                        table.remove_all(&peer);
                        list.retain(|_, other| *other != peer);
                    }
                    _ => prop_assert_eq!(table.insert(net, peer), list.insert(net.trunc(), peer)),
                }
                prop_assert_eq!(table.len(), list.len());
                let used = |trie: &Trie<u8>| trie.nodes.len() - trie.free.len();
                prop_assert!(used(&table.v4) + used(&table.v6) <= 2 * list.len(), "no node is left behind");
            }
            let mut sorted: Vec<(IpNet, u8)> = list.iter().map(|(net, peer)| (*net, *peer)).collect();
            sorted.sort_by_key(|(net, _)| (net.addr(), net.prefix_len()));
            let held: Vec<(IpNet, u8)> = table.iter().map(|(net, peer)| (net, *peer)).collect();
            prop_assert_eq!(held, sorted);
            for address in list.keys().chain(&probes).flat_map(|net| [net.addr(), net.network(), net.broadcast()]) {
                let longest = list.iter().filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len());
                prop_assert_eq!(table.lookup(address), longest.map(|(_, peer)| peer));
            }
        }
    }
}
