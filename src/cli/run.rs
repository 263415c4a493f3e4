//! `runner run`.

use super::args::{Global, RunArgs};
use super::project::{self, Loaded};
use super::show;
use crate::error::{Class, Error, Result};
use crate::exec::{self, Observer, Options, Summary};
use crate::report::style::Style;
use crate::report::terminal::{Terminal, Verbosity};
use crate::report::{self, json::JsonLines, results};
use crate::store::Store;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

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
    let stops = on_signals()?;
    let guard = store.enter_run(&AtomicBool::new(false))?;
    let style = Style::for_stderr(global.color);
    let summary = if global.json {
        let mut reporter = JsonLines::new(&loaded.plan);
        let summary = exec::run(&loaded.plan, &store, &options, stops, &mut reporter)?;
        reporter.finish(&summary);
        summary
    } else {
        let verbosity = match (args.quiet, args.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        };
        let mut reporter = Terminal::new(&loaded.plan, style, verbosity);
        let summary = exec::run(&loaded.plan, &store, &options, stops, &mut reporter as &mut dyn Observer)?;
        reporter.finish(&summary);
        summary
    };
    drop(guard);
    for warning in store.warnings() {
        report::note(&format!("{} {warning}", style.yellow("warning:")));
    }
    conclude(global, args, &loaded, &store, &summary)
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
            Ok(links) if !links.figures.is_empty() => {
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
    Ok(match summary.worst {
        _ if summary.interrupted => Class::Interrupted.exit_code(),
        Some(Class::User) | Some(Class::Stage) => Class::Stage.exit_code(),
        Some(class) => class.exit_code(),
        None => 0,
    })
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
