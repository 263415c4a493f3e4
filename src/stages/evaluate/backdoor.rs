//! Clean accuracy, attack success, robust accuracy and defence effectiveness of models.
//!
//! Definitions of BackdoorBench (`utils/metric.py`) and of FT-SAM (Zhu et al., ICCV 2023, equation 7). With f the
//! model, T the trigger, t(y) the label that the attacker wants for an image of class y, D the clean test images and
//! D' those with t(y) != y:
//!
//! - clean accuracy: share of D with f(x) = y;
//! - attack success: share of D' with f(T(x)) = t(y). All-to-one attacks leave the target class out, all-to-all
//!   attacks nothing;
//! - attack success, all: the same over all of D, as BackdoorBox, TrojanZoo and the information-bottleneck code count;
//! - robust accuracy: share of D' with f(T(x)) = y;
//! - DER = (max(0, ASR_b - ASR_d) - max(0, CA_b - CA_d) + 1) / 2 of a model d against the baseline b.
//!
//! Differs from BackdoorBench's code: its full DER adds the accuracy term where its documentation, and the paper,
//! subtract it; here it is subtracted.

use crate::artifact::dataset::About;
use crate::artifact::model::Defence;
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Packed, Split, Table};
use crate::error::{Error, Result, ResultExt};
use crate::kernels::Precision;
use crate::nn::augment::Normalise;
use crate::nn::{Network, predict};
use crate::stage::{Context, Named, Resources, Stage};
use crate::stages::train::recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Scores models against a poisoned dataset: clean accuracy, attack success (target class left out, and counted),
/// robust accuracy and defence effectiveness.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The model that defence effectiveness is measured against, by its stage; the first of `models` if not given.
    pub baseline: Option<String>,
    /// Draws of in-network noise that scores are averaged over, in columns of their own beside those without noise;
    /// 0 for none. There are no such columns if no model has in-network noise.
    #[schemars(range(max = 1000))]
    pub noise_draws: usize,
}

impl Default for Params {
    fn default() -> Params {
        Params { baseline: None, noise_draws: 5 }
    }
}

crate::ports! {
    /// What is scored, and on what.
    pub struct Inputs {
        /// Models, the backdoored one first.
        models: Vec<Named<Model>>,
        /// The poisoned dataset.
        dataset: Packed,
    }
}

/// The stage.
pub struct Backdoor;

impl Stage for Backdoor {
    const NAME: &'static str = "evaluate/backdoor";
    const VERSION: u32 = 3;
    type Params = Params;
    type Inputs = Inputs;
    type Outputs = Table;

    fn draws(params: &Params) -> bool {
        params.noise_draws > 0
    }

    fn resources(_: &Params) -> Resources {
        recipe::resources(None, predict::BATCH)
    }

    fn run(cx: &Context, params: Params, Inputs { models, dataset }: Inputs) -> Result<Table> {
        let mut scored = Vec::with_capacity(models.len());
        for (i, model) in models.iter().enumerate() {
            let doing = || format!("scoring `{}`", model.name);
            let (mut network, normalise) = predict::open(&model.value).context(doing())?;
            cx.place.put(&mut network, Precision::F32).context(doing())?;
            check_classes(&model.value, &dataset.about).context(doing())?;
            let scores = score(cx, &mut network, &normalise, &dataset).context(doing())?;
            let noisy = match is_noisy(&model.value) {
                true => noisy_scores(cx, &mut network, &normalise, &dataset, params.noise_draws).context(doing())?,
                false => None,
            };
            let info = &model.value.info;
            let (name, point) = (shown(&model.name), &model.point);
            let (defence, chosen_by_test) = (info.defence.as_ref(), info.chosen_by_test);
            // Of a defended model its own notes are enough.
            let notes = if defence.is_none() { &info.notes[..] } else { &[] };
            scored.push(Scored { name, point, defence, scores, noisy, chosen_by_test, notes });
            cx.progress(i as u64 + 1, models.len() as u64, "models", shown(&model.name));
        }
        let baselines = baselines(&scored, params.baseline.as_deref())?;
        let headlines: Vec<String> = scored.iter().map(Scored::headline).collect();
        cx.headline(headlines.join(", "));
        Ok(table(&scored, &baselines, &dataset, &params, models.iter().any(|m| is_noisy(&m.value))))
    }
}

