//! Dialogues: each file in `data/` is a conversation that a machine must have, word for word.
#![allow(clippy::unwrap_used)]

mod smtp_dialogues;
