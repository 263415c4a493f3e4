//! How many training images an attack poisons, which, and with which label; and the dataset that comes out.
//!
//! "Poison rate" means different things in different systems. Here it is spelled out by three parameters:
//!
//! * `rate` and `of` give the **number**: `rate` times the training images of `of`, rounded down. `all` counts every
//!   training image, `non-target` those whose class is not the target, `target` those of the target class.
//! * `pool` says which images **may be chosen**, by the same three names; if not given, it is what `of` says.
//! * `selection` says **which** of the pool are chosen: at random, or the last ones of each class.
//!
//! | what others do | here |
//! | --- | --- |
//! | BackdoorBench, BadNets with label 0: share of all, drawn from all | `of = "all"` |
//! | FIP: share of the non-target images, drawn from them | `of = "non-target"` |
//! | share of all, drawn from the non-target images | `of = "all"`, `pool = "non-target"` |
//! | clean-label, share of the target class (SIG, label-consistent) | `of = "target"` |
//! | clean-label, share of all (BackdoorBench) | `of = "all"`, `pool = "target"` |
//! | IB-backdoor: the last tenth of every class | `of = "all"`, `selection = "last-of-class"` |
//!
//! Some attacks add covers: images that carry the trigger, or something like it, and keep their label. They never
//! overlap with the poisoned images, are not part of `rate`, and have a role of their own in the dataset.
//!
//! Poisoned images replace the originals: number and order of the training images stay. Images of the target class
//! that the pool lets in get the trigger, keep their label and count as poisoned.

use crate::artifact::dataset::{Attack, LabelRule, Pixels, Role};
use crate::artifact::{Dataset, Split};
use crate::error::{Error, Result};
use crate::param::Fraction;
use crate::rng::Stream;
use crate::stage::{Context, Problem};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A group of training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// Every training image.
    #[default]
    All,
    /// Those whose class is not the target.
    NonTarget,
    /// Those of the target class.
    Target,
}

impl Group {
    fn has(self, class: i64, target: i64) -> bool {
        match self {
            Group::All => true,
            Group::NonTarget => class != target,
            Group::Target => class == target,
        }
    }

    /// The name in parameters.
    pub fn name(self) -> &'static str {
        match self {
            Group::All => "all",
            Group::NonTarget => "non-target",
            Group::Target => "target",
        }
    }
}

/// Which images of the pool are poisoned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Drawn from the pool at random, without replacement.
    #[default]
    Random,
    /// The same number of every class in the pool, rounded down: the last images of the class.
    LastOfClass,
}

/// Which label a triggered image gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// The target class.
    #[default]
    AllToOne,
    /// The class after its own; the first after the last.
    AllToAll,
}

/// The share that most published attacks poison.
pub const RATE: Fraction = match Fraction::new(0.1) {
    Some(rate) => rate,
    None => Fraction::ONE,
};

/// The training images that an attack changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Rows that carry the trigger and get the label that the attacker wants, ascending.
    pub backdoor: Vec<usize>,
    /// Rows that carry the trigger, or something like it, and keep their label; none of them in `backdoor`. Ascending.
    pub cover: Vec<usize>,
}

/// The part of an attack's parameters that this file reads.
#[derive(Clone, Copy, Debug)]
pub struct Poisoning {
    /// Share of the images in `of` to poison.
    pub rate: Fraction,
    /// What `rate` is a share of.
    pub of: Group,
    /// Which images may be chosen; none for those of `of`.
    pub pool: Option<Group>,
    /// Which of them are.
    pub selection: Selection,
    /// Their labels.
    pub labels: Labels,
    /// The target class, by number.
    pub target: usize,
}

