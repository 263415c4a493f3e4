//! Numbers that PyTorch gave, for tests; `tests/peers/torch_optim.py` writes them.

use serde_json::Value;

/// The golden file of optimisers, schedules and losses.
pub(crate) fn torch() -> Value {
    serde_json::from_str(include_str!("../../tests/golden/torch_optim.json")).unwrap()
}

/// An array of numbers.
pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}
