#![allow(clippy::unwrap_used)]

use super::*;

fn receive(limits: DataLimits, wire: &[u8], chunk: usize) -> (DataReceiver, Vec<u8>, Vec<u8>) {
    let mut receiver = DataReceiver::new(limits);
    let mut out = Vec::new();
    let mut input = BytesMut::new();
    for piece in wire.chunks(chunk) {
        input.extend_from_slice(piece);
        receiver.receive(&mut input);
        out.extend_from_slice(&receiver.take());
    }
    (receiver, out, input.to_vec())
}

/// Wire text, expected body or error, and what must be left for the command parser. Every chunk size gives the same.
fn check(wire: &[u8], expect: Result<&[u8], DataError>, rest: &[u8]) {
    for chunk in [1, 2, 3, 5, wire.len().max(1)] {
        let (receiver, out, left) = receive(DataLimits::default(), wire, chunk);
        assert!(receiver.ended, "no end in {:?}", String::from_utf8_lossy(wire));
        match expect {
            Ok(body) => {
                assert_eq!(receiver.failure(), None, "{:?}", String::from_utf8_lossy(wire));
                assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(body));
                assert_eq!(receiver.size(), body.len() as u64);
            }
            Err(error) => {
                assert_eq!(
                    receiver.failure(),
                    Some(error),
                    "{:?}",
                    String::from_utf8_lossy(wire)
                );
                assert!(out.is_empty() || !out.ends_with(b"smuggled"));
            }
        }
        assert_eq!(
            left,
            rest,
            "{:?} in chunks of {chunk}",
            String::from_utf8_lossy(wire)
        );
    }
}

#[test]
fn only_crlf_dot_crlf_ends_a_message() {
    check(b"a\r\n.\r\nQUIT\r\n", Ok(b"a\r\n"), b"QUIT\r\n");
    check(b".\r\n", Ok(b""), b"");
    check(b"\r\n.\r\n", Ok(b"\r\n"), b"");
    check(
        b"a: b\r\n\r\n..x\r\n...\r\n..\r\n.y\r\n.\r\n",
        Ok(b"a: b\r\n\r\n.x\r\n..\r\n.\r\ny\r\n"),
        b"",
    );
    check(b"a\r\n.\r\n.\r\n", Ok(b"a\r\n"), b".\r\n");
}

#[test]
fn every_smuggling_form_is_refused_after_the_true_end() {
    use DataError::{BareCr, BareLf, Nul};
    let smuggled = b"\r\nMAIL FROM:<evil@x.org>\r\nsmuggled";
    let forms: [(&[u8], DataError); 20] = [
        (b"\n.\n", BareLf),
        (b"\n.\r\n", BareLf),
        (b"\r\n.\n", BareLf),
        (b"\r.\r", BareCr),
        (b"\r.\r\n", BareCr),
        (b"\r\n.\r\r\n", BareCr),
        (b"\r\r\n.\r\r\n", BareCr),
        (b"\r\n.\rx\n", BareCr),
        (b"\n\n.\n\n", BareLf),
        (b"\r\n\x00.\r\n", Nul),
        (b"\r\n.\x00\r\n", Nul),
        (b"\r\n.\r\x00\n", BareCr),
        (b"\r\x00\n.\r\n", BareCr),
        (b"\n.\r", BareLf),
        (b"\r\n.\r", BareCr),
        (b"\n\r.\r\n", BareLf),
        (b"\r.\n", BareCr),
        (b"\r\n\n.\r\n", BareLf),
        (b"\r\n\r.\r\n", BareCr),
        (b"\n\r\n.\x00\r\n", BareLf),
    ];
    for (form, error) in forms {
        let mut wire = b"Subject: x\r\n\r\nbody".to_vec();
        wire.extend_from_slice(form);
        // A form that ends in CRLF and is followed by text must not have ended the message.
        wire.extend_from_slice(smuggled);
        wire.extend_from_slice(b"\r\n.\r\nNOOP\r\n");
        check(&wire, Err(error), b"NOOP\r\n");
    }
}

