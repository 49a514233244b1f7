#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn what_was_taken_is_released_also_in_the_middle_of_a_chunk() {
    let mut kept = Retained::default();
    kept.push(bytes("hello "));
    kept.push(bytes("world"));
    kept.finish();
    assert_eq!(kept.take(), Some(Next::Bytes(bytes("hello "))));
    assert_eq!(kept.taken(3), Ok(3));
    assert_eq!(kept.taken(2), Ok(0), "an old word");
    assert!(kept.taken(7).is_err(), "never sent");
    assert_eq!(kept.take(), Some(Next::Bytes(bytes("world"))));
    assert_eq!(kept.take(), Some(Next::Fin));
    assert_eq!(kept.take(), None);
    assert_eq!(kept.taken(11), Ok(8));
    assert!(!kept.is_done());
    assert_eq!(kept.taken(12), Ok(0));
    assert!(kept.is_done() && kept.is_empty());
}

#[test]
fn a_new_stream_begins_where_the_far_side_stands() {
    let mut kept = Retained::default();
    for part in ["abc", "def", "ghi"] {
        kept.push(bytes(part));
    }
    kept.take();
    kept.take();
    assert_eq!(kept.taken(1), Ok(1));
    assert!(kept.rewind(0).is_err(), "gone");
    assert!(kept.rewind(7).is_err(), "never sent");
    assert_eq!(kept.rewind(4), Ok(3));
    assert_eq!(kept.take(), Some(Next::Bytes(bytes("ef"))));
    assert_eq!(kept.take(), Some(Next::Bytes(bytes("ghi"))));
    kept.finish();
    assert_eq!(kept.take(), Some(Next::Fin));
    assert_eq!(kept.rewind(10), Ok(5), "the far side has all");
    assert!(kept.is_done());
    assert_eq!(kept.take(), None);
    assert_eq!(kept.rewind(10), Ok(0), "and again after the next loss");
    assert!(kept.rewind(9).is_err());
}

/// A direction with both ends in memory: one sends, the stream holds, the other's socket takes; a loss empties the stream.
struct Direction {
    kept: Retained,
    stream: VecDeque<Next>,
    words: VecDeque<u64>,
    arrived: Vec<u8>,
    taken: u64,
}

impl Direction {
    /// The far side's socket takes a part of what came, at most `most`.
    fn deliver(&mut self, most: usize) {
        match self.stream.pop_front() {
            Some(Next::Bytes(mut bytes)) => {
                let part = bytes.split_to(bytes.len().min(most));
                self.arrived.extend_from_slice(&part);
                self.taken += part.len() as u64;
                if !bytes.is_empty() {
                    self.stream.push_front(Next::Bytes(bytes));
                }
            }
            Some(Next::Fin) => self.taken += 1,
            None => {}
        }
        self.words.push_back(self.taken);
    }
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_is_lost_when() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut all = vec![0; rng.random_range(0..40_000)];
        rng.fill_bytes(&mut all);
        let mut way = Direction {
            kept: Retained::default(),
            stream: VecDeque::new(),
            words: VecDeque::new(),
            arrived: Vec::new(),
            taken: 0,
        };
        let mut left = Bytes::from(all.clone());
        for step in 0.. {
            assert!(step < 100_000, "seed {seed}: it goes on for ever");
            match rng.random_range(0..20) {
                0 => {
                    way.stream.clear();
                    way.words.clear();
                    way.kept.rewind(way.taken).unwrap();
                }
                1..5 if !left.is_empty() => {
                    let most = rng.random_range(1..2000);
                    way.kept.push(left.split_to(most.min(left.len())));
                }
                5 if left.is_empty() => way.kept.finish(),
                6..11 => way.stream.extend(way.kept.take()),
                11..16 => way.deliver(rng.random_range(1..3000)),
                _ => {
                    if let Some(word) = way.words.pop_front() {
                        way.kept.taken(word).unwrap();
                    }
                }
            }
            assert!(way.kept.len() <= all.len() as u64 - way.arrived.len() as u64 + 40_000);
            if way.kept.is_done() {
                break;
            }
        }
        assert_eq!(
            (way.arrived, way.taken),
            (all.clone(), all.len() as u64 + 1),
            "seed {seed}"
        );
        assert!(way.kept.is_empty());
    }
}

#[test]
fn words_and_resumes_survive_the_wire_and_nonsense_is_refused() {
    let word = Taken {
        flow: FlowNumber(1 << 40),
        taken: u64::MAX,
    };
    let mut out = Vec::new();
    word.encode(&mut out);
    let mut input = BytesMut::from(&out[..Taken::LENGTH - 1]);
    assert_eq!(Taken::decode(&mut input), None);
    input.extend_from_slice(&out[Taken::LENGTH - 1..]);
    assert_eq!(Taken::decode(&mut input), Some(word));
    let resume = Resume {
        flow: FlowNumber(7),
        taken: 4096,
    };
    let encoded = resume.encode();
    assert_eq!(
        StreamHeader::rest_length([encoded[0], encoded[1]]),
        Ok(encoded.len() - 2)
    );
    assert_eq!(Resume::decode_rest(&encoded[2..]), Some(Ok(resume)));
    assert_eq!(
        StreamHeader::decode_rest(&encoded[2..]),
        Err(HeaderError::Kind(3)),
        "an older agent refuses it"
    );
    for cut in 3..encoded.len() {
        assert_eq!(
            Resume::decode_rest(&encoded[2..cut]),
            Some(Err(HeaderError::Malformed))
        );
    }
    assert_eq!(Resume::decode_rest(&[0, 1, 2]), None);
    // Whatever a peer claims to have taken, nothing panics and nothing that was not taken is given up.
    let mut rng = StdRng::seed_from_u64(3);
    let mut kept = Retained::default();
    kept.push(bytes("0123456789"));
    kept.take();
    for _ in 0..1000 {
        let claim = rng.random_range(11..=u64::MAX);
        assert!(kept.taken(claim).is_err() && kept.rewind(claim).is_err());
    }
    assert_eq!(kept.len(), 10);
}
