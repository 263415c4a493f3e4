//! One entry of the log of records, in bytes.
//!
//! ```text
//! 0   magic: FF 'r' 'E' FE (FF and FE never occur in UTF-8, so no body contains it)
//! 4   kind: u32    1 record, 2 deviation, 3 tombstone
//! 8   length of the head: u32
//! 12  length of the body: u32
//! 16  key
//! 48  checksum of the head, 16 bytes
//! 64  checksum of the body, 16 bytes
//! 80  checksum of the 80 bytes above, 8 bytes
//! 88  head: what a run needs, binary
//! ..  body: the whole record, JSON
//! ```
//!
//! Numbers are little-endian; checksums are the beginnings of BLAKE3 digests. The head repeats what the body says, so
//! that a run that finds everything stored parses no JSON.

use super::{Hit, OutputRecord, Record};
use crate::artifact::{FileEntry, Kind as ArtifactKind};
use crate::error::{Error, Result};
use crate::store::digest::Digest;

/// Bytes of an entry's header.
pub const HEADER: usize = 88;
/// What every entry begins with.
pub const MAGIC: [u8; 4] = [0xFF, b'r', b'E', 0xFE];

/// What an entry says about its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was computed.
    Record = 1,
    /// What came out another time.
    Deviation = 2,
    /// Everything before is forgotten.
    Tombstone = 3,
}

/// A header that passed its checksum.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What the entry says.
    pub kind: Kind,
    /// About which key.
    pub key: Digest,
    head: u32,
    body: u32,
    head_sum: [u8; 16],
    body_sum: [u8; 16],
}

/// The first `N` bytes of a slice that is known to have them.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn sum<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut sum = [0; N];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..N]);
    sum
}

impl Header {
    /// The header at the beginning of `bytes`, if there is an undamaged one.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let header = bytes.get(..HEADER)?;
        if header[..4] != MAGIC || sum::<8>(&header[..80]) != header[80..] {
            return None;
        }
        Header::decode_checked(header)
    }

    /// The same of bytes that [`Header::decode`] has accepted before.
    pub fn decode_checked(bytes: &[u8]) -> Option<Header> {
        let kind = match u32::from_le_bytes(array(bytes, 4)?) {
            1 => Kind::Record,
            2 => Kind::Deviation,
            3 => Kind::Tombstone,
            _ => return None,
        };
        Some(Header {
            kind,
            head: u32::from_le_bytes(array(bytes, 8)?),
            body: u32::from_le_bytes(array(bytes, 12)?),
            key: Digest(array(bytes, 16)?),
            head_sum: array(bytes, 48)?,
            body_sum: array(bytes, 64)?,
        })
    }

    /// Bytes of the whole entry.
    pub fn len(&self) -> usize {
        HEADER + self.head as usize + self.body as usize
    }

    /// The head of the entry `bytes`, if it is undamaged.
    pub fn hit(&self, bytes: &[u8]) -> Option<Hit> {
        let head = bytes.get(HEADER..HEADER + self.head as usize)?;
        if sum(head) != self.head_sum {
            return None;
        }
        decode_hit(head)
    }

    /// The body of the entry `bytes`, if the whole entry is undamaged.
    pub fn record(&self, bytes: &[u8]) -> Option<Record> {
        self.hit(bytes)?;
        let body = bytes.get(HEADER + self.head as usize..self.len())?;
        if sum(body) != self.body_sum {
            return None;
        }
        serde_json::from_slice::<Record>(body).ok().filter(|record| record.key == self.key)
    }
}

/// The entry that says `kind` with `record`.
///
/// # Errors
/// A record that does not fit.
pub fn encode(kind: Kind, record: &Record) -> Result<Vec<u8>> {
    let head = encode_hit(&record.hit());
    let body = serde_json::to_vec(record)?;
    assemble(kind, &record.key, &head, &body)
}

/// The entry that forgets `key`.
///
/// # Errors
/// None in practice.
pub fn tombstone(key: &Digest) -> Result<Vec<u8>> {
    assemble(Kind::Tombstone, key, &[], &[])
}

fn assemble(kind: Kind, key: &Digest, head: &[u8], body: &[u8]) -> Result<Vec<u8>> {
    let length = |part: &[u8]| {
        u32::try_from(part.len()).map_err(|_| Error::machine(format!("the record of {} is too long", key.short())))
    };
    let mut bytes = Vec::with_capacity(HEADER + head.len() + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    bytes.extend_from_slice(&length(head)?.to_le_bytes());
    bytes.extend_from_slice(&length(body)?.to_le_bytes());
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&sum::<16>(head));
    bytes.extend_from_slice(&sum::<16>(body));
    let header_sum = sum::<8>(&bytes);
    bytes.extend_from_slice(&header_sum);
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(body);
    Ok(bytes)
}

