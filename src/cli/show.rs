//! `runner show`, and the tables after a run.

use super::args::{Global, ShowArgs};
use super::project;
use crate::artifact::table::{Cell, Column};
use crate::artifact::{FileEntry, Kind, Open, Table};
use crate::error::{Error, Result, ResultExt};
use crate::exec::resolve::{self, Outlook};
use crate::plan::{Node, Plan, Source};
use crate::report::style::Style;
use crate::report::table::{self, Format};
use crate::report::{self, bytes, duration, explain, results, run_time};
use crate::store::Store;
use crate::store::records::{Hit, OutputRecord};
use serde_json::{Value, json};

/// Tables with more rows than this are not printed after a run.
const ROWS_AFTER_RUN: usize = 32;

/// Shows the tables of a stage, or what a pipeline has made.
///
/// # Errors
/// A bad pipeline, an unknown stage, a result that has not been computed.
pub fn show(global: &Global, args: &ShowArgs) -> Result<u8> {
    let (loaded, store) = project::load_and_look(global, &args.pipeline)?;
    let outlook = Outlook::of(&loaded.plan, &store)?;
    let style = Style::for_stdout(global.color);
    let Some(name) = &args.stage else {
        overview(global, &loaded.plan, &outlook, &store)?;
        return Ok(0);
    };
    let outputs = find(&loaded.plan, &outlook.hits, name)?;
    let origins = origins(&outputs, &outlook, &store)?;
    if outputs.iter().all(|found| found.output.kind == Kind::Table) {
        let joined = join(&outputs, &loaded.plan, &outlook.hits, &store)?;
        if args.figure {
            let stage = &loaded.plan.nodes[outputs[0].id].stage;
            let title = format!("Run time of defences, {}", loaded.plan.identity.name);
            let figure = run_time::figure(&joined, &title)?;
            let written = run_time::write(&results::folder(&loaded.project.root, &loaded.plan), stage, &figure)?;
            written.iter().for_each(|path| report::note(&format!("wrote {}", path.display())));
        }
        let format = if global.json { Format::Json } else { args.format };
        report::data(&table::render(&joined, format, &look(style, args.all))?);
    } else if args.figure {
        return Err(Error::user(format!("`{name}` is no table: there is no run time of defences to draw"))
            .hint("name a stage `evaluate/backdoor`"));
    } else {
        list_files(global, &outputs, &store);
    }
    if !global.json {
        // Not data: where the numbers come from goes beside them, to standard error.
        for origin in origins {
            report::note(&Style::for_stderr(global.color).dim(&format!("computed by {origin}")));
        }
    }
    Ok(0)
}

/// A stored output.
struct Found<'a> {
    /// The node that made it.
    id: usize,
    /// The node's point of the matrix.
    point: &'a [(String, Value)],
    output: &'a OutputRecord,
}

