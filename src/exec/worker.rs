//! The worker process: stages one after another, each from a job on standard input to a record in the store. One that
//! is not light gets a process to itself ([`Resources::is_light`](crate::stage::Resources::is_light)).
//!
//! It holds the lock of its key from before the look-up until after the record is written, so that two runners never
//! compute a key twice at the same time (invariant 7), even if the scheduler that started it has died. The end of its
//! standard input, or SIGTERM, asks it to stop. A stage that fails ends the process: nothing that may have been left
//! in disorder is used again.

use super::device::{Choice, Resolved};
use super::job::Job;
use super::memory;
use crate::artifact::{FileEntry, Files};
use crate::error::{Class, Error, IoExt, Result};
use crate::events::Event;
use crate::kernels::Isa;
use crate::nn::Place;
use crate::rng::Streams;
use crate::stage::{Bound, Context, RawInputs};
use crate::stages;
use crate::store::digest::Digest;
use crate::store::records::{Fate, OutputRecord, Record};
use crate::store::scratch::Scratch;
use crate::store::{Missing, Store};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The numbers that stages compute with which have no parameter `precision`.
const PRECISION: &str = "f32";

type Emit = Arc<dyn Fn(Event) + Send + Sync>;

/// Runs the jobs that stand on standard input, one a line; says how each ended on standard output.
pub fn main() -> u8 {
    let emit: Emit = Arc::new(|event| {
        if let Ok(mut line) = serde_json::to_vec(&event) {
            line.push(b'\n');
            let mut out = std::io::stdout().lock();
            // A scheduler that has gone cannot be told; the end of standard input stops us.
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    });
    match work_on_all(&emit) {
        Ok(()) => 0,
        Err(Ended::Damaged(message)) => {
            emit(Event::Damaged { message });
            0
        }
        Err(Ended::Error(error)) => {
            let class = match error.class() {
                Class::Stage => "stage",
                Class::User => "user",
                Class::Machine => "machine",
                Class::Interrupted => "interrupted",
            };
            emit(Event::Failed {
                message: error.to_string(),
                hint: error.hint_text().map(str::to_string),
                class: class.to_string(),
            });
            error.class().exit_code()
        }
    }
}

fn work_on_all(emit: &Emit) -> Result<(), Ended> {
    // Zeroing them would take a light stage a fifth of its time.
    memory::use_huge_pages(false);
    let stop = Arc::new(AtomicBool::new(false));
    let jobs = listen(&stop)?;
    let first = next(&jobs, &stop).unwrap_or_default();
    let mut job: Job = serde_json::from_str(&first).map_err(|_| {
        Error::user("`runner worker` is what `runner run` starts; it reads jobs from its standard input")
    })?;
    let store = Store::open(&job.cache, Missing::Pretend)?;
    let _guard = store.enter_run(&stop)?;
    let scratch = store.scratch()?;
    loop {
        let (outputs, by_other) = work(job, &store, &scratch, emit, &stop)?;
        scratch.clear()?;
        emit(Event::Stored { outputs: digests(&outputs), by_other });
        let Some(line) = next(&jobs, &stop) else { return Ok(()) };
        job = serde_json::from_str(&line).map_err(Error::from)?;
        make_ready(&job, &store)?;
    }
}

/// The lines of standard input. Its end, and the signals that ask for an end, set `stop`.
fn listen(stop: &Arc<AtomicBool>) -> Result<Receiver<String>> {
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let (sender, receiver) = channel();
    let at_end = stop.clone();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
        at_end.store(true, Ordering::Relaxed);
    });
    Ok(receiver)
}

/// The next job, or none at the end.
fn next(jobs: &Receiver<String>, stop: &AtomicBool) -> Option<String> {
    loop {
        match jobs.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => return Some(line),
            // A signal does not end the wait.
            Err(RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(_) => return None,
        }
    }
}

/// After another job: what stands in this process as it would in a fresh one.
fn make_ready(job: &Job, store: &Store) -> Result<()> {
    let path = store.log_path(&job.pre_image.key());
    let log = File::create(&path).at("create", &path)?;
    nix::unistd::dup2_stderr(log).map_err(std::io::Error::from)?;
    store.look_again();
    memory::forget_peak();
    Ok(())
}

enum Ended {
    Error(Error),
    Damaged(String),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Ended {
        Ended::Error(error)
    }
}

