//! virtio-net in bytes: features, configuration space and the header of a frame (VIRTIO 1.2, 5.1.3, 5.1.4, 5.1.6).
//!
//! Codec. It decides nothing but whether a header says what was agreed upon. It never panics, whatever a
//! guest or a host's kernel has written.

#![deny(clippy::indexing_slicing)]

use blockserver::virtio::block::feature::{EVENT_IDX, INDIRECT_DESC};

/// Bytes of a frame's header: that of version 1, with `num_buffers` (5.1.6.1).
pub(super) const HEADER: usize = 12;
/// The longest frame that there is: the longest IP datagram, an Ethernet header and a VLAN tag.
pub(super) const LONGEST: usize = 65535 + ETHERNET;
/// Bytes around the payload that a link's MTU counts.
pub(super) const ETHERNET: usize = 14 + 4;
/// Bytes of the configuration space up to the last field that is offered.
pub(super) const CONFIG_LEN: usize = 12;

/// Feature bits (5.1.3) as masks.
pub(super) mod feature {
    /// The driver may leave checksums to the device.
    pub(crate) const CSUM: u64 = 1;
    /// The device may leave checksums to the driver.
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    /// The MTU is told.
    pub(crate) const MTU: u64 = 1 << 3;
    /// The address is told.
    pub(crate) const MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 that is longer than the MTU.
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    /// And TCP over IPv6.
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    /// And such with ECN.
    pub(crate) const GUEST_ECN: u64 = 1 << 9;
    /// And UDP.
    pub(crate) const GUEST_UFO: u64 = 1 << 10;
    /// The device takes TCP over IPv4 that is longer than the MTU.
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    /// And TCP over IPv6.
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    /// And such with ECN.
    pub(crate) const HOST_ECN: u64 = 1 << 13;
    /// And UDP.
    pub(crate) const HOST_UFO: u64 = 1 << 14;
    /// A frame may be spread over several buffers.
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    /// Whether the link is up is told.
    pub(crate) const STATUS: u64 = 1 << 16;
}

/// What every device here offers. The control queue is not among it.
pub(super) const OFFERED: u64 = INDIRECT_DESC
    | EVENT_IDX
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::MTU
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::MRG_RXBUF
    | feature::STATUS;

/// What the host's kernel may leave to the driver, as `TUNSETOFFLOAD` has it (`linux/if_tun.h`).
const TUN_CSUM: u32 = 1;
const TUN_TSO4: u32 = 2;
const TUN_TSO6: u32 = 4;
const TUN_TSO_ECN: u32 = 8;
const TUN_UFO: u32 = 16;

/// In a header's flags (5.1.6.1): the checksum is to be made; and it was found good.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// Kinds of frames that are to be cut.
const NONE: u8 = 0;
const TCP4: u8 = 1;
const UDP: u8 = 3;
const TCP6: u8 = 4;
/// Beside them: with ECN.
const ECN: u8 = 0x80;

/// What the kernel may leave to a driver that has accepted these features. One that it has accepted without
/// the one that it needs (5.1.3.1) is left out.
pub(super) fn offloads(features: u64) -> u32 {
    let has = |bit| features & bit != 0;
    if !has(feature::GUEST_CSUM) {
        return 0;
    }
    let mut all = TUN_CSUM;
    for (bit, offload) in [
        (feature::GUEST_TSO4, TUN_TSO4),
        (feature::GUEST_TSO6, TUN_TSO6),
        (feature::GUEST_UFO, TUN_UFO),
    ] {
        all |= if has(bit) { offload } else { 0 };
    }
    if has(feature::GUEST_ECN) && all & (TUN_TSO4 | TUN_TSO6) != 0 {
        all |= TUN_TSO_ECN;
    }
    all
}

/// Bytes of the longest frame that can come for a driver that has accepted these features, on a link of this
/// MTU.
pub(super) fn longest(features: u64, mtu: u16) -> usize {
    if offloads(features) & !TUN_CSUM == 0 {
        usize::from(mtu) + ETHERNET
    } else {
        LONGEST
    }
}

