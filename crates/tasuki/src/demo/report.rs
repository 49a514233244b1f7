//! What the demo proved: one JSON object, or a table for people.

use std::time::{Duration, Instant};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tasuki_core::clock::Clock;

use crate::backup::hex;
use crate::cli::output;

/// The whole result.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether everything that was sent arrived, unchanged.
    pub(super) ok: bool,
    /// From the start of the programs to the last result.
    pub(super) seconds: f64,
    /// `sqlite` or `postgresql`.
    pub(super) store: &'static str,
    /// The programs that ran.
    pub(super) programs: Vec<String>,
    /// From the start of `tasuki serve` until it was ready.
    pub(super) gateway_ready_seconds: Option<f64>,
    /// What stopped the demo before the engines' turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// One for each engine.
    pub(super) engines: Engines,
}

/// The three main jobs.
#[derive(Debug, Default, Serialize)]
pub(super) struct Engines {
    pub(super) mail: Option<Proof>,
    pub(super) fediverse: Option<Proof>,
    pub(super) tunnel: Option<Proof>,
}

/// What one engine did.
#[derive(Debug, Default, Serialize)]
pub(super) struct Proof {
    /// Whether every far end received what was sent.
    pub(super) ok: bool,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// What was sent, and from where.
    pub(super) sent: Option<Parcel>,
    /// What each far end received.
    pub(super) received: Vec<Parcel>,
    /// How long each step took, in order.
    pub(super) steps: Vec<Step>,
}

/// Some bytes at one end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Parcel {
    /// Who sent or received it.
    pub(super) at: String,
    /// What it is, in words.
    pub(super) what: String,
    /// Its length.
    pub(super) bytes: usize,
    /// Its SHA-256 in hex.
    pub(super) sha256: String,
}

/// One step's time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) seconds: f64,
}

impl Parcel {
    pub(super) fn new(at: impl Into<String>, what: impl Into<String>, bytes: &[u8]) -> Self {
        Self {
            at: at.into(),
            what: what.into(),
            bytes: bytes.len(),
            sha256: hex(&Sha256::digest(bytes)),
        }
    }
}

impl Proof {
    /// A proof that ended early.
    pub(super) fn failed(mut self, error: &anyhow::Error) -> Self {
        self.ok = false;
        self.error = Some(format!("{error:#}"));
        self
    }

    /// The whole time of all steps.
    pub(super) fn seconds(&self) -> f64 {
        self.steps.iter().map(|s| s.seconds).sum()
    }
}

/// Takes the time of steps.
pub(super) struct Watch {
    clock: Clock,
    since: Instant,
}

impl Watch {
    pub(super) fn start(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            since: clock.now(),
        }
    }

    /// The time since the start or the last lap, in seconds.
    pub(super) fn lap(&mut self) -> f64 {
        let now = self.clock.now();
        let time = now.duration_since(self.since);
        self.since = now;
        rounded(time)
    }

    /// Ends a step of `proof`.
    pub(super) fn step(&mut self, proof: &mut Proof, name: &'static str) {
        let seconds = self.lap();
        proof.steps.push(Step { name, seconds });
    }
}

/// Seconds with milliseconds.
pub(super) fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

impl Report {
    /// For people.
    pub(super) fn print_table(&self) {
        let mut rows = Vec::new();
        let engines = [
            ("mail", &self.engines.mail),
            ("fediverse", &self.engines.fediverse),
            ("tunnel", &self.engines.tunnel),
        ];
        for (name, proof) in &engines {
            let Some(proof) = proof else { continue };
            let result = if proof.ok { "works" } else { "FAILED" };
            rows.push(row(
                name,
                result,
                &proof.sent,
                &format!("{:.3} s", proof.seconds()),
            ));
            for parcel in &proof.received {
                rows.push(row("", "  arrived", &Some(parcel.clone()), ""));
            }
            for step in &proof.steps {
                rows.push(vec![
                    String::new(),
                    format!("  {}", step.name),
                    String::new(),
                    String::new(),
                    format!("{:.3} s", step.seconds),
                ]);
            }
        }
        let head = ["ENGINE", "RESULT", "WHAT", "SHA-256", "TIME"]
            .map(str::to_owned)
            .to_vec();
        output::line("");
        output::table(head, rows);
        output::line("");
        let proofs = engines
            .iter()
            .filter_map(|(name, proof)| Some((*name, proof.as_ref()?.error.as_ref()?)));
        for (name, error) in proofs {
            output::line(format!("{name}: {error}"));
        }
        if let Some(error) = &self.error {
            output::line(error);
        }
        let verdict = if self.ok {
            "Everything arrived, unchanged."
        } else {
            "Something failed."
        };
        output::line(format!("{verdict} {:.1} s in all.", self.seconds));
    }
}

fn row(name: &str, result: &str, parcel: &Option<Parcel>, time: &str) -> Vec<String> {
    let (what, sum) = parcel.as_ref().map_or((String::new(), String::new()), |p| {
        let short = p.sha256.get(..16).unwrap_or_default();
        (
            format!("{} ({}), {} bytes", p.what, p.at, p.bytes),
            format!("{short}…"),
        )
    });
    vec![name.to_owned(), result.to_owned(), what, sum, time.to_owned()]
}
