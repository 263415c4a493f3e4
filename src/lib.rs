//! `runner`: declarative, cached, reproducible pipelines for backdoor-learning research.
//!
//! A researcher writes one TOML file: stages that poison a dataset, pack it, train on it with mutual-information
//! hooks, purify the model, measure and plot. This crate plans it, answers from a content-addressed store what has been
//! computed before, and runs the rest.
//!
//! # What flows, in one direction
//!
//! ```text
//! pipelines/*.toml --config--> Pipeline --plan--> Plan (graph of stages, typed ports) --store--> hit | miss
//!                                                                                       |
//!                          miss: exec has a worker process of this binary run the stage
//!                                stage(parameters, inputs, seed) -> artifacts -> store -> next stage
//!                                          |
//!                                       events --> report (terminal, JSON lines, results/), track
//! ```
//!
//! # Code map
//!
//! - [`config`]: text -> Pipeline. What the user wrote, with spans; profile and `--set` applied; matrix expanded.
//! - [`plan`]: Pipeline -> Plan. Names resolved against [`stages::STAGES`], defaults filled in, ports checked by type.
//!   *Invariant 1*: planning reads nothing but the pipeline file.
//! - [`store`]: content-addressed. A *key* is what was asked: BLAKE3 over stage name and version, completed
//!   parameters, the seed if the stage draws, and the digests of its inputs. A *digest* is what came out. Keys hold
//!   input digests, not input keys: a stage that is run again and gives the same bytes cuts the wave off.
//! - [`exec`]: the scheduler, which computes nothing itself, and its worker processes: one for a stage, or for light
//!   stages in turn.
//! - [`stage`]: the typed trait that authors write and the erased entry that the planner uses. Its page is the recipe
//!   for adding a stage: one file, one registry line.
//! - [`stages`]: the stages. The name in the TOML is the path in the source: `poison/badnet` is
//!   `src/stages/poison/badnet.rs`.
//! - [`artifact`]: what flows between stages, one file per kind.
//! - [`nn`] and [`kernels`]: networks, and the loops they spend their time in. They know no stage.
//! - [`information`]: mutual-information estimators. [`embedding`]: principal components, t-SNE, silhouettes.
//! - [`track`]: a run told to TensorBoard, to Weights & Biases and as JSON lines.
//! - [`figure`]: what plots share. [`report`]: everything that is printed. [`cli`]: one file per command.
//! - [`canonical`], [`rng`], [`param`], [`error`], [`events`]: bytes of parameters, named random streams, types of
//!   parameters, errors for people, what happens during a run.
//!
//! A build with the feature `cuda` also has an engine that executes the same graphs on an NVIDIA GPU
//! (`nn::engine`, `kernels::cuda`). Its tests run against an emulation; it has never run on a GPU.
//!
//! # Invariants
//!
//! Cited by number in the code.
//!
//! 1. Planning does no I/O beyond the pipeline file, and answers in milliseconds.
//! 2. A stage sees only its parameters, its inputs and its context.
//! 3. Same key, same bytes, on the same build and device, whatever the number of threads.
//! 4. Every random draw comes from a named stream derived from (seed, stage, name); there is no global generator.
//! 5. A record never names a missing blob; a blob is never modified. `kill -9` at any moment loses at most the stage in
//!    flight, and that resumes from its last checkpoint.
//! 6. A damaged cache costs time, never correctness: every read is length-checked, workers hash what they read, `verify`
//!    re-hashes all, and a mismatch is a miss with a warning.
//! 7. Two runners on one cache never corrupt it and never compute the same key twice at the same time.
//! 8. Parameters are complete and checked before anything runs; every message names file, line, column, what was
//!    expected, and a way out.
//! 9. Defences never see test data or poison labels: ports make it a type error.
//! 10. Every result row carries its definitions: how the poison rate is counted, which test images the attack success
//!     counts.
//! 11. Every op with a hand-written gradient has a finite-difference test with batch >= 2.
//! 12. Only `report` prints; only `main` exits.
//!
//! # Why the network is not candle's autograd
//!
//! Everything here is gradient steps, and candle's convolution training runs at a twentieth to a seventh of PyTorch's
//! speed on a CPU: naive backward convolutions, unfused batch norm, a zero-then-add for every gradient, and a fresh
//! allocation for every intermediate. So a network is described once, as a list of nodes over preallocated
//! channels-last buffers with one flat parameter and one flat gradient buffer ([`nn`]), and executed forwards and
//! backwards by our own [`kernels`]. Losses see logits and hand back their gradient.

pub mod artifact;
pub mod canonical;
pub mod cli;
pub mod config;
pub mod embedding;
pub mod error;
pub mod events;
pub mod exec;
pub mod figure;
pub mod information;
pub mod kernels;
pub mod nn;
pub mod param;
pub mod plan;
pub mod report;
pub mod rng;
pub mod stage;
pub mod stages;
pub mod store;
pub mod track;
