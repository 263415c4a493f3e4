//! What the store wants people to know: damage that it found and worked around. `report` prints it (invariant 12).

use std::sync::{Arc, Mutex, PoisonError};

/// A shared list of messages, each kept once.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a message, unless it is there already.
    pub fn push(&self, message: impl Into<String>) {
        let message = message.into();
        let mut messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !messages.contains(&message) {
            messages.push(message);
        }
    }

    /// Takes the messages out.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