impl Poisoning {
    /// Checks that involve several parameters.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut without_target = |parameter, group: Group| {
            if self.labels == Labels::AllToAll && group != Group::All {
                problems.push(Problem {
                    parameter,
                    message: format!("is `{}`, but `labels = \"all-to-all\"` has no target class", group.name()),
                    hint: Some(format!("set `{parameter} = \"all\"`, or `labels = \"all-to-one\"`")),
                });
            }
        };
        without_target("of", self.of);
        if let Some(pool) = self.pool {
            without_target("pool", pool);
        }
        problems
    }

    /// The label rule.
    pub fn rule(&self) -> LabelRule {
        match self.labels {
            Labels::AllToOne => LabelRule::AllToOne { target: self.target as i64 },
            Labels::AllToAll => LabelRule::AllToAll,
        }
    }

    /// The number of training images in `of`, given their true classes.
    pub fn n_of(&self, classes: &[i64]) -> usize {
        classes.iter().filter(|&&class| self.of.has(class, self.target as i64)).count()
    }

    /// How many of images of these true classes are poisoned.
    pub fn n_poisoned(&self, classes: &[i64]) -> usize {
        self.rate.of(self.n_of(classes))
    }

    /// Whether images of `class` may be.
    pub fn is_in_pool(&self, class: i64) -> bool {
        self.pool.unwrap_or(self.of).has(class, self.target as i64)
    }

    /// The training images to poison, without covers.
    ///
    /// # Errors
    /// A dataset that is poisoned already, labels or a target outside the classes, more images asked for than there are.
    pub fn choose(&self, cx: &Context, clean: &Dataset) -> Result<Chosen> {
        self.choose_where(cx, clean, |_| true)
    }

    /// The same out of those rows of the pool that `may_be` names.
    ///
    /// # Errors
    /// As [`Poisoning::choose`].
    pub fn choose_where(&self, cx: &Context, clean: &Dataset, may_be: impl Fn(usize) -> bool) -> Result<Chosen> {
        check_clean(clean)?;
        let n_classes = clean.about.classes.len();
        if let LabelRule::AllToOne { target } = self.rule()
            && target >= n_classes as i64
        {
            return Err(Error::user(format!(
                "`target = {target}`, but the classes of `{}` are 0 to {}",
                clean.about.name,
                n_classes.saturating_sub(1)
            )));
        }
        let backdoor = self.rows(&clean.train.true_label, n_classes, cx.rng("selection"), may_be)?;
        if backdoor.is_empty() && self.rate.get() > 0.0 {
            cx.warn(format!("`rate = {}` is less than one image: nothing is poisoned", self.rate.get()));
        }
        Ok(Chosen { backdoor, cover: Vec::new() })
    }

    /// The rows to poison, ascending. `classes` are the true classes of the training images, each in 0..`n_classes`.
    fn rows(
        &self,
        classes: &[i64],
        n_classes: usize,
        mut stream: Stream,
        may_be: impl Fn(usize) -> bool,
    ) -> Result<Vec<usize>> {
        let target = self.target as i64;
        let group = |group: Group| (0..classes.len()).filter(move |&row| group.has(classes[row], target));
        let n_of = self.n_of(classes);
        let n_poisoned = self.rate.of(n_of);
        let pool_group = self.pool.unwrap_or(self.of);
        let asked = || format!("`rate = {}` of {n_of} images (`of = \"{}\"`)", self.rate.get(), self.of.name());
        match self.selection {
            Selection::Random => {
                let pool: Vec<usize> = group(pool_group).filter(|&row| may_be(row)).collect();
                if n_poisoned > pool.len() {
                    return Err(Error::user(format!(
                        "{} asks for {n_poisoned} images, and the pool (`{}`) has {}",
                        asked(),
                        pool_group.name(),
                        pool.len()
                    ))
                    .hint("lower `rate`, or choose another `of` or `pool`"));
                }
                Ok(stream.pick(&pool, n_poisoned))
            }
            Selection::LastOfClass => {
                let pool: Vec<i64> = (0..n_classes as i64).filter(|&class| pool_group.has(class, target)).collect();
                let n_each = n_poisoned / pool.len().max(1);
                let mut rows = Vec::new();
                for class in pool {
                    let members: Vec<usize> =
                        (0..classes.len()).filter(|&row| classes[row] == class && may_be(row)).collect();
                    let Some(first) = members.len().checked_sub(n_each) else {
                        return Err(Error::user(format!(
                            "{} asks for {n_each} images of every class, and class {class} has {}",
                            asked(),
                            members.len()
                        ))
                        .hint("lower `rate`, or set `selection = \"random\"`"));
                    };
                    rows.extend_from_slice(&members[first..]);
                }
                rows.sort_unstable();
                Ok(rows)
            }
        }
    }
}

