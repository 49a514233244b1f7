//! Starts a local server that sleeps, when a player joins who may wake it.
//!
//! The command is the home host's own; what a gateway sends decides only whether it runs, never what runs.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tasuki_proto::tunnel::{OpenReply, StreamHeader};
use tokio::process::Command;
use tokio::time::Instant;

use super::{Inner, Served, Start, probe};
use crate::splice::Outgoing;

/// How long a player is held: a little less than the gateway does.
const HOLD: Duration = Duration::from_secs(24);
/// How often the server is asked whether it is there.
const LOOK: Duration = Duration::from_millis(250);
/// A server that is not there by then is asleep again, and may be started anew.
const GIVE_UP: Duration = Duration::from_secs(300);

/// Whether a server is being started.
#[derive(Default)]
pub(super) struct Waking(Mutex<Option<Instant>>);

impl Waking {
    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_starting(&self) -> bool {
        self.lock().is_some_and(|since| since.elapsed() < GIVE_UP)
    }

    /// The server takes connections: the next time it is away, it sleeps.
    pub(super) fn is_up(&self) {
        *self.lock() = None;
    }

    /// Runs the command, unless it runs for somebody else already.
    fn start(self: &Arc<Self>, command: &[String]) -> std::io::Result<()> {
        let mut since = self.lock();
        if since.is_some_and(|since| since.elapsed() < GIVE_UP) {
            return Ok(());
        }
        let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        tracing::info!(program, "a player wakes the local server");
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()?;
        *since = Some(Instant::now());
        let waking = Arc::clone(self);
        tokio::spawn(async move {
            // It may be the server itself, or what only tells another to start it.
            if let Ok(status) = child.wait().await
                && !status.success()
            {
                tracing::warn!(%status, "the start command failed");
                *waking.lock() = None;
            }
        });
        Ok(())
    }
}

impl Start {
    fn is_for(&self, player: &str) -> bool {
        let named = |name: &String| name.to_lowercase() == player.to_lowercase();
        self.wake_for.is_empty() || self.wake_for.iter().any(named)
    }
}

/// What becomes of a visitor whose local server is not there: `Ok` when it is after all, with the player held meanwhile.
pub(super) async fn wake(
    inner: &Inner,
    served: &Served,
    header: &StreamHeader,
    outgoing: &mut Outgoing,
    away: OpenReply,
) -> Result<(), OpenReply> {
    let Some(start) = &served.endpoint.start else {
        return Err(away);
    };
    let player = match &header.player {
        Some(player) if start.is_for(player) => player,
        // A look at the list wakes nobody: scanners look all day.
        _ if served.waking.is_starting() => return Err(OpenReply::Starting),
        _ => return Err(OpenReply::Sleeping),
    };
    if let Err(error) = served.waking.start(&start.command) {
        tracing::warn!(player, %error, "the start command cannot be run");
        return Err(OpenReply::Failed);
    }
    if !inner.gateway_holds.load(Ordering::Relaxed) {
        return Err(OpenReply::Starting);
    }
    let said = outgoing.write_all(&[OpenReply::Starting.byte()]).await;
    said.map_err(|_| OpenReply::Failed)?;
    let until = Instant::now() + HOLD;
    while Instant::now() < until {
        // A server listens some time before it lets players in.
        if probe::has_status(&served.endpoint, served.endpoint.proxy_protocol).await {
            return Ok(());
        }
        if !served.waking.is_starting() {
            return Err(OpenReply::Failed);
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(OpenReply::Starting)
}
