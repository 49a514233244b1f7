//! Counts that are in memory first and in the store seconds later.

use std::time::Duration;

use tokio::sync::Notify;

use crate::context::Context;

/// How long what was counted may be in memory only.
const LAG: Duration = Duration::from_secs(2);

/// Has counts brought into the store soon after each time that something was counted, until the engine closes. What is
/// counted after that is for who closes it.
pub(crate) async fn keep<F>(context: &Context, counted: &Notify, flush: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    while !context.is_closing() {
        tokio::select! {
            () = counted.notified() => {}
            () = context.closing.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(LAG) => {}
            () = context.closing.cancelled() => return,
        }
        flush().await;
    }
}
