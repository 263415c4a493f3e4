//! What every epoch of a training showed, as a table.

use super::state::{Reader, Writer};
use crate::artifact::Table;
use crate::artifact::dataset::Role;
use crate::artifact::table::{Cell, Column};

/// A sum of losses over some samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    loss: f64,
    n: u64,
}

impl Sum {
    fn add(&mut self, loss: f32) {
        self.loss += f64::from(loss);
        self.n += 1;
    }

    /// The mean, if there was any sample.
    fn mean(self) -> Option<f64> {
        (self.n > 0).then(|| self.loss / self.n as f64)
    }
}

/// Sums over the samples of an epoch, in the order in which they were trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    all: Sum,
    n_correct: u64,
    roles: [Sum; 3],
    classes: Vec<Sum>,
}

impl Tally {
    /// No sample yet.
    pub fn new(n_classes: usize) -> Tally {
        Tally {
            all: Sum::default(),
            n_correct: 0,
            roles: [Sum::default(); 3],
            classes: vec![Sum::default(); n_classes],
        }
    }

    /// Counts a sample.
    pub fn add(&mut self, loss: f32, label: i64, role: Role, predicted: i64) {
        self.all.add(loss);
        self.n_correct += u64::from(predicted == label);
        self.roles[role as usize].add(loss);
        if let Some(class) = self.classes.get_mut(label as usize) {
            class.add(loss);
        }
    }

    /// Mean loss so far, in nats.
    pub fn loss(&self) -> f64 {
        self.all.mean().unwrap_or(0.0)
    }

    /// Share of samples whose assigned label was predicted so far, in %.
    pub fn accuracy(&self) -> f64 {
        if self.all.n == 0 { 0.0 } else { 100.0 * self.n_correct as f64 / self.all.n as f64 }
    }

    /// The row of the epoch `epoch` (from 1) that ended at the learning rate `rate`.
    pub fn row(&self, epoch: usize, rate: f64) -> Row {
        Row {
            epoch,
            learning_rate: rate,
            loss: self.loss(),
            accuracy: self.accuracy(),
            loss_by_role: self.roles.map(Sum::mean),
            loss_by_class: self.classes.iter().map(|class| class.mean()).collect(),
            ..Row::default()
        }
    }

    pub(super) fn save(&self, out: &mut Writer) {
        out.count(self.n_correct);
        for sum in std::iter::once(&self.all).chain(&self.roles).chain(&self.classes) {
            out.number(sum.loss);
            out.count(sum.n);
        }
    }

    pub(super) fn restore(from: &mut Reader, n_classes: usize) -> Option<Tally> {
        let mut tally = Tally::new(n_classes);
        tally.n_correct = from.count()?;
        let Tally { all, roles, classes, .. } = &mut tally;
        for sum in std::iter::once(all).chain(roles).chain(classes) {
            *sum = Sum { loss: from.number()?, n: from.count()? };
        }
        Some(tally)
    }
}

/// One epoch. Shares in %, losses in nats; `None` where nothing was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// From 1.
    pub epoch: usize,
    /// At the last step.
    pub learning_rate: f64,
    /// Mean over the training samples, while training.
    pub loss: f64,
    /// Training samples whose assigned label was predicted, while training.
    pub accuracy: f64,
    /// Mean loss of clean, backdoor and cover samples.
    pub loss_by_role: [Option<f64>; 3],
    /// Mean loss by assigned class.
    pub loss_by_class: Vec<Option<f64>>,
    /// On the clean test images.
    pub clean_accuracy: Option<f64>,
    /// On triggered test images that are not of the wanted class.
    pub attack_success: Option<f64>,
    /// On all triggered test images.
    pub attack_success_all: Option<f64>,
    /// On the clean test images, under one draw of the in-network noise.
    pub clean_accuracy_noise: Option<f64>,
    /// As `attack_success`, under one draw of the in-network noise.
    pub attack_success_noise: Option<f64>,
    /// On the validation split.
    pub validation_loss: Option<f64>,
    /// On the validation split.
    pub validation_accuracy: Option<f64>,
}

