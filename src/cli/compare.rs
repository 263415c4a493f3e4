//! `runner compare`: scores of a pipeline beside numbers from elsewhere.

use super::args::{Against, CompareArgs, Global};
use super::{project, show};
use crate::artifact::{Open, Table};
use crate::error::{Error, Result, ResultExt};
use crate::exec::resolve::{self, Outlook};
use crate::plan::{Node, Plan};
use crate::report;
use crate::report::compare::{self, Context, Ours};
use crate::report::published::{BENIGN, METRICS, NO_DEFENCE, Published, SECONDS, Setup};
use crate::report::style::Style;
use crate::report::table::{self, Format};
use crate::stage::Stage;
use crate::stages::evaluate::backdoor::Backdoor;
use crate::stages::evaluate::over_seeds::OverSeeds;
use crate::stages::pack::cleanse::Cleanse;
use crate::store::Store;
use serde_json::Value;

/// Prints the scores of a pipeline beside those of papers.
///
/// # Errors
/// A bad pipeline, a stage that scores nothing, scores that have not been computed.
pub fn compare(global: &Global, args: &CompareArgs) -> Result<u8> {
    let (loaded, store) = project::load_and_look(global, &args.pipeline)?;
    let plan = &*loaded.plan;
    let outlook = Outlook::of(plan, &store)?;
    let chosen = Chosen::of(plan, args.stage.as_deref())?;
    let (ours, context) = read(plan, &chosen, &outlook, &store)?;
    let table = match args.against {
        Against::Published => compare::table(&ours, &Published::load()?, &context),
    };
    let format = if global.json { Format::Json } else { args.format };
    report::data(&table::render(&table, format, &show::look(Style::for_stdout(global.color), args.all))?);
    Ok(0)
}

/// The nodes whose tables are read, and the key of the matrix that they are averaged over.
struct Chosen {
    scores: Vec<usize>,
    over: String,
}

impl Chosen {
    fn of(plan: &Plan, asked: Option<&str>) -> Result<Chosen> {
        let is = |id: usize, stage: &str| plan.nodes[id].entry.name == stage;
        let all: Vec<usize> = (0..plan.nodes.len()).collect();
        let named: Vec<usize> = match asked {
            None => all.clone(),
            Some(name) => all.iter().copied().filter(|&id| resolve::is_called(&plan.nodes[id], name)).collect(),
        };
        if let (Some(name), true) = (asked, named.is_empty()) {
            return Err(resolve::no_such_stage(plan, name));
        }
        // What was averaged is read, not the averages: an interval needs every seed.
        let read = |&id: &usize| if is(id, OverSeeds::NAME) { plan.upstream(id) } else { vec![id] };
        let mut scores: Vec<usize> = named.iter().flat_map(read).filter(|&id| is(id, Backdoor::NAME)).collect();
        scores.sort_unstable();
        scores.dedup();
        if scores.is_empty() {
            return Err(nothing_to_compare(plan, asked));
        }
        let summary = named.iter().chain(&all).find(|&&id| is(id, OverSeeds::NAME));
        let over = summary.and_then(|&id| plan.nodes[id].params()["over"].as_str().map(str::to_string));
        Ok(Chosen { scores, over: over.unwrap_or_else(|| "seed".into()) })
    }
}

fn nothing_to_compare(plan: &Plan, asked: Option<&str>) -> Error {
    let is_scores = |node: &&Node| [Backdoor::NAME, OverSeeds::NAME].contains(&node.entry.name);
    let mut names: Vec<&str> = plan.nodes.iter().filter(is_scores).map(|node| node.stage.as_str()).collect();
    names.dedup();
    let message = match asked {
        Some(name) => format!("`{name}` is no table of scores"),
        None => format!("pipeline `{}` scores no models: there is nothing to compare", plan.identity.name),
    };
    Error::user(message).hint(match names.as_slice() {
        [] => format!("score models with a stage `{}`", Backdoor::NAME),
        names => format!("choose among {}", names.join(", ")),
    })
}