/// What computed these outputs, each machine and setting once.
fn origins(outputs: &[Found<'_>], outlook: &Outlook, store: &Store) -> Result<Vec<String>> {
    let mut origins = Vec::new();
    for found in outputs {
        let Some(key) = outlook.keys[found.id] else { continue };
        if let Some(origin) = store.record(&key)?.as_ref().map(explain::origin)
            && !origins.contains(&origin)
        {
            origins.push(origin);
        }
    }
    Ok(origins)
}

/// The outputs called `name` (`scores`, `model.history`, `scores[rate=0.1]`), one for each point of the matrix.
fn find<'a>(plan: &'a Plan, hits: &'a [Option<Hit>], name: &str) -> Result<Vec<Found<'a>>> {
    let called = |wanted: &str| -> Vec<usize> {
        (0..plan.nodes.len()).filter(|&id| resolve::is_called(&plan.nodes[id], wanted)).collect()
    };
    let (ids, port) = match (called(name), name.rsplit_once('.')) {
        (ids, _) if !ids.is_empty() => (ids, None),
        (_, Some((stage, port))) => (called(stage), Some(port)),
        (ids, None) => (ids, None),
    };
    if ids.is_empty() {
        return Err(resolve::no_such_stage(plan, name));
    }
    let mut found = Vec::new();
    for id in ids {
        let node = &plan.nodes[id];
        let ports = (node.entry.outputs)();
        let port = match port {
            Some(port) => match ports.iter().find(|p| p.name == port) {
                Some(port) => port.name,
                None => {
                    let names: Vec<&str> = ports.iter().map(|p| p.name).collect();
                    return Err(Error::user(format!("stage `{}` has no output `{port}`", node.stage))
                        .hint(format!("its outputs are {}", names.join(", "))));
                }
            },
            None => ports.first().map_or("", |p| p.name),
        };
        if hits[id].is_none() {
            return Err(not_computed(plan, node));
        }
        found.push(Found { id, point: &node.point, output: resolve::output_of(plan, id, port, hits)? });
    }
    Ok(found)
}

/// The error for a node whose result is not stored.
pub(super) fn not_computed(plan: &Plan, node: &Node) -> Error {
    let profile = plan.identity.profile.as_ref().map(|name| format!(" --profile {name}")).unwrap_or_default();
    Error::user(format!("`{}` has not been computed yet", node.label))
        .hint(format!("`runner run {}{profile}` computes it", plan.identity.path.display()))
}

fn join(outputs: &[Found<'_>], plan: &Plan, hits: &[Option<Hit>], store: &Store) -> Result<Table> {
    let mut tables = Vec::with_capacity(outputs.len());
    for Found { id, point, output } in outputs {
        let table = Table::open(&store.files(output)).context("opening the table")?;
        tables.push((point.to_vec(), with_costs(table, &plan.nodes[*id], hits)));
    }
    Ok(table::join(&tables))
}

/// What made the models of a table of scores, row by row; `None` for another table.
pub(super) fn scored<'a>(table: &Table, node: &'a Node) -> Option<&'a [Source]> {
    let (model, sources) = (table.column("model").ok()?, node.inputs.get("models")?);
    let is_same = |(row, source): (&Vec<Cell>, &Source)| {
        row[model].text().is_some_and(|name| name == source.label.strip_suffix(".model").unwrap_or(&source.label))
    };
    let fits = table.rows.len() == sources.len() && table.rows.iter().zip(sources).all(is_same);
    fits.then_some(sources.as_slice())
}

/// Beside the scores of defences, what their stages took. It differs from run to run, so that no stage can write it into
/// its table (invariant 3); the records have it.
fn with_costs(mut table: Table, node: &Node, hits: &[Option<Hit>]) -> Table {
    let (Ok(_), Some(sources)) = (table.column("defence"), scored(&table, node)) else { return table };
    let seconds = Column::new("seconds", "wall time of the stage that made the model, where and when it ran");
    table.columns.push(seconds.unit("s").digits(1));
    let memory = Column::new("peak_memory", "peak resident memory of the stage that made the model");
    table.columns.push(memory.unit("MiB").hidden());
    for (row, source) in table.rows.iter_mut().zip(sources) {
        let hit = hits[source.node].as_ref();
        row.push(hit.map(|hit| hit.seconds).into());
        row.push(hit.and_then(|hit| hit.peak_memory_mib).map(|mib| mib as i64).into());
    }
    table
}

