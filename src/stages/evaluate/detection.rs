//! What detectors of poisoned images share: what they see, and how their verdicts are scored.
//!
//! A detector sees images and the labels that training sees ([`blinded`]); it judges every image. Roles enter once,
//! when the verdicts are counted ([`Scores`]): poisoned images are the positives, clean ones the negatives. Covers
//! carry a trigger and teach no backdoor; they are neither, and have a column of their own.

use crate::artifact::dataset::{About, Role};
use crate::artifact::table::{Cell, Column};
use crate::artifact::{Model, Split, Table};
use crate::error::{Error, Result, ResultExt};
use crate::kernels::Precision;
use crate::nn::augment::Normalise;
use crate::nn::{Network, predict};
use crate::stage::Context;

/// The split as its owner knows it: every role says clean, every true label is the assigned one.
pub fn blinded(split: &Split) -> Split {
    Split { role: vec![Role::Clean; split.len()], true_label: split.label.clone(), ..split.clone() }
}

/// What a detector says of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// The larger, the more suspicious.
    pub score: f64,
    /// Whether it is taken for poisoned.
    pub is_suspect: bool,
}

/// Opens the model that a detector looks through, on the stage's device.
///
/// # Errors
/// A model of other classes or for images of another size.
pub fn open(cx: &Context, model: &Model, about: &About, split: &Split) -> Result<(Network, Normalise)> {
    if model.info.n_classes != about.classes.len() {
        return Err(Error::user(format!(
            "the model tells {} classes apart, the dataset has {}",
            model.info.n_classes,
            about.classes.len()
        ))
        .hint("give the detector a model that was trained on this dataset"));
    }
    let (mut network, normalise) = predict::open(model)?;
    predict::check_size(&network, split)?;
    cx.place.put(&mut network, Precision::F32)?;
    Ok((network, normalise))
}

/// Channels of `layer` and their values for every image of `split`, averaged over positions: [N, C].
///
/// # Errors
/// An unknown layer; a stop request.
pub fn representations(
    cx: &Context,
    (network, normalise): (&mut Network, &Normalise),
    split: &Split,
    layer: &str,
) -> Result<(usize, Vec<f32>)> {
    let names = network.layer_names();
    if !names.iter().any(|name| name == layer) {
        return Err(Error::user(format!("the model has no layer `{layer}`"))
            .hint(format!("its layers are {}", names.join(", "))));
    }
    let rows: Vec<usize> = (0..split.len()).collect();
    let (mut width, mut values) = (0, Vec::new());
    predict::each_batch(network, split, &rows, normalise, |network, _| {
        cx.check_stop()?;
        let (channels, of_batch) = network.representation(layer)?;
        width = channels;
        values.extend(of_batch);
        Ok(())
    })
    .context(format!("reading `{layer}`"))?;
    Ok((width, values))
}

/// Rows of the images labelled with each of `n_classes` classes, ascending.
pub fn by_label(split: &Split, n_classes: usize) -> Vec<Vec<usize>> {
    let mut classes = vec![Vec::new(); n_classes];
    for (row, &label) in split.label.iter().enumerate() {
        if let Some(class) = usize::try_from(label).ok().and_then(|label| classes.get_mut(label)) {
            class.push(row);
        }
    }
    classes
}

/// The points `rows` out of `points`, [n, width].
pub fn select(points: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|&row| points[row * width..(row + 1) * width].iter().copied()).collect()
}

/// How verdicts stand against roles.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Poisoned images, and suspects among them.
    pub backdoor: (usize, usize),
    /// Clean images, and suspects among them.
    pub clean: (usize, usize),
    /// Covers, and suspects among them.
    pub cover: (usize, usize),
    /// The chance that a poisoned image has a larger score than a clean one, equal scores counted half.
    pub auroc: Option<f64>,
}

impl Scores {
    /// Counts `verdicts` of images with these `roles`.
    ///
    /// # Errors
    /// As many verdicts as roles are expected.
    pub fn count(verdicts: &[Verdict], roles: &[Role]) -> Result<Scores> {
        if verdicts.len() != roles.len() {
            return Err(Error::stage(format!("{} verdicts for {} images", verdicts.len(), roles.len())));
        }
        let of = |role: Role| verdicts.iter().zip(roles).filter(move |(_, other)| **other == role).map(|(v, _)| *v);
        let count = |role: Role| (of(role).count(), of(role).filter(|verdict| verdict.is_suspect).count());
        let scores = |role: Role| of(role).map(|verdict| verdict.score).collect::<Vec<f64>>();
        Ok(Scores {
            backdoor: count(Role::Backdoor),
            clean: count(Role::Clean),
            cover: count(Role::Cover),
            auroc: auroc(&scores(Role::Backdoor), &scores(Role::Clean)),
        })
    }

