//! The bytes of a checkpoint: numbers and arrays one after the other, little-endian, exact to the last bit.
//!
//! JSON would round floats on the way back, and a resumed training must end with the bytes of an uninterrupted one.

/// Writes a checkpoint.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// What was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// A whole number.
    pub fn count(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// A number.
    pub fn number(&mut self, value: f64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Bytes, with their length.
    pub fn bytes(&mut self, values: &[u8]) {
        self.count(values.len() as u64);
        self.bytes.extend_from_slice(values);
    }

    /// f64 values, with their number.
    pub fn numbers(&mut self, values: &[f64]) {
        self.count(values.len() as u64);
        values.iter().for_each(|value| self.number(*value));
    }

    /// f32 values, with their number.
    pub fn floats(&mut self, values: &[f32]) {
        self.count(values.len() as u64);
        self.bytes.reserve(values.len() * 4);
        values.iter().for_each(|value| self.bytes.extend_from_slice(&value.to_le_bytes()));
    }
}

/// Reads a checkpoint in the order in which it was written; `None` where it ends too early.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over all of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    /// As many elements of `width` bytes as were announced.
    fn take_array(&mut self, width: usize) -> Option<&'a [u8]> {
        let n = usize::try_from(self.count()?).ok()?;
        self.take(n.checked_mul(width)?)
    }

    /// A whole number.
    pub fn count(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A number.
    pub fn number(&mut self) -> Option<f64> {
        self.count().map(f64::from_bits)
    }

    /// Bytes.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        self.take_array(1)
    }

    /// f64 values.
    pub fn numbers(&mut self) -> Option<Vec<f64>> {
        Some(self.take_array(8)?.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
    }

    /// f32 values.
    pub fn floats(&mut self) -> Option<Vec<f32>> {
        Some(self.take_array(4)?.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.count(7);
        writer.number(0.1 + 0.2);
        writer.bytes(b"abc");
        writer.numbers(&[f64::INFINITY, -0.0]);
        writer.floats(&[1.5, f32::MIN_POSITIVE]);
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.count(), reader.number(), reader.bytes()), (Some(7), Some(0.1 + 0.2), Some(&b"abc"[..])));
        assert_eq!(reader.numbers(), Some(vec![f64::INFINITY, -0.0]));
        assert_eq!(reader.floats(), Some(vec![1.5, f32::MIN_POSITIVE]));
        assert!(reader.is_empty());
        assert_eq!(reader.count(), None);
    }

    #[test]
    fn a_short_or_lying_array_is_none() {
        let mut writer = Writer::default();
        writer.count(u64::MAX);
        let bytes = writer.finish();
        assert_eq!(Reader::new(&bytes).floats(), None);
        assert_eq!(Reader::new(&bytes).bytes(), None);
        assert_eq!(Reader::new(&bytes[..5]).count(), None);
    }
}
