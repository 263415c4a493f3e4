//! Ours beside what papers print: one row for each published number, with both sides' conditions and definitions below.
//!
//! Says where the numbers stand and how they differ. Whether a difference matters is for the reader to judge.

use super::published::{CLEAN_ACCURACY, Counts, Found, METRICS, NO_DEFENCE, Published, SECONDS, Setup, Source};
use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::stages::evaluate::over_seeds::Mean;
use serde_json::Value;

/// A model of ours, measured with every seed.
#[derive(Clone, Debug)]
pub struct Ours {
    /// The attack, as its stage is called; [`BENIGN`](super::published::BENIGN) for none.
    pub attack: String,
    /// The defence, as its stage is called; [`NO_DEFENCE`] for none.
    pub defence: String,
    /// The stage that made it.
    pub model: String,
    /// The point of the matrix, without the key that is averaged over.
    pub point: Vec<(String, Value)>,
    /// The setting.
    pub setup: Setup,
    /// Values of each of [`METRICS`], one a seed.
    pub values: [Vec<f64>; METRICS.len()],
}

/// What else is said of our side.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The key of the matrix that was averaged over.
    pub over: String,
    /// Definitions of the columns that were read, by name.
    pub definitions: Vec<(String, String)>,
    /// Notes that stand under every table of scores.
    pub notes: Vec<String>,
    /// What the models were made on.
    pub machines: Vec<String>,
}

/// Ours beside what `published` has.
pub fn table(ours: &[Ours], published: &Published, context: &Context) -> Table {
    let keys = keys(ours);
    let mut table = Table::new(columns(ours, &keys, context));
    let mut told: Vec<Told> = Vec::new();
    for one in ours {
        let mut is_alone = true;
        for (tag, source) in &published.sources {
            let Some(found) = published.find(tag, &one.setup, &one.attack, &one.defence) else { continue };
            table.push(row(one, &keys, Some((tag, &found))));
            let differences = differences(&one.setup, &found, source, &one.defence);
            told.push(Told { tag, source, found, attack: &one.attack, defence: &one.defence, differences });
            is_alone = false;
        }
        if is_alone {
            table.push(row(one, &keys, None));
        }
    }
    for (attack, defence) in missing(ours) {
        let Some(like) = ours.iter().find(|one| one.attack == attack) else { continue };
        for (tag, source) in &published.sources {
            let found = published.find(tag, &like.setup, attack, defence);
            // A time that holds for every attack is nothing to miss here.
            let Some(found) = found.filter(|found| found.values[CLEAN_ACCURACY].is_some()) else { continue };
            let absent = Ours {
                attack: attack.to_string(),
                defence: defence.to_string(),
                model: String::new(),
                point: Vec::new(),
                setup: like.setup.clone(),
                values: Default::default(),
            };
            table.push(row(&absent, &keys, Some((tag, &found))));
            // What was not run does not differ.
            told.push(Told { tag, source, found, attack, defence, differences: Vec::new() });
        }
    }
    table.notes = notes(ours, &told, published, context);
    table
}

/// The keys of the matrix that say more than attack and defence do.
fn keys(ours: &[Ours]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for one in ours {
        for (key, value) in &one.point {
            let is_said = value.as_str().is_some_and(|text| text == one.attack || text == one.defence);
            if !is_said && !keys.contains(key) {
                keys.push(key.clone());
            }
        }
    }
    keys
}

/// Pairs of an attack and a defence that ours has, but not together.
fn missing(ours: &[Ours]) -> Vec<(&str, &str)> {
    let attacks = distinct(ours.iter().map(|one| one.attack.as_str()));
    let defences = distinct(ours.iter().map(|one| one.defence.as_str()));
    let pairs = attacks.iter().flat_map(|attack| defences.iter().map(move |defence| (*attack, *defence)));
    pairs.filter(|pair| !ours.iter().any(|one| (one.attack.as_str(), one.defence.as_str()) == *pair)).collect()
}

fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for one in all {
        if !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

fn columns(ours: &[Ours], keys: &[String], context: &Context) -> Vec<Column> {
    let mut columns: Vec<Column> = keys.iter().map(|key| Column::new(key, "value of this key of the matrix")).collect();
    columns.push(Column::new("attack", "the attack on the model; benign for none"));
    columns.push(Column::new("defence", "the defence that made the model; none for a model as it was trained"));
    let model = Column::new("model", "the stage that made our model");
    let shown = |one: &'_ Ours| (one.point.clone(), one.attack.clone(), one.defence.clone());
    let is_needed = distinct(ours.iter().map(shown)).len() < ours.len();
    columns.push(if is_needed { model } else { model.hidden() });
    columns.push(Column::new("source", "where the published number stands; none if there is none"));
    let any_interval = ours.iter().any(|one| one.values[CLEAN_ACCURACY].len() > 1);
    for (name, unit, digits) in METRICS {
        let of_ours = context.definitions.iter().find(|(column, _)| column == name);
        let definition = of_ours.map_or("", |(_, definition)| definition);
        let column = |suffix: &str, definition: &str| {
            Column::new(&format!("{name}{suffix}"), definition).unit(unit).digits(digits)
        };
        columns.push(column("", &format!("ours, mean over `{}`: {definition}", context.over)));
        let half = column("_half", "half of the 95 % interval of our mean");
        columns.push(if any_interval { half } else { half.hidden() });
        columns.push(column("_published", "as printed by the source"));
        columns.push(column("_difference", "ours minus published").hidden());
    }
    columns.push(Column::new("n", &format!("ours: values of `{}`", context.over)));
    columns
}

fn row(ours: &Ours, keys: &[String], published: Option<(&String, &Found)>) -> Vec<Cell> {
    let of_key =
        |key: &String| ours.point.iter().find(|(k, _)| k == key).map_or(Cell::None, |(_, v)| super::table::cell(v));
    let mut row: Vec<Cell> = keys.iter().map(of_key).collect();
    let text = |text: &str| if text.is_empty() { Cell::None } else { text.into() };
    row.extend([&ours.attack, &ours.defence, &ours.model].map(|name| text(name)));
    row.push(published.map(|(tag, _)| tag.as_str()).into());
    for (metric, values) in ours.values.iter().enumerate() {
        let Mean { mean, half } = Mean::of(values);
        let printed = published.and_then(|(_, found)| found.values[metric]);
        row.extend([mean.into(), half.into(), printed.into(), printed.map(|printed| mean - printed).into()]);
    }
    let n = ours.values.iter().map(Vec::len).max().unwrap_or(0);
    row.push((n > 0).then_some(n).into());
    row
}

/// A number that stands in the table, and where it is from.
struct Told<'a> {
    tag: &'a str,
    source: &'a Source,
    found: Found<'a>,
    attack: &'a str,
    defence: &'a str,
    differences: Vec<String>,
}

impl Told<'_> {
    fn pair(&self) -> (&str, &str) {
        (self.attack, self.defence)
    }
}

/// Where our setting and definitions differ from theirs, as far as theirs are known.
fn differences(ours: &Setup, found: &Found, source: &Source, defence: &str) -> Vec<String> {
    // Times alone come without a setting of their own.
    if found.values[CLEAN_ACCURACY].is_none() {
        return Vec::new();
    }
    let mut all = between(ours, &found.block.setup(Some(source), defence));
    if source.counts == Counts::All {
        all.push("triggered images of other classes than the wanted one, not all".into());
    }
    all
}

