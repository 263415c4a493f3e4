//! The canonical form of parameters: the bytes of them that enter a key, from which they can be read again.
//!
//! Every part is tagged or counted and every text carries its length, so different values never share a form. The keys
//! of tables are sorted, floats enter by their bits, and 1 differs from 1.0: completed parameters carry the types of
//! their fields. Written straight from typed parameters, without a JSON tree between: planning a thousand stages is
//! mostly this.

use serde::ser::{self, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::ops::Range;

/// A value in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canonical(Vec<u8>);

impl Canonical {
    /// The form of `value`: that of the JSON value which it serialises to.
    ///
    /// # Errors
    /// What JSON cannot hold either: integers beyond 64 bits, tables whose keys are no text.
    pub fn of<T: Serialize + ?Sized>(value: &T) -> Result<Canonical, Unencodable> {
        let mut bytes = Vec::with_capacity(256);
        write(&mut bytes, value)?;
        Ok(Canonical(bytes))
    }

    /// The form of a JSON value, which always has one.
    pub fn of_json(value: &Value) -> Canonical {
        Canonical::of(value).unwrap_or_else(|error| unreachable!("JSON with {error}"))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as JSON, the keys of its tables sorted.
    pub fn value(&self) -> Value {
        // Only `of` makes these bytes, and the tests read back all that it can write.
        read(&mut self.0.as_slice()).unwrap_or_else(|| unreachable!("a canonical form that cannot be read"))
    }
}

/// Appends the form of `value`.
///
/// # Errors
/// As [`Canonical::of`]; some bytes may have been appended.
pub fn write<T: Serialize + ?Sized>(bytes: &mut Vec<u8>, value: &T) -> Result<(), Unencodable> {
    value.serialize(Form(bytes))
}

/// Appends a count.
pub fn number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend_from_slice(&number.to_le_bytes());
}

/// Appends a text with its length.
pub fn text(bytes: &mut Vec<u8>, text: &str) {
    number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// Why a value has no canonical form.
#[derive(Debug)]
pub struct Unencodable(String);

impl fmt::Display for Unencodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unencodable {}

impl ser::Error for Unencodable {
    fn custom<T: fmt::Display>(message: T) -> Unencodable {
        Unencodable(message.to_string())
    }
}

/// The form under construction.
struct Form<'a>(&'a mut Vec<u8>);

impl<'a> Form<'a> {
    /// Begins the table `{ variant: ... }` and leaves the value to be written.
    fn variant(self, variant: &str) -> Form<'a> {
        self.0.push(b'o');
        number(self.0, 1);
        text(self.0, variant);
        self
    }

    fn list(self) -> List<'a> {
        self.0.push(b'a');
        number(self.0, 0);
        List { start: self.0.len(), length: 0, bytes: self.0 }
    }

    fn table(self, n_fields: usize) -> Table<'a> {
        self.0.push(b'o');
        number(self.0, 0);
        Table { start: self.0.len(), fields: Vec::with_capacity(n_fields), bytes: self.0 }
    }
}

impl<'a> Serializer for Form<'a> {
    type Ok = ();
    type Error = Unencodable;
    type SerializeSeq = List<'a>;
    type SerializeTuple = List<'a>;
    type SerializeTupleStruct = List<'a>;
    type SerializeTupleVariant = List<'a>;
    type SerializeMap = Table<'a>;
    type SerializeStruct = Table<'a>;
    type SerializeStructVariant = Table<'a>;

