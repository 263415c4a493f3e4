//! STRIP: a triggered image keeps its class whatever is laid over it.
//!
//! Gao et al., "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks", ACSAC 2019, arXiv:1902.06531, section
//! III. An image x is judged by the mean entropy of softmax(f(clip(x + alpha x_k))) over `n_overlays` clean images x_k:
//! a clean image becomes hard to classify, a trigger goes on to win. Images whose entropy lies below a threshold are
//! the suspects; the threshold is the `quantile` of the entropies of the defender's own clean images, so that about
//! this share of clean images is a false alarm. Entropies are in nats.
//!
//! STRIP works at run time: by default the test images are judged, clean ones and triggered ones (of these, those that
//! are not of the wanted class), and nothing but the clean split decides. `images = "training"` judges the training
//! images.
//!
//! Defaults are BackdoorBench's call (`detection_infer/strip.py`): alpha 1, 100 overlays, quantile 0.1. Overlays are
//! drawn with replacement; a clean image is never laid over itself. The paper's threshold is the quantile of a normal
//! distribution fitted to the entropies; here it is the quantile itself.

use super::detection::{Scores, Verdict, blinded, open, samples};
use crate::artifact::{CleanSplit, Model, Packed, Split, Table};
use crate::error::{Error, Result};
use crate::nn::augment::Normalise;
use crate::nn::{Mode, Network, predict};
use crate::param::{Count, Fraction, Positive, valid};
use crate::rng::Stream;
use crate::stage::{Context, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Takes images that keep their class under overlaid clean images for poisoned (STRIP).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Which images are judged.
    pub images: Images,
    /// Judged images of each kind at most, drawn at random; all if not given.
    pub n_images: Option<Count>,
    /// Clean images that are laid over each image, one at a time.
    pub n_overlays: Count,
    /// Weight of the clean image on top.
    pub alpha: Positive,
    /// Share of the clean split whose entropy lies below the threshold.
    pub quantile: Fraction,
}

/// Which images are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Images {
    /// The clean test images and the triggered ones: what arrives at run time.
    #[default]
    Test,
    /// The training images.
    Training,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            images: Images::Test,
            n_images: None,
            n_overlays: const { valid(Count::new(100)) },
            alpha: const { valid(Positive::new(1.0)) },
            quantile: const { valid(Fraction::new(0.1)) },
        }
    }
}

crate::ports! {
    /// What is judged, and by what.
    pub struct Inputs {
        /// A model that was trained on the dataset.
        model: Model,
        /// Clean images: overlays, and what the threshold is chosen by.
        clean: CleanSplit,
        /// The images that are judged; their roles are read only to count the verdicts.
        dataset: Packed,
    }
}

crate::ports! {
    /// What comes out.
    pub struct Outputs => {
        /// How many poisoned images are suspects, and how many others.
        scores: Table,
        /// A row for each judged image: its score, and whether it is a suspect.
        samples: Table,
    }
}

/// The stage.
pub struct Strip;

impl Stage for Strip {
    const NAME: &'static str = "evaluate/strip";
    const VERSION: u32 = 1;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn draws(_: &Params) -> bool {
        true
    }

    fn resources(_: &Params) -> Resources {
        recipe::resources(None, predict::BATCH)
    }

    fn run(cx: &Context, params: Params, Inputs { model, clean, dataset }: Inputs) -> Result<Outputs> {
        let about = &dataset.about;
        if clean.images.is_empty() {
            return Err(Error::user("there is no clean image to lay over others"));
        }
        let (mut network, normalise) = open(cx, &model, about, &clean.images)?;
        let parts = judged(cx, &params, &dataset)?;
        let mut strip =
            Over { cx, params: &params, network: &mut network, normalise: &normalise, clean: &clean.images };
        let own: Vec<usize> = (0..clean.images.len()).collect();
        let threshold = threshold(strip.entropies(&clean.images, &own, "clean")?, params.quantile);

        let (mut verdicts, mut roles) = (Vec::new(), Vec::new());
        let mut of_samples: Option<Table> = None;
        for (split, rows, name) in &parts {
            let entropies = strip.entropies(&blinded(split), rows, name)?;
            let of_part: Vec<Verdict> = entropies
                .into_iter()
                .map(|entropy| Verdict { score: -entropy, is_suspect: entropy < threshold })
                .collect();
            let definition = "minus the mean entropy under overlays, in nats";
            let table = samples(split, name, rows, &of_part, definition);
            match &mut of_samples {
                None => of_samples = Some(table),
                Some(all) => all.rows.extend(table.rows),
            }
            verdicts.extend(of_part);
            roles.extend(rows.iter().map(|&row| split.role[row]));
        }
        let scores = Scores::count(&verdicts, &roles)?;
        cx.headline(scores.headline());
        let part = match params.images {
            Images::Test => "test",
            Images::Training => "training",
        };
        let mut table = scores.table(Strip::NAME, part, about);
        table.notes.push(format!(
            "Threshold {threshold:.4} nats: the quantile {} of {} clean images' mean entropies under {} overlays.",
            params.quantile.get(),
            clean.images.len(),
            params.n_overlays.get()
        ));
        Ok(Outputs { scores: table, samples: of_samples.unwrap_or_default() })
    }
}

