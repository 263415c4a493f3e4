//! An attacker who knows the defences: the backdoored model lies in a flat minimum already.
//!
//! Defences by sharpness ([FIP](crate::stages::purify::fip), [FT-SAM](crate::stages::purify::ft_sam)) rest on backdoored
//! minima being sharp. The two answers of Karim et al., "Fisher Information guided Purification against Backdoor Attacks",
//! are to train on the poisoned images with the regulariser of the defence,
//!
//! `L = CE + reg_f Tr F(theta)`
//!
//! with F the empirical Fisher information on poisoned training images and their assigned labels
//! ([`FisherTerm`]), or with sharpness-aware steps of radius `rho`. Their code has (`--reg_F` 0.5, 0.01 in its
//! description; the trace every fifth step; SGD at 0.1 with momentum 0.95 and no decay, 250 epochs) and (`--rho` 2, or 3;
//! label smoothing 0.1, SGD at 0.1, the rate times 0.2 after 30, 60 and 80 % of the epochs).
//!
//! Differs from the code: its regulariser is not the trace but a noise whose mean is zero (`purify/fip` has it as
//! `legacy`), here it is the trace. A trace needs running statistics that fit, which the first steps of a training do not
//! have; `clip` bounds what they can do.

use crate::error::{Error, Result};
use crate::kernels::Precision;
use crate::nn::coordinates::{Coordinates, Plain};
use crate::nn::optim::clip;
use crate::nn::sam::{Neighbourhood, Sam};
use crate::nn::{Network, Place};
use crate::param::{Count, NonNegative, Positive, valid};
use crate::stage::Problem;
use crate::stages::train::fit::Step;
use crate::stages::train::sharpness::{FisherTerm, sharp_backward};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What makes the trained model smooth, so that defences which look for sharp minima miss the backdoor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adaptive {
    /// Weight of the trace of the Fisher information in the loss; 0 leaves it out. The published attacks have 0.01 and
    /// 0.5.
    pub reg_f: NonNegative,
    /// The trace enters every so many steps; 5 in the published code.
    pub every: Count,
    /// Training images that the trace is estimated on, drawn anew each time.
    pub fisher_batch: Count,
    /// Radius of the neighbourhood whose worst point gives the gradient; 0 for plain steps. The published attacks have 2
    /// and 3. On the CPU only.
    pub rho: NonNegative,
    /// Which neighbourhood.
    pub neighbourhood: Neighbourhood,
    /// Largest Euclidean norm of a step's whole gradient; a longer one is shortened.
    pub clip: Option<Positive>,
}

impl Default for Adaptive {
    fn default() -> Adaptive {
        Adaptive {
            reg_f: NonNegative::ZERO,
            every: Count::ONE,
            fisher_batch: const { valid(Count::new(128)) },
            rho: NonNegative::ZERO,
            neighbourhood: Neighbourhood::Proportional,
            clip: None,
        }
    }
}

impl Adaptive {
    /// Whether it changes a training at all.
    pub fn is_on(&self) -> bool {
        self.reg_f.get() > 0.0 || self.rho.get() > 0.0 || self.clip.is_some()
    }

    /// What is wrong with it for a training in `precision`.
    pub fn problems(&self, precision: Precision) -> Option<Problem> {
        let message = if self.rho.get() > 0.0 {
            "needs the CPU, which computes in f32"
        } else if self.reg_f.get() > 0.0 {
            "takes differences of gradients, which only f32 resolves"
        } else {
            return None;
        };
        let parameter = if self.rho.get() > 0.0 { "rho" } else { "reg_f" };
        (precision != Precision::F32).then(|| Problem {
            parameter: "precision",
            message: format!("`adaptive.{parameter}` {message}"),
            hint: Some("leave `precision` out".into()),
        })
    }

    /// Refuses what `place` cannot do.
    ///
    /// # Errors
    /// Sharpness-aware steps on a GPU.
    pub fn check_place(&self, place: &Place) -> Result<()> {
        if self.rho.get() == 0.0 || !place.is_gpu() {
            return Ok(());
        }
        Err(Error::user(
            "`adaptive.rho` asks for a second pass over batch statistics that keeps the running ones, which a GPU cannot",
        )
        .hint("compute with `--device cpu`, or set `adaptive.reg_f` instead"))
    }

