//! Netlink attributes: how they are written and found.

use neli::{
    consts::rtnl::RtaType,
    rtnl::{Rtattr, RtattrBuilder},
    types::Buffer,
};

/// An attribute with this payload.
pub(super) fn attribute<T, P>(kind: T, payload: P) -> anyhow::Result<Rtattr<T, Buffer>>
where
    T: RtaType,
    P: neli::Size + neli::ToBytes,
{
    Ok(RtattrBuilder::default()
        .rta_type(kind)
        .rta_payload(payload)
        .build()?)
}

/// A name: what stands before the first NUL. neli's own reading of strings panics on an empty
/// one.
pub(super) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&payload[..end.unwrap_or(payload.len())]).into_owned()
}

/// A number of 32 bits.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(payload.get(..4)?.try_into().ok()?))
}

/// An attribute, as the kernel wrote it.
pub(super) struct Attribute<'a> {
    /// The type, without its flags.
    pub(super) kind: u16,
    /// Whether it is marked as a list of attributes.
    pub(super) nested: bool,
    /// What it holds.
    pub(super) payload: &'a [u8],
}

/// The attributes in `payload`, up to the first one that is broken.
pub(super) fn attributes(payload: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *rest else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let kind = u16::from_ne_bytes([c, d]);
        let payload = rest.get(4..length)?;
        let after = rest.get(length.next_multiple_of(4)..);
        rest = after.unwrap_or_default();
        // The two highest bits are flags: nested, byte order.
        Some(Attribute {
            kind: kind & 0x3fff,
            nested: kind & 0x8000 != 0,
            payload,
        })
    })
}

/// The payload of the first attribute `wanted` among the attributes in `payload`.
pub(super) fn nested(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    all(payload, wanted).next()
}

/// The payloads of all attributes `wanted` among the attributes in `payload`.
pub(super) fn all(payload: &[u8], wanted: u16) -> impl Iterator<Item = &[u8]> {
    let found = attributes(payload).filter(move |attribute| attribute.kind == wanted);
    found.map(|attribute| attribute.payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_attributes_are_passed_over() {
        assert_eq!(nested(&[0, 0, 1, 0], 2), None);
        assert_eq!(nested(&[255, 255, 1, 0], 1), None);
        assert_eq!(number(&[1, 0, 0]), None);
    }

    #[test]
    fn a_name_ends_at_the_nul() {
        assert_eq!(text(b"eth0\0"), "eth0");
        assert_eq!(text(b"eth0"), "eth0");
        assert_eq!(text(b"\0"), "");
        assert_eq!(text(b""), "");
    }
}