/// Splits, the rows that are judged, and what the part is called.
type Parts<'a> = Vec<(&'a Split, Vec<usize>, &'static str)>;

fn judged<'a>(cx: &Context, params: &Params, dataset: &'a Packed) -> Result<Parts<'a>> {
    let pick = |rows: Vec<usize>, name: &str| match params.n_images {
        Some(most) if most.get() < rows.len() => cx.rng(&format!("images/{name}")).pick(&rows, most.get()),
        _ => rows,
    };
    match (params.images, &dataset.triggered) {
        (Images::Training, _) => {
            // One kind, whatever the roles: to draw by them would be to look at them.
            let rows = pick((0..dataset.train.len()).collect(), "training");
            Ok(vec![(&dataset.train, rows, "training")])
        }
        (Images::Test, Some(triggered)) => {
            let attacked =
                (0..triggered.len()).filter(|&row| triggered.label[row] != triggered.true_label[row]).collect();
            Ok(vec![
                (&dataset.test, pick((0..dataset.test.len()).collect(), "test"), "test"),
                (triggered, pick(attacked, "triggered"), "triggered"),
            ])
        }
        (Images::Test, None) => Err(Error::user("the dataset has no triggered test images to judge")
            .hint("give `dataset` a poisoned dataset, or set `images = \"training\"`")),
    }
}

/// What is laid over what.
struct Over<'a> {
    cx: &'a Context,
    params: &'a Params,
    network: &'a mut Network,
    normalise: &'a Normalise,
    clean: &'a Split,
}

impl Over<'_> {
    /// The mean entropy of each of the images `rows` of `split` under clean images, in nats. Image `row` draws its
    /// overlays from sub-stream `row` of the part `name`; the part `clean` is the clean split itself.
    fn entropies(&mut self, split: &Split, rows: &[usize], name: &str) -> Result<Vec<f64>> {
        let stream = self.cx.rng(&format!("overlays/{name}"));
        let n = self.params.n_overlays.get();
        let n_classes = self.network.config().n_classes;
        let mut entropies = Vec::with_capacity(rows.len());
        let mut images = vec![0.0; n.min(predict::BATCH) * split.image_bytes()];
        for (done, &row) in rows.iter().enumerate() {
            self.cx.check_stop()?;
            let excluded = (name == "clean").then_some(row);
            let overlays = overlays(self.clean.len(), n, excluded, &mut stream.at(row as u64));
            let mut sum = 0.0;
            for overlays in overlays.chunks(predict::BATCH) {
                let pixels: Vec<f32> = overlays
                    .iter()
                    .flat_map(|&other| laid_over(split.image(row), self.clean.image(other), self.params.alpha))
                    .collect();
                let images = &mut images[..pixels.len()];
                self.normalise.floats(&pixels, images);
                let logits = self.network.forward(images, overlays.len(), Mode::Eval)?;
                sum += logits.chunks_exact(n_classes).map(entropy).sum::<f64>();
            }
            entropies.push(sum / n as f64);
            if (done + 1) % 100 == 0 || done + 1 == rows.len() {
                self.cx.progress(done as u64 + 1, rows.len() as u64, "images", name);
            }
        }
        Ok(entropies)
    }
}

/// `n` of the `n_clean` clean images, with replacement; not `excluded`, if there is another.
fn overlays(n_clean: usize, n: usize, excluded: Option<usize>, stream: &mut Stream) -> Vec<usize> {
    let excluded = excluded.filter(|_| n_clean > 1);
    let n_allowed = n_clean - usize::from(excluded.is_some());
    let draw = |_| {
        let drawn = stream.below(n_allowed as u64) as usize;
        drawn + usize::from(excluded.is_some_and(|excluded| drawn >= excluded))
    };
    (0..n).map(draw).collect()
}

/// `clip(x + alpha x_k)`, in 0 to 255, not rounded.
fn laid_over<'a>(image: &'a [u8], overlay: &'a [u8], alpha: Positive) -> impl Iterator<Item = f32> + 'a {
    let alpha = alpha.get() as f32;
    image.iter().zip(overlay).map(move |(&x, &other)| (f32::from(x) + alpha * f32::from(other)).min(255.0))
}

/// Of the softmax of `logits`, in nats.
fn entropy(logits: &[f32]) -> f64 {
    let of = |p: f64| if p > 0.0 { -p * libm::log(p) } else { 0.0 };
    predict::probabilities(logits).into_iter().map(of).sum()
}

