//! Parameter types whose wrong values cannot be held.
//!
//! Each type states its range once, in its JSON schema; the configuration checker reads the schema and points at the
//! offending value in the file, `runner describe` prints it, and `Deserialize` refuses the rest (a value that came
//! from somewhere else than a pipeline file).

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Cow;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $range:literal, $schema:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// The value, if it lies in the type's range.
            pub const fn new(value: $inner) -> Option<$name> {
                if number_in_range!($schema, value) { Some($name(value)) } else { None }
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let value = <$inner>::deserialize(deserializer)?;
                $name::new(value)
                    .ok_or_else(|| serde::de::Error::custom(format!(concat!("must ", $range, ", got {}"), value)))
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                number_schema!($schema)
            }
        }
    };
}

macro_rules! number_in_range {
    ((fraction), $v:expr) => {
        $v >= 0.0 && $v <= 1.0
    };
    ((positive), $v:expr) => {
        $v > 0.0 && $v < f64::INFINITY
    };
    ((non_negative), $v:expr) => {
        $v >= 0.0 && $v < f64::INFINITY
    };
    ((count), $v:expr) => {
        $v >= 1 && $v <= 1_000_000_000
    };
}

macro_rules! number_schema {
    ((fraction)) => { json_schema!({ "type": "number", "minimum": 0, "maximum": 1 }) };
    ((positive)) => { json_schema!({ "type": "number", "exclusiveMinimum": 0 }) };
    ((non_negative)) => { json_schema!({ "type": "number", "minimum": 0 }) };
    ((count)) => { json_schema!({ "type": "integer", "minimum": 1, "maximum": 1_000_000_000 }) };
}

number!(
    /// A share, between 0 and 1 inclusive.
    Fraction(f64), "lie between 0 and 1", (fraction)
);
number!(
    /// A number above zero.
    Positive(f64), "be above 0", (positive)
);
number!(
    /// A number not below zero.
    NonNegative(f64), "not be negative", (non_negative)
);
number!(
    /// A whole number, at least 1.
    Count(usize), "be at least 1", (count)
);

/// A value known to be good: `const { valid(Fraction::new(0.9)) }` does not compile with a value out of range.
///
/// # Panics
/// If there is none: at compile time, in a constant.
pub const fn valid<T: Copy>(value: Option<T>) -> T {
    match value {
        Some(value) => value,
        None => panic!("a value lies outside its range"),
    }
}

impl Fraction {
    /// Nothing.
    pub const ZERO: Fraction = Fraction(0.0);

    /// The whole.
    pub const ONE: Fraction = Fraction(1.0);

    /// This share of `n` things, rounded down. A product that only the binary form of the share leaves below a whole
    /// number counts as that number: 0.29 of 100 is 29.
    pub fn of(self, n: usize) -> usize {
        ((self.0 * n as f64 + 1e-6).floor() as usize).min(n)
    }
}

impl NonNegative {
    /// Nothing.
    pub const ZERO: NonNegative = NonNegative(0.0);
}

impl Count {
    /// One.
    pub const ONE: Count = Count(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down() {
        let check = |share: f64, n: usize, expected: usize| {
            assert_eq!(Fraction::new(share).map(|f| f.of(n)), Some(expected), "{share} of {n}");
        };
        check(0.1, 50_000, 5_000);
        check(0.1, 45_000, 4_500);
        check(0.1, 1_500, 150);
        check(0.1, 1_509, 150);
        check(0.29, 100, 29);
        check(0.0, 10, 0);
        check(1.0, 10, 10);
    }

    #[test]
    fn ranges_hold() {
        let read = |text: &str| serde_json::from_str::<Fraction>(text).map_err(|e| e.to_string());
        assert_eq!(read("0.25").map(Fraction::get), Ok(0.25));
        assert!(read("1.5").is_err_and(|e| e.starts_with("must lie between 0 and 1, got 1.5")));
        assert!(serde_json::from_str::<Count>("0").is_err());
        assert!(serde_json::from_str::<Positive>("0.0").is_err());
        assert!(serde_json::from_str::<NonNegative>("-0.5").is_err());
    }
}
