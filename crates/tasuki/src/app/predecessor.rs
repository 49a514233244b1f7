//! The newer process's end of an upgrade: the gateway that serves now started this process, and gives it what it has.

use std::os::fd::AsFd as _;
use std::time::Duration;

use tasuki_core::handover::{Link, LinkError, Word};

use super::start::Start;
use crate::exit::{self, Fail, Outcome, chain};
use crate::place::DataDir;

/// Set in the environment of a process that another gateway started; the link is its standard input.
pub(super) const ENVIRONMENT: &str = "TASUKI_HANDOVER";

/// One message of items is on its way for no longer than this.
const TAKE: Duration = Duration::from_secs(30);

/// The gateway that serves now.
pub(crate) struct Predecessor(Link);

impl Predecessor {
    /// The one that started this process, if one did.
    pub(crate) fn find() -> Option<Self> {
        std::env::var_os(ENVIRONMENT)?;
        let fd = std::io::stdin().as_fd().try_clone_to_owned();
        match fd.and_then(Link::from_fd) {
            Ok(link) => Some(Self(link)),
            Err(error) => {
                tracing::warn!(%error, "{ENVIRONMENT} is set, but no gateway is on the standard input");
                None
            }
        }
    }

    /// Says that this process could serve, and waits until everything is given.
    pub(super) fn take(&self, data: &DataDir) -> Outcome<Start> {
        let said = self.0.say(&Word::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        said.map_err(|error| lost(&error))?;
        // The older one finishes what is under way first, in its own time.
        let items = match self.0.hear(None).map_err(|error| lost(&error))? {
            Word::Take { items } => items,
            other => return Err(unexpected(&other)),
        };
        let items = self.0.take(items, TAKE).map_err(|error| lost(&error))?;
        Start::from_items(items, data)
    }

    /// Everything is built: waits until the older one has given it all up. Then this process serves, also if the older
    /// one ended at just this moment: one that goes on by itself would have ended this process first.
    pub(super) async fn commit(&self) -> Outcome {
        let link = self
            .0
            .try_clone()
            .map_err(|e| Fail::io("the link to the other process", &e))?;
        let waiting = tokio::task::spawn_blocking(move || {
            link.say(&Word::Ready)?;
            link.hear(None)
        });
        match waiting.await {
            Ok(Ok(Word::Commit)) | Ok(Err(LinkError::Ended)) => Ok(()),
            Ok(Ok(other)) => Err(unexpected(&other)),
            Ok(Err(error)) => Err(lost(&error)),
            Err(error) => Err(Fail::new(exit::SOFTWARE, error.to_string())),
        }
    }

    /// This process serves.
    pub(super) fn serving(&self) {
        if let Err(error) = self.0.say(&Word::Serving) {
            tracing::debug!(%error, "the process before this one has ended already");
        }
    }

    /// This process will not serve: says why, so that the command of the upgrade can tell.
    pub(crate) fn failed(&self, fail: &Fail) {
        let _ = self.0.say(&Word::Failed {
            code: fail.code,
            message: fail.message.chars().take(4000).collect(),
        });
    }
}

fn lost(error: &LinkError) -> Fail {
    Fail::new(
        exit::UNAVAILABLE,
        format!(
            "the gateway that started this process did not hand over: {}",
            chain(error)
        ),
    )
}

fn unexpected(word: &Word) -> Fail {
    Fail::new(
        exit::UNAVAILABLE,
        format!("the gateway that started this process said something unexpected: {word:?}"),
    )
}