/// The value that the share `quantile` of `entropies`, rounded down, lies below, if no two are equal.
fn threshold(mut entropies: Vec<f64>, quantile: Fraction) -> f64 {
    entropies.sort_by(f64::total_cmp);
    entropies.get(quantile.of(entropies.len())).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests::{shuffled, small, verdicts};
    use super::*;
    use crate::artifact::model::NamedTensor;
    use crate::rng::Streams;

    fn count(n: usize) -> Count {
        Count::new(n).unwrap()
    }

    /// ln 4; nothing; 1/4 ln 4 + 3/4 ln (4/3).
    #[test]
    fn entropies_by_hand() {
        let check = |logits: &[f32], expected: f64| {
            let found = entropy(logits);
            assert!((found - expected).abs() < 1e-7, "{found}, {expected}");
        };
        check(&[2.0; 4], 4f64.ln());
        check(&[1000.0, 0.0, -1000.0], 0.0);
        check(&[0.0, 3f32.ln()], 0.25 * 4f64.ln() + 0.75 * (4.0f64 / 3.0).ln());
        check(&[f32::NEG_INFINITY, 0.0], 0.0);
    }

    #[test]
    fn overlays_are_added_and_clipped() {
        let laid = |alpha: f64| -> Vec<f32> {
            laid_over(&[200, 10, 0], &[100, 101, 255], Positive::new(alpha).unwrap()).collect()
        };
        assert_eq!(laid(1.0), [255.0, 111.0, 255.0]);
        assert_eq!(laid(0.5), [250.0, 60.5, 127.5]);
    }

    #[test]
    fn no_image_lies_over_itself() {
        let draw = |n_clean, excluded| overlays(n_clean, 400, excluded, &mut Streams::new(0, "s").stream("o"));
        let drawn = draw(4, Some(2));
        assert!([0, 1, 3].iter().all(|row| drawn.contains(row)) && !drawn.contains(&2));
        assert!((0..4).all(|row| draw(4, None).contains(&row)));
        assert_eq!(draw(1, Some(0)), [0; 400]);
    }

    #[test]
    fn thresholds_by_hand() {
        let at = |quantile: f64| threshold(vec![0.5, 0.1, 0.4, 0.2, 0.3], Fraction::new(quantile).unwrap());
        assert_eq!([at(0.0), at(0.19), at(0.2), at(0.6)], [0.1, 0.1, 0.2, 0.4]);
        assert_eq!(at(1.0), f64::INFINITY);
    }

    fn run(params: Params, model: Model, dataset: Packed) -> Result<Outputs> {
        let clean = small().2;
        Strip::run(&Context::for_test(0, Strip::NAME), params, Inputs { model, clean, dataset })
    }

    /// A model that always says 1/4, 1/4, 1/2: every entropy is 1.5 ln 2, no image lies below, none is told from
    /// another.
    #[test]
    fn a_model_that_does_not_look() {
        let (mut model, dataset, _) = small();
        for (name, tensor) in &mut model.weights {
            if name.starts_with("fc.") {
                let values = if name == "fc.bias" { vec![0.0, 0.0, 2f32.ln()] } else { vec![0.0; tensor.values.len()] };
                *tensor = NamedTensor { values, ..tensor.clone() };
            }
        }
        let made = run(Params { n_overlays: count(3), ..Params::default() }, model, dataset).unwrap();
        let scores = made.samples.rows.iter().map(|row| row[4].number().unwrap());
        assert!(scores.clone().all(|score| (score + 1.5 * 2f64.ln()).abs() < 1e-6));
        // 12 clean test images, and the 8 triggered ones that are not of class 0.
        assert_eq!(scores.count(), 20);
        let number = |name: &str| made.scores.rows[0][made.scores.column(name).unwrap()].number();
        assert_eq!(
            (number("n_images"), number("n_backdoor"), number("n_suspects")),
            (Some(20.0), Some(8.0), Some(0.0))
        );
        assert_eq!(number("auroc"), Some(0.5));
    }

    #[test]
    fn verdicts_do_not_depend_on_roles() {
        let params =
            Params { images: Images::Training, n_overlays: count(2), n_images: Some(count(30)), ..Params::default() };
        let judge = |dataset: Packed| run(params.clone(), small().0, dataset).unwrap();
        let (one, other) = (judge(small().1), judge(shuffled(small().1)));
        assert_eq!(verdicts(&one.samples), verdicts(&other.samples));
        assert_eq!(one.samples.rows.len(), 30);
        let few = Params { n_images: Some(count(2)), n_overlays: count(1), ..Params::default() };
        assert_eq!(run(few.clone(), small().0, small().1).unwrap().samples.rows.len(), 4);
        let clean = Packed { triggered: None, ..small().1 };
        let error = run(few, small().0, clean).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error, "the dataset has no triggered test images to judge");
    }
}