/// Counts over the test images, in %; `None` where nothing is to be counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Share of clean test images classified as their class.
    pub clean_accuracy: Option<f64>,
    /// The same within each class.
    pub class_accuracy: Vec<Option<f64>>,
    /// What the trigger does; `None` on a dataset without one.
    pub attack: Option<AttackScores>,
}

/// What the trigger does, in %.
#[derive(Clone, Debug, PartialEq)]
pub struct AttackScores {
    /// Share of triggered images classified as wanted, those left out whose class is the wanted one.
    pub success: Option<f64>,
    /// The same, all counted.
    pub success_all: Option<f64>,
    /// Share of triggered images classified as their true class, over the images of `success`.
    pub robust: Option<f64>,
    /// Images that `success` and `robust` count.
    pub n_counted: usize,
}

impl Scores {
    /// From the predicted classes of the clean test images and of the triggered ones, where there are any.
    ///
    /// # Errors
    /// As many predictions as images are expected.
    pub fn count(
        (clean, test): (&[i64], &Split),
        attacked: Option<(&[i64], &Split)>,
        n_classes: usize,
    ) -> Result<Scores> {
        let check = |predicted: &[i64], split: &Split| match predicted.len() == split.len() {
            true => Ok(()),
            false => Err(Error::stage(format!("{} predictions for {} images", predicted.len(), split.len()))),
        };
        check(clean, test)?;
        let mut all = Share::default();
        let mut classes = vec![Share::default(); n_classes];
        for (&predicted, &class) in clean.iter().zip(&test.true_label) {
            all.add(predicted == class);
            if let Some(share) = classes.get_mut(class as usize) {
                share.add(predicted == class);
            }
        }
        let attack = match attacked {
            None => None,
            Some((predicted, split)) => {
                check(predicted, split)?;
                let (mut success, mut success_all, mut robust) = (Share::default(), Share::default(), Share::default());
                for ((&predicted, &wanted), &class) in predicted.iter().zip(&split.label).zip(&split.true_label) {
                    success_all.add(predicted == wanted);
                    if wanted != class {
                        success.add(predicted == wanted);
                        robust.add(predicted == class);
                    }
                }
                Some(AttackScores {
                    success: success.percent(),
                    success_all: success_all.percent(),
                    robust: robust.percent(),
                    n_counted: success.n,
                })
            }
        };
        Ok(Scores {
            clean_accuracy: all.percent(),
            class_accuracy: classes.iter().map(|class| class.percent()).collect(),
            attack,
        })
    }

    /// [clean accuracy, attack success, attack success of all, robust accuracy].
    fn four(&self) -> [Option<f64>; 4] {
        let attack = self.attack.as_ref();
        [
            self.clean_accuracy,
            attack.and_then(|a| a.success),
            attack.and_then(|a| a.success_all),
            attack.and_then(|a| a.robust),
        ]
    }
}

#[derive(Clone, Copy, Default)]
struct Share {
    hits: usize,
    n: usize,
}

impl Share {
    fn add(&mut self, hit: bool) {
        self.hits += usize::from(hit);
        self.n += 1;
    }

    fn percent(self) -> Option<f64> {
        (self.n > 0).then(|| 100.0 * self.hits as f64 / self.n as f64)
    }
}

/// Defence effectiveness in %, from (attack success, clean accuracy) in % of the baseline and of the model: 50 is
/// nothing gained, 100 an attack undone at no cost.
pub fn defence_effectiveness(baseline: (f64, f64), model: (f64, f64)) -> f64 {
    let gain = (baseline.0 - model.0).max(0.0);
    let cost = (baseline.1 - model.1).max(0.0);
    (gain - cost + 100.0) / 2.0
}