/// What the tables say of every model, seed by seed.
fn read(plan: &Plan, chosen: &Chosen, outlook: &Outlook, store: &Store) -> Result<(Vec<Ours>, Context)> {
    // Two stages may score one model.
    let mut all: Vec<(&str, Ours)> = Vec::new();
    let mut context = Context { over: chosen.over.clone(), ..Context::default() };
    let mut left_out: Vec<String> = Vec::new();
    for (position, &id) in chosen.scores.iter().enumerate() {
        let node = &plan.nodes[id];
        if outlook.hits[id].is_none() {
            return Err(show::not_computed(plan, node));
        }
        let port = (node.entry.outputs)().first().map_or("", |port| port.name);
        let output = resolve::output_of(plan, id, port, &outlook.hits)?;
        let table = Table::open(&store.files(output)).context(format!("opening the table of `{}`", node.label))?;
        let Some(sources) = show::scored(&table, node) else {
            return Err(Error::machine(format!("the table of `{}` does not have a row for each model", node.label)));
        };
        match position {
            0 => context.notes.clone_from(&table.notes),
            _ => context.notes.retain(|note| table.notes.contains(note)),
        }
        let columns = METRICS.map(|(name, ..)| table.column(name).ok());
        if context.definitions.is_empty() {
            let defined = columns.iter().flatten().map(|&at| &table.columns[at]);
            context.definitions = defined.map(|c| (c.name.clone(), c.definition.clone())).collect();
        }
        let defence = table.column("defence").ok();
        let triggers =
            node.inputs.get("dataset").and_then(|of| of.first()).and_then(|of| Line::of(plan, of.node).poison);
        for (row, source) in table.rows.iter().zip(sources) {
            let line = Line::of(plan, source.node);
            if line.poison.is_some() && line.poison != triggers {
                left_out.push(format!("`{}` was attacked otherwise than it is tested: left out", source.label));
                continue;
            }
            let mut values: [Option<f64>; METRICS.len()] = columns.map(|at| at.and_then(|at| row[at].number()));
            values[SECONDS] = outlook.hits[source.node].as_ref().map(|hit| hit.seconds);
            let mut point: Vec<(String, Value)> = node.point.clone();
            point.extend(source.point.iter().filter(|(key, _)| !node.point.iter().any(|(k, _)| k == key)).cloned());
            point.retain(|(key, _)| *key != chosen.over);
            let of_table = defence.and_then(|at| row[at].text()).filter(|name| *name != NO_DEFENCE);
            let one = Ours {
                attack: line.attack(plan),
                defence: of_table.map(str::to_string).or(line.cleansed(plan)).unwrap_or_else(|| NO_DEFENCE.into()),
                model: source.label.strip_suffix(".model").unwrap_or(&source.label).to_string(),
                point,
                setup: line.setup(plan),
                values: values.map(|value| value.into_iter().collect()),
            };
            match all.iter_mut().find(|(stage, other)| *stage == node.stage && is_same(other, &one)) {
                Some((_, other)) => other.values.iter_mut().zip(one.values).for_each(|(all, one)| all.extend(one)),
                None => all.push((&node.stage, one)),
            }
            tell_machine(&mut context, outlook, store, source.node)?;
        }
    }
    left_out.dedup();
    context.notes.extend(left_out);
    Ok((all.into_iter().map(|(_, one)| one).collect(), context))
}

fn is_same(a: &Ours, b: &Ours) -> bool {
    (&a.attack, &a.defence, &a.model, &a.point) == (&b.attack, &b.defence, &b.model, &b.point) && a.setup == b.setup
}

