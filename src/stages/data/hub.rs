//! One file from a dataset repository of the Hugging Face Hub, through the cache that all Hub clients share.
//!
//! The transfer runs on a thread of its own, so that a stop request is heard and a connection that went silent ends
//! with an error (the client library itself waits for ever). Deliberately does not judge the content: whoever asks
//! for a file checks what is in it.

use crate::error::{Class, Error, Result};
use crate::stage::Context;
use hf_hub::HFError;
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How to reach the Hub. What is not set comes from HF_ENDPOINT, HF_HUB_CACHE, HF_HOME and HF_TOKEN, which the client
/// library reads.
#[derive(Clone, Debug)]
pub struct Config {
    /// Take files from the cache only.
    pub offline: bool,
    /// How often a request that failed for a passing reason is repeated.
    pub retries: usize,
    /// How long a transfer may stay silent.
    pub patience: Duration,
}

impl Config {
    /// The user's configuration: offline if HF_HUB_OFFLINE says so.
    ///
    /// The client library does not look at HF_HUB_OFFLINE, so this does. It is read here and nowhere else.
    pub fn from_environment() -> Config {
        let offline = std::env::var("HF_HUB_OFFLINE").is_ok_and(|value| is_true(&value));
        Config { offline, retries: 3, patience: Duration::from_secs(60) }
    }
}

/// What the Hub's Python client takes for yes.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}

/// A file in a dataset repository.
#[derive(Clone, Copy, Debug)]
pub struct RemoteFile {
    /// `owner/name`.
    pub repository: &'static str,
    /// A commit.
    pub revision: &'static str,
    /// The path in the repository.
    pub name: &'static str,
}

enum Message {
    Bytes { done: u64, total: u64 },
    Done(std::result::Result<PathBuf, Failure>),
}

enum Failure {
    NotCached,
    Other(String),
}

/// The local path of `file`, downloaded unless it is in the cache. Reports its progress in megabytes.
///
/// # Errors
/// Offline without a cached copy (the user's), any failure of the transfer (the machine's), a stop request.
pub fn fetch(cx: &Context, config: &Config, file: RemoteFile) -> Result<PathBuf> {
    let (sender, receiver) = mpsc::channel();
    let offline = config.offline;
    let retries = config.retries;
    std::thread::spawn(move || {
        let result = transfer(offline, retries, file, sender.clone());
        // Nobody listens any more after a stop request; the thread ends with the process then.
        let _ = sender.send(Message::Done(result));
    });
    let mut heard = Instant::now();
    let mut shown = None;
    loop {
        cx.check_stop()?;
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(Message::Bytes { done, total }) => {
                heard = Instant::now();
                let megabytes = (done / 1_000_000, total.div_ceil(1_000_000));
                if shown.replace(megabytes) != Some(megabytes) {
                    cx.progress(megabytes.0, megabytes.1, "MB", file.name);
                }
            }
            Ok(Message::Done(Ok(path))) => return Ok(path),
            Ok(Message::Done(Err(Failure::NotCached))) => {
                return Err(failed(file, "HF_HUB_OFFLINE is set, and the file is not in the cache (HF_HOME)")
                    .with_class(Class::User));
            }
            Ok(Message::Done(Err(Failure::Other(reason)))) => return Err(failed(file, &reason)),
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > config.patience => {
                return Err(failed(file, &format!("nothing was heard for {} s", config.patience.as_secs())));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(failed(file, "the client library panicked")),
        }
    }
}

fn failed(file: RemoteFile, reason: &str) -> Error {
    Error::machine(format!("cannot get `{}` of `{}` from the Hugging Face Hub: {reason}", file.name, file.repository))
}

fn transfer(
    offline: bool,
    retries: usize,
    file: RemoteFile,
    sender: Sender<Message>,
) -> std::result::Result<PathBuf, Failure> {
    let client = hf_hub::HFClientBuilder::new().retry_max_attempts(retries).build_sync().map_err(failure)?;
    let (owner, name) = hf_hub::split_id(file.repository);
    let request = client.dataset(owner, name);
    let request = request.download_file().filename(file.name).revision(file.revision).progress(Report(sender));
    // Given a commit, the client asks the cache first.
    request.local_files_only(offline).send().map_err(failure)
}

fn failure(error: HFError) -> Failure {
    if matches!(error, HFError::LocalEntryNotFound { .. }) {
        return Failure::NotCached;
    }
    // The innermost cause is the one that helps: "connection refused", not "error sending request".
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        let reason = inner.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        cause = inner;
    }
    Failure::Other(text)
}

struct Report(Sender<Message>);

impl ProgressHandler for Report {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let (done, total) = match event {
            DownloadEvent::Start { total_bytes, .. } => (0, *total_bytes),
            DownloadEvent::Progress { files } => match files.last() {
                Some(file) => (file.bytes_completed, file.total_bytes),
                None => return,
            },
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => (*bytes_completed, *total_bytes),
            DownloadEvent::Complete => return,
        };
        let _ = self.0.send(Message::Bytes { done, total });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offline_is_what_python_takes_for_yes() {
        for (value, expected) in [("1", true), ("TRUE", true), ("on", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(is_true(value), expected, "{value}");
        }
    }
}
