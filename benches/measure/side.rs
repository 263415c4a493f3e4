//! One side of a comparison: a process that sets cases up and runs steps of them when it is told to.
//!
//! ```text
//! -> {"id": 1, "case": {...}}     <- {}
//! -> {"id": 1, "steps": 5}        <- {"wall": 0.31, "cpu": 0.61}          seconds for all five
//! -> {"id": 1, "end": true}       <- {"peak_memory_mib": 612.4}
//! ```
//!
//! An answer may be `{"error": ..}` instead. We run each case in a process of its own, the bench itself with `--serve`;
//! the peers in `benches/peers` import their library once and fork for every case. Either way a peak of memory is that
//! of one case.

use super::{peak, process};
use runner::error::{Error, Result};
use runner::exec::memory;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// A running process of one side.
pub struct Side {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Resident memory before the first case, in MiB; known of peers.
    pub memory_mib: Option<f64>,
}

/// Seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// On the clock.
    pub wall: f64,
    /// Of all threads; none where the system does not tell.
    pub cpu: Option<f64>,
}

impl Side {
    /// Starts `command`; `name` is for messages.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Side> {
        let broken = |what: &str| Error::machine(format!("cannot start {name}: {what}"));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| broken(&format!("{}: {error}", command.get_program().to_string_lossy())))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| broken("it has no output"))?;
        Ok(Side { name: name.to_string(), child, input, output: BufReader::new(output), memory_mib: None })
    }

    /// This program again, to serve one case.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub fn ourselves() -> Result<Side> {
        Side::start("the bench's own child", Command::new(std::env::current_exe()?).arg("--serve"))
    }

    /// A peer's script in `benches/peers`, run by the Python that `PYTHON` names, or by `python3`.
    ///
    /// # Errors
    /// No such Python, or one without the library; the hint says how to get it.
    pub fn peer(script: &str, threads: usize) -> Result<Side> {
        let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_string());
        let hint = format!(
            "`{python} -m pip install torch numpy` installs PyTorch and what the scripts need, \
             or set PYTHON to a Python that has it"
        );
        let path = format!("{}/benches/peers/{script}", env!("CARGO_MANIFEST_DIR"));
        let start = || {
            // Threads above what a case asks for would be kept spinning.
            let threads = threads.to_string();
            let mut side =
                Side::start(&python, Command::new(&python).arg(path).arg("--serve").env("OMP_NUM_THREADS", threads))?;
            let greeting = side.answer()?;
            if let Some(name) = greeting["name"].as_str() {
                side.name = name.to_string();
            }
            side.memory_mib = greeting["memory_mib"].as_f64();
            Ok(side)
        };
        start().map_err(|error: Error| error.hint(hint))
    }

    /// The same; without a peer, standard error says why and how to get one.
    pub fn peer_or_note(script: &str, threads: &[usize]) -> Option<Side> {
        match Side::peer(script, threads.iter().copied().max().unwrap_or(1)) {
            Ok(peer) => Some(peer),
            Err(error) => {
                eprintln!("no peer, so its columns stay empty: {error}");
                eprintln!("hint: {}", error.hint_text().unwrap_or_default());
                None
            }
        }
    }

    /// The peer's name and version, or what messages call the process.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(Error::machine(format!("{} ended without an answer", self.name)));
        }
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| Error::machine(format!("{} said `{}`, expected JSON", self.name, line.trim_end())))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => Err(Error::machine(format!("{}: {error}", self.name))),
            None => Ok(answer),
        }
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{request}")?;
            input.flush()?;
        }
        self.answer()
    }

    /// Sets the case `case` up as number `id`.
    ///
    /// # Errors
    /// What the process says.
    pub fn set_up(&mut self, id: u64, case: &Value) -> Result<()> {
        self.ask(&json!({ "id": id, "case": case })).map(drop)
    }

    /// Runs `steps` steps of case `id`; the times of one.
    ///
    /// # Errors
    /// What the process says.
    pub fn step(&mut self, id: u64, steps: usize) -> Result<Times> {
        let answer = self.ask(&json!({ "id": id, "steps": steps }))?;
        let of = |name: &str| answer[name].as_f64().map(|seconds| seconds / steps as f64);
        let wall = of("wall").ok_or_else(|| Error::machine(format!("{} gave no time: {answer}", self.name)))?;
        Ok(Times { wall, cpu: of("cpu") })
    }

    /// Ends case `id`; its peak of memory in MiB, if the system tells.
    ///
    /// # Errors
    /// What the process says.
    pub fn end(&mut self, id: u64) -> Result<Option<f64>> {
        Ok(self.ask(&json!({ "id": id, "end": true }))?["peak_memory_mib"].as_f64())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The end of its input ends the process.
        self.input = None;
        let _ = self.child.wait();
    }
}

/// One step of a case.
pub type Step = Box<dyn FnMut() -> Result<()> + Send>;

/// Serves one case on standard input and output: what `--serve` does. `set_up` makes the step of a case.
///
/// # Errors
/// A request that cannot be read, or an answer that cannot be written.
pub fn serve(set_up: impl FnOnce(&Value) -> Result<Step> + Send) -> Result<()> {
    let mut lines = std::io::stdin().lines();
    let mut next = || -> Result<Option<Value>> {
        match lines.next() {
            Some(line) => Ok(Some(serde_json::from_str(&line?)?)),
            None => Ok(None),
        }
    };
    let Some(request) = next()? else { return Ok(()) };
    let case = &request["case"];
    let threads = case["threads"].as_u64().unwrap_or(1) as usize;
    let made = peak::pool(threads).and_then(|pool| Ok((pool.install(|| set_up(case))?, pool)));
    let (mut step, pool) = match made {
        Ok(made) => made,
        Err(error) => return say(&json!({ "error": error.to_string() })),
    };
    say(&json!({}))?;
    while let Some(request) = next()? {
        if request.get("end").is_some() {
            return say(&json!({ "peak_memory_mib": memory::peak_mib() }));
        }
        let steps = request["steps"].as_u64().unwrap_or(1);
        let (start, cpu) = (Instant::now(), process::cpu_seconds());
        let result = pool.install(|| (0..steps).try_for_each(|_| step()));
        let wall = start.elapsed().as_secs_f64();
        let cpu = process::cpu_seconds().zip(cpu).map(|(now, before)| now - before);
        match result {
            Ok(()) => say(&json!({ "wall": wall, "cpu": cpu }))?,
            Err(error) => return say(&json!({ "error": error.to_string() })),
        }
    }
    Ok(())
}

fn say(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}
