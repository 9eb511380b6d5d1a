//! One end of an RDMA connection, as its peer is told of it when a lane attaches: 56 bytes, read once and checked.
//!
//! The control connection carries it; no call does. Which of a port's addresses two ends use, they find out with
//! [`Address::reaches`].
#![forbid(unsafe_code)]

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use crate::header::Immediate;

/// Bytes of an endpoint.
pub const ENDPOINT_LEN: usize = 56;

/// Bytes of an address alone.
pub const ADDRESS_LEN: usize = 20;

/// The format of these bytes.
const VERSION: u8 = 1;
/// Numbers of queue pairs and of packets have 24 bits.
const NUMBER_MAX: u32 = (1 << 24) - 1;
/// What every IPv4 address begins with as a GID.
const IPV4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
/// What link-local GIDs begin with.
const LINK_LOCAL: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];

/// How packets travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GidKind {
    /// InfiniBand.
    Infiniband = 1,
    /// Converged Ethernet on one link: its own Ethernet type.
    RoceV1 = 2,
    /// Converged Ethernet that is routed: UDP.
    RoceV2 = 3,
}

/// Where a port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// How.
    pub kind: GidKind,
    /// The global address.
    pub gid: [u8; 16],
    /// The local address; InfiniBand's alone.
    pub lid: u16,
}

/// The most bytes of a packet's payload, by the verbs' codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mtu {
    /// 256 bytes.
    B256 = 1,
    /// 512 bytes.
    B512 = 2,
    /// 1 KiB.
    B1024 = 3,
    /// 2 KiB.
    B2048 = 4,
    /// 4 KiB.
    B4096 = 5,
}

/// What an end tells its peer before the two are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Where its port is.
    pub address: Address,
    /// The most that its port takes.
    pub mtu: Mtu,
    /// Its queue pair.
    pub queue_pair: u32,
    /// The number of the first packet that it will send.
    pub first_packet: u32,
    /// Where the region lies that the peer may write to, in this end's memory.
    pub region: u64,
    /// The region's bytes.
    pub region_bytes: u64,
    /// The key to it.
    pub key: u32,
}

/// Why bytes are no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's RDMA endpoint is none: {0}")]
pub struct BadEndpoint(pub &'static str);

impl GidKind {
    fn from_code(code: u8) -> Option<Self> {
        [Self::Infiniband, Self::RoceV1, Self::RoceV2].into_iter().find(|kind| *kind as u8 == code)
    }
}

impl Mtu {
    /// By the verbs' code.
    pub fn from_code(code: u8) -> Option<Self> {
        let all = [Self::B256, Self::B512, Self::B1024, Self::B2048, Self::B4096];
        all.into_iter().find(|mtu| *mtu as u8 == code)
    }

    /// The largest that is no larger than so many bytes, and at least 256.
    pub fn within(bytes: u32) -> Self {
        let all = [Self::B4096, Self::B2048, Self::B1024, Self::B512];
        all.into_iter().find(|mtu| mtu.bytes() <= bytes).unwrap_or(Self::B256)
    }

    /// In bytes.
    pub fn bytes(self) -> u32 {
        128 << self as u32
    }
}

impl Address {
    /// Its bytes, little-endian.
    pub fn encode(&self) -> [u8; ADDRESS_LEN] {
        let mut out = [0; ADDRESS_LEN];
        out[0] = self.kind as u8;
        out[2..4].copy_from_slice(&self.lid.to_le_bytes());
        out[4..].copy_from_slice(&self.gid);
        out
    }

    /// Reads what a peer sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEndpoint> {
        let bytes: &[u8; ADDRESS_LEN] =
            bytes.try_into().map_err(|_| BadEndpoint("it has another length"))?;
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[4..]);
        let kind = GidKind::from_code(bytes[0]).ok_or(BadEndpoint("its kind is unknown"))?;
        Ok(Self { kind, gid, lid: u16::from_le_bytes([bytes[2], bytes[3]]) })
    }

    fn is_ipv4(&self) -> bool {
        self.gid[..12] == IPV4_MAPPED
    }

    /// True if it is good for its own link alone.
    pub fn is_link_local(&self) -> bool {
        self.gid[..8] == LINK_LOCAL
    }

    /// True if packets sent from here could find the peer: the same kind and, over Ethernet, the same IP version and scope.
    /// Whether they do find it, only a packet shows.
    pub fn reaches(&self, peer: &Self) -> bool {
        let over_ip = |address: &Self| (address.is_ipv4(), address.is_link_local());
        self.kind == peer.kind
            && (self.kind == GidKind::Infiniband || over_ip(self) == over_ip(peer))
    }

    /// True if packets between the two need the global route: always over Ethernet, and between subnets of InfiniBand.
    pub fn needs_route(&self, peer: &Self) -> bool {
        self.kind != GidKind::Infiniband || self.gid[..8] != peer.gid[..8]
    }

    /// Which address to prefer: routed before link-bound, IPv4 before IPv6, since a cluster's own network has it most often.
    pub fn rank(&self) -> u8 {
        match self.kind {
            GidKind::RoceV2 if self.is_ipv4() => 5,
            GidKind::RoceV2 if !self.is_link_local() => 4,
            GidKind::Infiniband => 3,
            GidKind::RoceV2 => 2,
            GidKind::RoceV1 => 1,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            GidKind::Infiniband => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
        };
        if self.is_ipv4() {
            let [.., a, b, c, d] = self.gid;
            return write!(f, "{kind} {}", Ipv4Addr::new(a, b, c, d));
        }
        write!(f, "{kind} {}", Ipv6Addr::from(self.gid))
    }
}

