//! Protocol buffers, the encoding alone: fields one behind the other in a growing buffer.
//!
//! <https://protobuf.dev/programming-guides/encoding/>. What a message means, and which number a field has, is for
//! those who write it.

/// A message under construction. Fields are written as given, zeros too, which readers take as set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    bytes: Vec<u8>,
}

/// How a field's value is stored.
#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Delimited = 2,
    Fixed32 = 5,
}

impl Message {
    /// An empty message.
    pub fn new() -> Message {
        Message::default()
    }

    /// The encoded message.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// An integer, boolean or enumerated field. Negative numbers take ten bytes, as the format wants.
    pub fn int(mut self, field: u32, value: i64) -> Message {
        self.tag(field, Wire::Varint);
        self.varint(value as u64);
        self
    }

    /// A `double` field.
    pub fn double(mut self, field: u32, value: f64) -> Message {
        self.tag(field, Wire::Fixed64);
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A `float` field.
    pub fn float(mut self, field: u32, value: f32) -> Message {
        self.tag(field, Wire::Fixed32);
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A `bytes` field.
    pub fn blob(mut self, field: u32, value: &[u8]) -> Message {
        self.tag(field, Wire::Delimited);
        self.varint(value.len() as u64);
        self.bytes.extend_from_slice(value);
        self
    }

    /// A `string` field.
    pub fn text(self, field: u32, value: &str) -> Message {
        self.blob(field, value.as_bytes())
    }

    /// A field that is a message.
    pub fn message(self, field: u32, value: &Message) -> Message {
        self.blob(field, &value.bytes)
    }

    /// The fields of `other` behind these.
    pub fn merge(mut self, other: &Message) -> Message {
        self.bytes.extend_from_slice(&other.bytes);
        self
    }

    fn tag(&mut self, field: u32, wire: Wire) {
        self.varint(u64::from(field) << 3 | wire as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the format's own documentation, and `protoc --encode` for the rest.
    #[test]
    fn fields_are_encoded_as_documented() {
        let rows: [(Message, &[u8]); 7] = [
            (Message::new().int(1, 150), &[0x08, 0x96, 0x01]),
            (Message::new().text(2, "testing"), b"\x12\x07testing"),
            (Message::new().message(3, &Message::new().int(1, 150)), &[0x1a, 0x03, 0x08, 0x96, 0x01]),
            (Message::new().int(1, -2), &[0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (Message::new().double(1, 1.0), &[0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]),
            (Message::new().float(2, 1.0), &[0x15, 0, 0, 0x80, 0x3f]),
            (Message::new().int(200, 0), &[0xc0, 0x0c, 0x00]),
        ];
        for (message, bytes) in rows {
            assert_eq!(message.into_bytes(), bytes);
        }
    }
}