fn between(ours: &Setup, theirs: &Setup) -> Vec<String> {
    let mut all: Vec<String> =
        ours.part.iter().map(|part| format!("{} of {}, not all of it", part, ours.dataset)).collect();
    if let (Some(ours), Some(theirs)) = (&ours.model, &theirs.model)
        && ours != theirs
    {
        all.push(format!("{ours}, not {theirs}"));
    }
    let mut of = |what: &str, unit: &str, scale: f64, ours: Option<f64>, theirs: Option<f64>| {
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && (ours - theirs).abs() > 1e-9
        {
            all.push(format!("{what} {}{unit}, not {}{unit}", short(ours * scale), short(theirs * scale)));
        }
    };
    let count = |n: Option<u64>| n.map(|n| n as f64);
    of("poison rate", " %", 100.0, ours.rate, theirs.rate);
    of("epochs of training", "", 1.0, count(ours.epochs), count(theirs.epochs));
    of("clean images for defences", " %", 100.0, ours.clean, theirs.clean);
    of("epochs of the defence", "", 1.0, count(ours.defence_epochs), count(theirs.defence_epochs));
    all
}

/// A number without noise of its last digits.
fn short(value: f64) -> String {
    let rounded = (value * 1e4).round() / 1e4;
    rounded.to_string()
}

/// A setting in words.
fn described(setup: &Setup) -> String {
    let part = setup.part.as_ref().map_or(String::new(), |part| format!(" ({part})"));
    let mut parts = vec![format!("{}{part}", setup.dataset)];
    parts.extend(setup.model.clone());
    parts.extend(setup.rate.map(|rate| format!("poison rate {} %", short(rate * 100.0))));
    parts.extend(setup.epochs.map(|epochs| format!("trained for {}", super::count(epochs as usize, "epoch"))));
    parts.extend(setup.clean.map(|share| format!("{} % clean images for defences", short(share * 100.0))));
    parts.join(", ")
}

fn notes(ours: &[Ours], told: &[Told], published: &Published, context: &Context) -> Vec<String> {
    let mut notes = vec![
        "a row is one of our models beside one published number; numbers stand as printed, a difference is ours minus \
         published, and nothing is claimed beyond it"
            .to_string(),
        format!(
            "ours: means over `{}`, with half of a 95 % interval by Student's t where there are several",
            context.over
        ),
    ];
    // Our conditions: the defence's own epochs are told where they differ.
    let general = |one: &Ours| described(&Setup { defence_epochs: None, ..one.setup.clone() });
    let settings = distinct(ours.iter().map(general));
    for setting in &settings {
        let those =
            ours.iter().filter(|one| general(one) == *setting).map(|one| (one.attack.as_str(), one.defence.as_str()));
        let all = ours.iter().map(|one| (one.attack.as_str(), one.defence.as_str()));
        notes.push(format!("ours: {setting}{}", whose(those, all)));
    }
    notes.extend(context.notes.iter().map(|note| format!("ours: {note}")));
    let defined = context.definitions.iter().filter(|(_, definition)| !definition.is_empty());
    notes.extend(defined.map(|(column, definition)| format!("ours: {column}: {definition}")));
    if !context.machines.is_empty() {
        notes.push(format!("ours: seconds on {}", context.machines.join("; ")));
    }
    for tag in distinct(told.iter().map(|one| one.tag)) {
        let of_tag: Vec<&Told> = told.iter().filter(|one| one.tag == tag).collect();
        notes.extend(notes_of(tag, &of_tag, published, ours));
    }
    notes
}