#[test]
fn limits_hold_while_streaming() {
    let limits = DataLimits {
        max_size: 100,
        max_line: 20,
        max_header_size: 40,
        max_header_lines: 3,
        max_mime_depth: 100,
        max_received: 2,
        repair_bare_lf: false,
    };
    let long = [b"\r\n".to_vec(), b"0123456789\r\n".repeat(9), b".\r\n".to_vec()].concat();
    let table: [(&[u8], DataError); 5] = [
        (&long, DataError::TooBig),
        (b"\r\n0123456789012345678\r\n.\r\n", DataError::LineTooLong),
        (
            b"a: 4567890\r\nb: 4567890\r\n 234567890\r\n 234567890\r\n\r\n.\r\n",
            DataError::HeaderTooLong,
        ),
        (b"a:1\r\na:1\r\na:1\r\na:1\r\n\r\n.\r\n", DataError::HeaderTooLong),
        (
            b"Received:1\r\nRECEIVED:1\r\nreceived:1\r\n\r\n.\r\n",
            DataError::Loop,
        ),
    ];
    for (wire, error) in table {
        for chunk in [1, 7, wire.len()] {
            let (receiver, out, _) = receive(limits, wire, chunk);
            assert_eq!(
                receiver.failure(),
                Some(error),
                "{:?}",
                String::from_utf8_lossy(wire)
            );
            assert!(receiver.ended && receiver.pending() == 0 && out.len() <= 100);
        }
    }
    // A CR that comes alone in a chunk does not shorten the line.
    let (receiver, ..) = receive(limits, b"\r\n012345678901234567\r\n.\r\n", 1);
    assert_eq!(receiver.failure(), None);
}

#[test]
fn the_first_piece_holds_the_whole_header() {
    let table: [(&[u8], usize, bool); 6] = [
        (b"A: b\r\n c\r\n\r\nbody\r\n.\r\n", 10, true),
        (b"A: b\r\n.\r\n", 6, false),
        (b"hello\r\n.\r\n", 0, false),
        (b"A: b\r\nhello\r\n.\r\n", 6, false),
        (b" A: b\r\n.\r\n", 0, false),
        (b".\r\n", 0, false),
    ];
    for (wire, len, separated) in table {
        let (receiver, ..) = receive(DataLimits::default(), wire, 3);
        assert_eq!(
            receiver.header(),
            Some(HeaderEnd { len, separated }),
            "{:?}",
            String::from_utf8_lossy(wire)
        );
    }
    let (receiver, ..) = receive(DataLimits::default(), b"A: \xe6\r\n.\r\n", 3);
    assert!(receiver.is_eight_bit());
}

/// A seeded walk over an alphabet that matters; what goes out by the stuffer comes back whole by the receiver.
#[test]
fn what_the_stuffer_sends_the_receiver_reads_back() {
    use rand::{RngExt as _, SeedableRng as _};
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for _ in 0..2000 {
        let mut body = Vec::new();
        for _ in 0..rng.random_range(0..12) {
            let words: [&[u8]; 7] = [b".", b"..", b"a", b":", b" ", b"\r\n", b"\r\n."];
            body.extend_from_slice(words[rng.random_range(0..words.len())]);
        }
        if !body.is_empty() && !body.ends_with(b"\r\n") {
            body.extend_from_slice(b"\r\n");
        }
        let mut stuffer = DotStuffer::default();
        let mut wire = Vec::new();
        let chunk = rng.random_range(1..5);
        for piece in body.chunks(chunk) {
            wire.extend_from_slice(&stuffer.stuff(Bytes::copy_from_slice(piece)));
        }
        wire.extend_from_slice(stuffer.finish());
        let (receiver, out, left) = receive(DataLimits::default(), &wire, rng.random_range(1..6));
        assert!(receiver.ended && left.is_empty() && receiver.failure().is_none());
        assert_eq!(out, body, "{:?}", String::from_utf8_lossy(&wire));
    }
}

#[test]
fn the_final_line_end_is_added_once() {
    for (body, end) in [
        (&b"a"[..], &b"\r\n.\r\n"[..]),
        (b"a\r\n", b".\r\n"),
        (b"", b".\r\n"),
    ] {
        let mut stuffer = DotStuffer::default();
        stuffer.stuff(Bytes::from_static(body));
        assert_eq!(stuffer.finish(), end);
    }
}

