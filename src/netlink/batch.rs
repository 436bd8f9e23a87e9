//! Requests written byte by byte, several in one datagram: of what neli has no types for.

/// The two flags of a request: that it is one, and that it asks for an acknowledgement.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
/// Flags of requests that list, replace or make something.
pub(super) const DUMP: u16 = 0x300;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Requests that are sent as one datagram. They all have one sequence number: whichever of them
/// the kernel refuses, the refusal answers the whole.
pub(super) struct Batch {
    sequence: u32,
    bytes: Vec<u8>,
}

impl Batch {
    pub(super) fn new(sequence: u32) -> Self {
        Self {
            sequence,
            bytes: Vec::new(),
        }
    }

    /// Adds a request: its fixed header, then the attributes that `write` adds.
    pub(super) fn add(
        &mut self,
        (kind, flags): (u16, u16),
        header: &[u8],
        write: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(header);
        write(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The end of a request, or of an attribute, to which attributes are added.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl<'a> Attributes<'a> {
    /// Adds to attributes that stand alone.
    pub(super) fn to(bytes: &'a mut Vec<u8>) -> Self {
        Self(bytes)
    }

    /// An attribute with this payload.
    pub(super) fn put(&mut self, kind: u16, payload: &[u8]) {
        self.write(kind, |bytes| bytes.extend(payload));
    }

    /// A text. It ends with a NUL.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.write(kind, |bytes| {
            bytes.extend(text.as_bytes());
            bytes.push(0);
        });
    }

    /// A number in network order, as nf_tables has them.
    pub(super) fn big(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    /// An attribute of attributes.
    pub(super) fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes<'_>)) {
        self.write(kind | NESTED, |bytes| write(&mut Attributes(bytes)));
    }

    fn write(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        write(self.0);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