impl Chosen {
    /// Draws `n` covers from all training images that are not poisoned; `asked` says in an error what asked for them.
    ///
    /// # Errors
    /// More covers than there are images left.
    pub fn add_covers(&mut self, n: usize, n_train: usize, mut stream: Stream, asked: &str) -> Result<()> {
        let mut is_free = vec![true; n_train];
        self.backdoor.iter().for_each(|&row| is_free[row] = false);
        let pool: Vec<usize> = (0..n_train).filter(|&row| is_free[row]).collect();
        if n > pool.len() {
            return Err(Error::user(format!(
                "{asked} asks for {n} cover images, and {} of {n_train} training images are not poisoned",
                pool.len()
            ))
            .hint("lower it, or lower `rate`"));
        }
        self.cover = stream.pick(&pool, n);
        Ok(())
    }
}

/// An image that gets its trigger.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Which split it is of.
    pub part: Part,
    /// Its row there.
    pub row: usize,
    /// Its true class.
    pub class: i64,
    /// Backdoor or cover.
    pub role: Role,
}

/// A split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Training images.
    Train,
    /// Triggered test images.
    Test,
}

/// The name of an attack and the parameters that a reader of its results wants to know.
pub struct Description<'a> {
    /// Such as `badnet`.
    pub name: &'a str,
    /// The stage's parameters; what [`Attack`] states itself is left out, and so are empty values.
    pub parameters: Value,
}

