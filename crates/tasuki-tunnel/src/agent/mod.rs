//! The agent's end.