/// What is said of one source: which it is, its settings and definitions, and where it differs.
fn notes_of(tag: &str, told: &[&Told], published: &Published, ours: &[Ours]) -> Vec<String> {
    let Some(source) = told.first().map(|one| one.source) else { return Vec::new() };
    let mut notes = vec![format!("{tag}: {}; {}", source.paper, source.place)];
    let mut say = |text: String| notes.push(format!("{tag}: {text}"));
    let blocks = distinct(told.iter().map(|one| one.found.block.table.as_str()));
    for table in blocks {
        if let Some(block) = told.iter().map(|one| one.found.block).find(|block| block.table == table) {
            let those = told.iter().filter(|one| one.found.block.table == table).map(|one| one.pair());
            let whose = whose(those, told.iter().map(|one| one.pair()));
            say(format!("{table}: {}{whose}", described(&block.setup(None, NO_DEFENCE))));
        }
    }
    say(format!("attack_success: {}", source.attack_success));
    if let Some(robust) = &source.robust_accuracy {
        say(format!("robust_accuracy: {robust}"));
    }
    match &source.der {
        Some(der) => say(format!("der: {der}")),
        None if told.iter().any(|one| one.found.is_der_computed) => {
            say("der is not printed: computed by our definition from the accuracies that are".into());
        }
        None => {}
    }
    if let Some(seconds) =
        source.seconds.as_ref().filter(|_| told.iter().any(|one| one.found.values[SECONDS].is_some()))
    {
        say(format!("seconds: {seconds}"));
    }
    source.notes.iter().for_each(|note| say(note.clone()));
    for difference in distinct(told.iter().flat_map(|one| &one.differences)) {
        let those = told.iter().filter(|one| one.differences.contains(difference)).map(|one| one.pair());
        say(format!("differs: here {difference}{}", whose(those, told.iter().map(|one| one.pair()))));
    }
    let has = |attack: &str| ours.iter().any(|one| one.attack == attack);
    let defended = |defence: &str| ours.iter().any(|one| one.defence == defence);
    let rows = told.iter().flat_map(|one| one.found.block.cells.iter()).filter(|(attack, _)| has(attack));
    let mut others = distinct(rows.flat_map(|(_, row)| row.keys().map(String::as_str)));
    others.retain(|defence| !defended(defence));
    if !others.is_empty() && published.sources.contains_key(tag) {
        say(format!("has numbers for these attacks that are not run here: {}", others.join(", ")));
    }
    notes
}