impl Description<'_> {
    fn parameters(&self) -> BTreeMap<String, Value> {
        const ELSEWHERE: [&str; 4] = ["labels", "target", "rate", "of"];
        let parameters = self.parameters.as_object().into_iter().flatten();
        parameters
            .filter(|(name, value)| {
                let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
                !empty && !ELSEWHERE.contains(&name.as_str())
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }
}

/// Poisons `clean`: `stamp` puts the trigger on an image [H, W, 3] of those that are `chosen`, and of every test image.
///
/// The result has the triggered test set: every test image with the trigger and the label that the attacker wants.
pub fn poison(
    cx: &Context,
    clean: Dataset,
    poisoning: &Poisoning,
    chosen: &Chosen,
    description: &Description,
    stamp: impl Fn(&mut [u8], Sample) + Sync,
) -> Result<Dataset> {
    let Dataset { mut about, mut train, test, .. } = clean;
    let n_classes = about.classes.len();
    let rule = poisoning.rule();
    for &row in &chosen.backdoor {
        train.label[row] = rule.wanted(train.true_label[row], n_classes);
        train.role[row] = Role::Backdoor;
    }
    for &row in &chosen.cover {
        train.role[row] = Role::Cover;
    }
    train.pixels = stamped(&train, |row, image| {
        let (class, role) = (train.true_label[row], train.role[row]);
        if role != Role::Clean {
            stamp(image, Sample { part: Part::Train, row, class, role });
        }
    });
    let trigger = |row: usize, image: &mut [u8]| {
        stamp(image, Sample { part: Part::Test, row, class: test.true_label[row], role: Role::Backdoor });
    };
    let triggered = Split {
        pixels: stamped(&test, trigger),
        label: test.true_label.iter().map(|&class| rule.wanted(class, n_classes)).collect(),
        role: vec![Role::Backdoor; test.len()],
        index: (0..test.len() as i64).collect(),
        ..test.clone()
    };

    let (n_backdoor, n_cover) = (chosen.backdoor.len(), chosen.cover.len());
    let share = 100.0 * n_backdoor as f64 / train.len().max(1) as f64;
    let covers = if n_cover > 0 { format!(", {n_cover} covers") } else { String::new() };
    cx.headline(format!("{n_backdoor} of {} training images poisoned ({share:.2} %){covers}", train.len()));
    about.attack = Some(Attack {
        name: description.name.to_string(),
        labels: rule,
        rate: poisoning.rate.get(),
        of: poisoning.of.name().to_string(),
        n_backdoor,
        n_cover,
        parameters: description.parameters(),
    });
    Ok(Dataset { about, train, test, triggered: Some(triggered) })
}

/// Checks that nobody poisoned the dataset before, and that all its labels are classes.
///
/// # Errors
/// What is wrong with it.
pub fn check_clean(dataset: &Dataset) -> Result<()> {
    let about = &dataset.about;
    if let Some(attack) = &about.attack {
        return Err(Error::user(format!(
            "expected a clean dataset, and `{}` is poisoned (`{}`)",
            about.name, attack.name
        ))
        .hint("bind the stage that made the clean dataset"));
    }
    let Dataset { train, test, .. } = dataset;
    if train.size != test.size && !test.is_empty() && !train.is_empty() {
        return Err(Error::user(format!(
            "training images of {}x{} pixels, test images of {}x{}",
            train.size.0, train.size.1, test.size.0, test.size.1
        )));
    }
    for (split, name) in [(train, "training"), (test, "test")] {
        let classes = 0..about.classes.len() as i64;
        if let Some(row) = split.true_label.iter().position(|label| !classes.contains(label)) {
            return Err(Error::user(format!(
                "{name} image {row} has the label {}, and `{}` has {} classes",
                split.true_label[row], about.name, classes.end
            )));
        }
    }
    Ok(())
}

/// A copy of the images, each changed by `change(row, image)`.
fn stamped(split: &Split, change: impl Fn(usize, &mut [u8]) + Sync) -> Pixels {
    let mut pixels = split.images().into_owned();
    let bytes = split.image_bytes().max(1);
    pixels.par_chunks_mut(bytes).enumerate().for_each(|(row, image)| change(row, image));
    Pixels::Owned(Arc::new(pixels))
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use super::*;
    use crate::artifact::dataset::About;

    /// A clean dataset of `n_classes` classes: training image i has class i mod K, test image i class i mod K; the
    /// pixels of an image are all different from its neighbours'.
    pub fn dataset(n_train: usize, n_test: usize, n_classes: usize, size: (usize, usize)) -> Dataset {
        let split = |n: usize| {
            let pixels = (0..n * size.0 * size.1 * 3).map(|i| (i * 31 % 256) as u8).collect();
            Split::clean(size, pixels, (0..n).map(|i| (i % n_classes) as i64).collect()).unwrap()
        };
        let classes = (0..n_classes).map(|class| format!("class {class}")).collect();
        let about = About { name: "fake".into(), classes, ..About::default() };
        Dataset { about, train: split(n_train), test: split(n_test), triggered: None }
    }

    /// Training images of one true class, by role.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Counts {
        pub clean: usize,
        pub backdoor: usize,
        pub cover: usize,
        /// Those whose label is not their class.
        pub relabelled: usize,
    }

    pub fn counts(split: &Split, class: i64) -> Counts {
        let mut counts = Counts::default();
        for row in (0..split.len()).filter(|&row| split.true_label[row] == class) {
            match split.role[row] {
                Role::Clean => counts.clean += 1,
                Role::Backdoor => counts.backdoor += 1,
                Role::Cover => counts.cover += 1,
            }
            counts.relabelled += usize::from(split.label[row] != class);
        }
        counts
    }

    fn poisoning(rate: f64, of: Group, pool: Option<Group>, selection: Selection) -> Poisoning {
        let rate = Fraction::new(rate).unwrap();
        Poisoning { rate, of, pool, selection, labels: Labels::AllToOne, target: 0 }
    }

    fn rows(poisoning: &Poisoning, n: usize, n_classes: usize) -> Vec<usize> {
        let classes: Vec<i64> = (0..n).map(|i| (i % n_classes) as i64).collect();
        let stream = Context::for_test(0, "poison/test").rng("selection");
        poisoning.rows(&classes, n_classes, stream, |_| true).unwrap()
    }

    #[test]
    fn counts_of_the_published_settings() {
        let check = |rate, of, pool, selection, n: usize, n_classes, total: usize, of_target: Option<usize>| {
            let rows = rows(&poisoning(rate, of, pool, selection), n, n_classes);
            assert_eq!(rows.len(), total);
            assert!(rows.is_sorted_by(|a, b| a < b));
            if let Some(expected) = of_target {
                assert_eq!(rows.iter().filter(|&row| row % n_classes == 0).count(), expected);
            }
        };
        use Group::{All, NonTarget, Target};
        use Selection::{LastOfClass, Random};
        // IB-backdoor on CIFAR-10 and on the SVHN subset: every class alike, the target included.
        check(0.1, All, None, LastOfClass, 50_000, 10, 5_000, Some(500));
        check(0.1, All, None, LastOfClass, 40_000, 10, 4_000, Some(400));
        // FIP: 45,000 images, of which 40,500 are not of the target class; and a dataset of 45,000 non-target images.
        check(0.1, NonTarget, None, Random, 45_000, 10, 4_050, Some(0));
        check(0.1, NonTarget, None, Random, 50_000, 10, 4_500, Some(0));
        // The learning curves: two classes of 750.
        check(0.1, All, None, Random, 1_500, 2, 150, None);
        // Clean-label: share of the class, or of all.
        check(0.1, Target, None, Random, 50_000, 10, 500, Some(500));
        check(0.05, All, Some(Target), Random, 50_000, 10, 2_500, Some(2_500));
        check(0.1, All, Some(NonTarget), Random, 50_000, 10, 5_000, Some(0));
        check(0.0, All, None, Random, 100, 10, 0, Some(0));
        // 0.1 of 995 is 99; a ninth of it each.
        check(0.1, All, Some(NonTarget), LastOfClass, 995, 10, 99, Some(0));
    }

    #[test]
    fn last_of_class_takes_the_last_ones() {
        let rows = rows(&poisoning(0.2, Group::All, None, Selection::LastOfClass), 100, 10);
        assert_eq!(rows, (80..100).collect::<Vec<_>>());
    }

    #[test]
    fn random_draws_cover_the_classes_evenly() {
        let rows = rows(&poisoning(0.1, Group::All, None, Selection::Random), 50_000, 10);
        let mut counts = [0usize; 10];
        rows.iter().for_each(|row| counts[row % 10] += 1);
        // Hypergeometric, standard deviation about 20.
        assert!(counts.iter().all(|count| (400..600).contains(count)), "{counts:?}");
    }

    #[test]
    fn more_than_there_is() {
        let check = |poisoning: &Poisoning, message: &str| {
            let classes: Vec<i64> = (0..10).map(|i| i64::from(i > 7)).collect();
            let stream = Context::for_test(0, "poison/test").rng("selection");
            let error = poisoning.rows(&classes, 2, stream, |_| true).unwrap_err().to_string();
            assert_eq!(error, message);
        };
        check(
            &poisoning(0.5, Group::All, Some(Group::NonTarget), Selection::Random),
            "`rate = 0.5` of 10 images (`of = \"all\"`) asks for 5 images, and the pool (`non-target`) has 2",
        );
        check(
            &poisoning(0.6, Group::All, None, Selection::LastOfClass),
            "`rate = 0.6` of 10 images (`of = \"all\"`) asks for 3 images of every class, and class 1 has 2",
        );
    }

    fn poisoned(poisoning: &Poisoning, dataset: Dataset) -> Result<Dataset> {
        let cx = Context::for_test(0, "poison/test");
        let description =
            Description { name: "test", parameters: serde_json::json!({ "rate": 1, "pool": null, "size": 5 }) };
        let chosen = poisoning.choose(&cx, &dataset)?;
        poison(&cx, dataset, poisoning, &chosen, &description, |image, _| image.fill(255))
    }

    #[test]
    fn rows_that_are_not_chosen_stay_as_they_were() {
        let clean = dataset(60, 20, 3, (2, 2));
        let setting = Poisoning { target: 1, ..poisoning(0.25, Group::NonTarget, None, Selection::Random) };
        let made = poisoned(&setting, clean.clone()).unwrap();
        assert_eq!(made.train.role.iter().filter(|&&role| role == Role::Backdoor).count(), 10);
        for row in 0..60 {
            let (is_poisoned, class) = (made.train.role[row] == Role::Backdoor, row as i64 % 3);
            assert_eq!(made.train.image(row) == [255; 12], is_poisoned);
            assert_eq!(made.train.image(row) == clean.train.image(row), !is_poisoned);
            assert_eq!(made.train.label[row], if is_poisoned { 1 } else { class });
            assert_eq!((made.train.true_label[row], made.train.index[row]), (class, row as i64));
            assert!(!is_poisoned || class != 1);
        }
        assert_eq!(made.test.images(), clean.test.images());
        let triggered = made.triggered.unwrap();
        assert!(triggered.images().iter().all(|&byte| byte == 255));
        assert_eq!(triggered.label, [1; 20]);
        assert_eq!(triggered.true_label, clean.test.label);
        assert_eq!(triggered.role, [Role::Backdoor; 20]);
        assert_eq!(triggered.index, (0..20).collect::<Vec<i64>>());

        let attack = made.about.attack.unwrap();
        assert_eq!((attack.n_backdoor, attack.n_cover, attack.of.as_str()), (10, 0, "non-target"));
        assert_eq!(attack.labels, LabelRule::AllToOne { target: 1 });
        assert_eq!(attack.parameters, BTreeMap::from([("size".to_string(), 5.into())]));
    }

    #[test]
    fn all_to_all_shifts_every_label() {
        let setting = Poisoning { labels: Labels::AllToAll, ..poisoning(1.0, Group::All, None, Selection::Random) };
        let made = poisoned(&setting, dataset(12, 6, 3, (1, 1))).unwrap();
        assert_eq!(made.train.label[..3], [1, 2, 0]);
        assert_eq!(made.triggered.unwrap().label, [1, 2, 0, 1, 2, 0]);
        assert_eq!(Poisoning { of: Group::Target, ..setting }.check().len(), 1);
        assert_eq!(Poisoning { pool: Some(Group::NonTarget), ..setting }.check()[0].parameter, "pool");
    }

    #[test]
    fn datasets_that_cannot_be_poisoned() {
        let setting = poisoning(0.5, Group::All, None, Selection::Random);
        let check = |setting: &Poisoning, dataset: Dataset, message: &str| {
            let error = poisoned(setting, dataset).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, message);
        };
        let good = dataset(10, 5, 2, (1, 1));
        check(&Poisoning { target: 2, ..setting }, good.clone(), "`target = 2`, but the classes of `fake` are 0 to 1");
        let twice = poisoned(&setting, good.clone()).unwrap();
        check(&setting, twice, "expected a clean dataset, and `fake` is poisoned (`test`)");
        let mut odd = good;
        odd.test.true_label[3] = 7;
        check(&setting, odd, "test image 3 has the label 7, and `fake` has 2 classes");
    }
}
