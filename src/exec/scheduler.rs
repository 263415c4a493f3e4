//! The ready queue.

use super::job::{Input, Job};
use super::process::{Message, Worker, obituary};
use super::resolve::{folder, is_called, needed, output_of, point_map, pre_image};
use super::{Options, memory};
use crate::error::{Class, Error, Result};
use crate::events::Event;
use crate::plan::Plan;
use crate::store::Store;
use crate::store::digest::Digest;
use crate::store::records::Hit;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What happens during a run.
#[derive(Debug)]
pub enum RunEvent {
    /// The result was stored already.
    Cached {
        /// The key.
        key: Digest,
        /// What is stored.
        hit: Hit,
    },
    /// A worker was started.
    Started {
        /// The key.
        key: Digest,
        /// Threads given.
        threads: usize,
    },
    /// The worker said something.
    Worker(Event),
    /// The result is stored.
    Stored {
        /// The key.
        key: Digest,
        /// What is stored.
        hit: Hit,
        /// Wall seconds in this run.
        seconds: f64,
        /// Whether another run computed it meanwhile.
        by_other: bool,
    },
    /// The stage failed.
    Failed {
        /// What went wrong.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// The worker's log.
        log: Option<PathBuf>,
    },
    /// An input was damaged; what made it is computed again.
    Damaged {
        /// What was found.
        message: String,
    },
    /// Something above failed.
    Skipped {
        /// The label of the node that failed.
        because: String,
    },
    /// The run was asked to stop; this stage has been ended, with a checkpoint if it keeps any.
    Interrupted,
}

/// Told what happens. `node` is the position in the plan.
pub trait Observer {
    /// Something happened to a node.
    fn event(&mut self, node: usize, event: &RunEvent);
    /// Called a few times a second while stages run.
    fn tick(&mut self) {}
    /// Something a user should know that concerns no stage.
    fn notice(&mut self, _message: &str) {}
}

/// How a node ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Not needed by the targets, or not reached before an interruption.
    Untouched,
    /// Stored before.
    Cached,
    /// Computed now.
    Stored,
    /// Failed.
    Failed,
    /// Below a failure.
    Skipped,
}

/// How a run ended.
pub struct Summary {
    /// The outcome of each node.
    pub outcomes: Vec<Outcome>,
    /// What is stored of each node.
    pub hits: Vec<Option<Hit>>,
    /// The key of each node that is stored.
    pub keys: Vec<Option<Digest>>,
    /// Whether the run was stopped by a signal.
    pub interrupted: bool,
    /// The worst class of failure.
    pub worst: Option<Class>,
}

impl Summary {
    /// The exit code of `runner run`.
    pub fn exit_code(&self) -> u8 {
        match self.worst {
            _ if self.interrupted => Class::Interrupted.exit_code(),
            // The pipeline was in order: what a stage blames on the user is a stage's failure all the same.
            Some(Class::User | Class::Stage) => Class::Stage.exit_code(),
            Some(class) => class.exit_code(),
            None => 0,
        }
    }

    /// Nodes with this outcome.
    pub fn count(&self, outcome: &Outcome) -> usize {
        self.outcomes.iter().filter(|o| *o == outcome).count()
    }
}

#[derive(Clone, Debug, PartialEq)]
enum State {
    Waiting,
    Running,
    Done(Outcome),
}

struct Running {
    /// What it computes.
    node: usize,
    worker: Worker,
    key: Digest,
    threads: usize,
    memory_mib: u64,
    since: Instant,
    /// The worker's last word, if it had one.
    verdict: Option<Event>,
}

struct Scheduler<'a> {
    plan: &'a Plan,
    store: &'a Store,
    options: &'a Options,
    observer: &'a mut dyn Observer,
    states: Vec<State>,
    hits: Vec<Option<Hit>>,
    keys: Vec<Option<Digest>>,
    /// Nodes above that are not done yet.
    missing: Vec<usize>,
    below: Vec<Vec<usize>>,
    forced: Vec<bool>,
    /// By the worker's number.
    running: BTreeMap<u64, Running>,
    /// Workers that have done a light job well and wait for another.
    idle: BTreeMap<u64, Worker>,
    n_started: u64,
    sender: Sender<Message>,
    receiver: Receiver<Message>,
    /// How often the run was asked to stop.
    stops: Arc<AtomicUsize>,
    memory_mib: u64,
    /// Where workers start.
    folder: PathBuf,
    worst: Option<Class>,
    /// How often each node was sent back because an input was damaged.
    repairs: Vec<usize>,
}