    fn serialize_bool(self, value: bool) -> Result<(), Unencodable> {
        self.0.push(if value { b't' } else { b'f' });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Unencodable> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Unencodable> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Unencodable> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), Unencodable> {
        self.0.push(b'i');
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Unencodable> {
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(signed), _) => self.serialize_i64(signed),
            (_, Ok(unsigned)) => self.serialize_u64(unsigned),
            _ => Err(ser::Error::custom("a number beyond 64 bits")),
        }
    }

    fn serialize_u8(self, value: u8) -> Result<(), Unencodable> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Unencodable> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Unencodable> {
        self.serialize_u64(value.into())
    }

    fn serialize_u64(self, value: u64) -> Result<(), Unencodable> {
        match i64::try_from(value) {
            Ok(value) => self.serialize_i64(value),
            Err(_) => {
                self.0.push(b'u');
                number(self.0, value);
                Ok(())
            }
        }
    }

    fn serialize_u128(self, value: u128) -> Result<(), Unencodable> {
        match u64::try_from(value) {
            Ok(value) => self.serialize_u64(value),
            Err(_) => Err(ser::Error::custom("a number beyond 64 bits")),
        }
    }

    fn serialize_f32(self, value: f32) -> Result<(), Unencodable> {
        self.serialize_f64(value.into())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Unencodable> {
        // As in JSON, which has no other word for them.
        if !value.is_finite() {
            return self.serialize_unit();
        }
        self.0.push(b'd');
        number(self.0, value.to_bits());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Unencodable> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<(), Unencodable> {
        self.0.push(b's');
        text(self.0, value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unencodable> {
        self.collect_seq(value)
    }

    fn serialize_none(self) -> Result<(), Unencodable> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unencodable> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Unencodable> {
        self.0.push(b'n');
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unencodable> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<(), Unencodable> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Unencodable> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Unencodable> {
        value.serialize(self.variant(variant))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List<'a>, Unencodable> {
        Ok(self.list())
    }

    fn serialize_tuple(self, _: usize) -> Result<List<'a>, Unencodable> {
        Ok(self.list())
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List<'a>, Unencodable> {
        Ok(self.list())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<List<'a>, Unencodable> {
        Ok(self.variant(variant).list())
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Table<'a>, Unencodable> {
        Ok(self.table(length.unwrap_or(0)))
    }

    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Table<'a>, Unencodable> {
        Ok(self.table(length))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Table<'a>, Unencodable> {
        Ok(self.variant(variant).table(length))
    }
}

/// Puts the count of what begins at `start` before it.
fn count(bytes: &mut [u8], start: usize, n: usize) {
    bytes[start - 8..start].copy_from_slice(&(n as u64).to_le_bytes());
}

/// A list under construction.
struct List<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    length: usize,
}

impl SerializeSeq for List<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        self.length += 1;
        write(self.bytes, value)
    }

    fn end(self) -> Result<(), Unencodable> {
        count(self.bytes, self.start, self.length);
        Ok(())
    }
}

impl ser::SerializeTuple for List<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Unencodable> {
        SerializeSeq::end(self)
    }
}

impl ser::SerializeTupleStruct for List<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Unencodable> {
        SerializeSeq::end(self)
    }
}

impl ser::SerializeTupleVariant for List<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Unencodable> {
        SerializeSeq::end(self)
    }
}

/// A table under construction: its fields as they come, sorted at the end.
struct Table<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    /// Where each field's name lies, and where the field ends.
    fields: Vec<(Range<usize>, usize)>,
}

impl Table<'_> {
    fn name(&mut self, name: &str) {
        text(self.bytes, name);
        let end = self.bytes.len();
        self.fields.push((end - name.len()..end, end));
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        write(self.bytes, value)?;
        if let Some((_, end)) = self.fields.last_mut() {
            *end = self.bytes.len();
        }
        Ok(())
    }

    fn finish(mut self) {
        count(self.bytes, self.start, self.fields.len());
        let bytes: &[u8] = self.bytes;
        let name = |field: &(Range<usize>, usize)| &bytes[field.0.clone()];
        if self.fields.is_sorted_by(|a, b| name(a) <= name(b)) {
            return;
        }
        self.fields.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let unsorted = self.bytes[self.start..].to_vec();
        self.bytes.truncate(self.start);
        for (name, end) in self.fields {
            // Eight bytes before a name stands its length.
            self.bytes.extend_from_slice(&unsorted[name.start - 8 - self.start..end - self.start]);
        }
    }
}

