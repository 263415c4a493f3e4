//! `runner run`.

use super::args::{Global, RunArgs};
use super::project::{self, Loaded};
use super::show;
use crate::error::{Error, Result};
use crate::exec::{self, Observer, Options, Summary};
use crate::report::style::Style;
use crate::report::terminal::{Terminal, Verbosity};
use crate::report::{self, json::JsonLines, results};
use crate::store::Store;
use crate::track::{self, Runs, Target, Told, Tracker};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// More figures and tables than this are counted, not named, after a run.
const FIGURES_SHOWN: usize = 40;

/// Brings a pipeline up to date.
///
/// # Errors
/// A bad pipeline, an unusable cache or device. Failed stages are in the exit code.
pub fn run(global: &Global, args: &RunArgs) -> Result<u8> {
    let (loaded, mut store) = project::load_and_look(global, &args.pipeline)?;
    if !store.writable() {
        store = loaded.project.store(global)?;
    }
    let options = options(args, &loaded)?;
    let targets = if args.no_track { Vec::new() } else { track::choose(&loaded.plan, &args.track)? };
    let stops = on_signals()?;
    let guard = store.enter_run(&AtomicBool::new(false))?;
    let style = Style::for_stderr(global.color);
    let (summary, told) = if global.json {
        let mut reporter = JsonLines::new(&loaded.plan);
        let (summary, told) = execute(&loaded, &store, &options, stops, targets, &mut reporter)?;
        reporter.finish(&summary);
        (summary, told)
    } else {
        let verbosity = match (args.quiet, args.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let mut reporter = Terminal::new(&loaded.plan, style, verbosity);
        let (summary, told) = execute(&loaded, &store, &options, stops, targets, &mut reporter)?;
        reporter.finish(&summary);
        (summary, told)
    };
    drop(guard);
    let Told { failures, looks } = told;
    for warning in store.warnings().into_iter().chain(failures) {
        report::note(&format!("{} {warning}", style.yellow("warning:")));
    }
    if !args.quiet {
        looks.iter().for_each(|look| report::note(&format!("tracked: {look}")));
    }
    conclude(global, args, &loaded, &store, &summary)
}

/// Runs, and tells the targets besides the reporter.
fn execute(
    loaded: &Loaded,
    store: &Store,
    options: &Options,
    stops: Arc<AtomicUsize>,
    targets: Vec<Target>,
    reporter: &mut dyn Observer,
) -> Result<(Summary, Told)> {
    let plan = &loaded.plan;
    if targets.is_empty() {
        return Ok((exec::run(plan, store, options, stops, reporter)?, Told::default()));
    }
    // Nothing is written about a run that cannot be.
    let needed = exec::check(plan, options)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let runs = Runs::new(plan, &needed, options, now, std::process::id());
    let mut tracker = Tracker::new(track::open(targets, &runs)?, store, reporter);
    let summary = exec::run(plan, store, options, stops, &mut tracker)?;
    let told = tracker.finish(&summary);
    Ok((summary, told))
}

/// Remembers the run, links its results, shows its tables, and names the exit code.
fn conclude(global: &Global, args: &RunArgs, loaded: &Loaded, store: &Store, summary: &Summary) -> Result<u8> {
    let keys: BTreeMap<String, _> = loaded
        .plan
        .nodes
        .iter()
        .zip(&summary.keys)
        .filter_map(|(node, key)| Some((node.label.clone(), (*key)?)))
        .collect();
    let is_new = store.writable() && store.history().remember(&loaded.plan.identity, &keys)?;
    let refresh = if is_new { results::Refresh::Yes } else { results::Refresh::IfMissing };
    let links = results::link(&loaded.project.root, &loaded.plan, &summary.hits, store, refresh);
    if !global.json && !args.quiet {
        show::after_run(global, &loaded.plan, &summary.hits, store)?;
        match links {
            Ok(mut links) if !links.figures.is_empty() => {
                // What gathers the points of a matrix comes before what each of them made.
                links.figures.sort_by_key(|figure| figure.contains('/'));
                let mut text = format!("figures and tables: {}\n", links.dir.display());
                for figure in links.figures.iter().take(FIGURES_SHOWN) {
                    text.push_str(&format!("  {figure}\n"));
                }
                let more = links.figures.len().saturating_sub(FIGURES_SHOWN);
                if more > 0 {
                    text.push_str(&format!("  and {more} more\n"));
                }
                report::data(&text);
            }
            Ok(_) => {}
            // The results are in the cache all the same.
            Err(error) => report::note(&format!("warning: no links under results/: {error}")),
        }
    }
    Ok(summary.exit_code())
}

fn options(args: &RunArgs, loaded: &Loaded) -> Result<Options> {
    let settings = &loaded.project.settings;
    let mut options = Options::for_this_machine();
    if let Some(jobs) = args.jobs.or(settings.jobs) {
        options.jobs = jobs.max(1);
    }
    if let Some(threads) = args.threads.or(settings.threads) {
        options.threads = threads.max(1);
    }
    if let Some(device) = args.device {
        options.device = device;
    } else if let Some(device) = &settings.device {
        options.device = device.parse().map_err(|error| Error::user(format!("`device` in runner.toml: {error}")))?;
    }
    options.force.clone_from(&args.force);
    options.targets.clone_from(&args.stages);
    Ok(options)
}

/// Counts SIGINT and SIGTERM: the first stops cleanly, the second at once.
fn on_signals() -> Result<Arc<AtomicUsize>> {
    let stops = Arc::new(AtomicUsize::new(0));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::from)?;
    let count = stops.clone();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                report::note("stopping: running stages save their state; once more to end at once");
            }
        }
    });
    Ok(stops)
}
