//! DNS messages (RFC 1035): the question as it is sent, and as much of an answer as is looked at.
//!
//! An answer is written by whoever holds the name asked for, so what reading it costs is bounded whatever it says: at
//! most [`DNS_RECORDS_MAX`] records of the answer section and [`DNS_LABELS_MAX`] labels are looked at, pointers lead
//! backwards only, and records that the question does not lead to are passed over unread. Not here: sockets, and what
//! a server's silence means.

use std::{fmt, net::IpAddr};

use crate::limits::{
    DNS_ADDRESSES_MAX, DNS_CNAMES_MAX, DNS_LABELS_MAX, DNS_MESSAGE_BYTES_MAX, DNS_RECORDS_MAX, HOST_LABEL_BYTES_MAX,
    HOST_NAME_BYTES_MAX,
};

/// Largest datagram asked for: what passes every path unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
const HEADER_BYTES: usize = 12;
const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_OPT: u16 = 41;

/// A type of record that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordType(u16);

impl RecordType {
    pub const A: Self = Self(1);
    pub const AAAA: Self = Self(28);
    pub const NS: Self = Self(2);

    pub fn label(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::AAAA => "AAAA",
            _ => "NS",
        }
    }
}

/// A response code (IANA, DNS RCODEs), the extended part of EDNS included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rcode(pub u16);

impl Rcode {
    pub const NO_ERROR: Self = Self(0);
    pub const FORM_ERR: Self = Self(1);
    pub const NX_DOMAIN: Self = Self(3);
    pub const NOT_IMP: Self = Self(4);
    pub const BAD_VERS: Self = Self(16);
}

/// An absolute name, lower-case, as it stands on the wire uncompressed: each label after its length, then a zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    pub fn root() -> Self {
        Self(Box::new([0]))
    }

    /// Any labels but empty ones, of any characters (RFC 2181 section 11); `None` where DNS cannot hold the name.
    pub fn from_text(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > HOST_NAME_BYTES_MAX {
            return None;
        }
        let mut bytes = Vec::with_capacity(text.len() + 2);
        for label in text.split('.') {
            if label.is_empty() || label.len() > HOST_LABEL_BYTES_MAX {
                return None;
            }
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        bytes.push(0);
        Some(Self(bytes.into()))
    }
}

/// Without the final dot; what is no part of host names is escaped (RFC 1035 section 5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &*self.0;
        let mut first = true;
        while let Some((length, after)) = rest.split_first()
            && *length > 0
        {
            let (label, next) = after.split_at(usize::from(*length));
            if !first {
                f.write_str(".")?;
            }
            for byte in label {
                match byte {
                    byte if byte.is_ascii_alphanumeric() || b"-_*/".contains(byte) => write!(f, "{}", *byte as char)?,
                    byte if byte.is_ascii_graphic() => write!(f, "\\{}", *byte as char)?,
                    byte => write!(f, "\\{byte:03}")?,
                }
            }
            (first, rest) = (false, next);
        }
        if first { f.write_str(".") } else { Ok(()) }
    }
}

/// One question as it leaves: an id that is not to be guessed, and the name's letters in random case
/// (draft-vixie-dnsext-dns0x20), which the answer must repeat.
#[derive(Debug)]
pub struct Question {
    bytes: Vec<u8>,
    /// Where the question section ends.
    end: usize,
}

impl Question {
    pub fn new(name: &Name, kind: RecordType, edns: bool) -> Self {
        let mut random = [0; 2 + 32];
        aws_lc_rs::rand::fill(&mut random).expect("random bytes: the system has them, or nothing is safe");
        let (id, cases) = random.split_at(2);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + name.0.len() + 4 + 11);
        bytes.extend(id);
        // A standard query with recursion desired; one question, no answers.
        bytes.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        // Lengths of labels are no letters: 63 at most.
        bytes.extend(name.0.iter().enumerate().map(|(at, byte)| {
            let upper = cases[at / 8 % cases.len()] >> (at % 8) & 1 == 1;
            if upper { byte.to_ascii_uppercase() } else { *byte }
        }));
        bytes.extend(kind.0.to_be_bytes());
        bytes.extend(CLASS_IN.to_be_bytes());
        let end = bytes.len();
        if edns {
            bytes.push(0);
            bytes.extend(TYPE_OPT.to_be_bytes());
            bytes.extend(UDP_PAYLOAD.to_be_bytes());
            bytes.extend([0; 6]);
        }
        Self { bytes, end }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What a message that came back is to this question.
    pub fn weigh<'a>(&self, bytes: &'a [u8]) -> Weighed<'a> {
        if bytes.get(..2) != self.bytes.get(..2) {
            return Weighed::Stray;
        }
        let Some(answer) = Answer::new(bytes) else { return Weighed::Unreadable };
        let asked = &self.bytes[HEADER_BYTES..self.end];
        match (answer.count(4), bytes.get(HEADER_BYTES..self.end)) {
            // A server that cannot read the question need not repeat it.
            (0, _) if answer.rcode() == Rcode::FORM_ERR => Weighed::Answer(answer),
            (1, Some(repeated)) if repeated == asked => Weighed::Answer(answer),
            (1, Some(repeated)) if repeated.eq_ignore_ascii_case(asked) => Weighed::OtherCase(answer),
            (1, _) => Weighed::Stray,
            _ => Weighed::Unreadable,
        }
    }
}