/// Which of `all` pairs of attack and defence `those` are, in words; nothing if they are all.
fn whose<'a>(those: impl Iterator<Item = (&'a str, &'a str)>, all: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let (those, all): (Vec<_>, Vec<_>) = (those.collect(), all.collect());
    let part = |of: fn(&(&'a str, &'a str)) -> &'a str| {
        let names = distinct(those.iter().map(of));
        (names.len() < distinct(all.iter().map(of)).len()).then(|| names.join(", "))
    };
    let parts: Vec<String> = [part(|pair| pair.0), part(|pair| pair.1)].into_iter().flatten().collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ours(attack: &str, defence: &str, seeds: &[[f64; 5]]) -> Ours {
        let of = |metric: usize| seeds.iter().map(|values| values[metric]).collect();
        let setup = Setup {
            dataset: "cifar10".into(),
            part: Some("the embedded part".into()),
            model: Some("resnet8".into()),
            rate: Some(if attack == "sig" { 0.05 } else { 0.1 }),
            epochs: Some(100),
            clean: Some(0.05),
            defence_epochs: (defence == "fine_tune").then_some(20),
        };
        Ours {
            attack: attack.into(),
            defence: defence.into(),
            model: defence.into(),
            point: vec![("attack".into(), json!(attack))],
            setup,
            values: std::array::from_fn(of),
        }
    }

    fn context() -> Context {
        Context {
            over: "seed".into(),
            definitions: vec![("attack_success".into(), "share".into())],
            notes: vec!["cifar10: 10 images".into()],
            machines: vec!["cpu, 2 threads".into()],
        }
    }

    fn value(table: &Table, row: usize, column: &str) -> Option<f64> {
        table.rows[row][table.column(column).unwrap()].number()
    }

    #[test]
    fn ours_stands_beside_every_source() {
        let all = [
            ours("badnet", "fine_tune", &[[90.0, 2.0, 88.0, 95.0, 10.0], [92.0, 4.0, 88.0, 97.0, 12.0]]),
            ours("adaptive_blend", "fine_tune", &[[90.0, 2.0, 88.0, 95.0, 10.0]]),
            ours("sig", "fip", &[[1.0, 2.0, 3.0, 4.0, 5.0]]),
        ];
        let table = table(&all, &Published::load().unwrap(), &context());
        let column = |name: &str| {
            let at = table.column(name).unwrap();
            table.rows.iter().map(|row| row[at].text().unwrap_or("-").to_string()).collect::<Vec<_>>()
        };
        // Ours; then what is published of an attack and a defence that we have, but not together.
        assert_eq!(column("attack").join(" "), "badnet badnet adaptive_blend sig badnet sig sig", "{}", table.to_csv());
        assert_eq!(column("source").join(" "), "backdoorbench ft-sam - fip fip backdoorbench ft-sam");
        assert_eq!(column("model").join(" "), "fine_tune fine_tune fine_tune fip - - -");
        // The key `attack` says what the column does.
        assert_eq!(table.columns[0].name, "attack");

        assert_eq!(value(&table, 0, "clean_accuracy"), Some(91.0));
        assert!((value(&table, 0, "clean_accuracy_half").unwrap() - 12.7062).abs() < 1e-3);
        assert_eq!(value(&table, 0, "clean_accuracy_published"), Some(89.96));
        assert!((value(&table, 0, "clean_accuracy_difference").unwrap() - 1.04).abs() < 1e-9);
        assert_eq!((value(&table, 0, "n"), value(&table, 2, "n")), (Some(2.0), Some(1.0)));
        assert_eq!(value(&table, 1, "der_published"), Some(95.28));
        // One seed has no interval, one side has no number.
        assert_eq!(value(&table, 2, "clean_accuracy_half"), None);
        assert_eq!(value(&table, 2, "clean_accuracy_published"), None);
        assert_eq!((value(&table, 3, "seconds"), value(&table, 3, "seconds_published")), (Some(5.0), Some(20.8)));
        assert_eq!(
            (value(&table, 4, "clean_accuracy"), value(&table, 4, "clean_accuracy_published")),
            (None, Some(89.32))
        );
        assert_eq!(value(&table, 4, "n"), None);
    }

    #[test]
    fn conditions_and_differences_are_told() {
        let all = [
            ours("badnet", "fine_tune", &[[90.0, 2.0, 88.0, 95.0, 10.0]]),
            ours("badnet", "none", &[[90.0, 2.0, 88.0, 50.0, 10.0]]),
            ours("sig", "none", &[[90.0, 2.0, 88.0, 50.0, 10.0]]),
        ];
        let notes = table(&all, &Published::load().unwrap(), &context()).notes;
        let check = |expected: &str| {
            assert!(notes.iter().any(|note| note.contains(expected)), "no `{expected}` in\n{}", notes.join("\n"));
        };
        check("ours: cifar10 (the embedded part), resnet8, poison rate 10 %, trained for 100 epochs, 5 % clean images");
        check("poison rate 5 %, trained for 100 epochs, 5 % clean images for defences (sig; none)");
        check("ours: attack_success: share");
        check("ours: seconds on cpu, 2 threads");
        check("backdoorbench: Wu et al.");
        check("backdoorbench: differs: here resnet8, not preact-resnet18");
        check("backdoorbench: differs: here the embedded part of cifar10, not all of it");
        check("backdoorbench: differs: here epochs of the defence 20, not 100 (badnet; fine_tune)");
        check("ft-sam: differs: here poison rate 5 %, not 10 % (sig; none)");
        check("backdoorbench: der is not printed");
        check("has numbers for these attacks that are not run here: abl,");
        // BackdoorBench has SIG at our rate.
        assert!(!notes.iter().any(|note| note.starts_with("backdoorbench: differs: here poison rate")));
    }

    #[test]
    fn models_of_one_defence_are_told_apart() {
        let mut all = [ours("badnet", "fip", &[[1.0; 5]]), ours("badnet", "fip", &[[2.0; 5]])];
        let hidden = |all: &[Ours]| {
            let table = table(all, &Published::load().unwrap(), &context());
            table.columns[table.column("model").unwrap()].hidden
        };
        assert!(!hidden(&all));
        all[1].point.push(("epochs".into(), json!(5)));
        assert!(hidden(&all));
        let table = table(&all, &Published::load().unwrap(), &context());
        assert_eq!(table.columns[0].name, "epochs");
    }
}
