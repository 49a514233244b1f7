//! `tasuki audit`: who changed what, when, from where.

use super::{Context, output};
use crate::exit::Outcome;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How many lines, newest first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print the gateway's JSON in place of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    let answer = context
        .gateway()?
        .read(&format!("/v1/audit?limit={}", args.limit))?;
    let columns = [
        ("AT", "at"),
        ("WHO", "who"),
        ("FROM", "from"),
        ("ACTION", "action"),
        ("OBJECT", "object"),
        ("DETAIL", "detail"),
    ];
    output::listing(&answer, "entries", &columns, args.json, "nothing was changed yet")
}