/// What a message is to a question.
#[derive(Debug)]
pub enum Weighed<'a> {
    Answer(Answer<'a>),
    /// The answer, with the question's letters in another case: an old server, or a guess.
    OtherCase(Answer<'a>),
    /// With the question's id, and no answer.
    Unreadable,
    /// Not an answer to this question.
    Stray,
}

/// A message whose header can be read.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    bytes: &'a [u8],
}

impl<'a> Answer<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let flags = bytes.get(2..4).filter(|_| bytes.len() >= HEADER_BYTES)?;
        // A response to a standard query.
        (flags[0] & 0xf8 == 0x80).then_some(Self { bytes })
    }

    fn flag(self, byte: usize, bit: u8) -> bool {
        self.bytes[byte] & bit != 0
    }

    fn count(self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    pub fn is_truncated(self) -> bool {
        self.flag(2, 0x02)
    }

    /// Nothing is in it, and the server neither owns the name nor looks names up for us: it knows nothing.
    pub fn is_lame(self) -> bool {
        let (authoritative, recursive) = (self.flag(2, 0x04), self.flag(3, 0x80));
        self.rcode() == Rcode::NO_ERROR && self.count(6) == 0 && !authoritative && !recursive
    }

    pub fn rcode(self) -> Rcode {
        Rcode(u16::from(self.bytes[3] & 0x0f) | self.extended_rcode() << 4)
    }

    /// Of an answer without records, which is what errors are: there the OPT record follows the question.
    fn extended_rcode(self) -> u16 {
        let of = || {
            let mut reader = Reader::new(self.bytes);
            for _ in 0..self.count(4).min(1) {
                reader.question()?;
            }
            let (root, kind) = (reader.u8()?, reader.u16()?);
            let _payload = reader.u16()?;
            let extended = reader.u8()?;
            (root == 0 && kind == TYPE_OPT).then_some(u16::from(extended))
        };
        if (self.count(6), self.count(8)) == (0, 0) && self.count(10) > 0 { of().unwrap_or(0) } else { 0 }
    }

    /// Only records that the question leads to count: whatever else an answer carries is passed over. `None`: it
    /// cannot be read.
    pub fn read(self, name: &Name, kind: RecordType) -> Option<Reading> {
        let mut reader = Reader::new(self.bytes);
        let records = self.records(&mut reader, kind)?;
        let mut reading = Reading { ttl: u32::MAX, looked_at: reader.looked_at(), ..Reading::default() };
        let mut at = name;
        while reading.aliases.len() <= DNS_CNAMES_MAX {
            let alias = records.iter().find_map(|record| match &record.data {
                Data::Alias(target) if record.owner == *at => Some((target, record.ttl)),
                _ => None,
            });
            let Some((target, ttl)) = alias else { break };
            reading.aliases.push(target.clone());
            reading.ttl = reading.ttl.min(ttl);
            at = target;
        }
        for record in records.iter().filter(|record| record.owner == *at) {
            let Data::Address(address) = record.data else { continue };
            reading.ttl = reading.ttl.min(record.ttl);
            if reading.addresses.len() < DNS_ADDRESSES_MAX && !reading.addresses.contains(&address) {
                reading.addresses.push(address);
            }
        }
        reading.gone = self.rcode() == Rcode::NX_DOMAIN && reading.addresses.is_empty();
        Some(reading)
    }

    /// The aliases and addresses of the answer section; fewer where there are more than are looked at.
    fn records(self, reader: &mut Reader<'_>, kind: RecordType) -> Option<Vec<Record>> {
        for _ in 0..self.count(4).min(1) {
            reader.question()?;
        }
        let mut records = Vec::new();
        for _ in 0..usize::from(self.count(6)).min(DNS_RECORDS_MAX) {
            match reader.record(kind) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => {}
                Err(Stop::Enough) => break,
                Err(Stop::Unreadable) => return None,
            }
        }
        Some(records)
    }
}