/// A model with its scores.
struct Scored<'a> {
    name: String,
    point: &'a std::collections::BTreeMap<String, serde_json::Value>,
    defence: Option<&'a Defence>,
    scores: Scores,
    /// Means over draws of the in-network noise.
    noisy: Option<[Option<f64>; 4]>,
    chosen_by_test: bool,
    /// What is to be said of its training.
    notes: &'a [String],
}

impl Scored<'_> {
    fn headline(&self) -> String {
        let [accuracy, success, ..] = self.scores.four();
        let share = |name: &str, value: Option<f64>| value.map_or(String::new(), |v| format!(" {name} {v:.1} %"));
        format!("{}{}{}", self.name, share("ACC", accuracy), share("ASR", success))
    }

    fn is_at(&self, other: &Scored) -> bool {
        self.point == other.point
    }
}

/// The model's stage; its default port goes without saying.
pub(super) fn shown(name: &str) -> String {
    name.strip_suffix(".model").unwrap_or(name).to_string()
}

fn is_noisy(model: &Model) -> bool {
    model.info.sigma_xt > 0.0 || model.info.sigma_ty > 0.0
}

pub(super) fn check_classes(model: &Model, about: &About) -> Result<()> {
    if model.info.n_classes == about.classes.len() {
        return Ok(());
    }
    let message =
        format!("the model tells {} classes apart, the dataset has {}", model.info.n_classes, about.classes.len());
    Err(Error::user(message).hint("score a model on the dataset that it was trained on"))
}

fn score(cx: &Context, network: &mut Network, normalise: &Normalise, dataset: &Packed) -> Result<Scores> {
    let n_classes = network.config().n_classes;
    let mut classes = |split: &Split| -> Result<Vec<i64>> {
        let mut all = Vec::with_capacity(split.len());
        let rows: Vec<usize> = (0..split.len()).collect();
        predict::each_batch(network, split, &rows, normalise, |_, logits| {
            cx.check_stop()?;
            all.extend(predict::classes(logits, n_classes));
            Ok(())
        })?;
        Ok(all)
    };
    let clean = classes(&dataset.test)?;
    match &dataset.triggered {
        None => Scores::count((&clean, &dataset.test), None, n_classes),
        Some(split) => Scores::count((&clean, &dataset.test), Some((&classes(split)?, split)), n_classes),
    }
}

/// Means over `n_draws` draws of the in-network noise; `None` for no draws.
fn noisy_scores(
    cx: &Context,
    network: &mut Network,
    normalise: &Normalise,
    dataset: &Packed,
    n_draws: usize,
) -> Result<Option<[Option<f64>; 4]>> {
    let mut sums = [Some(0.0); 4];
    for draw in 0..n_draws {
        network.noise(Some(cx.rng("noise").at(draw as u64)));
        let scores = score(cx, network, normalise, dataset)?.four();
        sums = std::array::from_fn(|i| Some(sums[i]? + scores[i]?));
    }
    network.noise(None);
    Ok((n_draws > 0).then(|| sums.map(|sum| sum.map(|sum| sum / n_draws as f64))))
}

/// The position of every model's baseline: the model called so, at the same point of the matrix where there is one.
fn baselines(scored: &[Scored], asked: Option<&str>) -> Result<Vec<usize>> {
    let first = scored.first().map_or("", |s| s.name.as_str());
    let name = asked.map_or(first.to_string(), shown);
    let candidates: Vec<usize> = (0..scored.len()).filter(|&i| scored[i].name == name).collect();
    let Some(&any) = candidates.first() else {
        let mut names: Vec<&str> = scored.iter().map(|s| s.name.as_str()).collect();
        names.dedup();
        return Err(Error::user(format!("`baseline = \"{name}\"` is none of the models"))
            .hint(format!("choose among {}", names.join(", "))));
    };
    let of = |model: &Scored| candidates.iter().copied().find(|&i| scored[i].is_at(model)).unwrap_or(any);
    Ok(scored.iter().map(of).collect())
}

