//! What can go wrong, told to people: what happened, where, and a way out.
//!
//! One opaque error type for the crate. Its [`Class`] decides the exit code; its context lines say what was being
//! done, outermost first; its hint says what to do next. Problems in a pipeline file carry their own source
//! excerpts (see [`crate::config::diagnostic`]) and arrive here as one [`Error`] holding all of them.

use std::fmt;
use std::path::Path;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose fault an error is; the process exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A stage failed while computing. Exit code 1.
    Stage,
    /// The user asked for something that cannot be: a bad pipeline, a missing file. Exit code 2.
    User,
    /// The machine failed: disk full, permission denied, a damaged cache. Exit code 3.
    Machine,
    /// SIGINT or SIGTERM stopped the work, cleanly. Exit code 130.
    Interrupted,
}

impl Class {
    /// The process exit code for an error of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Stage => 1,
            Class::User => 2,
            Class::Machine => 3,
            Class::Interrupted => 130,
        }
    }
}

/// An error with its class, context and hint.
pub struct Error(Box<Inner>);

struct Inner {
    class: Class,
    message: String,
    /// Outermost last; printed outermost first.
    context: Vec<String>,
    hint: Option<String>,
    /// Already laid out for a terminal (source excerpts): printed as it is, without the `error:` prefix.
    rendered: bool,
}

impl Error {
    fn new(class: Class, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { class, message: message.into(), context: Vec::new(), hint: None, rendered: false }))
    }

    /// A stage failed while computing.
    pub fn stage(message: impl Into<String>) -> Error {
        Error::new(Class::Stage, message)
    }

    /// The user asked for something that cannot be.
    pub fn user(message: impl Into<String>) -> Error {
        Error::new(Class::User, message)
    }

    /// The machine, not the user nor the stage, is at fault.
    pub fn machine(message: impl Into<String>) -> Error {
        Error::new(Class::Machine, message)
    }

    /// A signal asked us to stop.
    pub fn interrupted() -> Error {
        Error::new(Class::Interrupted, "interrupted")
    }

    /// A text that is already laid out (source excerpts with carets) and is printed as it is.
    pub fn rendered(class: Class, text: impl Into<String>) -> Error {
        let mut error = Error::new(class, text);
        error.0.rendered = true;
        error
    }

    /// An I/O error at `path`. A full disk says so and is the machine's fault; a missing file is the user's.
    pub fn io(error: std::io::Error, doing: &str, path: &Path) -> Error {
        use std::io::ErrorKind;
        let class = if error.kind() == ErrorKind::NotFound { Class::User } else { Class::Machine };
        let mut made = Error::new(class, format!("cannot {doing} `{}`: {}", path.display(), io_reason(&error)));
        if let Some(hint) = io_hint(&error) {
            made.0.hint = Some(hint.into());
        }
        made
    }

    /// Adds a line of context: what was being done when this went wrong.
    pub fn context(mut self, doing: impl Into<String>) -> Error {
        self.0.context.push(doing.into());
        self
    }

    /// Says what to do about it. The innermost hint wins.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint.get_or_insert(hint.into());
        self
    }

    /// Whose fault it is.
    pub fn class(&self) -> Class {
        self.0.class
    }

    /// The same error, charged to somebody else.
    pub fn with_class(mut self, class: Class) -> Error {
        self.0.class = class;
        self
    }

    /// The message alone, without context and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The hint, if any.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// Whether the text is already laid out for a terminal.
    pub fn is_rendered(&self) -> bool {
        self.0.rendered
    }
}

/// The system's reason without Rust's trailing "(os error N)".
fn io_reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

fn io_hint(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("free some space (`runner gc` shows what the cache can give back) and run again; nothing is lost")
        }
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            Some("choose a writable cache with `--cache DIR` or RUNNER_CACHE")
        }
        _ => None,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in self.0.context.iter().rev() {
            write!(f, "{doing}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match &self.0.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        let mut made = Error::machine(io_reason(&error));
        if let Some(hint) = io_hint(&error) {
            made.0.hint = Some(hint.into());
        }
        made
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Error {
        Error::stage(error.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Error {
        Error::machine(format!("unreadable JSON: {error}"))
    }
}

impl From<safetensors::SafeTensorError> for Error {
    fn from(error: safetensors::SafeTensorError) -> Error {
        Error::machine(format!("unreadable safetensors file: {error}"))
    }
}

/// Context and hints on results.
pub trait ResultExt<T> {
    /// Adds what was being done.
    fn context(self, doing: impl Into<String>) -> Result<T>;
    /// Adds what to do about it.
    fn hint(self, hint: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn context(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().context(doing))
    }

    fn hint(self, hint: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().hint(hint))
    }
}

/// Names the path in an I/O error.
pub trait IoExt<T> {
    /// `doing` completes "cannot …": `read`, `write`, `rename`.
    fn at(self, doing: &str, path: &Path) -> Result<T>;
}

impl<T> IoExt<T> for std::io::Result<T> {
    fn at(self, doing: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::io(error, doing, path))
    }
}
