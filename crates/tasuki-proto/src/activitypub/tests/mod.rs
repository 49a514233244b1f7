#![allow(clippy::unwrap_used)]

mod cavage;
mod documents;
mod ld;
mod message_signature;
mod proof;
mod reading;
mod software;
mod subscription;
mod words;

use super::activity::Activity;
use super::json::Limits;

/// An activity that must be readable.
fn activity(body: &str) -> Activity {
    Activity::read(body.as_bytes(), &Limits::default()).unwrap()
}
