//! A worker process as the scheduler sees it.

use super::job::Job;
use crate::error::{Error, IoExt, Result};
use crate::events::Event;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;

/// What comes from workers to the scheduler. They are numbered in the order in which they start.
pub enum Message {
    /// Worker `.0` said something.
    Event(u64, Event),
    /// Worker `.0` closed its output: it has ended or is about to.
    Closed(u64),
}

/// A running worker.
pub struct Worker {
    child: Child,
    /// Closing it asks the worker to stop; so does the scheduler's death.
    stdin: Option<ChildStdin>,
}

impl Worker {
    /// Starts worker `number` with `threads` threads in the folder `dir`; its events arrive as messages. What it logs
    /// goes to `log` until it is given its second job.
    pub fn start(number: u64, threads: usize, dir: &Path, log: &Path, messages: Sender<Message>) -> Result<Worker> {
        let program = std::env::current_exe().map_err(Error::from)?;
        let log_file = File::create(log).at("create", log)?;
        let mut child = Command::new(&program)
            .arg("worker")
            .current_dir(dir)
            .env("RAYON_NUM_THREADS", threads.to_string())
            // candle's own pool spins beside rayon's; our kernels use rayon's.
            .env("CANDLE_NUM_THREADS", "1")
            // Stages run on threads of the pool, with as much stack as a main thread has.
            .env("RUST_MIN_STACK", (8 << 20).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log_file)
            // Ctrl-C reaches the scheduler alone, which then asks the workers.
            .process_group(0)
            .spawn()
            .at("start", &program)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            if let Some(stdout) = stdout {
                for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                    // A line that is no event (a library printed) is not ours to interpret.
                    if let Ok(event) = serde_json::from_str(&line)
                        && messages.send(Message::Event(number, event)).is_err()
                    {
                        return;
                    }
                }
            }
            let _ = messages.send(Message::Closed(number));
        });
        Ok(Worker { child, stdin })
    }

    /// Hands it a job. It takes one at a time.
    pub fn give(&mut self, job: &Job) -> Result<()> {
        if let Some(stdin) = &mut self.stdin {
            let mut line = serde_json::to_vec(job)?;
            line.push(b'\n');
            // A worker that has died is reported through its exit status.
            let _ = stdin.write_all(&line);
        }
        Ok(())
    }

    /// Asks the worker to save a checkpoint, if it is at work, and end.
    pub fn ask_to_stop(&mut self) {
        self.stdin = None;
    }

    /// Ends the worker at once.
    pub fn kill(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
    }

    /// Waits for the end of a worker that closed its output or has nothing to do.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.stdin = None;
        Ok(self.child.wait()?)
    }
}

/// Why a worker that never said how it ended has ended.
pub fn obituary(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(9), _) => "its process was killed (signal 9), as the system does when memory runs out".to_string(),
        (Some(6), _) => "its process aborted (signal 6)".to_string(),
        (Some(11), _) => "its process crashed (segmentation fault)".to_string(),
        (Some(signal), _) => format!("its process was ended by signal {signal}"),
        (None, Some(code)) => format!("its process ended with code {code} without a result"),
        (None, None) => "its process ended without a result".to_string(),
    }
}