    /// Share of the poisoned images that are suspects, in %.
    pub fn true_positive_rate(&self) -> Option<f64> {
        percent(self.backdoor.1, self.backdoor.0)
    }

    /// Share of the clean images that are suspects, in %.
    pub fn false_positive_rate(&self) -> Option<f64> {
        percent(self.clean.1, self.clean.0)
    }

    /// Share of the suspects, covers aside, that are poisoned, in %.
    pub fn precision(&self) -> Option<f64> {
        percent(self.backdoor.1, self.backdoor.1 + self.clean.1)
    }

    /// Twice the hits over suspects and poisoned images together, in %.
    pub fn f1(&self) -> Option<f64> {
        percent(2 * self.backdoor.1, self.backdoor.1 + self.clean.1 + self.backdoor.0)
    }

    /// One line for people.
    pub fn headline(&self) -> String {
        let share =
            |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!("{name} {value:.1} %"));
        let parts = [
            share("TPR", self.true_positive_rate()),
            share("FPR", self.false_positive_rate()),
            share("F1", self.f1()),
            self.auroc.map_or(String::new(), |auroc| format!("AUROC {auroc:.3}")),
        ];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// A table with these scores as its only row; `detector` judged images of `part` (`training`, `test`).
    pub fn table(&self, detector: &str, part: &str, about: &About) -> Table {
        let share = |name: &str, definition: &str| Column::new(name, definition).unit("%").digits(2);
        let mut table = Table::new(vec![
            Column::new("detector", "the stage that judged"),
            Column::new("attack", "the attack on the dataset"),
            Column::new("images", "which images were judged"),
            Column::new("n_images", "images judged"),
            Column::new("n_backdoor", "poisoned images among them"),
            Column::new("n_suspects", "images taken for poisoned"),
            share("true_positive_rate", "poisoned images that are suspects"),
            share("false_positive_rate", "clean images that are suspects"),
            share("precision", "suspects that are poisoned; covers are left out"),
            share("f1", "2 hits / (suspects + poisoned images); covers are left out"),
            Column::new("auroc", "chance that a poisoned image scores above a clean one, ties counted half").digits(4),
            Column::new("n_cover", "images with a trigger that keep their label: neither poisoned nor clean here")
                .hidden(),
            Column::new("n_cover_suspects", "suspects among the covers").hidden(),
        ]);
        let (n, n_suspects) = [self.backdoor, self.clean, self.cover]
            .iter()
            .fold((0, 0), |(n, suspects), part| (n + part.0, suspects + part.1));
        table.push(vec![
            detector.into(),
            about.attack.as_ref().map_or("none".to_string(), |attack| attack.title()).into(),
            part.into(),
            n.into(),
            self.backdoor.0.into(),
            n_suspects.into(),
            self.true_positive_rate().into(),
            self.false_positive_rate().into(),
            self.precision().into(),
            self.f1().into(),
            self.auroc.into(),
            self.cover.0.into(),
            self.cover.1.into(),
        ]);
        if let Some(attack) = &about.attack {
            table.notes.push(format!("Poison rate {} of `{}` training images.", attack.rate, attack.of));
        }
        table
            .notes
            .push("The detector saw images and assigned labels; roles are read only to count its verdicts.".into());
        table
    }
}

fn percent(hits: usize, n: usize) -> Option<f64> {
    (n > 0).then(|| 100.0 * hits as f64 / n as f64)
}

/// The area under the curve of hits over false alarms (Mann & Whitney's U over the number of pairs).
fn auroc(positive: &[f64], negative: &[f64]) -> Option<f64> {
    if positive.is_empty() || negative.is_empty() {
        return None;
    }
    let mut all: Vec<(f64, bool)> =
        positive.iter().map(|&score| (score, true)).chain(negative.iter().map(|&score| (score, false))).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut wins, mut below) = (0.0, 0usize);
    for ties in all.chunk_by(|a, b| a.0 == b.0) {
        let n_positive = ties.iter().filter(|(_, is_positive)| *is_positive).count();
        let n_negative = ties.len() - n_positive;
        wins += n_positive as f64 * (below as f64 + 0.5 * n_negative as f64);
        below += n_negative;
    }
    Some(wins / (positive.len() as f64 * negative.len() as f64))
}

/// A row for each image that was judged: `rows` of `split`, which is called `images` (`training`, `test`, `triggered`).
pub fn samples(split: &Split, images: &str, rows: &[usize], verdicts: &[Verdict], score: &str) -> Table {
    let mut table = Table::new(vec![
        Column::new("images", "which images were judged: training, test or triggered test images"),
        Column::new("row", "position among them"),
        Column::new("index", "position in the dataset as it was loaded"),
        Column::new("label", "the label that training sees"),
        Column::new("score", score).digits(4),
        Column::new("is_suspect", "whether it is taken for poisoned"),
        Column::new("role", "what it is; the detector did not see it"),
    ]);
    for (&row, verdict) in rows.iter().zip(verdicts) {
        table.push(vec![
            images.into(),
            row.into(),
            split.index[row].into(),
            split.label[row].into(),
            Cell::from(verdict.score),
            verdict.is_suspect.into(),
            split.role[row].name().into(),
        ]);
    }
    table
}

