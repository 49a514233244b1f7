//! A run: peers in turns, round after round, medians at the end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use crate::report::{Line, median, print_table};
use crate::{fediverse, idle, mail, tunnel};

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum EngineName {
    Mail,
    Fediverse,
    Tunnel,
    /// Memory and CPU of programs that have nothing to do.
    Idle,
}

#[derive(Args)]
pub(crate) struct Plan {
    /// The engine to measure.
    #[arg(value_enum)]
    engine: EngineName,
    /// 3 rounds with less load in place of 5, 1 where a round is long.
    #[arg(long)]
    pub(crate) quick: bool,
    /// One JSON array in place of the table.
    #[arg(long)]
    json: bool,
    /// Only these cases (may be repeated).
    #[arg(long = "case")]
    cases: Vec<String>,
    /// Only these peers (may be repeated).
    #[arg(long = "peer")]
    peers: Vec<String>,
    /// Where `tasuki` and `tasuki-agent` are.
    #[arg(long, default_value = "target/release")]
    pub(crate) programs: PathBuf,
    /// Where `scripts/bench` put the peers.
    #[arg(long, default_value = ".tools/bench")]
    pub(crate) tools: PathBuf,
}

impl Plan {
    /// How many rounds.
    fn rounds(&self, is_long: bool) -> usize {
        match (is_long, self.quick) {
            (true, true) => 1,
            (true, false) | (false, true) => 3,
            (false, false) => 5,
        }
    }

    /// A program of ours, as an absolute path.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        path.canonicalize()
            .with_context(|| format!("{} is missing; scripts/bench builds it", path.display()))
    }

    /// A peer's program, as an absolute path.
    pub(crate) fn tool(&self, name: &str) -> Result<PathBuf> {
        let path = self.tools.join(name);
        path.canonicalize()
            .with_context(|| format!("{} is missing; scripts/bench installs it", path.display()))
    }
}

/// The file in a round's directory that its programs write their errors to.
pub(crate) const LOG: &str = "log";

/// What an engine's module offers.
pub(crate) struct Suite {
    pub(crate) cases: &'static [&'static str],
    /// Cases that a quick run leaves out unless they are named.
    pub(crate) more_cases: &'static [&'static str],
    pub(crate) peers: fn(case: &str) -> &'static [&'static str],
    /// Peers that a quick run leaves out unless they are named.
    pub(crate) slow_peers: &'static [&'static str],
    /// Whose rounds are few, because each is long and little scattered.
    pub(crate) is_long: fn(case: &str, peer: &str) -> bool,
    /// One round, in a directory of its own.
    pub(crate) measure: fn(plan: &Plan, case: &str, peer: &str, directory: &Path) -> Result<Line>,
}

impl Suite {
    fn knows(&self, case: &str) -> bool {
        self.cases.contains(&case) || self.more_cases.contains(&case)
    }
}

pub(crate) fn run(plan: &Plan) -> Result<()> {
    let suite = match plan.engine {
        EngineName::Mail => &mail::SUITE,
        EngineName::Fediverse => &fediverse::SUITE,
        EngineName::Tunnel => &tunnel::SUITE,
        EngineName::Idle => &idle::SUITE,
    };
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|l| l == name);
    if let Some(unknown) = plan.cases.iter().find(|c| !suite.knows(c)) {
        bail!("unknown case {unknown}");
    }
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let more: &[&str] = if plan.quick && plan.cases.is_empty() {
        &[]
    } else {
        suite.more_cases
    };
    for case in suite.cases.iter().chain(more).filter(|c| wanted(&plan.cases, c)) {
        let peers: Vec<&str> = (suite.peers)(case)
            .iter()
            .copied()
            .filter(|p| wanted(&plan.peers, p))
            .filter(|p| !plan.quick || !plan.peers.is_empty() || !suite.slow_peers.contains(p))
            .collect();
        let mut taken: Vec<Vec<Line>> = vec![Vec::new(); peers.len()];
        // In turns: what the machine does meanwhile meets every peer alike. Who fails is out of this case; the others
        // go on.
        let mut failed = vec![false; peers.len()];
        for round in 0..plan.rounds(false) {
            for (number, peer) in peers.iter().enumerate() {
                let rounds = plan.rounds((suite.is_long)(case, peer));
                if failed[number] || round >= rounds {
                    continue;
                }
                eprintln!("{case}: {peer}, round {} of {rounds}", round + 1);
                match one_round(suite, plan, case, peer) {
                    Ok(line) => taken[number].push(line),
                    Err(error) => {
                        eprintln!("{case}: {peer} failed: {error:#}");
                        failed[number] = true;
                        failures.push(format!("{case}: {peer}"));
                    }
                }
            }
        }
        let whole = taken.iter().zip(failed).filter(|(_, failed)| !failed);
        lines.extend(whole.map(|(rounds, _)| median(rounds)));
    }
    if plan.json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    } else {
        print_table(&lines);
    }
    if !failures.is_empty() {
        bail!("without figures: {}", failures.join(", "));
    }
    Ok(())
}

/// One peer's turn, in a new directory on the file system of all queues and databases.
fn one_round(suite: &Suite, plan: &Plan, case: &str, peer: &str) -> Result<Line> {
    let directory = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(std::env::current_dir()?.join("target"))?;
    (suite.measure)(plan, case, peer, directory.path()).map_err(|error| {
        let log = fs::read_to_string(directory.path().join(LOG)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(20)..];
        anyhow!("{error:#}\n{}", tail.join("\n"))
    })
}
