//! The arguments. Their doc comments are the help texts.

use crate::exec::device;
use crate::report::published::Published;
use crate::report::style::When;
use crate::report::table::Format;
use crate::track::Target;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Declarative, cached, reproducible pipelines for backdoor-learning research.
///
/// A pipeline is one TOML file: stages that make a poisoned dataset, pack it, train on it, purify, measure and plot.
/// What has been computed before is not computed again.
#[derive(Parser)]
#[command(name = "runner", version, propagate_version = true, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub global: Global,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 a stage failed; 2 a mistake in the pipeline or the command line; \
3 the machine's fault; 130 interrupted";

/// Options that every command takes.
#[derive(Args)]
pub struct Global {
    /// When to use colour.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: When,
    /// Where results are stored [default: `cache` in `runner.toml`, else `cache/` at the project's root].
    #[arg(long, global = true, env = "RUNNER_CACHE", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub cache: Option<PathBuf>,
    /// Write JSON to standard output.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Which pipeline, and how it is varied.
#[derive(Args, Clone)]
pub struct PipelineArgs {
    /// The pipeline file.
    #[arg(value_hint = ValueHint::FilePath)]
    pub pipeline: PathBuf,
    /// Apply `[profile.NAME]`.
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// Set a value, such as `stages.model.epochs=5`; may be repeated.
    #[arg(long, value_name = "PATH=VALUE")]
    pub set: Vec<String>,
}

#[derive(Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    /// Bring a pipeline up to date: compute what is not stored, show tables and figures.
    Run(RunArgs),
    /// Say what a run would do, and why. Runs nothing.
    Plan(PlanArgs),
    /// Say for every stage whether its result is stored, stale, or missing.
    Status(PlanArgs),
    /// Say why a stage would run again, or what its stored result was made from.
    Explain(ExplainArgs),
    /// Show tables of a pipeline, or the artifacts of a stage.
    Show(ShowArgs),
    /// Put numbers of papers beside the scores of a pipeline.
    Compare(CompareArgs),
    /// Show what a stage's worker logged.
    Logs(LogsArgs),
    /// List the stages that pipelines can use.
    List,
    /// Describe a stage: its parameters, inputs and outputs.
    Describe {
        /// The stage, such as `poison/badnet`.
        stage: String,
    },
    /// Draw a pipeline's graph.
    Graph(GraphArgs),
    /// Re-hash everything in the cache; set damaged files aside so that they are computed again.
    Verify(VerifyArgs),
    /// Delete from the cache what the given pipelines do not need. Only says so unless `--delete` is given.
    Gc(GcArgs),
    /// Say what this build and this machine can do, and what to mend: kernels, threads, memory, cache, GPU.
    ///
    /// Writes a few files to the cache and removes them. Ends with 3 if there is a problem.
    Doctor,
    /// Write a commented starter pipeline.
    Init {
        /// The name of the pipeline; it is written to `pipelines/NAME.toml`.
        name: String,
    },
    /// Print the JSON Schema of pipeline files, for editors.
    Schema,
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Run one stage; started by `run`.
    #[command(hide = true)]
    Worker,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct RunArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Only these stages, and what they need.
    pub stages: Vec<String>,
    /// Stages that may run side by side [default: the number of cores].
    #[arg(long, short, value_name = "N", value_parser = at_least_one)]
    pub jobs: Option<usize>,
    /// Threads that running stages share; several at once may get twice as many [default: the number of cores].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// Where to compute: `auto`, `cpu`, `cuda:N`.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<device::Choice>,
    /// Compute this stage even if its result is stored; may be repeated.
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Tell the run to `tensorboard=DIR`, `wandb=DIR` (an offline run for `wandb sync`) or `jsonl=FILE`, instead of where
    /// the pipeline's `[tracking]` says; may be repeated.
    #[arg(long, value_name = "FORMAT=PATH", value_parser = track_target)]
    pub track: Vec<Target>,
    /// Tell the run nowhere, whatever the pipeline says.
    #[arg(long, conflicts_with = "track")]
    pub no_track: bool,
    /// Say less: failures only.
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: a line for every stage, cached ones too.
    #[arg(long, short)]
    pub verbose: bool,
}

fn track_target(text: &str) -> Result<Target, String> {
    text.parse()
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n >= 1 => Ok(n),
        _ => Err("expected a whole number, at least 1".to_string()),
    }
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct PlanArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Only these stages, and what they need.
    pub stages: Vec<String>,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// The stage, or one of its points: `model`, `model[rate=0.1]`.
    pub stage: String,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct ShowArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// The stage, with its output if it has several: `scores`, `model.history`. Without it, every stage is listed.
    pub stage: Option<String>,
    /// How to write a table.
    #[arg(long, short, value_name = "FORMAT", default_value = "terminal", value_enum)]
    pub format: Format,
    /// Show hidden columns too.
    #[arg(long)]
    pub all: bool,
    /// Draw how long the defences of a table of scores took, beside the run's figures under `results/`.
    #[arg(long, requires = "stage")]
    pub figure: bool,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct CompareArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// A stage `evaluate/backdoor` or `evaluate/over_seeds`, or one of its points [default: all of the first kind].
    pub stage: Option<String>,
    /// What the scores are compared with: `published`, the numbers of papers.
    #[arg(long, value_name = "WHAT", value_parser = against)]
    pub against: Against,
    /// How to write the table.
    #[arg(long, short, value_name = "FORMAT", default_value = "terminal", value_enum)]
    pub format: Format,
    /// Show hidden columns too: differences, and definitions.
    #[arg(long)]
    pub all: bool,
}

/// What scores can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// The numbers of papers and leaderboards that this build knows.
    Published,
}

fn against(text: &str) -> Result<Against, String> {
    match text {
        "published" => Ok(Against::Published),
        _ => {
            let tags = Published::load().map(|published| published.tags()).unwrap_or_default();
            Err(format!("expected `published`, which has the numbers of {tags}"))
        }
    }
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct LogsArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// The stage, or one of its points.
    pub stage: String,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct GraphArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// How to write the graph.
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub format: GraphFormat,
}

/// How to write a graph.
#[derive(Clone, Copy, ValueEnum)]
pub enum GraphFormat {
    /// An indented tree.
    Text,
    /// For Graphviz.
    Dot,
    /// For Markdown.
    Mermaid,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct VerifyArgs {
    /// Only report; leave damaged files where they are.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Args)]
#[allow(missing_docs)]
pub struct GcArgs {
    /// Pipelines whose results are kept, in every profile; none means that nothing is kept.
    #[arg(value_hint = ValueHint::FilePath)]
    pub pipelines: Vec<PathBuf>,
    /// Delete, instead of only saying what would be deleted.
    #[arg(long)]
    pub delete: bool,
}
