//! What a host has beyond the first entry that it lacks, as spans of its own entries.
//!
//! A host that returns after days gets new activities while its backlog drains, so this can be many thousands of entries: they
//! are few spans, because each entry says which one came before it in this lane.

use std::collections::BTreeMap;

use tasuki_core::ids::LogSeq;

/// A span without a gap for this host.
#[derive(Clone, Copy, Debug)]
struct Span {
    last: LogSeq,
    /// The lane's entry before its first one, if that is known.
    after: Option<LogSeq>,
}

/// Settled entries, by the first of each span.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settled {
    spans: BTreeMap<LogSeq, Span>,
}

impl Settled {
    /// As a checkpoint noted them.
    pub(crate) fn of(spans: &[(LogSeq, LogSeq)]) -> Self {
        let spans = spans
            .iter()
            .map(|(first, last)| {
                let span = Span {
                    last: *last,
                    after: None,
                };
                (*first, span)
            })
            .collect();
        Self { spans }
    }

    /// How many spans there are.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(crate) fn contains(&self, seq: LogSeq) -> bool {
        let span = self.spans.range(..=seq).next_back();
        span.is_some_and(|(_, span)| seq <= span.last)
    }

    /// Adds an entry; `after` is the lane's entry before it, if that is known.
    pub(crate) fn insert(&mut self, seq: LogSeq, after: Option<LogSeq>) {
        if self.contains(seq) {
            return;
        }
        let mut first = seq;
        let mut span = Span { last: seq, after };
        if let Some((begin, before)) = self.spans.range(..seq).next_back()
            && after.is_some_and(|after| after == before.last)
        {
            (first, span.after) = (*begin, before.after);
        }
        if let Some((next, behind)) = self.spans.range(seq..).next()
            && behind.after == Some(seq)
        {
            let next = *next;
            span.last = behind.last;
            self.spans.remove(&next);
        }
        self.spans.insert(first, span);
    }

    /// Forgets what is below `floor`.
    pub(crate) fn forget_below(&mut self, floor: LogSeq) {
        while let Some(first) = self.spans.first_entry() {
            if first.get().last >= floor {
                break;
            }
            first.remove();
        }
    }

    /// First and last of each span.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (LogSeq, LogSeq)> + '_ {
        self.spans.iter().map(|(first, span)| (*first, span.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(settled: &Settled) -> Vec<(i64, i64)> {
        settled.spans().map(|(first, last)| (first.0, last.0)).collect()
    }

    fn settle(settled: &mut Settled, seq: i64, after: i64) {
        settled.insert(LogSeq(seq), Some(LogSeq(after)));
    }

    #[test]
    fn neighbours_of_the_lane_become_one_span_in_any_order() {
        let mut settled = Settled::default();
        // 20, 23, 27 and 28 are for this host, what lies between is not.
        for (seq, after) in [(28, 27), (20, 11), (27, 23), (23, 20)] {
            settle(&mut settled, seq, after);
        }
        assert_eq!(all(&settled), [(20, 28)]);
        assert!(
            settled.contains(LogSeq(23)) && !settled.contains(LogSeq(19)) && !settled.contains(LogSeq(29))
        );
        settle(&mut settled, 23, 20);
        assert_eq!(all(&settled), [(20, 28)], "once is enough");
    }

    #[test]
    fn an_open_entry_between_keeps_spans_apart() {
        let mut settled = Settled::default();
        settle(&mut settled, 20, 11);
        settle(&mut settled, 27, 23);
        assert_eq!(all(&settled), [(20, 20), (27, 27)]);
        assert!(!settled.contains(LogSeq(23)));
        settled.insert(LogSeq(30), None);
        assert_eq!(settled.len(), 3);
        settled.forget_below(LogSeq(27));
        assert_eq!(all(&settled), [(27, 27), (30, 30)]);
        let again = Settled::of(&settled.spans().collect::<Vec<_>>());
        assert_eq!(all(&again), all(&settled));
    }
}