fn overview(global: &Global, plan: &Plan, outlook: &Outlook, store: &Store) -> Result<()> {
    let mut objects = Vec::new();
    let mut lines = Vec::new();
    for (id, node) in plan.nodes.iter().enumerate() {
        let Some(hit) = &outlook.hits[id] else {
            lines.push(format!("{}  {}  not computed", node.label, node.entry.name));
            objects.push(json!({ "node": node.label, "stage": node.entry.name, "stored": false }));
            continue;
        };
        let headline = hit.headline.as_deref().unwrap_or_default();
        let memory = hit.peak_memory_mib.map_or(String::new(), |mib| format!("  {}", bytes(mib << 20)));
        lines.push(format!("{}  {}  {}{memory}  {headline}", node.label, node.entry.name, duration(hit.seconds)));
        for file in hit.outputs.iter().flat_map(|output| &output.files) {
            lines.push(file_line(file, store));
        }
        // Only programs ask for all of it: the rest of a record takes time to read.
        let record = match outlook.keys[id] {
            Some(key) if global.json => store.record(&key)?,
            _ => None,
        };
        let record = record.as_ref();
        objects.push(json!({
            "node": node.label, "stage": node.entry.name, "stored": true, "key": outlook.keys[id],
            "seconds": hit.seconds, "peak_memory_mib": hit.peak_memory_mib, "headline": hit.headline,
            "device": record.map(|r| &r.device), "threads": record.map(|r| r.threads),
            "instructions": record.and_then(|r| r.instructions.as_ref()),
            "precision": record.and_then(|r| r.precision.as_ref()), "build": record.map(|r| &r.build),
            "outputs": hit.outputs.iter().map(|output| described(output, store)).collect::<Vec<_>>(),
        }));
    }
    if global.json {
        report::json_data(&json!({ "schema": 1, "pipeline": plan.identity.name, "nodes": objects }));
    } else {
        report::data(&lines.join("\n"));
    }
    Ok(())
}

fn file_line(file: &FileEntry, store: &Store) -> String {
    format!("    {:<20} {:>10}  {}", file.name, bytes(file.size), store.blob_path(&file.digest).display())
}

fn described(output: &OutputRecord, store: &Store) -> Value {
    let files: Vec<Value> = output
        .files
        .iter()
        .map(|f| json!({ "name": f.name, "size": f.size, "digest": f.digest, "path": store.blob_path(&f.digest) }))
        .collect();
    json!({ "port": output.port, "kind": output.kind, "digest": output.digest, "files": files })
}

fn list_files(global: &Global, outputs: &[Found<'_>], store: &Store) {
    if global.json {
        let list: Vec<Value> = outputs.iter().map(|found| described(found.output, store)).collect();
        report::json_data(&json!({ "schema": 1, "outputs": list }));
        return;
    }
    for Found { point, output, .. } in outputs {
        let point: Vec<String> = point.iter().map(|(key, value)| format!("{key}={value}")).collect();
        report::data(format!("{} {}  {}", output.kind, output.digest.short(), point.join(",")).trim_end());
        for file in &output.files {
            report::data(&file_line(file, store));
        }
    }
}

/// Prints the evaluation tables that fit a screen, joined over the matrix.
///
/// # Errors
/// A table that cannot be read.
pub fn after_run(global: &Global, plan: &Plan, hits: &[Option<Hit>], store: &Store) -> Result<()> {
    let style = Style::for_stdout(global.color);
    let mut seen: Vec<&str> = Vec::new();
    for node in &plan.nodes {
        if node.entry.family() != "evaluate" || seen.contains(&node.stage.as_str()) {
            continue;
        }
        seen.push(&node.stage);
        // A stage that did not run, or only in part, has no table to show; its failure has been told.
        let Ok(outputs) = find(plan, hits, &node.stage) else { continue };
        if outputs.iter().any(|found| found.output.kind != Kind::Table) {
            continue;
        }
        let table = join(&outputs, plan, hits, store)?;
        report::data(&format!("\n{}", style.bold(&node.stage)));
        if table.rows.len() > ROWS_AFTER_RUN {
            let profile = plan.identity.profile.as_ref().map(|p| format!(" --profile {p}")).unwrap_or_default();
            report::data(&format!(
                "  {} rows: `runner show {} {}{profile}`",
                table.rows.len(),
                plan.identity.path.display(),
                node.stage
            ));
        } else {
            report::data(&table::render(&table, Format::Terminal, &look(style, false))?);
        }
    }
    Ok(())
}

pub(super) fn look(style: Style, all: bool) -> table::Style {
    let width = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(110);
    table::Style { width, bold: style.is_on(), all }
}
