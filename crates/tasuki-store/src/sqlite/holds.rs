//! Who holds what, in memory: so that an outcome is answered without waiting for its commit.
//!
//! All changes of holds pass through this process's one writer, so memory and database agree.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tasuki_core::ids::{Epoch, LaneId, NodeId};
use tasuki_core::store::mail::{Hold, Lane};

/// Present lives of nodes and present holders of lanes.
#[derive(Debug, Default)]
pub(super) struct Holds {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lives: HashMap<NodeId, Epoch>,
    lanes: HashMap<LaneId, (NodeId, Epoch)>,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node joined, or its life was ended by another.
    pub(super) fn begin_life(&self, node: NodeId, epoch: Epoch) {
        let mut state = self.state();
        state.lives.insert(node, epoch);
        state.lanes.retain(|_, (owner, _)| *owner != node);
    }

    /// A node's life was ended; what it holds through lanes stays until it is claimed.
    pub(super) fn end_life(&self, node: NodeId, epoch: Epoch) {
        self.state().lives.insert(node, epoch);
    }

    /// `node` claimed or renewed these lanes; those it asked to renew in vain are no longer its own.
    pub(super) fn claimed(&self, node: NodeId, lanes: &[Lane], asked: &[(LaneId, Epoch)]) {
        let mut state = self.state();
        for (lane, epoch) in asked {
            if state.lanes.get(lane) == Some(&(node, *epoch)) {
                state.lanes.remove(lane);
            }
        }
        for lane in lanes {
            state.lanes.insert(lane.id, (node, lane.epoch));
        }
    }

    /// Lanes were given back.
    pub(super) fn released(&self, lanes: &[(LaneId, Epoch)]) {
        let mut state = self.state();
        for (lane, epoch) in lanes {
            if state.lanes.get(lane).is_some_and(|(_, e)| e == epoch) {
                state.lanes.remove(lane);
            }
        }
    }

    /// Whether this is the node's present life.
    pub(super) fn is_alive(&self, node: NodeId, epoch: Epoch) -> bool {
        self.state().lives.get(&node) == Some(&epoch)
    }

    /// The node's present life, if it joined through this process.
    pub(super) fn life(&self, node: NodeId) -> Option<Epoch> {
        self.state().lives.get(&node).copied()
    }

    /// Whether `node` holds what `hold` says.
    pub(super) fn holds(&self, node: NodeId, hold: Hold) -> bool {
        let state = self.state();
        match hold {
            Hold::Fresh(epoch) => state.lives.get(&node) == Some(&epoch),
            Hold::Lane(lane, epoch) => state.lanes.get(&lane) == Some(&(node, epoch)),
        }
    }
}