/// What can be refused before anything runs, not in the first worker; and which nodes the targets need.
///
/// # Errors
/// An unusable device, a target or a stage to force that the plan does not have.
pub fn check(plan: &Plan, options: &Options) -> Result<Vec<bool>> {
    options.device.check()?;
    let needed = needed(plan, &options.targets)?;
    match options.force.iter().find(|name| !plan.nodes.iter().any(|node| is_called(node, name))) {
        Some(name) => Err(super::resolve::no_such_stage(plan, name)),
        None => Ok(needed),
    }
}

/// Brings the targets of `plan` up to date. `stops` counts the requests to stop: at the first, running stages save
/// their checkpoints and end; at the second they are killed.
///
/// # Errors
/// What concerns the run as a whole: an unusable device, an unknown target, a cache that cannot be used. A failure of
/// a stage is no error here; it stands in the summary.
pub fn run(
    plan: &Plan,
    store: &Store,
    options: &Options,
    stops: Arc<AtomicUsize>,
    observer: &mut dyn Observer,
) -> Result<Summary> {
    let needed = check(plan, options)?;
    let n = plan.nodes.len();
    let mut below = vec![Vec::new(); n];
    let mut missing = Vec::with_capacity(n);
    for id in 0..n {
        let above = plan.upstream(id);
        missing.push(above.len());
        for up in above {
            below[up].push(id);
        }
    }
    let (sender, receiver) = channel();
    let mut scheduler = Scheduler {
        plan,
        store,
        options,
        observer,
        states: needed.iter().map(|&n| if n { State::Waiting } else { State::Done(Outcome::Untouched) }).collect(),
        hits: vec![None; n],
        keys: vec![None; n],
        missing,
        below,
        forced: plan.nodes.iter().map(|node| options.force.iter().any(|name| is_called(node, name))).collect(),
        running: BTreeMap::new(),
        idle: BTreeMap::new(),
        n_started: 0,
        sender,
        receiver,
        stops,
        // Unlimited where the system does not say.
        memory_mib: memory::available_mib().unwrap_or(u64::MAX),
        folder: folder(plan),
        worst: None,
        repairs: vec![0; n],
    };
    scheduler.go()?;
    for worker in std::mem::take(&mut scheduler.idle).into_values() {
        worker.wait()?;
    }
    let interrupted = scheduler.stops.load(Ordering::Relaxed) > 0;
    let outcomes = scheduler
        .states
        .into_iter()
        .map(|state| if let State::Done(outcome) = state { outcome } else { Outcome::Untouched })
        .collect();
    Ok(Summary { outcomes, hits: scheduler.hits, keys: scheduler.keys, interrupted, worst: scheduler.worst })
}