#[cfg(test)]
#[allow(missing_docs)]
pub mod tests {
    use super::*;
    use crate::artifact::{CleanSplit, Packed};
    use crate::stages::poison::selection::tests::dataset;
    use crate::stages::poison::surrogate::tests::surrogate;

    /// A small dataset of 3 classes with some poisoned images and covers; a model, untrained; and a clean split.
    pub fn small() -> (Model, Packed, CleanSplit) {
        let mut made = dataset(60, 12, 3, (8, 8));
        let clean = CleanSplit::of(&made, &(0..9).collect::<Vec<_>>());
        for row in (0..60).step_by(5) {
            made.train.role[row] = if row % 2 == 0 { Role::Backdoor } else { Role::Cover };
            made.train.label[row] = 0;
        }
        let mut triggered = made.test.clone();
        triggered.role = vec![Role::Backdoor; 12];
        triggered.label = vec![0; 12];
        let packed = Packed { about: made.about, train: made.train, test: made.test, triggered: Some(triggered) };
        (surrogate((8, 8), 3), packed, clean)
    }

    /// The same with other roles and true labels.
    pub fn shuffled(mut packed: Packed) -> Packed {
        packed.train.role.rotate_left(1);
        packed.train.true_label.rotate_left(1);
        packed
    }

    /// What a detector said, without what was counted: the columns of its samples up to `is_suspect`.
    pub fn verdicts(samples: &Table) -> Vec<Vec<Cell>> {
        samples.rows.iter().map(|row| row[..6].to_vec()).collect()
    }

    fn verdict(score: f64, is_suspect: bool) -> Verdict {
        Verdict { score, is_suspect }
    }

    /// 3 of 4 poisoned and 2 of 8 clean images are suspects: precision 3/5, F1 6/9.
    #[test]
    fn counts_by_hand() {
        let mut verdicts = vec![verdict(5.0, true), verdict(4.0, true), verdict(3.0, true), verdict(0.0, false)];
        verdicts.extend([verdict(4.5, true), verdict(3.0, true)]);
        verdicts.extend([verdict(1.0, false); 6]);
        verdicts.extend([verdict(9.0, true), verdict(0.0, false)]);
        let roles = [vec![Role::Backdoor; 4], vec![Role::Clean; 8], vec![Role::Cover; 2]].concat();
        let scores = Scores::count(&verdicts, &roles).unwrap();
        assert_eq!((scores.backdoor, scores.clean, scores.cover), ((4, 3), (8, 2), (2, 1)));
        assert_eq!((scores.true_positive_rate(), scores.false_positive_rate()), (Some(75.0), Some(25.0)));
        assert_eq!((scores.precision(), scores.f1()), (Some(60.0), Some(100.0 * 6.0 / 9.0)));
        // Of 32 pairs: 5.0 wins 8, 4.0 wins 7, 3.0 wins 6 and ties 1, 0.0 wins none.
        assert_eq!(scores.auroc, Some(21.5 / 32.0));
        let table = scores.table("evaluate/test", "training", &About::default());
        let number = |name: &str| table.rows[0][table.column(name).unwrap()].number();
        assert_eq!((number("n_images"), number("n_suspects"), number("f1")), (Some(14.0), Some(6.0), scores.f1()));
        assert!(Scores::count(&verdicts, &roles[1..]).is_err());
    }

    #[test]
    fn areas_by_hand() {
        assert_eq!(auroc(&[2.0, 3.0], &[0.0, 1.0]), Some(1.0));
        assert_eq!(auroc(&[0.0], &[1.0, 2.0]), Some(0.0));
        assert_eq!(auroc(&[1.0, 1.0], &[1.0, 1.0, 1.0]), Some(0.5));
        assert_eq!(auroc(&[1.0], &[]), None);
    }

    #[test]
    fn nothing_to_count() {
        let scores = Scores::count(&[verdict(1.0, false)], &[Role::Clean]).unwrap();
        assert_eq!((scores.true_positive_rate(), scores.precision(), scores.f1()), (None, None, None));
        assert_eq!(scores.headline(), "FPR 0.0 %");
    }

    #[test]
    fn roles_are_hidden() {
        let packed = small().1;
        let seen = blinded(&packed.train);
        assert!(seen.role.iter().all(|&role| role == Role::Clean) && seen.true_label == packed.train.label);
        assert_eq!(by_label(&seen, 3).iter().map(Vec::len).sum::<usize>(), 60);
        assert_eq!(by_label(&seen, 3)[0].len(), 20 + 8, "rows 5, 10, 20, 25, ... moved to class 0");
    }
}