/// The configuration space (5.1.4). Whatever is read behind it is zero.
pub(super) fn config(mac: [u8; 6], link: bool, mtu: u16) -> [u8; CONFIG_LEN] {
    // Behind the status: one pair of queues.
    let numbers = [u16::from(link), 1, mtu];
    let bytes = numbers.into_iter().flat_map(u16::to_le_bytes);
    filled(mac.into_iter().chain(bytes))
}

/// These bytes, or as many of them as there is room for.
fn filled<const N: usize>(from: impl Iterator<Item = u8>) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(from).for_each(|(to, from)| *to = from);
    bytes
}

/// What stands before a frame (5.1.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
    /// Of how many buffers the frame is.
    buffers: u16,
}

impl Header {
    /// The header in these bytes.
    pub(super) fn decode(bytes: [u8; HEADER]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let word = |at| u16::from_le_bytes([byte(at), byte(at + 1)]);
        Self {
            flags: byte(0),
            gso_type: byte(1),
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
            buffers: word(10),
        }
    }

    /// The bytes of it.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let words = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.buffers,
        ];
        let words = words.into_iter().flat_map(u16::to_le_bytes);
        filled([self.flags, self.gso_type].into_iter().chain(words))
    }

    /// The same, of a frame that is spread over so many buffers.
    pub(super) fn of_buffers(self, buffers: u16) -> Self {
        Self { buffers, ..self }
    }

    /// What the host's kernel is told of a frame of `len` bytes that the driver sends; none if the header
    /// says what was not agreed upon or cannot be (5.1.6.2).
    pub(super) fn outgoing(self, features: u64, len: usize) -> Option<Self> {
        let whole = self.flags & NEEDS_CSUM != 0;
        if whole {
            let end = usize::from(self.csum_start) + usize::from(self.csum_offset) + 2;
            if features & feature::CSUM == 0 || end > len {
                return None;
            }
        }
        let cut = self.gso_type != NONE;
        let needs = self.needs([
            feature::HOST_TSO4,
            feature::HOST_TSO6,
            feature::HOST_UFO,
            feature::HOST_ECN,
        ])?;
        if features & needs != needs || cut && (!whole || self.gso_size == 0) {
            return None;
        }
        let all = Self {
            flags: self.flags & NEEDS_CSUM,
            buffers: 0,
            ..self
        };
        // Fields that no flag gives a meaning are not the kernel's to see.
        Some(Self {
            csum_start: if whole { all.csum_start } else { 0 },
            csum_offset: if whole { all.csum_offset } else { 0 },
            gso_size: if cut { all.gso_size } else { 0 },
            hdr_len: if cut { all.hdr_len } else { 0 },
            ..all
        })
    }

    /// What the driver is told of a frame that came; none if it has not agreed to take such frames, which the
    /// kernel may have made for the driver before it (5.1.6.4.1).
    pub(super) fn incoming(self, features: u64) -> Option<Self> {
        let has_csum = features & feature::GUEST_CSUM != 0;
        let needs = self.needs([
            feature::GUEST_TSO4,
            feature::GUEST_TSO6,
            feature::GUEST_UFO,
            feature::GUEST_ECN,
        ])?;
        if features & needs != needs || self.flags & NEEDS_CSUM != 0 && !has_csum {
            return None;
        }
        let known = if has_csum { NEEDS_CSUM | DATA_VALID } else { 0 };
        Some(Self {
            flags: self.flags & known,
            ..self
        })
    }

    /// The features that a frame of its kind needs, of those for TCP over IPv4, over IPv6, UDP, and ECN; none
    /// if there is no such kind.
    fn needs(self, [tcp4, tcp6, udp, ecn]: [u64; 4]) -> Option<u64> {
        let kind = match self.gso_type & !ECN {
            NONE => 0,
            TCP4 => tcp4,
            TCP6 => tcp6,
            UDP => udp,
            _ => return None,
        };
        if self.gso_type & ECN == 0 {
            return Some(kind);
        }
        // ECN is TCP's.
        (kind == tcp4 || kind == tcp6).then_some(kind | ecn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = OFFERED;

    fn asks(gso_type: u8) -> Header {
        Header {
            flags: NEEDS_CSUM,
            gso_type,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            ..Header::default()
        }
    }

    #[test]
    fn a_header_is_its_bytes() {
        let bytes = [1, 0x84, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        let header = Header::decode(bytes);
        assert_eq!((header.csum_start, header.buffers), (0x0706, 0x0B0A));
        assert_eq!(header.encode(), bytes);
    }

    #[test]
    fn what_was_not_agreed_upon_is_not_sent() {
        // 5.1.6.2: each kind of frame needs its feature.
        for (kind, bit) in [
            (TCP4, feature::HOST_TSO4),
            (TCP6, feature::HOST_TSO6),
            (UDP, feature::HOST_UFO),
            (TCP4 | ECN, feature::HOST_ECN),
        ] {
            assert_eq!(asks(kind).outgoing(ALL, 9000), Some(asks(kind)));
            assert_eq!(asks(kind).outgoing(ALL & !bit, 9000), None, "{kind}");
        }
        assert_eq!(asks(NONE).outgoing(ALL & !feature::CSUM, 60), None);
    }

    #[test]
    fn what_cannot_be_is_not_sent() {
        let good = asks(TCP4);
        let bad = [
            Header { flags: 0, ..good },
            Header {
                gso_size: 0,
                ..good
            },
            Header {
                gso_type: UDP | ECN,
                ..good
            },
            Header {
                gso_type: ECN,
                ..good
            },
            Header {
                gso_type: 5,
                ..good
            },
            Header {
                csum_start: 59,
                ..good
            },
            Header {
                csum_start: u16::MAX,
                csum_offset: u16::MAX,
                ..good
            },
        ];
        for header in bad {
            assert_eq!(header.outgoing(ALL, 60), None, "{header:?}");
        }
        assert!(good.outgoing(ALL, 60).is_some());
    }

    #[test]
    fn the_kernel_sees_no_field_without_a_meaning() {
        let odd = Header {
            flags: !NEEDS_CSUM,
            gso_type: NONE,
            ..Header::decode([0xFF; HEADER])
        };
        assert_eq!(odd.outgoing(ALL, 60), Some(Header::default()));
    }

    #[test]
    fn a_driver_without_checksums_gets_no_flags_and_no_frame_to_finish() {
        // 5.1.6.4.1.
        let few = ALL & !feature::GUEST_CSUM;
        let good = Header {
            flags: DATA_VALID,
            ..Header::default()
        };
        assert_eq!(good.incoming(few), Some(Header::default()));
        assert_eq!(good.incoming(ALL), Some(good));
        assert_eq!(asks(NONE).incoming(few), None);
        assert_eq!(asks(TCP6).incoming(ALL & !feature::GUEST_TSO6), None);
        assert_eq!(asks(TCP6).incoming(ALL), Some(asks(TCP6)));
    }

    #[test]
    fn offloads_follow_the_features_and_what_they_need() {
        // 5.1.3.1.
        assert_eq!(offloads(ALL), 31);
        assert_eq!(offloads(ALL & !feature::GUEST_CSUM), 0);
        assert_eq!(offloads(feature::GUEST_CSUM | feature::GUEST_ECN), TUN_CSUM);
        assert_eq!(longest(ALL, 1500), LONGEST);
        assert_eq!(longest(feature::GUEST_CSUM, 1500), 1518);
    }

    #[test]
    fn the_configuration_has_its_fields_at_their_places() {
        // 5.1.4.
        let config = config([2, 3, 4, 5, 6, 7], true, 9000);
        assert_eq!(config, [2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 0x28, 0x23]);
    }
}