fn table(scored: &[Scored], baselines: &[usize], dataset: &Packed, params: &Params, any_noise: bool) -> Table {
    let share = |name: &str, definition: &str| Column::new(name, definition).unit("%").digits(2);
    let mut keys: Vec<&String> = scored.iter().flat_map(|s| s.point.keys()).collect();
    keys.sort_unstable();
    keys.dedup();

    let four = [
        ("clean_accuracy", "clean test images classified as their class"),
        (
            "attack_success",
            "triggered test images classified as the attacker wants, those left out whose class is the wanted one",
        ),
        ("attack_success_all", "triggered test images classified as the attacker wants, all counted"),
        (
            "robust_accuracy",
            "triggered test images classified as their true class, counted over the images of attack_success",
        ),
    ];
    // Tables of models that no defence has touched stay as narrow as they were.
    let any_defence = scored.iter().any(|s| s.defence.is_some());
    let mut columns = vec![Column::new("model", "the stage that made the model")];
    if any_defence {
        columns.push(Column::new("defence", "the defence that made the model; none for a model as it was trained"));
    }
    columns.extend(keys.iter().map(|key| Column::new(key, "value in the matrix")));
    columns.extend(four.map(|(name, definition)| share(name, definition)));
    columns.push(share(
        "der",
        "defence effectiveness: (max(0, ASR_b - ASR) - max(0, ACC_b - ACC) + 100) / 2 with the baseline's ASR_b and \
         ACC_b; 50 for the baseline itself",
    ));
    let has_draws = any_noise && params.noise_draws > 0;
    if has_draws {
        let draws = params.noise_draws;
        columns.extend(four.map(|(name, definition)| {
            share(&format!("{name}_noise"), &format!("{definition}; mean over {draws} draws of the in-network noise"))
        }));
    }
    if any_defence {
        let passes = |name, what| Column::new(name, what).hidden();
        columns.push(passes("n_clean", "clean images that the defence was given"));
        columns.push(passes("n_held_out", "those of them that it only chose thresholds by"));
        columns.push(passes("forward_images", "images in the defence's forward passes"));
        columns.push(passes("backward_images", "images in the defence's backward passes"));
    }
    for (k, class) in dataset.about.classes.iter().enumerate() {
        columns.push(
            share(&format!("accuracy_class_{k}"), &format!("clean test images of class {class} classified as it"))
                .hidden(),
        );
    }

    let mut table = Table::new(columns);
    for (model, &baseline) in scored.iter().zip(baselines) {
        let values = model.scores.four();
        let [accuracy, success, ..] = values;
        let [baseline_accuracy, baseline_success, ..] = scored[baseline].scores.four();
        let der = match (baseline_success, baseline_accuracy, success, accuracy) {
            (Some(asr_b), Some(ca_b), Some(asr), Some(ca)) => Some(defence_effectiveness((asr_b, ca_b), (asr, ca))),
            _ => None,
        };
        let mut row = vec![Cell::from(model.name.as_str())];
        if any_defence {
            row.push(model.defence.map_or("none", |defence| &defence.name).into());
        }
        row.extend(keys.iter().map(|key| model.point.get(*key).map_or(Cell::None, point_cell)));
        row.extend(values.map(Cell::from));
        row.push(der.into());
        if has_draws {
            row.extend(model.noisy.unwrap_or_default().map(Cell::from));
        }
        if any_defence {
            let passes = model
                .defence
                .map(|d| [d.n_clean as i64, d.n_held_out as i64, d.work.forward as i64, d.work.backward as i64]);
            row.extend((0..4).map(|i| Cell::from(passes.map(|passes| passes[i]))));
        }
        let classes = &model.scores.class_accuracy;
        row.extend((0..dataset.about.classes.len()).map(|k| Cell::from(classes.get(k).copied().flatten())));
        table.push(row);
    }
    table.notes = notes(scored, baselines, dataset, params, any_noise);
    table
}

/// A value of the matrix as a cell.
pub(super) fn point_cell(value: &serde_json::Value) -> Cell {
    match value {
        serde_json::Value::Null => Cell::None,
        serde_json::Value::Bool(value) => (*value).into(),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().into(),
        },
        other => other.to_string().into(),
    }
}

