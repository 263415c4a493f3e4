//! The parameters that every dirty-label attack has, written once.
//!
//! A macro, not a struct within a struct: `serde(flatten)` gives up unknown-key checks and the places of errors in the
//! file, and a nested table would have users write `poisoning = { rate = 0.1 }`. What comes out is an ordinary flat
//! struct: `rate`, `of`, `pool`, `selection`, `labels` and `target` first, then the attack's own parameters with their
//! defaults; and `Params::poisoning`, which hands the six to [`super::selection`].

/// Declares `Params` of an attack: `rate = DEFAULT;`, or `rate = DEFAULT, of = GROUP;` where it is no share of all
/// images, then `name: type = default,` for each parameter of its own.
macro_rules! params {
    (@of) => {
        $crate::stages::poison::selection::Group::All
    };
    (@of $of:expr) => {
        $of
    };
    (
        $(#[$meta:meta])*
        pub struct Params {
            rate = $rate:expr $(, of = $of:expr)?;
            $( $(#[$field_meta:meta])* $field:ident : $type:ty = $default:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct Params {
            /// Share of the training images in `of` to poison; the number is rounded down.
            pub rate: $crate::param::Fraction,
            /// What `rate` is a share of.
            pub of: $crate::stages::poison::selection::Group,
            /// Which training images may be chosen; those of `of` if not given.
            pub pool: Option<$crate::stages::poison::selection::Group>,
            /// Which of them are chosen.
            pub selection: $crate::stages::poison::selection::Selection,
            /// Which label a triggered image gets.
            pub labels: $crate::stages::poison::selection::Labels,
            /// The target class, by number from 0; not read with `labels = "all-to-all"`.
            pub target: usize,
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl Default for Params {
            fn default() -> Params {
                Params {
                    rate: $rate,
                    of: params!(@of $($of)?),
                    pool: None,
                    selection: $crate::stages::poison::selection::Selection::Random,
                    labels: $crate::stages::poison::selection::Labels::AllToOne,
                    target: 0,
                    $( $field: $default, )*
                }
            }
        }

        impl Params {
            /// The part that [`Poisoning`]($crate::stages::poison::selection::Poisoning) reads.
            pub fn poisoning(&self) -> $crate::stages::poison::selection::Poisoning {
                let &Params { rate, of, pool, selection, labels, target, .. } = self;
                $crate::stages::poison::selection::Poisoning { rate, of, pool, selection, labels, target }
            }
        }
    };
}

pub(super) use params;