impl Endpoint {
    /// Its bytes, little-endian.
    pub fn encode(&self) -> [u8; ENDPOINT_LEN] {
        let mut out = [0; ENDPOINT_LEN];
        out[0] = VERSION;
        out[1] = self.address.kind as u8;
        out[2] = self.mtu as u8;
        out[4..8].copy_from_slice(&self.queue_pair.to_le_bytes());
        out[8..12].copy_from_slice(&self.first_packet.to_le_bytes());
        out[12..14].copy_from_slice(&self.address.lid.to_le_bytes());
        out[16..32].copy_from_slice(&self.address.gid);
        out[32..40].copy_from_slice(&self.region.to_le_bytes());
        out[40..48].copy_from_slice(&self.region_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&self.key.to_le_bytes());
        out
    }

    /// Reads what a peer sent.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadEndpoint> {
        let bytes: &[u8; ENDPOINT_LEN] =
            bytes.try_into().map_err(|_| BadEndpoint("it has another length"))?;
        let u32_at = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| bytes[at + n]));
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if bytes[0] != VERSION {
            return Err(BadEndpoint("it is of another version"));
        }
        if bytes[3] != 0 || bytes[14..16] != [0; 2] || bytes[52..] != [0; 4] {
            return Err(BadEndpoint("its reserved bytes are not 0"));
        }
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[16..32]);
        let kind = GidKind::from_code(bytes[1]).ok_or(BadEndpoint("its kind is unknown"))?;
        let endpoint = Self {
            address: Address { kind, gid, lid: u16::from_le_bytes([bytes[12], bytes[13]]) },
            mtu: Mtu::from_code(bytes[2]).ok_or(BadEndpoint("its MTU is none"))?,
            queue_pair: u32_at(4),
            first_packet: u32_at(8),
            region: u64_at(32),
            region_bytes: u64_at(40),
            key: u32_at(48),
        };
        endpoint.check().map(|()| endpoint)
    }

    fn check(&self) -> Result<(), BadEndpoint> {
        if self.queue_pair > NUMBER_MAX || self.first_packet > NUMBER_MAX {
            return Err(BadEndpoint("a number in it has more than 24 bits"));
        }
        if self.region_bytes > Immediate::REGION_MAX
            || self.region.checked_add(self.region_bytes).is_none()
        {
            return Err(BadEndpoint("its region is larger than one can be"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(kind: GidKind, text: &str) -> Address {
        let gid = text.parse::<Ipv6Addr>().unwrap().octets();
        Address { kind, gid, lid: 0 }
    }

    fn endpoint() -> Endpoint {
        Endpoint {
            address: address(GidKind::RoceV2, "::ffff:10.99.0.1"),
            mtu: Mtu::B4096,
            queue_pair: 17,
            first_packet: NUMBER_MAX,
            region: 0x7f00_0000_0000,
            region_bytes: 1 << 20,
            key: 0xdead_beef,
        }
    }

    fn refused(change: impl FnOnce(&mut [u8; ENDPOINT_LEN])) -> &'static str {
        let mut bytes = endpoint().encode();
        change(&mut bytes);
        Endpoint::decode(&bytes).unwrap_err().0
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert_eq!(Endpoint::decode(&[0; 55]).unwrap_err().0, "it has another length");
        assert_eq!(refused(|b| b[0] = 2), "it is of another version");
        assert_eq!(refused(|b| b[1] = 4), "its kind is unknown");
        assert_eq!(refused(|b| b[2] = 6), "its MTU is none");
        assert_eq!(refused(|b| b[3] = 1), "its reserved bytes are not 0");
        assert_eq!(refused(|b| b[7] = 1), "a number in it has more than 24 bits");
        assert_eq!(refused(|b| b[45] = 1), "its region is larger than one can be");
        assert_eq!(refused(|b| b[32..40].fill(0xff)), "its region is larger than one can be");
    }

    #[test]
    fn addresses_of_one_kind_reach_each_other() {
        let v4 = address(GidKind::RoceV2, "::ffff:10.99.0.1");
        let v6 = address(GidKind::RoceV2, "fd00::1");
        let local = address(GidKind::RoceV2, "fe80::1");
        let old = address(GidKind::RoceV1, "::ffff:10.99.0.1");
        let infiniband = address(GidKind::Infiniband, "fe80::2");
        let all = [v4, v6, local, old, infiniband];
        for (n, a) in all.iter().enumerate() {
            for (m, b) in all.iter().enumerate() {
                assert_eq!(a.reaches(b), n == m, "{a} to {b}");
            }
        }
        assert!(v4.rank() > v6.rank() && v6.rank() > local.rank() && local.rank() > old.rank());
        assert_eq!(Mtu::within(4096), Mtu::B4096);
        assert_eq!((Mtu::within(1500), Mtu::within(0)), (Mtu::B1024, Mtu::B256));
        assert!(v4.needs_route(&v4) && !infiniband.needs_route(&infiniband));
        assert_eq!(v4.to_string(), "RoCE v2 10.99.0.1");
        assert!(all.iter().all(|address| Address::decode(&address.encode()) == Ok(*address)));
        assert!(Address::decode(&[9; 20]).is_err() && Address::decode(&[1; 19]).is_err());
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_back(mut bytes in prop::collection::vec(any::<u8>(), ENDPOINT_LEN)) {
            bytes[0] = VERSION;
            bytes[1] = 1 + bytes[1] % 3;
            bytes[2] = 1 + bytes[2] % 5;
            for at in [3, 7, 11, 14, 15, 44, 45, 46, 47, 52, 53, 54, 55] {
                bytes[at] = 0;
            }
            if let Ok(endpoint) = Endpoint::decode(&bytes) {
                prop_assert_eq!(&endpoint.encode()[..], &bytes[..]);
            }
        }
    }
}
