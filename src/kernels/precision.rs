//! In what precision a network computes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// In what precision a network computes. Parameters, their gradients' sums, batch statistics, the loss and the
/// optimiser are f32 or wider in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// f32 throughout, on any device.
    #[default]
    F32,
    /// Convolutions round their factors to TF32 (10 bits of mantissa) and add in f32; a GPU's, from Ampere on.
    Tf32,
    /// Activations, their gradients, and what convolutions read and write are bfloat16 (7 bits of mantissa), added in
    /// f32; a GPU's, from Ampere on.
    Bf16,
}

impl Precision {
    /// The name in parameters and messages.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }
}
