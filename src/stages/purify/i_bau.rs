//! I-BAU: weights that withstand the worst perturbation of all images, by its implicit gradient.
//!
//! Zeng et al., "Adversarial Unlearning of Backdoors via Implicit Hypergradient" (ICLR 2022, arXiv:2110.03735, algorithm
//! 1). Every round looks for one perturbation of all images that does most harm, by a pass over the clean split, and then
//! takes a step a batch along the gradient of the loss under it, the perturbation's answer to the weights included
//! ([`bilevel`]). Defaults are the code's (and BackdoorBench's `defense/i-bau.py`): 5 rounds, K = 5, Adam at 1e-4, in
//! evaluation mode.
//!
//! Differs from the code: the inner problem of a batch's implicit gradient is on that batch, not always on the first;
//! Adam without the `amsgrad` variant.

use super::repair::{Inputs, Repair};
use crate::artifact::table::Column;
use crate::artifact::{Model, Table};
use crate::error::{Error, Result};
use crate::nn::bilevel::{self, FixedPoint, Inner, Outer};
use crate::nn::optim::{self, Optimiser};
use crate::nn::{Mode, augment, predict};
use crate::param::{Count, Fraction, NonNegative, Positive, valid};
use crate::stage::{Context, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Unlearns the worst universal perturbation by implicit gradients.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Rounds: a perturbation, and a pass over the clean split against it.
    pub rounds: Count,
    /// Images a step; the last step of a pass takes what is left.
    pub batch_size: Count,
    /// Learning rate of the perturbation.
    pub inner_rate: Positive,
    /// Weight of the perturbation's squared length.
    pub penalty: NonNegative,
    /// Step of the fixed-point map that the implicit gradient is made of.
    pub fixed_point_step: Positive,
    /// Iterations of the fixed point.
    pub iterations: Count,
    /// Share of a batch that carries the perturbation; at least one image.
    pub perturbed: Fraction,
    /// Adam's step on the weights.
    pub learning_rate: Positive,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            rounds: const { valid(Count::new(5)) },
            batch_size: const { valid(Count::new(100)) },
            inner_rate: const { valid(Positive::new(10.0)) },
            penalty: const { valid(NonNegative::new(0.001)) },
            fixed_point_step: const { valid(Positive::new(0.1)) },
            iterations: const { valid(Count::new(5)) },
            perturbed: const { valid(Fraction::new(0.01)) },
            learning_rate: const { valid(Positive::new(1e-4)) },
        }
    }
}

crate::ports! {
    /// What it makes.
    pub struct Outputs => {
        /// The purified model.
        model: Model,
        /// One row a round.
        rounds: Table,
    }
}

/// The stage.
pub struct IBau;

impl Stage for IBau {
    const NAME: &'static str = "purify/i_bau";
    const VERSION: u32 = 2;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn resources(params: &Params) -> Resources {
        recipe::resources(None, params.batch_size.get())
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean }: Inputs) -> Result<Outputs> {
        let mut repair = Repair::begin(cx, model, &clean, Fraction::ZERO)?;
        let mut table = Table::new(vec![
            Column::new("round", "from 1"),
            Column::new("perturbation", "length of the universal perturbation of normalised images").digits(3),
            Column::new("loss", "mean cross-entropy with the perturbation on a share of the images")
                .unit("nats")
                .digits(4),
        ]);
        let Repair { images: split, rows, network, normalise, .. } = &mut repair;
        network.want_input_grad(true);
        let (n_values, n_classes) = (split.image_bytes(), network.config().n_classes);
        let adam = optim::Config { kind: optim::Kind::Adamw, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let mut adam = Optimiser::new(adam, network.n_parameters());
        let mut gradient = vec![0.0; network.n_parameters()];
        let how = FixedPoint { step: params.fixed_point_step.get(), n_iterations: params.iterations.get() };
        for round in 0..params.rounds.get() {
            let mut order = rows.clone();
            cx.rng("order").at(round as u64).shuffle(&mut order);
            let batches: Vec<(Vec<f32>, Vec<i64>)> = order
                .chunks(params.batch_size.get())
                .map(|batch| {
                    let mut images = vec![0.0; batch.len() * n_values];
                    augment::plain(split, batch, normalise, &mut images)?;
                    Ok((images, batch.iter().map(|&row| split.label[row]).collect()))
                })
                .collect::<Result<_>>()?;
            let plain = batches.iter().map(|(images, _)| (&images[..], None));
            let rates = (params.inner_rate.get(), params.penalty.get());
            let d = bilevel::universal(network, plain, n_values, rates)?;
            let mut total = 0.0;
            for (i, (images, labels)) in batches.iter().enumerate() {
                cx.check_stop()?;
                let n = labels.len();
                let mut draw = cx.rng("perturbed").at((round * batches.len() + i) as u64);
                let mut chosen = vec![false; n];
                let all: Vec<usize> = (0..n).collect();
                draw.pick(&all, params.perturbed.of(n).max(1)).into_iter().for_each(|k| chosen[k] = true);
                let said = predict::classes(network.forward(images, n, Mode::Eval)?, n_classes);
                let inner = Inner { images, labels: &said, penalty: params.penalty.get() };
                let problems = (&inner, &Outer { labels, chosen: &chosen });
                let loss = bilevel::hyper_gradient(network, problems, &d, how, &mut gradient)?;
                if !loss.is_finite() || gradient.iter().any(|g| !g.is_finite()) {
                    let what = if loss.is_finite() { "hyper-gradient" } else { "loss" };
                    return Err(Error::stage(format!(
                        "the {what} is not finite in round {}, step {}",
                        round + 1,
                        i + 1
                    ))
                    .hint("lower `learning_rate` or `inner_rate`"));
                }
                adam.step(network.params_mut(), &gradient, params.learning_rate.get());
                total += loss * n as f64;
            }
            let length = d.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
            let loss = total / rows.len() as f64;
            table.push(vec![(round + 1).into(), length.into(), loss.into()]);
            let told = format!("perturbation {length:.2}, loss {loss:.3}");
            cx.progress(round as u64 + 1, params.rounds.get() as u64, "rounds", told);
        }
        network.want_input_grad(false);
        cx.headline(format!("{} rounds", params.rounds.get()));
        let summary = format!("{} rounds, Adam at {}", params.rounds.get(), params.learning_rate.get());
        Ok(Outputs { model: repair.end(IBau::NAME, &summary, Vec::new()), rounds: table })
    }
}
