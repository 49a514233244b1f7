//! What a life of the gateway begins with: nothing but its data directory, or what another life gave.

use std::sync::{Mutex, PoisonError};

use tasuki_core::handover::Item;
use tasuki_core::sockets::{Bound, Purpose, Sockets};

use crate::data::{self, Lock};
use crate::exit::{self, Fail, Outcome};
use crate::place::DataDir;

const SOCKET: &str = "socket";
const LOCK: &str = "lock";

/// How a life begins.
pub(super) struct Start {
    pub(super) lock: Lock,
    pub(super) sockets: Sockets,
    /// For the engines.
    items: Mutex<Vec<Item>>,
    /// Whether another life was here just before.
    pub(super) goes_on: bool,
}

impl Start {
    /// With nothing: takes the data directory.
    pub(super) fn fresh(data: &DataDir) -> Outcome<Self> {
        Ok(Self {
            lock: data::lock(data)?,
            sockets: Sockets::default(),
            items: Mutex::default(),
            goes_on: false,
        })
    }

    /// With what another life gave.
    pub(super) fn from_items(items: Vec<Item>, data: &DataDir) -> Outcome<Self> {
        let unread = |what: &str| {
            Fail::new(
                exit::SOFTWARE,
                format!("what the other process gave cannot be used: {what}"),
            )
        };
        let (mut lock, mut sockets, mut rest) = (None, Vec::new(), Vec::new());
        for mut item in items {
            match item.what.as_str() {
                LOCK => lock = item.fd,
                SOCKET => {
                    let purpose: Purpose = item.read().map_err(|error| unread(&error.to_string()))?;
                    let fd = item.fd.take().ok_or_else(|| unread("a socket is missing"))?;
                    sockets.push(Bound { purpose, fd });
                }
                _ => rest.push(item),
            }
        }
        let lock = lock.ok_or_else(|| unread("the lock of the data directory is missing"))?;
        Ok(Self {
            lock: data::inherit_lock(data, lock)?,
            sockets: Sockets::inherited(sockets),
            items: Mutex::new(rest),
            goes_on: true,
        })
    }

    /// The items for the engines, once.
    pub(super) fn take_items(&self) -> Vec<Item> {
        std::mem::take(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether this can still be used when the process that it was given to has served and ended: the lock and the listeners. A
/// visitor's bytes may have moved there.
pub(super) fn is_left_after_the_commit(item: &Item) -> bool {
    [LOCK, SOCKET].contains(&item.what.as_str())
}

/// Everything that another life needs: the lock, the sockets, and what the engines gave.
pub(super) fn to_items(lock: &Lock, sockets: Vec<Bound>, engines: Vec<Item>) -> Outcome<Vec<Item>> {
    let failed = |error: &dyn std::fmt::Display| {
        Fail::new(
            exit::SOFTWARE,
            format!("the gateway's sockets cannot be handed over: {error}"),
        )
    };
    let lock = lock.share().map_err(|error| failed(&error))?;
    let mut items = vec![
        Item::new(LOCK, &())
            .map_err(|error| failed(&error))?
            .with_fd(lock),
    ];
    for Bound { purpose, fd } in sockets {
        let item = Item::new(SOCKET, &purpose).map_err(|error| failed(&error))?;
        items.push(item.with_fd(fd));
    }
    items.extend(engines);
    Ok(items)
}
