//! The sending side of one direction as another process gets it.

use std::collections::VecDeque;

use bytes::Bytes;

use super::resume::{MAX_RETAINED, Retained};

/// How the bytes are cut, so that one write to a stream is no longer than usual.
const PIECE: usize = 64 << 10;
/// A visitor's first bytes are kept without asking for room.
const SLACK: u64 = 256 << 10;

/// What was not taken yet, and how far everything is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The offset of the first byte.
    pub start: u64,
    /// What the far side's socket has not taken.
    pub bytes: Bytes,
    /// The furthest offset that was ever sent.
    pub furthest: u64,
    /// The local socket gave its end.
    pub fin: bool,
    /// The far side's socket has taken the end.
    pub fin_taken: bool,
}

/// Offsets that do not belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the offsets of a flow contradict each other, or more is kept than may be")]
pub struct BadKept;

impl Retained {
    /// Everything there is, for another process.
    pub fn keep(&self) -> Kept {
        let mut bytes = Vec::with_capacity(usize::try_from(self.len()).unwrap_or_default());
        for chunk in &self.chunks {
            bytes.extend_from_slice(chunk);
        }
        Kept {
            start: self.start,
            bytes: bytes.into(),
            furthest: self.furthest,
            fin: self.fin,
            fin_taken: self.fin_taken,
        }
    }

    /// Goes on with what another process kept; nothing of it was sent on the stream that will come.
    ///
    /// # Errors
    /// It cannot have been.
    pub fn go_on(kept: Kept) -> Result<Self, BadKept> {
        let Kept {
            start,
            mut bytes,
            furthest,
            fin,
            fin_taken,
        } = kept;
        let length = bytes.len() as u64;
        let end = start.checked_add(length).ok_or(BadKept)?;
        let last = end.checked_add(u64::from(fin)).ok_or(BadKept)?;
        let is_sound = length <= MAX_RETAINED + SLACK
            && furthest >= start
            && furthest <= last
            && (!fin_taken || (fin && length == 0 && furthest == last));
        if !is_sound {
            return Err(BadKept);
        }
        let mut chunks = VecDeque::new();
        while !bytes.is_empty() {
            chunks.push_back(bytes.split_to(bytes.len().min(PIECE)));
        }
        Ok(Self {
            chunks,
            start,
            end,
            sent: 0,
            sent_to: start,
            furthest,
            fin,
            fin_sent: fin_taken,
            fin_taken,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::resume::Next;
    use super::*;

    fn rest(retained: &mut Retained) -> (Vec<u8>, bool) {
        let (mut bytes, mut fin) = (Vec::new(), false);
        while let Some(next) = retained.take() {
            match next {
                Next::Bytes(more) => bytes.extend_from_slice(&more),
                Next::Fin => fin = true,
            }
        }
        (bytes, fin)
    }

    #[test]
    fn another_process_goes_on_where_the_far_side_stands() {
        let mut retained = Retained::default();
        let text: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        for piece in text.chunks(7_000) {
            retained.push(Bytes::copy_from_slice(piece));
            retained.take();
        }
        retained.taken(50_000).unwrap();
        retained.finish();
        let mut other = Retained::go_on(retained.keep()).unwrap();
        // More was taken than the first process ever heard of.
        other.rewind(120_001).unwrap();
        assert_eq!(rest(&mut other), (text[120_001..].to_vec(), true));
        other.taken(200_001).unwrap();
        assert!(other.is_done() && other.is_empty());
        let done = Retained::go_on(other.keep()).unwrap();
        assert!(done.is_done());
    }

    #[test]
    fn what_was_never_sent_cannot_have_been_taken_in_the_other_process_either() {
        let mut retained = Retained::default();
        retained.push(Bytes::from_static(b"sent"));
        retained.take();
        retained.push(Bytes::from_static(b"not sent"));
        let mut other = Retained::go_on(retained.keep()).unwrap();
        other.rewind(5).unwrap_err();
        other.rewind(4).unwrap();
        assert_eq!(rest(&mut other), (b"not sent".to_vec(), false));
    }

    #[test]
    fn a_word_of_what_the_other_process_sent_may_come_before_the_stream() {
        let mut retained = Retained::default();
        for text in [&b"sent"[..], b"sent too"] {
            retained.push(Bytes::from_static(text));
            retained.take();
        }
        retained.push(Bytes::from_static(b"not sent"));
        let mut other = Retained::go_on(retained.keep()).unwrap();
        assert_eq!(other.taken(6).unwrap(), 6);
        other.taken(13).unwrap_err();
        assert_eq!(other.rewind(10).unwrap(), 4);
        assert_eq!(rest(&mut other), (b"oonot sent".to_vec(), false));
        assert_eq!(other.taken(20).unwrap(), 10);
        assert!(other.is_empty());
    }

    #[test]
    fn offsets_that_contradict_each_other_are_refused() {
        let sound = Kept {
            start: 10,
            bytes: Bytes::from_static(b"abc"),
            furthest: 13,
            fin: false,
            fin_taken: false,
        };
        Retained::go_on(sound.clone()).unwrap();
        let wrong: [fn(&mut Kept); 6] = [
            |kept| kept.furthest = 14,
            |kept| kept.furthest = 9,
            |kept| kept.start = u64::MAX - 1,
            |kept| kept.fin_taken = true,
            |kept| (kept.fin, kept.fin_taken) = (true, true),
            |kept| kept.bytes = Bytes::from(vec![0; (MAX_RETAINED + SLACK + 1) as usize]),
        ];
        for change in wrong {
            let mut kept = sound.clone();
            change(&mut kept);
            assert_eq!(
                Retained::go_on(kept.clone()).unwrap_err(),
                BadKept,
                "{:?}",
                kept.start
            );
        }
    }
}