/// Definitions that hold for all rows (invariant 10).
fn notes(scored: &[Scored], baselines: &[usize], dataset: &Packed, params: &Params, any_noise: bool) -> Vec<String> {
    let Packed { about, train, test, triggered } = dataset;
    let mut notes = vec![format!("{}: {} training images, {} clean test images", about.name, train.len(), test.len())];
    match &about.attack {
        None => notes.push("the dataset is not poisoned: nothing to attack with".into()),
        Some(attack) => {
            let covers = if attack.n_cover > 0 { format!(" and {} cover", attack.n_cover) } else { String::new() };
            notes.push(format!(
                "{}: poison rate {} of {} training images, {} backdoor{covers} samples of {}",
                attack.title(),
                attack.rate,
                attack.of,
                attack.n_backdoor,
                train.len()
            ));
        }
    }
    if let (Some(split), Some(attack)) = (triggered, scored.first().and_then(|s| s.scores.attack.as_ref())) {
        notes.push(format!(
            "attack_success and robust_accuracy count {} of {} triggered test images, {} left out whose class is the wanted one",
            attack.n_counted,
            split.len(),
            split.len() - attack.n_counted
        ));
        if let Some(&baseline) = baselines.first() {
            notes.push(format!("der is measured against `{}`", scored[baseline].name));
        }
    }
    for model in scored.iter().filter(|model| model.chosen_by_test) {
        notes.push(format!(
            "`{}` was chosen among its epochs by the test images (legacy): its clean_accuracy is the best of them, not an \
             estimate",
            model.name
        ));
    }
    for model in scored {
        notes.extend(model.notes.iter().map(|note| format!("{}: {note}", model.name)));
        let of_defence = model.defence.map_or(&[][..], |defence| &defence.notes);
        notes.extend(of_defence.iter().map(|note| format!("{}: {note}", model.name)));
    }
    if any_noise {
        notes.push(match params.noise_draws {
            0 => "in-network noise was off".into(),
            draws => format!("in-network noise was off, but for columns ending in _noise: means over {draws} draws"),
        });
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::dataset::{LabelRule, Role};

    /// Three classes, one pixel; `rule` makes the triggered split.
    fn splits(classes: &[i64], rule: LabelRule) -> (Split, Split) {
        let test = Split::clean((1, 1), vec![0; classes.len() * 3], classes.to_vec()).unwrap();
        let label = classes.iter().map(|&class| rule.wanted(class, 3)).collect();
        let triggered = Split { label, role: vec![Role::Backdoor; classes.len()], ..test.clone() };
        (test, triggered)
    }

    #[test]
    fn all_to_one_leaves_the_target_class_out() {
        let (test, triggered) = splits(&[0, 0, 1, 1, 2], LabelRule::AllToOne { target: 0 });
        let scores = Scores::count((&[0, 1, 1, 1, 0], &test), Some((&[0, 2, 0, 1, 1], &triggered)), 3).unwrap();
        assert_eq!(scores.clean_accuracy, Some(60.0));
        assert_eq!(scores.class_accuracy, [Some(50.0), Some(100.0), Some(0.0)]);
        let attack = scores.attack.unwrap();
        assert_eq!((attack.success, attack.n_counted), (Some(100.0 / 3.0), 3));
        assert_eq!(attack.success_all, Some(40.0));
        assert_eq!(attack.robust, Some(100.0 / 3.0));
    }

    #[test]
    fn all_to_all_leaves_nothing_out() {
        let (test, triggered) = splits(&[0, 1, 2, 2], LabelRule::AllToAll);
        let attack = Scores::count((&[0; 4], &test), Some((&[1, 2, 0, 2], &triggered)), 3).unwrap().attack.unwrap();
        assert_eq!(attack.n_counted, 4);
        assert_eq!((attack.success, attack.success_all, attack.robust), (Some(75.0), Some(75.0), Some(25.0)));
    }

    #[test]
    fn a_dataset_of_the_target_class_alone_has_no_attack_success() {
        let (test, triggered) = splits(&[0, 0], LabelRule::AllToOne { target: 0 });
        let attack = Scores::count((&[0, 0], &test), Some((&[0, 1], &triggered)), 3).unwrap().attack.unwrap();
        assert_eq!((attack.success, attack.robust, attack.success_all), (None, None, Some(50.0)));
        assert!(Scores::count((&[0], &test), None, 3).is_err());
    }

    /// The published information-bottleneck code divides hits by batches times batch size, as if the last batch were
    /// full: a perfect classifier of CIFAR-10 reads 97.66 %.
    #[test]
    fn right_and_legacy_denominators() {
        let check = |n: usize, batch: usize, published: f64| {
            let classes: Vec<i64> = (0..n as i64).map(|i| i % 3).collect();
            let (test, _) = splits(&classes, LabelRule::AllToAll);
            let right = Scores::count((&classes, &test), None, 3).unwrap().clean_accuracy;
            let legacy = 100.0 * n as f64 / (n.div_ceil(batch) * batch) as f64;
            assert_eq!(right, Some(100.0));
            assert!((legacy - published).abs() < 5e-3, "{n} in batches of {batch}: {legacy}");
        };
        check(10_000, 256, 97.66);
        check(26_032, 256, 99.69);
        check(10_000, 250, 100.0);
    }

    /// The published code counts the target class, which a model recognises without any trigger: ASR (1 - f) + f, with f
    /// the class's share of the test images.
    #[test]
    fn right_and_legacy_attack_success() {
        let check = |n_fooled: usize, right: f64, published: f64| {
            let classes: Vec<i64> = (0..300).map(|i| i64::from(i >= 30) + i64::from(i >= 165)).collect();
            let (test, triggered) = splits(&classes, LabelRule::AllToOne { target: 0 });
            let predicted: Vec<i64> =
                classes.iter().enumerate().map(|(i, &class)| if i < 30 + n_fooled { 0 } else { class }).collect();
            let scores = Scores::count((&classes, &test), Some((&predicted, &triggered)), 3).unwrap();
            let attack = scores.attack.unwrap();
            let (success, legacy) = (attack.success.unwrap(), attack.success_all.unwrap());
            assert!((success - right).abs() < 1e-9 && (legacy - published).abs() < 1e-9, "{success} {legacy}");
            assert!((legacy - (success * 0.9 + 10.0)).abs() < 1e-9);
        };
        // A model without a backdoor has a tenth of its test images in the target class.
        check(0, 0.0, 10.0);
        check(135, 50.0, 55.0);
        check(270, 100.0, 100.0);
    }

    /// Rows of FT-SAM's tables.
    #[test]
    fn defence_effectiveness_equals_published_values() {
        let check = |baseline, model, expected: f64| {
            let der = defence_effectiveness(baseline, model);
            assert!((der - expected).abs() < 1e-9, "{der} instead of {expected}");
        };
        check((93.79, 91.82), (1.70, 90.29), 95.28);
        check((97.87, 84.49), (5.74, 90.47), 96.065);
        check((93.79, 91.82), (93.79, 91.82), 50.0);
        check((100.0, 90.0), (0.0, 90.0), 100.0);
        check((0.0, 90.0), (50.0, 0.0), 5.0);
    }

    #[test]
    fn every_point_of_a_matrix_has_its_own_baseline() {
        let points: Vec<std::collections::BTreeMap<String, serde_json::Value>> =
            [1, 2].iter().map(|&seed| [("seed".to_string(), seed.into())].into()).collect();
        let scores = Scores { clean_accuracy: None, class_accuracy: Vec::new(), attack: None };
        let model = |name: &str, point: usize| Scored {
            defence: None,
            name: name.into(),
            point: &points[point],
            scores: scores.clone(),
            noisy: None,
            chosen_by_test: false,
            notes: &[],
        };
        let all = [model("bad", 0), model("bad", 1), model("good", 0), model("good", 1)];
        assert_eq!(baselines(&all, None).unwrap(), [0, 1, 0, 1]);
        assert_eq!(baselines(&all, Some("good.model")).unwrap(), [2, 3, 2, 3]);
        assert_eq!(baselines(&all[1..3], None).unwrap(), [0, 0]);
        assert!(baselines(&all, Some("better")).unwrap_err().hint_text().unwrap().contains("bad, good"));
    }
}