    /// What a reader of the model's scores must know, part by part.
    pub fn summary(&self) -> Vec<String> {
        let mut parts = Vec::new();
        if self.reg_f.get() > 0.0 {
            parts.push(format!("reg_f {} every {} steps", self.reg_f.get(), self.every.get()));
        }
        if self.rho.get() > 0.0 {
            parts.push(format!("rho {}", self.rho.get()));
        }
        parts.extend(self.clip.map(|longest| format!("gradients up to {}", longest.get())));
        parts
    }
}

/// The backward pass of a training that aims at a flat minimum.
pub struct Smooth<'a> {
    /// The trace in the loss.
    pub fisher: FisherTerm<'a>,
    sam: Option<Sam>,
    /// Share of the target that is spread over all classes.
    smoothing: f64,
    clip: Option<f64>,
    /// The network's parameters, where the trace wants coordinates.
    plain: Plain,
    /// The gradient, while the trace overwrites the network's.
    gradient: Vec<f32>,
}

impl<'a> Smooth<'a> {
    /// As `adaptive` has it, with the trace `fisher`.
    ///
    /// # Errors
    /// See [`Sam::new`].
    pub fn new(adaptive: &Adaptive, fisher: FisherTerm<'a>, smoothing: f64, network: &Network) -> Result<Smooth<'a>> {
        let sam = match adaptive.rho.get() {
            0.0 => None,
            rho => Some(Sam::new(adaptive.neighbourhood, rho)?),
        };
        let plain = Plain::new(network.params());
        Ok(Smooth { fisher, sam, smoothing, clip: adaptive.clip.map(Positive::get), plain, gradient: Vec::new() })
    }

    /// Leaves the gradient of `step` in the network: of the cross-entropy, at the worst point nearby if there is a
    /// neighbourhood, and of the trace, at the weights themselves.
    ///
    /// # Errors
    /// What the passes say.
    pub fn backward(&mut self, network: &mut Network, step: &Step) -> Result<()> {
        match &mut self.sam {
            Some(sam) => sharp_backward(sam, self.smoothing, network, step)?,
            None => network.backward(step.grad_logits)?,
        }
        if self.fisher.is_due(step.number) {
            self.gradient.clear();
            self.gradient.extend_from_slice(network.grads());
            self.plain.values_mut().copy_from_slice(network.params());
            self.fisher.add(network, &mut self.plain, step.number, &mut self.gradient)?;
            network.grads_mut().copy_from_slice(&self.gradient);
        }
        if let Some(longest) = self.clip {
            clip(network.grads_mut(), longest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Split;
    use crate::kernels::reference::{check, wide};
    use crate::nn::augment::{self, Normalise};
    use crate::nn::{Architecture, Config, Mode, golden, loss};
    use crate::rng::{Stream, Streams};

    const N: usize = 6;
    const SMOOTHING: f64 = 0.1;

    fn network() -> Network {
        let config =
            Config { architecture: Architecture::Resnet8, n_classes: 4, size: (8, 8), sigma_xt: 0.0, sigma_ty: 0.0 };
        let mut network = Network::new(&config).unwrap();
        network.init(&Streams::new(1, "test/adaptive").stream("init"));
        network
    }

    /// Six noise images for `network`.
    fn split(network: &Network) -> Split {
        let Config { size, n_classes, .. } = *network.config();
        let mut stream = Streams::new(1, "test/adaptive").stream("pixels");
        let pixels = (0..N * size.0 * size.1 * 3).map(|_| stream.below(256) as u8).collect();
        Split::clean(size, pixels, (0..N).map(|i| (i * i % n_classes) as i64).collect()).unwrap()
    }

    fn images(split: &Split) -> Vec<f32> {
        let mut images = vec![0.0; N * split.image_bytes()];
        augment::plain(split, &(0..N).collect::<Vec<_>>(), &Normalise::none(), &mut images).unwrap();
        images
    }

    /// The losses, and their mean's gradient on the logits.
    fn forward(
        network: &mut Network,
        images: &[f32],
        labels: &[i64],
        (mode, smoothing): (Mode, f64),
    ) -> (Vec<f32>, Vec<f32>) {
        let n_classes = network.config().n_classes;
        let logits = network.forward(images, labels.len(), mode).unwrap();
        let mut on_logits = vec![0.0; logits.len()];
        let losses = loss::cross_entropy(logits, labels, n_classes, smoothing, &mut on_logits).unwrap();
        (losses, on_logits)
    }

    fn draws() -> Stream {
        Streams::new(1, "test/adaptive").stream("fisher")
    }

    /// What the network's gradients are after the backward pass of step `number` on all images.
    fn gradient(adaptive: &Adaptive, network: &mut Network, split: &Split, number: usize) -> Vec<f32> {
        let images = images(split);
        let rows: Vec<usize> = (0..N).collect();
        let settings = (adaptive.reg_f, adaptive.every, adaptive.fisher_batch);
        let fisher = FisherTerm::new(settings, (split, &rows, &Normalise::none()), draws());
        let mut smooth = Smooth::new(adaptive, fisher, SMOOTHING, network).unwrap();
        let before = network.params().to_vec();
        let (losses, on_logits) = forward(network, &images, &split.label, (Mode::Train, SMOOTHING));
        let step = Step { number, images: &images, labels: &split.label, losses: &losses, grad_logits: &on_logits };
        smooth.backward(network, &step).unwrap();
        assert!(network.params() == before, "a backward pass moves no weight");
        network.grads().to_vec()
    }

    fn non_negative(value: f64) -> NonNegative {
        NonNegative::new(value).unwrap()
    }

    /// Against differences of the loss by its definition, a gradient for every image: cross-entropy on all six, and the
    /// squared length of the signed sum of three images' gradients, which is three times the trace on average over signs.
    #[test]
    fn the_gradient_of_the_regularised_loss_is_that_of_its_definition() {
        const NUMBER: usize = 3;
        const WEIGHT: f64 = 0.5;
        const BATCH: usize = 3;
        let fisher_batch = Count::new(BATCH).unwrap();
        let adaptive = Adaptive { reg_f: non_negative(WEIGHT), fisher_batch, ..Adaptive::default() };
        let mut network = golden::softmax_model();
        let split = split(&network);
        let images = images(&split);
        let found = gradient(&adaptive, &mut network, &split, NUMBER);

        let mut draw = draws().at(NUMBER as u64);
        let rows = draw.pick(&(0..N).collect::<Vec<_>>(), BATCH);
        let signs: Vec<f64> = rows.iter().map(|_| if draw.chance(0.5) { 1.0 } else { -1.0 }).collect();
        let start = network.params().to_vec();
        let bytes = split.image_bytes();
        let mut terms = |i: usize, by: f32| -> (f64, f64) {
            network.params_mut().copy_from_slice(&start);
            network.params_mut()[i] += by;
            let (losses, _) = forward(&mut network, &images, &split.label, (Mode::Eval, SMOOTHING));
            let mut mixture = vec![0.0f64; start.len()];
            for (&row, sign) in rows.iter().zip(&signs) {
                let (image, label) = (&images[row * bytes..(row + 1) * bytes], &split.label[row..=row]);
                let (_, on_logits) = forward(&mut network, image, label, (Mode::Eval, 0.0));
                network.backward(&on_logits).unwrap();
                mixture.iter_mut().zip(network.grads()).for_each(|(sum, &g)| *sum += sign * f64::from(g));
            }
            let trace = mixture.iter().map(|g| g * g).sum::<f64>() / BATCH as f64;
            (wide(&losses).iter().sum::<f64>() / N as f64, WEIGHT * trace)
        };
        const STEP: f32 = 1e-2;
        let differences: Vec<(f64, f64)> = (0..start.len())
            .map(|i| {
                let (above, below) = (terms(i, STEP), terms(i, -STEP));
                let slope = |above: f64, below: f64| (above - below) / f64::from(2.0 * STEP);
                (slope(above.0, below.0), slope(above.1, below.1))
            })
            .collect();
        let sums: Vec<f64> = differences.iter().map(|(loss, trace)| loss + trace).collect();
        check("gradient of the regularised loss", &found, &sums, 1e-2);
        let length = |values: Vec<f64>| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let share = length(differences.iter().map(|(_, trace)| *trace).collect()) / length(sums);
        assert!(share > 0.05, "the trace is hardly seen: {share}");
    }

    /// Two passes by hand: to `w + rho T^2 g / |T g|` with T = |w|, and the gradient there.
    #[test]
    fn a_sharpness_aware_step_takes_the_gradient_at_the_worst_point() {
        let mut network = network();
        let split = split(&network);
        let images = images(&split);
        let adaptive = Adaptive { rho: non_negative(2.0), ..Adaptive::default() };
        let found = gradient(&adaptive, &mut network, &split, 0);
        let statistics = network.buffers().to_vec();

        let mut by_hand = self::network();
        let pass = |network: &mut Network, mode: Mode| {
            let (_, on_logits) = forward(network, &images, &split.label, (mode, SMOOTHING));
            network.backward(&on_logits).unwrap();
            network.grads().to_vec()
        };
        let first = pass(&mut by_hand, Mode::Train);
        assert!(by_hand.buffers() == statistics, "the running statistics see the batch once");
        let params = by_hand.params().to_vec();
        let scaled = params.iter().zip(&first).map(|(&w, &g)| f64::from(w.abs()) * f64::from(g));
        let length = scaled.map(|tg| tg * tg).sum::<f64>().sqrt();
        let moved = params.iter().zip(&first).map(|(&w, &g)| {
            let (w, g) = (f64::from(w), f64::from(g));
            (w + 2.0 * w * w * g / length) as f32
        });
        by_hand.params_mut().copy_from_slice(&moved.collect::<Vec<_>>());
        let expected = pass(&mut by_hand, Mode::Batch);
        let norm = |values: &[f32]| wide(values).iter().map(|g| g * g).sum::<f64>().sqrt();
        let apart = |a: &[f32], b: &[f32]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>());
        assert!(apart(&found, &expected) < 1e-3 * norm(&expected), "{}", apart(&found, &expected));
        assert!(apart(&found, &first) > 0.05 * norm(&first), "the first gradient would do as well");
    }

    #[test]
    fn long_gradients_are_shortened_and_traces_skip_steps() {
        let split = split(&network());
        let of = |adaptive: Adaptive, number: usize| gradient(&adaptive, &mut network(), &split, number);
        let plain = of(Adaptive::default(), 1);
        let length = |gradient: &[f32]| wide(gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
        let short = of(Adaptive { clip: Positive::new(1e-3), ..Adaptive::default() }, 1);
        assert!((length(&short) / 1e-3 - 1.0).abs() < 1e-4 && length(&plain) > 1e-2);
        let every = Adaptive { reg_f: non_negative(0.1), every: Count::new(2).unwrap(), ..Adaptive::default() };
        assert!(of(every.clone(), 1) == plain && of(every, 2) != plain);
    }

    #[test]
    fn a_gpu_is_asked_for_one_pass_only() {
        let both = Adaptive { reg_f: non_negative(0.1), rho: non_negative(1.0), ..Adaptive::default() };
        assert!(both.check_place(&Place::Cpu).is_ok());
        let problem = |adaptive: &Adaptive, precision| adaptive.problems(precision).map(|problem| problem.message);
        let trace = Adaptive { rho: NonNegative::ZERO, ..both.clone() };
        let expected = "`adaptive.rho` needs the CPU, which computes in f32";
        assert_eq!(problem(&both, Precision::Bf16).as_deref(), Some(expected));
        let expected = "`adaptive.reg_f` takes differences of gradients, which only f32 resolves";
        assert_eq!(problem(&trace, Precision::Tf32).as_deref(), Some(expected));
        assert_eq!(problem(&both, Precision::F32), None);
        assert_eq!(problem(&Adaptive::default(), Precision::Bf16), None);
    }
}