/// Does one job: what is stored, and whether another process had stored it meanwhile.
fn work(
    job: Job,
    store: &Store,
    scratch: &Scratch,
    emit: &Emit,
    stop: &Arc<AtomicBool>,
) -> Result<(Vec<OutputRecord>, bool), Ended> {
    let key = job.pre_image.key();
    let _lock = store.locks().lock_with(&key, stop, |_| emit(Event::Waiting))?;
    if !job.force
        && let Some(hit) = store.hit(&key)?
    {
        return Ok((hit.outputs, true));
    }
    let entry = stages::find(&job.pre_image.stage)
        .ok_or_else(|| Error::machine(format!("this build has no stage `{}`", job.pre_image.stage)))?;
    let inputs = bind(&job, store)?;

    let checkpoint = store.checkpoint(&key);
    let resumed = checkpoint.load().is_some();
    emit(Event::Started { resumed });
    let resources = (entry.resources)(&job.pre_image.params);
    memory::use_huge_pages(!resources.is_light());
    let headline: Arc<Mutex<Option<String>>> = Arc::default();
    let Resolved { place, note } = if resources.gpu { job.device } else { Choice::Cpu }.resolve()?;
    if let Some(message) = note {
        emit(Event::Warning { message });
    }
    let device = place.name();
    let cx = Context::new(
        Streams::new(job.pre_image.seed.unwrap_or(0), entry.name),
        candle_core::Device::Cpu,
        job.threads,
        checkpoint.clone(),
        stop.clone(),
        noting_headline(emit.clone(), headline.clone()),
    )
    .at(place.clone());
    let start = Instant::now();
    let run = || catch_unwind(AssertUnwindSafe(|| (entry.run)(&cx, &job.pre_image.params, inputs, scratch.path())));
    // A parallel loop that starts on a thread of the pool wakes the other threads alone; from outside, each loop would
    // cost two changes of thread. A GPU's context belongs to the thread that made it.
    let written = if resources.parallel && matches!(place, Place::Cpu) { rayon::scope(|_| run()) } else { run() };
    let written = match written {
        Ok(result) => result?,
        Err(payload) => return Err(Error::stage(format!("it panicked: {}", panic_text(&*payload))).into()),
    };
    let seconds = start.elapsed().as_secs_f64();
    let precision = job.pre_image.params.get("precision").and_then(Value::as_str).unwrap_or(PRECISION).to_string();

    // Blobs first, then the record that names them (invariant 5).
    let outputs = store.publish(&written)?;
    let record = Record {
        key,
        pre_image: job.pre_image,
        outputs,
        seconds,
        peak_memory_mib: memory::peak_mib(),
        headline: headline.lock().map(|text| text.clone()).unwrap_or_default(),
        device,
        threads: job.threads,
        instructions: Some(Isa::best().name().to_string()),
        precision: Some(precision),
        build: build(),
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    };
    let inserted = store.insert(&record)?;
    if inserted.fate == Fate::Deviates {
        emit(Event::Warning {
            message: "it gave other bytes than last time for the same key; the first result stays".to_string(),
        });
    }
    checkpoint.clear();
    Ok((inserted.outputs, false))
}

/// Opens the inputs, each file hashed once more: a flipped bit costs time, never correctness (invariant 6).
fn bind(job: &Job, store: &Store) -> Result<RawInputs, Ended> {
    let mut inputs: RawInputs = BTreeMap::new();
    for (port, bound) in &job.inputs {
        for input in bound {
            let mut paths = Vec::with_capacity(input.files.len());
            for file in &input.files {
                check(store, file, &input.label)?;
                paths.push((file.name.clone(), store.blob_path(&file.digest)));
            }
            inputs.entry(port.clone()).or_default().push(Bound {
                label: input.label.clone(),
                point: input.point.clone(),
                files: Files::new(paths),
            });
        }
    }
    Ok(inputs)
}

fn check(store: &Store, file: &FileEntry, label: &str) -> Result<(), Ended> {
    if store.check_blob(file)? {
        return Ok(());
    }
    Err(Ended::Damaged(format!("`{}` of `{label}` was damaged in the cache and has been set aside", file.name)))
}

fn noting_headline(emit: Emit, headline: Arc<Mutex<Option<String>>>) -> Emit {
    Arc::new(move |event| {
        if let (Event::Headline { text }, Ok(mut slot)) = (&event, headline.lock()) {
            *slot = Some(text.clone());
        }
        emit(event);
    })
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_string())
}

fn digests(outputs: &[OutputRecord]) -> BTreeMap<String, Digest> {
    outputs.iter().map(|output| (output.port.clone(), output.digest)).collect()
}

/// What records name as the build.
fn build() -> String {
    format!("runner {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)
}