fn encode_hit(hit: &Hit) -> Vec<u8> {
    fn number(bytes: &mut Vec<u8>, number: u64) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    fn text(bytes: &mut Vec<u8>, text: &str) {
        number(bytes, text.len() as u64);
        bytes.extend_from_slice(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(256);
    number(&mut bytes, hit.seconds.to_bits());
    number(&mut bytes, hit.created);
    number(&mut bytes, u64::from(hit.peak_memory_mib.is_some()));
    number(&mut bytes, hit.peak_memory_mib.unwrap_or(0));
    number(&mut bytes, u64::from(hit.headline.is_some()));
    text(&mut bytes, hit.headline.as_deref().unwrap_or_default());
    number(&mut bytes, hit.outputs.len() as u64);
    for output in &hit.outputs {
        text(&mut bytes, &output.port);
        text(&mut bytes, output.kind.name());
        bytes.extend_from_slice(&output.digest.0);
        number(&mut bytes, output.files.len() as u64);
        for file in &output.files {
            text(&mut bytes, &file.name);
            bytes.extend_from_slice(&file.digest.0);
            number(&mut bytes, file.size);
        }
    }
    bytes
}

fn decode_hit(bytes: &[u8]) -> Option<Hit> {
    let mut reader = Reader(bytes);
    let seconds = f64::from_bits(reader.number()?);
    let created = reader.number()?;
    let (has_peak, peak) = (reader.number()? == 1, reader.number()?);
    let (has_headline, headline) = (reader.number()? == 1, reader.text()?);
    let n_outputs = reader.number()?;
    // Counts are read from the file: nothing is reserved on their word.
    let mut outputs = Vec::new();
    for _ in 0..n_outputs {
        let port = reader.text()?.to_string();
        let kind = reader.text()?;
        let kind = ArtifactKind::ALL.into_iter().find(|k| k.name() == kind)?;
        let digest = reader.digest()?;
        let n_files = reader.number()?;
        let mut files = Vec::new();
        for _ in 0..n_files {
            files.push(FileEntry {
                name: reader.text()?.to_string(),
                digest: reader.digest()?,
                size: reader.number()?,
            });
        }
        outputs.push(OutputRecord { port, kind, digest, files });
    }
    reader.0.is_empty().then(|| Hit {
        outputs,
        seconds,
        peak_memory_mib: has_peak.then_some(peak),
        headline: has_headline.then(|| headline.to_string()),
        created,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn digest(&mut self) -> Option<Digest> {
        Some(Digest(self.take(32)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::records::tests::record;

    #[test]
    fn an_entry_comes_back() {
        for n in 0..3 {
            let bytes = encode(Kind::Record, &record(n, 0)).unwrap();
            let header = Header::decode(&bytes).unwrap();
            assert_eq!((header.kind, header.key, header.len()), (Kind::Record, record(n, 0).key, bytes.len()));
            assert_eq!(header.hit(&bytes), Some(record(n, 0).hit()));
            assert_eq!(header.record(&bytes), Some(record(n, 0)));
        }
    }

    #[test]
    fn no_bit_can_flip_unseen() {
        let good = encode(Kind::Record, &record(2, 0)).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header = Header::decode(&bytes);
            assert!(header.is_none_or(|header| header.record(&bytes).is_none()), "bit {bit}");
        }
        for length in 0..good.len() {
            let header = Header::decode(&good[..length]);
            assert!(header.is_none_or(|header| header.record(&good[..length]).is_none()), "length {length}");
        }
    }

    #[test]
    fn a_head_that_lies_is_refused() {
        let head = encode_hit(&record(2, 0).hit());
        assert!(decode_hit(&head).is_some());
        for length in 0..head.len() {
            assert_eq!(decode_hit(&head[..length]), None);
        }
        // Every 8-byte field in turn becomes huge; counts and lengths must not be believed.
        for at in (0..head.len() - 8).step_by(8) {
            let mut bytes = head.clone();
            bytes[at..at + 8].copy_from_slice(&[0xFF; 8]);
            let _ = decode_hit(&bytes);
        }
    }
}