impl Row {
    /// What was measured, by the names of the table's columns; all of them but `epoch`.
    pub fn values(&self) -> Vec<(String, f64)> {
        let named = |name: &str, value: Option<f64>| value.map(|value| (name.to_string(), value));
        let roles = ["loss_clean", "loss_backdoor", "loss_cover"].iter().zip(self.loss_by_role);
        let classes = self.loss_by_class.iter().enumerate();
        [
            named("learning_rate", Some(self.learning_rate)),
            named("loss", Some(self.loss)),
            named("accuracy", Some(self.accuracy)),
            named("clean_accuracy", self.clean_accuracy),
            named("attack_success", self.attack_success),
            named("attack_success_all", self.attack_success_all),
            named("validation_loss", self.validation_loss),
            named("validation_accuracy", self.validation_accuracy),
        ]
        .into_iter()
        .chain(roles.map(|(name, value)| named(name, value)))
        .chain(classes.map(|(class, value)| named(&format!("loss_class_{class}"), *value)))
        .flatten()
        .collect()
    }

    fn save(&self, out: &mut Writer) {
        // NaN stands for nothing measured: a training whose loss is NaN ends with an error, not with a row.
        let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let mut values = vec![self.epoch as f64, self.learning_rate, self.loss, self.accuracy];
        values.extend(self.loss_by_role.map(number));
        values.extend([self.clean_accuracy, self.attack_success, self.attack_success_all].map(number));
        values.extend([self.clean_accuracy_noise, self.attack_success_noise].map(number));
        values.extend([self.validation_loss, self.validation_accuracy].map(number));
        values.extend(self.loss_by_class.iter().copied().map(number));
        out.numbers(&values);
    }

    fn restore(from: &mut Reader) -> Option<Row> {
        let values = from.numbers()?;
        let ([epoch, learning_rate, loss, accuracy, rest @ ..], classes) = values.split_first_chunk::<14>()?;
        let rest = rest.map(|value| (!value.is_nan()).then_some(value));
        let [clean, backdoor, cover, tested @ .., val_loss, val_accuracy] = rest;
        let [clean_accuracy, success, success_all, clean_accuracy_noise, attack_success_noise] = tested;
        Some(Row {
            epoch: *epoch as usize,
            learning_rate: *learning_rate,
            loss: *loss,
            accuracy: *accuracy,
            loss_by_role: [clean, backdoor, cover],
            loss_by_class: classes.iter().map(|&value| (!value.is_nan()).then_some(value)).collect(),
            clean_accuracy,
            attack_success: success,
            attack_success_all: success_all,
            clean_accuracy_noise,
            attack_success_noise,
            validation_loss: val_loss,
            validation_accuracy: val_accuracy,
        })
    }
}

/// The epochs of a training.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// In order.
    pub rows: Vec<Row>,
}

impl History {
    pub(super) fn save(&self, out: &mut Writer) {
        out.count(self.rows.len() as u64);
        self.rows.iter().for_each(|row| row.save(out));
    }

    pub(super) fn restore(from: &mut Reader) -> Option<History> {
        let n = from.count()?;
        Some(History { rows: (0..n).map(|_| Row::restore(from)).collect::<Option<_>>()? })
    }

