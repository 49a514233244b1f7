#![allow(clippy::unwrap_used)]

use super::*;

fn parse(text: &[u8]) -> Result<Option<Reply>, ReplyError> {
    ReplyParser::default().parse(&mut BytesMut::from(text))
}

#[test]
fn replies_of_all_shapes_are_understood() {
    let table: [(&[u8], &str); 8] = [
        (b"250 2.1.0 Ok\r\n", "250 2.1.0 Ok"),
        (b"250 Ok\n", "250 Ok"),
        (b"250\r\n", "250"),
        (b"250-2.0.0 a\r\n250 2.0.0 b\r\n", "250 2.0.0 a b"),
        (b"550 4.1.1 lying class\r\n", "550 4.1.1 lying class"),
        (b"550 5.7.1 \xe6\x97\xa5 \x1b[2J\r\n", "550 5.7.1 ??? ?[2J"),
        (b"421 4.3.2\r\n", "421 4.3.2"),
        (b"550 5.1.1234 x\r\n", "550 5.1.1234 x"),
    ];
    for (text, expect) in table {
        assert_eq!(parse(text).unwrap().unwrap().to_string(), expect);
    }
    assert_eq!(parse(b"550 4.1.1 x\r\n").unwrap().unwrap().enhanced, None);
    assert_eq!(parse(b"250-a\r\n").unwrap(), None);
}

#[test]
fn what_is_no_reply_or_never_ends_is_an_error() {
    assert_eq!(parse(b"hello\r\n"), Err(ReplyError::NoCode));
    assert_eq!(parse(b"25\r\n"), Err(ReplyError::NoCode));
    assert_eq!(parse(b"\r\n"), Err(ReplyError::NoCode));
    assert_eq!(parse(b"650 x\r\n"), Err(ReplyError::NoCode));
    assert_eq!(parse(b"250_x\r\n"), Err(ReplyError::NoCode));
    assert_eq!(parse(b"250-x\r\n251 x\r\n"), Err(ReplyError::MixedCodes));
    assert_eq!(parse(&b"2".repeat(3000)), Err(ReplyError::LineTooLong));
    assert_eq!(parse(&b"250-x\r\n".repeat(200)), Err(ReplyError::TooManyLines));
}

#[test]
fn a_long_reply_is_cut_and_not_kept() {
    let mut text = b"550-".to_vec();
    text.extend(b"x".repeat(2000));
    text.extend(b"\r\n550 end\r\n");
    assert!(parse(&text).unwrap().unwrap().text.len() <= MAX_TEXT_LEN);
}

#[test]
fn our_own_reply_is_always_one_line() {
    let mut out = BytesMut::new();
    Reply::with_text(550, (5, 1, 1), "a\r\n250 b\u{0}日".into()).write(&mut out);
    assert_eq!(out, "550 5.1.1 a??250 b????\r\n");
}