#[test]
fn a_repaired_bare_lf_is_a_line_end_and_never_the_end_of_the_data() {
    let limits = DataLimits {
        repair_bare_lf: true,
        ..DataLimits::default()
    };
    let table: [(&[u8], &[u8]); 9] = [
        (b"a: b\n\nbody\n\r\n.\r\n", b"a: b\r\n\r\nbody\r\n\r\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\n.\r\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\n..b\r\n.\r\n", b"a\r\n.b\r\n"),
        (b"a\n.b\r\n.\r\n", b"a\r\n.b\r\n"),
        (b"a\r\n..b\n..c\r\n.\r\n", b"a\r\n.b\r\n.c\r\n"),
        (b"\n\n.\r\n\r\n.\r\n", b"\r\n\r\n.\r\n\r\n"),
        (b"\nMAIL FROM:<x>\n\r\n.\r\n", b"\r\nMAIL FROM:<x>\r\n\r\n"),
    ];
    for (wire, body) in table {
        for chunk in [1, 2, 3, wire.len()] {
            let (receiver, out, left) = receive(limits, &[wire, b"NOOP\r\n"].concat(), chunk);
            assert!(
                receiver.ended && receiver.failure().is_none(),
                "{:?}",
                String::from_utf8_lossy(wire)
            );
            assert_eq!(
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(body),
                "in chunks of {chunk}"
            );
            assert_eq!(left, b"NOOP\r\n");
        }
    }
    let (receiver, ..) = receive(limits, b"a\r.\r\n.\r\n", 3);
    assert_eq!(
        receiver.failure(),
        Some(DataError::BareCr),
        "a bare CR is not repaired"
    );
}

/// Feeds a message in pieces of this size; the first failure.
fn verdict(limits: DataLimits, message: &str, size: usize) -> Option<DataError> {
    let mut receiver = DataReceiver::new(limits);
    for piece in message.as_bytes().chunks(size) {
        let mut input = BytesMut::from(piece);
        receiver.receive(&mut input);
    }
    let mut input = BytesMut::from(&b"\r\n.\r\n"[..]);
    assert!(receiver.receive(&mut input));
    receiver.failure()
}

fn nested(levels: usize) -> String {
    let header = |level: usize| format!("Content-Type: multipart/mixed;\r\n\tboundary=\"b{level}\"\r\n\r\n");
    let mut message = header(0);
    for level in 1..levels {
        message += &format!("--b{}\r\n{}", level - 1, header(level));
    }
    message
}

#[test]
fn parts_within_parts_are_refused_beyond_the_limit_only() {
    let limits = DataLimits {
        max_mime_depth: 3,
        ..DataLimits::default()
    };
    let enclosed = "Content-Type: message/rfc822\r\n\r\n";
    let digest = "Content-Type: multipart/digest; charset=x; boundary=d\r\n\r\n--d\r\n\r\n";
    let side_by_side = format!(
        "{}{}",
        nested(3),
        "--b2\r\n\r\nx\r\n--b2--\r\n--b1\r\nContent-Type: MULTIPART/alternative; boundary=c\r\n\r\n--c\r\n\r\n--c--\r\n".repeat(50)
    );
    for (message, deep) in [
        (nested(3), false),
        (nested(4), true),
        (nested(500), true),
        (enclosed.repeat(3), false),
        (enclosed.repeat(4), true),
        // Two levels each: the digest and the message in it, which may be a digest itself.
        (digest.to_owned() + "Subject: x\r\n\r\n", false),
        (digest.to_owned() + digest, true),
        (side_by_side, false),
        // What looks like a header in a body is text.
        (format!("Subject: x\r\n\r\n{}", nested(9)), false),
    ] {
        for size in [1, 7, 4096] {
            let expected = deep.then_some(DataError::TooDeep);
            assert_eq!(verdict(limits, &message, size), expected, "{size}: {message}");
        }
    }
    // By default a mail as deep as any that people write passes.
    assert_eq!(verdict(DataLimits::default(), &nested(100), 4096), None);
    assert_eq!(
        verdict(DataLimits::default(), &nested(101), 4096),
        Some(DataError::TooDeep)
    );
}