impl Scheduler<'_> {
    fn go(&mut self) -> Result<()> {
        let mut ready: Vec<usize> = (0..self.states.len()).filter(|&id| self.is_ready(id)).collect();
        let mut to_start: Vec<usize> = Vec::new();
        let mut asked = 0;
        loop {
            while let Some(id) = ready.pop() {
                match self.look_up(id) {
                    Ok(true) => self.release(id, &mut ready),
                    Ok(false) => to_start.push(id),
                    Err(error) => self.fail(id, &error),
                }
            }
            // Deterministic order whatever order events arrived in.
            to_start.sort_unstable();
            // A repair may have taken an input away again; the node comes back once it is there.
            to_start.retain(|&id| self.is_ready(id));
            let stops = self.stops.load(Ordering::Relaxed);
            if stops == 0 {
                self.start(&mut to_start);
            } else if stops > asked {
                for running in self.running.values_mut() {
                    if stops == 1 { running.worker.ask_to_stop() } else { running.worker.kill() }
                }
                asked = stops;
            }
            if self.running.is_empty() {
                if stops > 0 || to_start.is_empty() {
                    return Ok(());
                }
                continue;
            }
            match self.receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(message) => self.handle(message, &mut ready)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.observer.tick();
        }
    }

    fn is_ready(&self, id: usize) -> bool {
        self.states[id] == State::Waiting && self.missing[id] == 0
    }

    /// Whether the node's result is stored.
    fn look_up(&mut self, id: usize) -> Result<bool> {
        let key = super::resolve::key(self.plan, id, &self.hits, self.store)?;
        if self.forced[id] {
            return Ok(false);
        }
        match self.store.hit(&key)? {
            Some(hit) => {
                self.hits[id] = Some(hit.clone());
                self.keys[id] = Some(key);
                self.states[id] = State::Done(Outcome::Cached);
                self.observer.event(id, &RunEvent::Cached { key, hit });
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Node `id` has a record: what waited for it may be ready.
    fn release(&mut self, id: usize, ready: &mut Vec<usize>) {
        for &next in &self.below[id] {
            self.missing[next] -= 1;
            if self.states[next] == State::Waiting && self.missing[next] == 0 {
                ready.push(next);
            }
        }
    }

    /// Starts as many of `to_start` as slots, threads and memory allow.
    fn start(&mut self, to_start: &mut Vec<usize>) {
        let mut position = 0;
        while position < to_start.len() && self.running.len() < self.options.jobs {
            let id = to_start[position];
            let resources = self.plan.nodes[id].resources;
            let used_mib: u64 = self.running.values().map(|r| r.memory_mib).sum();
            // One stage may always run, however much it asks for.
            if !self.running.is_empty() && used_mib + resources.memory_mib > self.memory_mib {
                position += 1;
                continue;
            }
            // A share is for life, and neighbours often end long before a training does. So stages that want several
            // threads get two at least, which may come to twice as many threads as there are to share; those that
            // want one do not count.
            let is_parallel = |id: &usize| self.plan.nodes[*id].resources.parallel;
            let used: usize = self.running.values().filter(|r| is_parallel(&r.node)).map(|r| r.threads).sum();
            if used >= 2 * self.options.threads {
                return;
            }
            let free = self.options.threads.saturating_sub(used);
            let n_slots = self.options.jobs - self.running.len();
            let others = to_start[position..].iter().filter(|id| is_parallel(id)).count().clamp(1, n_slots);
            let threads = if resources.parallel { (free / others).max(self.options.threads.min(2)) } else { 1 };
            to_start.remove(position);
            if let Err(error) = self.spawn(id, threads) {
                self.fail(id, &error);
            }
        }
    }

    fn spawn(&mut self, id: usize, threads: usize) -> Result<()> {
        let node = &self.plan.nodes[id];
        let pre_image = pre_image(self.plan, id, &self.hits, self.store)?;
        let key = pre_image.key();
        let mut inputs = BTreeMap::new();
        for (port, sources) in &node.inputs {
            let mut bound = Vec::with_capacity(sources.len());
            for source in sources {
                let output = output_of(self.plan, source.node, source.port, &self.hits)?;
                bound.push(Input {
                    label: source.label.clone(),
                    point: point_map(&source.point),
                    kind: output.kind,
                    files: output.files.clone(),
                });
            }
            inputs.insert((*port).to_string(), bound);
        }
        self.store.require_writable()?;
        let job = Job {
            cache: self.store.root().to_path_buf(),
            pre_image,
            inputs,
            threads,
            device: self.options.device,
            force: self.forced[id],
        };
        let log = self.store.log_path(&key);
        let kept = if node.resources.is_light() { self.idle.pop_first() } else { None };
        let (number, mut worker) = match kept {
            Some(kept) => kept,
            None => {
                self.n_started += 1;
                (self.n_started, Worker::start(self.n_started, threads, &self.folder, &log, self.sender.clone())?)
            }
        };
        worker.give(&job)?;
        let running = Running {
            node: id,
            worker,
            key,
            threads,
            memory_mib: node.resources.memory_mib,
            since: Instant::now(),
            verdict: None,
        };
        self.states[id] = State::Running;
        self.running.insert(number, running);
        self.observer.event(id, &RunEvent::Started { key, threads });
        Ok(())
    }

    fn handle(&mut self, message: Message, ready: &mut Vec<usize>) -> Result<()> {
        match message {
            Message::Event(number, event) => {
                let Some(running) = self.running.get_mut(&number) else { return Ok(()) };
                let node = running.node;
                match event {
                    Event::Stored { .. } if self.plan.nodes[node].resources.is_light() => {
                        if let Some(Running { worker, key, since, .. }) = self.running.remove(&number) {
                            self.idle.insert(number, worker);
                            self.conclude(node, key, since, Some(event), None, ready)?;
                        }
                    }
                    Event::Stored { .. } | Event::Failed { .. } | Event::Damaged { .. } => {
                        running.verdict = Some(event);
                        // There is nothing else for it to do.
                        running.worker.ask_to_stop();
                    }
                    _ => self.observer.event(node, &RunEvent::Worker(event)),
                }
            }
            Message::Closed(number) => {
                if let Some(Running { node, worker, key, since, verdict, .. }) = self.running.remove(&number) {
                    let status = worker.wait()?;
                    self.conclude(node, key, since, verdict, Some(status), ready)?;
                } else if let Some(worker) = self.idle.remove(&number) {
                    worker.wait()?;
                }
            }
        }
        Ok(())
    }

    /// The worker of `id` has said its last word on it, or has ended without one.
    fn conclude(
        &mut self,
        id: usize,
        key: Digest,
        since: Instant,
        verdict: Option<Event>,
        ended: Option<std::process::ExitStatus>,
        ready: &mut Vec<usize>,
    ) -> Result<()> {
        match verdict {
            Some(Event::Stored { by_other, .. }) => {
                let Some(hit) = self.store.hit(&key)? else {
                    let error = Error::machine(format!("the worker stored {key}, but the cache does not have it"))
                        .hint("`runner verify` checks the cache");
                    self.fail(id, &error);
                    return Ok(());
                };
                let seconds = since.elapsed().as_secs_f64();
                self.hits[id] = Some(hit.clone());
                self.keys[id] = Some(key);
                self.states[id] = State::Done(if by_other { Outcome::Cached } else { Outcome::Stored });
                self.observer.event(id, &RunEvent::Stored { key, hit, seconds, by_other });
                self.release(id, ready);
            }
            Some(Event::Damaged { message }) => self.repair(id, &message, ready)?,
            Some(Event::Failed { message, hint, class }) => {
                if class == "interrupted" && self.stops.load(Ordering::Relaxed) > 0 {
                    self.states[id] = State::Done(Outcome::Untouched);
                    self.observer.event(id, &RunEvent::Interrupted);
                    return Ok(());
                }
                let mut error = Error::stage(message).with_class(match class.as_str() {
                    "machine" => Class::Machine,
                    "user" => Class::User,
                    _ => Class::Stage,
                });
                if let Some(hint) = hint {
                    error = error.hint(hint);
                }
                self.fail_with_log(id, &error, Some(key));
            }
            _ if self.stops.load(Ordering::Relaxed) > 0 => {
                self.states[id] = State::Done(Outcome::Untouched);
                self.observer.event(id, &RunEvent::Interrupted);
            }
            _ => {
                let how = ended.map_or_else(|| "it gave no result".to_string(), obituary);
                self.fail_with_log(id, &Error::stage(how), Some(key));
            }
        }
        Ok(())
    }

    /// An input of `id` was damaged and has been set aside: computes what made it again, then `id`.
    fn repair(&mut self, id: usize, message: &str, ready: &mut Vec<usize>) -> Result<()> {
        self.repairs[id] += 1;
        if self.repairs[id] > 3 {
            self.fail(id, &Error::machine(format!("{message}, again and again")).hint("is the disk failing?"));
            return Ok(());
        }
        self.observer.event(id, &RunEvent::Damaged { message: message.to_string() });
        self.states[id] = State::Waiting;
        self.store.look_again();
        let mut whole = true;
        for up in self.plan.upstream(id) {
            let Some(key) = self.keys[up] else { continue };
            if self.store.hit(&key)?.is_none() {
                whole = false;
                self.forget(up);
                if self.is_ready(up) {
                    ready.push(up);
                }
            }
        }
        if whole {
            ready.push(id);
        }
        Ok(())
    }

    /// Node `id` no longer has its result; what stands below and has not started waits for it again.
    fn forget(&mut self, id: usize) {
        self.hits[id] = None;
        self.keys[id] = None;
        self.states[id] = State::Waiting;
        for &next in &self.below[id] {
            self.missing[next] += 1;
        }
    }

    fn fail(&mut self, id: usize, error: &Error) {
        self.fail_with_log(id, error, None);
    }

    fn fail_with_log(&mut self, id: usize, error: &Error, key: Option<Digest>) {
        self.states[id] = State::Done(Outcome::Failed);
        let severity = |class: Class| match class {
            Class::Interrupted => 0,
            Class::Stage => 1,
            Class::User => 2,
            Class::Machine => 3,
        };
        if self.worst.is_none_or(|worst| severity(error.class()) > severity(worst)) {
            self.worst = Some(error.class());
        }
        let event = RunEvent::Failed {
            message: error.to_string(),
            hint: error.hint_text().map(str::to_string),
            log: key.map(|key| self.store.log_path(&key)),
        };
        self.observer.event(id, &event);
        let label = self.plan.nodes[id].label.clone();
        let mut below = self.below[id].clone();
        while let Some(next) = below.pop() {
            if self.states[next] == State::Waiting {
                self.states[next] = State::Done(Outcome::Skipped);
                self.observer.event(next, &RunEvent::Skipped { because: label.clone() });
                below.extend(&self.below[next]);
            }
        }
    }
}
