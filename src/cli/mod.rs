//! The command line: argv -> command -> exit code. One file per command.

mod args;
mod cache;
mod compare;
mod describe;
mod doctor;
mod explain;
mod graph;
mod init;
mod list;
mod logs;
mod project;
mod run;
mod schema;
mod show;
mod status;

pub use args::Cli;

use crate::error::{Error, IoExt, Result};
use crate::report::{self, style::Style};
use args::Command;
use clap::{CommandFactory, Parser};

/// Parses the command line, runs the command, and says what went wrong. Returns the exit code.
pub fn main() -> u8 {
    // clap ends the process itself for `--help`, `--version` (0) and for a wrong command line (2).
    let cli = Cli::parse();
    let style = Style::for_stderr(cli.global.color);
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            if cli.global.json {
                report::json_data(&serde_json::json!({
                    "schema": 1,
                    "error": error.to_string(),
                    "hint": error.hint_text(),
                    "exit_code": error.class().exit_code(),
                }));
            } else {
                report::error(&error, style);
            }
            error.class().exit_code()
        }
    }
}

fn dispatch(cli: &Cli) -> Result<u8> {
    let global = &cli.global;
    match &cli.command {
        Command::Run(args) => run::run(global, args),
        Command::Plan(args) => status::plan(global, args),
        Command::Status(args) => status::status(global, args),
        Command::Explain(args) => explain::explain(global, args),
        Command::Show(args) => show::show(global, args),
        Command::Compare(args) => compare::compare(global, args),
        Command::Logs(args) => logs::logs(global, args),
        Command::List => {
            if global.json {
                report::json_data(&list::json())
            } else {
                report::data(&list::text())
            }
            Ok(0)
        }
        Command::Describe { stage } => {
            let info = describe::find(stage)?;
            if global.json {
                report::json_data(&describe::json(info))
            } else {
                report::data(&describe::text(info))
            }
            Ok(0)
        }
        Command::Graph(args) => {
            let plan = project::load(global, &args.pipeline)?.plan;
            if global.json {
                report::json_data(&graph::json(&plan));
                return Ok(0);
            }
            report::data(&match args.format {
                args::GraphFormat::Text => graph::text(&plan),
                args::GraphFormat::Dot => graph::dot(&plan),
                args::GraphFormat::Mermaid => graph::mermaid(&plan),
            });
            Ok(0)
        }
        Command::Verify(args) => cache::verify(global, args),
        Command::Gc(args) => cache::gc(global, args),
        Command::Doctor => doctor::doctor(global),
        Command::Init { name } => init_file(name),
        Command::Schema => {
            report::json_data(&schema::json());
            Ok(0)
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "runner", &mut text);
            report::data(&String::from_utf8_lossy(&text));
            Ok(0)
        }
        Command::Worker => Ok(crate::exec::worker::main()),
    }
}

/// Writes a starter pipeline beside the others; never over a file of the user's.
fn init_file(name: &str) -> Result<u8> {
    let text = init::text(name)?;
    let dir = project::Project::here()?.root.join("pipelines");
    std::fs::create_dir_all(&dir).at("create", &dir)?;
    let path = dir.join(format!("{name}.toml"));
    if path.exists() {
        return Err(Error::user(format!("`{}` exists already", path.display())).hint("choose another name"));
    }
    std::fs::write(&path, text).at("write", &path)?;
    let here = std::env::current_dir().unwrap_or_default();
    let shown = path.strip_prefix(&here).unwrap_or(&path).display();
    report::note(&format!("wrote {shown}\nnext: runner run {shown}"));
    Ok(0)
}
