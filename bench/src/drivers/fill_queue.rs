//! A long queue in the store of a gateway that is stopped.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::long_queue;

#[derive(Args)]
pub(crate) struct Fill {
    /// The gateway's data directory.
    #[arg(long)]
    data: PathBuf,
    /// Mails; a tenth as many destinations.
    #[arg(long)]
    count: i64,
}

pub(crate) fn run(fill: &Fill) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(long_queue::fill(
        tasuki_store::DEFAULT_URL,
        &fill.data,
        fill.count,
    ));
    Ok(())
}
