#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::*;

const SOON: Duration = Duration::from_secs(5);

fn item(number: usize, bytes: usize) -> Item {
    Item::new("flow", &json!({ "number": number }))
        .unwrap()
        .with_bytes(Bytes::from(vec![number as u8; bytes]))
}

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// Our end of a link, and the bare socket of somebody who may say anything.
fn link_to_anybody() -> (Link, UnixStream) {
    let (link, other) = Link::pair().unwrap();
    (link, UnixStream::from(other))
}

fn head(version: u8, kind: u8, fds: u16, json: u32, bytes: u32) -> Vec<u8> {
    let mut head = b"TSKH".to_vec();
    head.extend([version, kind]);
    head.extend(fds.to_be_bytes());
    head.extend(json.to_be_bytes());
    head.extend(bytes.to_be_bytes());
    head
}

#[test]
fn items_arrive_in_their_order_with_their_bytes_and_descriptors() {
    let (ours, theirs) = Link::pair().unwrap();
    let mut items: Vec<Item> = (0..600).map(|number| item(number, number * 7)).collect();
    for (number, item) in items.iter_mut().enumerate().filter(|(number, _)| number % 2 == 0) {
        item.fd = Some(file(&number.to_string()));
    }
    items.push(item(600, MAX_BYTES));
    let taken = std::thread::scope(|scope| {
        let taking = scope.spawn(move || Link::from_fd(theirs).unwrap().take(601, SOON).unwrap());
        ours.give(&items).unwrap();
        taking.join().unwrap()
    });
    for (number, (gave, got)) in items.iter().zip(taken).enumerate() {
        assert_eq!(
            (&gave.what, &gave.state, &gave.bytes),
            (&got.what, &got.state, &got.bytes)
        );
        let mut text = String::new();
        if let Some(fd) = got.fd {
            File::from(fd).read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        } else {
            assert!(gave.fd.is_none());
        }
    }
}

#[test]
fn words_are_heard_and_those_of_a_newer_version_are_unknown() {
    let (ours, other) = link_to_anybody();
    let theirs = Link::from_fd(other.into()).unwrap();
    let said = Word::Failed {
        code: 64,
        message: "tasuki.toml:3: datta".into(),
    };
    theirs.say(&said).unwrap();
    assert_eq!(ours.hear(Some(SOON)).unwrap(), said);
    let (ours, mut other) = link_to_anybody();
    let text = br#"{"word":"sing","loudly":true}"#;
    other
        .write_all(&head(VERSION, 1, 0, text.len() as u32, 0))
        .unwrap();
    other.write_all(text).unwrap();
    assert_eq!(ours.hear(Some(SOON)).unwrap(), Word::Unknown);
}

#[test]
fn silence_and_an_end_are_told_apart() {
    let (ours, other) = link_to_anybody();
    let silent = ours.hear(Some(Duration::from_millis(10))).unwrap_err();
    assert!(matches!(silent, LinkError::Silent), "{silent}");
    drop(other);
    let ended = ours.hear(Some(SOON)).unwrap_err();
    assert!(matches!(ended, LinkError::Ended), "{ended}");
    let ended = ours.say(&Word::Commit).unwrap_err();
    assert!(matches!(ended, LinkError::Ended), "{ended}");
}

#[test]
fn a_message_that_breaks_off_anywhere_is_an_end() {
    let text = br#"[{"what":"flow","state":1,"bytes":3,"fd":false}]"#;
    let mut whole = head(VERSION, 2, 0, text.len() as u32, 3);
    whole.extend(text);
    whole.extend(b"abc");
    for length in 0..whole.len() {
        let (ours, mut other) = link_to_anybody();
        other.write_all(&whole[..length]).unwrap();
        drop(other);
        let ended = ours.take(1, SOON).unwrap_err();
        assert!(matches!(ended, LinkError::Ended), "{length}: {ended}");
    }
    let (ours, mut other) = link_to_anybody();
    other.write_all(&whole).unwrap();
    assert_eq!(ours.take(1, SOON).unwrap()[0].bytes, "abc");
}

#[test]
fn hostile_messages_are_errors() {
    let items = |text: &str, fds: u16, bytes: &[u8]| {
        let mut whole = head(VERSION, 2, fds, text.len() as u32, bytes.len() as u32);
        whole.extend(text.as_bytes());
        whole.extend(bytes);
        whole
    };
    let cases: &[(&str, Vec<u8>)] = &[
        ("no message", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("version 2", head(VERSION + 1, 2, 0, 2, 0)),
        ("unknown kind", head(VERSION, 9, 0, 2, 0)),
        ("longer", head(VERSION, 2, 0, u32::MAX, 0)),
        ("longer", head(VERSION, 2, 0, 2, u32::MAX)),
        ("longer", head(VERSION, 2, u16::MAX, 2, 0)),
        ("lost on the way", items("[]", 1, b"")),
        ("cannot be read", items("[", 0, b"")),
        ("cannot be read", items(r#"[{"state":1}]"#, 0, b"")),
        (
            "bytes are missing",
            items(r#"[{"what":"","state":1,"bytes":4}]"#, 0, b"abc"),
        ),
        (
            "left over",
            items(r#"[{"what":"","state":1,"bytes":2}]"#, 0, b"abc"),
        ),
        (
            "descriptor is missing",
            items(r#"[{"what":"","state":1,"fd":true}]"#, 0, b""),
        ),
        ("announced", items("[]", 0, b"")),
        (
            "announced",
            items(r#"[{"what":"","state":1},{"what":"","state":1}]"#, 0, b""),
        ),
        ("turn", {
            let mut word = head(VERSION, 1, 0, 2, 0);
            word.extend(b"{}");
            word
        }),
    ];
    for (expect, bytes) in cases {
        let (ours, mut other) = link_to_anybody();
        other.write_all(bytes).unwrap();
        let error = ours.take(1, SOON).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expect), "{expect}: {text}");
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..500 {
        let (ours, mut other) = link_to_anybody();
        let mut bytes: Vec<u8> = (0..64).map(|_| random() as u8).collect();
        if round % 2 == 0 {
            // Past the first checks.
            let length = (random() % 40) as u32;
            let start = head(VERSION, 2, 0, length, (random() % 20) as u32);
            bytes[..start.len()].copy_from_slice(&start);
        }
        other.write_all(&bytes).unwrap();
        drop(other);
        assert!(ours.take(2, SOON).is_err());
    }
}
