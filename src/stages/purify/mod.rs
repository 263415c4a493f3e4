//! Defences that repair a model.