/// Remembers what a node ran on.
fn tell_machine(context: &mut Context, outlook: &Outlook, store: &Store, id: usize) -> Result<()> {
    let Some(record) = outlook.keys[id].map(|key| store.record(&key)).transpose()?.flatten() else { return Ok(()) };
    let mut machine = record.device.clone();
    if let Some(instructions) = &record.instructions {
        machine.push_str(&format!(" ({instructions})"));
    }
    machine.push_str(&format!(", {}", report::count(record.threads, "thread")));
    if !context.machines.contains(&machine) {
        context.machines.push(machine);
    }
    Ok(())
}

/// The nodes that a model, or a dataset, descends from in a straight line: purification, training, packing, poisoning,
/// data. Not what was read beside it, such as the surrogate of an attack.
#[derive(Default)]
struct Line {
    purify: Option<usize>,
    train: Option<usize>,
    cleanse: Option<usize>,
    poison: Option<usize>,
    data: Option<usize>,
    /// The defender's share, which is split off the data.
    split: Option<usize>,
}

/// Ports of the straight line, the nearest relative first.
const LINE: [&str; 3] = ["model", "dataset", "clean"];

impl Line {
    fn of(plan: &Plan, start: usize) -> Line {
        let mut line = Line::default();
        let mut at = Some(start);
        while let Some(id) = at {
            let node = &plan.nodes[id];
            let place = match node.entry.family() {
                "purify" => Some(&mut line.purify),
                "train" => Some(&mut line.train),
                "poison" => Some(&mut line.poison),
                "data" if node.inputs.is_empty() => Some(&mut line.data),
                "data" => Some(&mut line.split),
                _ if node.entry.name == Cleanse::NAME => Some(&mut line.cleanse),
                _ => None,
            };
            if let Some(place) = place {
                place.get_or_insert(id);
            }
            at = LINE.iter().find_map(|port| above(node, port));
        }
        // A defence reads its images beside the model.
        let given = line.purify.and_then(|id| above(&plan.nodes[id], "clean"));
        line.split = given.filter(|&id| plan.nodes[id].entry.family() == "data").or(line.split);
        line
    }

    fn attack(&self, plan: &Plan) -> String {
        let Some(id) = self.poison else { return BENIGN.into() };
        let rule = if plan.nodes[id].params()["labels"] == "all-to-all" { "_all_to_all" } else { "" };
        format!("{}{rule}", last(&plan.nodes[id]))
    }

    /// The detector whose suspects were left out of the training images.
    fn cleansed(&self, plan: &Plan) -> Option<String> {
        above(&plan.nodes[self.cleanse?], "samples").map(|id| last(&plan.nodes[id]).to_string())
    }

    fn setup(&self, plan: &Plan) -> Setup {
        let param =
            |id: Option<usize>, name: &str| id.map(|id| plan.nodes[id].params()[name].clone()).unwrap_or_default();
        let text = |value: Value| value.as_str().map(str::to_string);
        // Which part of a dataset is meant: parameters of that stage that leave something out.
        let part = [("subset", ""), ("n_train_per_class", "training images of each class: ")];
        let part = part.iter().find_map(|(name, what)| match param(self.data, name) {
            Value::Null => None,
            Value::String(text) => Some(format!("the {text} part")),
            other => Some(format!("{what}{other}")),
        });
        Setup {
            dataset: self.data.map_or_else(String::new, |id| last(&plan.nodes[id]).to_string()),
            part,
            model: text(param(self.train, "model")),
            rate: param(self.poison, "rate").as_f64(),
            epochs: param(self.train, "epochs").as_u64(),
            clean: param(self.split, "share").as_f64(),
            defence_epochs: param(self.purify, "epochs").as_u64(),
        }
    }
}

/// The node that is bound to a port.
fn above(node: &Node, port: &str) -> Option<usize> {
    node.inputs.get(port)?.first().map(|source| source.node)
}

/// What a stage is called within its family.
fn last(node: &Node) -> &'static str {
    node.entry.name.rsplit('/').next().unwrap_or(node.entry.name)
}