/// What an answer says of a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The chain from the asked name, in order; at most one more than may be followed.
    pub aliases: Vec<Name>,
    /// Addresses of the name at the chain's end, and of no other; at most [`DNS_ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
    /// The least of all records used.
    pub ttl: u32,
    /// The name at the chain's end does not exist.
    pub gone: bool,
    /// How many labels were looked at: what reading it cost.
    pub looked_at: usize,
}

struct Record {
    owner: Name,
    ttl: u32,
    data: Data,
}

enum Data {
    Alias(Name),
    Address(IpAddr),
}

/// Why reading ends before the records do.
enum Stop {
    /// More than is looked at.
    Enough,
    Unreadable,
}

/// Goes through a message once.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Labels and pointers that may still be looked at.
    labels: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: HEADER_BYTES, labels: DNS_LABELS_MAX }
    }

    fn looked_at(&self) -> usize {
        DNS_LABELS_MAX - self.labels
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|taken| u16::from_be_bytes([taken[0], taken[1]]))
    }

    fn question(&mut self) -> Option<()> {
        self.pass_name().ok()?;
        self.take(4).map(drop)
    }

    /// One resource record; `None`: of another type or class.
    fn record(&mut self, kind: RecordType) -> Result<Option<Record>, Stop> {
        let owner_at = self.at;
        self.pass_name()?;
        let fixed = self.take(10).ok_or(self.end())?;
        let two = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let (its, class, length) = (two(0), two(2), two(8));
        let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let data_at = self.at;
        let data = self.take(usize::from(length)).ok_or(self.end())?;
        if class != CLASS_IN || (its != kind.0 && its != TYPE_CNAME) {
            return Ok(None);
        }
        let data = match data.len() {
            _ if its == TYPE_CNAME => Data::Alias(self.name_at(data_at)?),
            4 if kind == RecordType::A => {
                Data::Address(<[u8; 4]>::try_from(data).map_err(|_| Stop::Unreadable)?.into())
            }
            16 if kind == RecordType::AAAA => {
                Data::Address(<[u8; 16]>::try_from(data).map_err(|_| Stop::Unreadable)?.into())
            }
            _ => return Err(Stop::Unreadable),
        };
        // RFC 2181 section 8: the highest bit set means zero.
        let ttl = if ttl > i32::MAX as u32 { 0 } else { ttl };
        Ok(Some(Record { owner: self.name_at(owner_at)?, ttl, data }))
    }

    /// What it means that the message ends here.
    fn end(&self) -> Stop {
        if self.bytes.len() >= DNS_MESSAGE_BYTES_MAX { Stop::Enough } else { Stop::Unreadable }
    }

    fn look(&mut self) -> Result<(), Stop> {
        self.labels = self.labels.checked_sub(1).ok_or(Stop::Enough)?;
        Ok(())
    }

    /// Goes past a name without following its pointer.
    fn pass_name(&mut self) -> Result<(), Stop> {
        loop {
            self.look()?;
            let length = self.u8().ok_or(self.end())?;
            match length {
                0 => return Ok(()),
                1..=63 => drop(self.take(usize::from(length)).ok_or(self.end())?),
                0xc0.. => return self.u8().map(drop).ok_or(self.end()),
                _ => return Err(Stop::Unreadable),
            }
        }
    }

    /// The whole name that begins there. Each pointer must lead before where the last one led: loops cannot be made.
    fn name_at(&mut self, start: usize) -> Result<Name, Stop> {
        let mut name = Vec::with_capacity(64);
        let (mut at, mut before) = (start, start);
        loop {
            self.look()?;
            let length = *self.bytes.get(at).ok_or(self.end())?;
            match length {
                0 => {
                    name.push(0);
                    return Ok(Name(name.into()));
                }
                1..=63 => {
                    let end = at + 1 + usize::from(length);
                    let label = self.bytes.get(at + 1..end).ok_or(self.end())?;
                    // With the zero at its end, 255 octets (RFC 1035 section 2.3.4).
                    if name.len() + 1 + label.len() > HOST_NAME_BYTES_MAX + 1 {
                        return Err(Stop::Unreadable);
                    }
                    name.push(length);
                    name.extend(label.iter().map(u8::to_ascii_lowercase));
                    at = end;
                }
                0xc0.. => {
                    let low = *self.bytes.get(at + 1).ok_or(Stop::Unreadable)?;
                    at = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if at >= before || at < HEADER_BYTES {
                        return Err(Stop::Unreadable);
                    }
                    before = at;
                }
                _ => return Err(Stop::Unreadable),
            }
        }
    }
}

#[cfg(test)]
mod tests;
