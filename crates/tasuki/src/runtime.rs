//! Asynchronous work in a command: one thread, for as long as it takes.

use crate::exit::{Fail, Outcome};

/// Runs `work` to its end.
pub(crate) fn block_on<F: Future>(work: F) -> Outcome<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Fail::io("cannot start the runtime", &e))?;
    Ok(runtime.block_on(work))
}