    /// The table, with the names of the classes in its definitions.
    pub fn table(&self, classes: &[String]) -> Table {
        let loss = |name: &str, of: &str| {
            let definition = format!("mean training loss of {of}, measured on the augmented images before each step");
            Column::new(name, &definition).unit("nats").digits(4)
        };
        let share = |name: &str, definition: &str| Column::new(name, definition).unit("%").digits(2);
        let mut columns = vec![
            Column::new("epoch", "passes over the training data, from 1"),
            Column::new("learning_rate", "at the last step of the epoch").digits(6),
            loss("loss", "all training samples"),
            share("accuracy", "training samples whose assigned label was predicted, measured as the loss"),
        ];
        for (role, what) in [
            ("loss_clean", "samples with an untouched image and label"),
            ("loss_backdoor", "samples that teach the backdoor"),
            ("loss_cover", "samples that carry a trigger and keep their label"),
        ] {
            columns.push(loss(role, what));
        }
        for (k, class) in classes.iter().enumerate() {
            columns.push(loss(&format!("loss_class_{k}"), &format!("samples labelled {class}")).hidden());
        }
        columns.extend([
            share(
                "clean_accuracy",
                "clean test images classified as their class; for monitoring, nothing is chosen by it",
            ),
            share(
                "attack_success",
                "triggered test images classified as the attacker wants, those left out whose class is the wanted one",
            ),
            share("attack_success_all", "triggered test images classified as the attacker wants, all counted").hidden(),
            share("clean_accuracy_noise", "clean_accuracy under one draw of the in-network noise").hidden(),
            share("attack_success_noise", "attack_success under one draw of the in-network noise").hidden(),
            Column::new("validation_loss", "mean loss of the validation split of the training data")
                .unit("nats")
                .digits(4)
                .hidden(),
            share("validation_accuracy", "validation samples whose assigned label was predicted").hidden(),
        ]);
        let mut table = Table::new(columns);
        for row in &self.rows {
            let mut cells: Vec<Cell> =
                vec![row.epoch.into(), row.learning_rate.into(), row.loss.into(), row.accuracy.into()];
            cells.extend(row.loss_by_role.map(Cell::from));
            cells.extend((0..classes.len()).map(|k| Cell::from(row.loss_by_class.get(k).copied().flatten())));
            cells.extend([row.clean_accuracy, row.attack_success, row.attack_success_all].map(Cell::from));
            cells.extend([row.clean_accuracy_noise, row.attack_success_noise].map(Cell::from));
            cells.extend([row.validation_loss, row.validation_accuracy].map(Cell::from));
            table.push(cells);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_the_samples_counted() {
        let mut tally = Tally::new(3);
        tally.add(1.0, 0, Role::Clean, 0);
        tally.add(2.0, 0, Role::Backdoor, 1);
        tally.add(6.0, 2, Role::Clean, 2);
        let row = tally.row(4, 0.1);
        assert_eq!((row.loss, row.accuracy), (3.0, 100.0 * 2.0 / 3.0));
        assert_eq!(row.loss_by_role, [Some(3.5), Some(2.0), None]);
        assert_eq!(row.loss_by_class, [Some(1.5), None, Some(6.0)]);
    }

    #[test]
    fn a_checkpoint_keeps_every_bit() {
        let mut tally = Tally::new(2);
        tally.add(0.1, 1, Role::Cover, 0);
        let history = History {
            rows: vec![tally.row(1, 0.1 + 0.2), Row { attack_success: Some(1.0 / 3.0), ..tally.row(2, 1e-300) }],
        };
        let mut writer = Writer::default();
        tally.save(&mut writer);
        history.save(&mut writer);
        let bytes = writer.finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(Tally::restore(&mut reader, 2), Some(tally));
        assert_eq!(History::restore(&mut reader), Some(history));
        assert!(reader.is_empty());
    }

    #[test]
    fn a_row_names_its_values_as_the_table_does() {
        let mut tally = Tally::new(2);
        tally.add(1.5, 1, Role::Backdoor, 1);
        let row = Row { clean_accuracy: Some(90.0), validation_loss: Some(0.5), ..tally.row(7, 0.1) };
        let table = History { rows: vec![row.clone()] }.table(&["cat".into(), "dog".into()]);
        let mut of_table: Vec<(String, f64)> = table
            .columns
            .iter()
            .zip(&table.rows[0])
            .filter_map(|(column, cell)| Some((column.name.clone(), cell.number()?)))
            .filter(|(name, _)| name != "epoch")
            .collect();
        let mut of_row = row.values();
        of_table.sort_by(|a, b| a.0.cmp(&b.0));
        of_row.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(of_row, of_table);
    }

    #[test]
    fn the_table_has_a_column_for_every_class() {
        let table = History { rows: vec![Tally::new(2).row(1, 0.1)] }.table(&["cat".into(), "dog".into()]);
        assert!(table.column("loss_class_1").is_ok() && table.column("loss_class_2").is_err());
        assert_eq!(table.rows[0].len(), table.columns.len());
    }
}