impl SerializeMap for Table<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unencodable> {
        match serde_json::to_value(key) {
            Ok(Value::String(key)) => self.name(&key),
            Ok(Value::Number(key)) => self.name(&key.to_string()),
            Ok(Value::Bool(key)) => self.name(&key.to_string()),
            _ => return Err(ser::Error::custom("a key that is no text")),
        }
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        self.value(value)
    }

    fn end(self) -> Result<(), Unencodable> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStruct for Table<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Unencodable> {
        self.name(name);
        self.value(value)
    }

    fn end(self) -> Result<(), Unencodable> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStructVariant for Table<'_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Unencodable> {
        self.name(name);
        self.value(value)
    }

    fn end(self) -> Result<(), Unencodable> {
        self.finish();
        Ok(())
    }
}

/// The value at the beginning of `bytes`, which are moved behind it.
fn read(bytes: &mut &[u8]) -> Option<Value> {
    Some(match take(bytes, 1)?[0] {
        b'n' => Value::Null,
        b'f' => Value::Bool(false),
        b't' => Value::Bool(true),
        b'i' => Value::Number(i64::from_le_bytes(take(bytes, 8)?.try_into().ok()?).into()),
        b'u' => Value::Number(read_number(bytes)?.into()),
        b'd' => Value::Number(Number::from_f64(f64::from_bits(read_number(bytes)?))?),
        b's' => Value::String(read_text(bytes)?.to_string()),
        b'a' => Value::Array((0..read_number(bytes)?).map(|_| read(bytes)).collect::<Option<_>>()?),
        b'o' => {
            let n_fields = read_number(bytes)?;
            let mut fields = Map::new();
            for _ in 0..n_fields {
                let name = read_text(bytes)?.to_string();
                fields.insert(name, read(bytes)?);
            }
            Value::Object(fields)
        }
        _ => return None,
    })
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(taken)
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(bytes, 8)?.try_into().ok()?))
}

fn read_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(read_number(bytes)?).ok()?;
    std::str::from_utf8(take(bytes, length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[derive(Serialize)]
    enum Choice {
        Plain,
        One(f32),
        Two(u8, i16),
        Named { z: Option<char>, a: Unit },
    }

    #[derive(Serialize)]
    struct Unit;

    #[derive(Serialize)]
    struct Wrapped(u64);

    /// The form is that of the value's JSON, whose keys come back sorted.
    fn check_form(value: impl Serialize) {
        let mut json = serde_json::to_value(&value).unwrap();
        let form = Canonical::of(&value).unwrap();
        assert_eq!(form, Canonical::of(&json).unwrap());
        json.sort_all_objects();
        assert_eq!(form.value().to_string(), json.to_string());
    }

    #[test]
    fn the_form_is_that_of_the_json() {
        check_form(());
        check_form((true, false, None::<u8>, Some("text"), 'c', ""));
        check_form((i64::MIN, i64::MAX, u64::MAX, -1_i8, 7_u16, Wrapped(3)));
        check_form((0.1_f32, 0.1_f64, -0.0, 1.0, f64::MIN_POSITIVE, f64::NAN, f32::INFINITY));
        check_form([Choice::Plain, Choice::One(0.3), Choice::Two(1, -1), Choice::Named { z: Some('z'), a: Unit }]);
        check_form(BTreeMap::from([("b", vec![1, 2]), ("a", vec![])]));
        check_form(BTreeMap::from([(10, "ten"), (9, "nine")]));
        check_form(json!({ "b": { "z": 1, "y": [{ "d": 1, "c": 2 }] }, "a": {}, "aa": null, "": 0.5 }));
    }

    #[test]
    fn the_bytes_are_tagged_counted_and_sorted() {
        let form = Canonical::of(&json!({ "b": [true], "a": "x" })).unwrap();
        let expected =
            [b"o\x02".as_slice(), &[0; 7], b"\x01", &[0; 7], b"as\x01", &[0; 7], b"x\x01", &[0; 7], b"ba\x01"];
        let expected = [expected.concat(), [[0_u8; 7].as_slice(), b"t"].concat()].concat();
        assert_eq!(form.bytes(), expected);
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        assert!(Canonical::of(&u128::MAX).is_err());
        assert!(Canonical::of(&i128::MIN).is_err());
        assert!(Canonical::of(&BTreeMap::from([(vec![1], 2)])).is_err());
    }
}
