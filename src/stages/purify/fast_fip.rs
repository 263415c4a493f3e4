//! Fast FIP: [FIP](super::fip) on the singular values of every layer.
//!
//! Karim et al., "Fisher Information guided Purification against Backdoor Attacks". Weights are `U diag(s) V'`, and only
//! s is trained ([`Spectral`]): some thousand values instead of millions. Trace and consolidation are those of the Fisher
//! information of s. Biases and normalisation keep their parameters; running statistics follow the clean split.
//!
//! The released code has the layers but an empty network file, so its Fast FIP cannot be run.

use super::fip::{self, Params};
use super::repair::{Inputs, Outputs};
use crate::error::Result;
use crate::nn::spectral::Spectral;
use crate::stage::{Context, Problem, Resources, Stage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Trains the singular values of every layer with the Fisher information's trace and elastic consolidation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct FastParams(Params);

/// The stage.
pub struct FastFip;

impl Stage for FastFip {
    const NAME: &'static str = "purify/fast_fip";
    const VERSION: u32 = 2;
    type Params = FastParams;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &FastParams) -> bool {
        true
    }

    fn check(FastParams(params): &FastParams) -> Vec<Problem> {
        let mut problems = params.recipe().problems();
        if params.legacy {
            problems.push(Problem {
                parameter: "legacy",
                message: "the released code has no singular values to train".into(),
                hint: Some("`purify/fip` has `legacy`".into()),
            });
        }
        problems
    }

    fn resources(FastParams(params): &FastParams) -> Resources {
        fip::resources(params)
    }

    fn run(cx: &Context, FastParams(params): FastParams, inputs: Inputs) -> Result<Outputs> {
        fip::purify(cx, &params, inputs, FastFip::NAME, |network| Spectral::new(network.graph(), network.params()))
    }
}
