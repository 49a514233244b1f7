#![allow(clippy::unwrap_used)]

use super::*;

fn from(value: &str) -> Result<Vec<String>, AuthorError> {
    let text = format!("From: {value}\r\n");
    authors(&Header::parse(text.as_bytes())).map(|list| list.iter().map(ToString::to_string).collect())
}

#[test]
fn fields_are_found_by_name_and_kept_whole() {
    let text = b"Received: a\r\n b\r\nBCC: x@y.org,\r\n\tz@y.org\r\nSubject : hi\r\nreceived: c\r\n\r\nFrom: body\r\n";
    let header = Header::parse(text);
    assert_eq!(header.count("received"), 2);
    assert_eq!(header.count("from"), 0);
    assert_eq!(header.value("Subject").unwrap(), "hi");
    assert_eq!(header.value("bcc").unwrap(), "x@y.org,\tz@y.org");
    let mut out = Vec::new();
    header.write_where(|name| !name.eq_ignore_ascii_case("bcc"), &mut out);
    assert_eq!(out, b"Received: a\r\n b\r\nSubject : hi\r\nreceived: c\r\n");
}

#[test]
fn a_line_that_is_no_field_ends_the_header() {
    assert_eq!(line_kind(b"\r\n"), LineKind::End);
    assert_eq!(line_kind(b" x\r\n"), LineKind::Folded);
    assert_eq!(line_kind(b"A-b: c\r\n"), LineKind::Field(b"A-b"));
    for body in [
        &b"hello world\r\n"[..],
        b"hello: world"[..0].as_ref(),
        b": x\r\n",
        b"two words: x\r\n",
        b"\xe3: x\r\n",
    ] {
        assert_eq!(line_kind(body), LineKind::Body, "{body:?}");
    }
}

#[test]
fn authors_are_read_from_every_shape_of_from() {
    let table = [
        ("a@x.org", vec!["a@x.org"]),
        ("<a@x.org>", vec!["a@x.org"]),
        ("Ann <a@x.org>", vec!["a@x.org"]),
        ("\"boss@bank.org\" <a@x.org>", vec!["a@x.org"]),
        ("boss@bank.org <a@x.org>", vec!["a@x.org"]),
        (
            "\"A, B\" <a@x.org>, b@y.org (<c@z.org>)",
            vec!["a@x.org", "b@y.org"],
        ),
        ("group: a@x.org, B <b@y.org>;", vec!["a@x.org", "b@y.org"]),
        ("\"a b\"@x.org", vec!["\"a b\"@x.org"]),
        ("=?utf-8?B?5aSq?= <a@x.org>", vec!["a@x.org"]),
    ];
    for (value, expect) in table {
        assert_eq!(from(value).unwrap(), expect, "{value}");
    }
}

#[test]
fn an_author_that_is_not_understood_is_not_trusted() {
    for value in [
        "",
        "Ann",
        "<>",
        "a@x.org b@y.org",
        "<a@x.org> <b@y.org>",
        "Ann <a@x.org",
        "\"Ann <a@x.org>",
        "(a@x.org",
        "a@x.org>",
        "<<a@x.org>>",
    ] {
        assert!(from(value).is_err(), "{value}");
    }
    assert_eq!(
        authors(&Header::parse(b"From: a@x.org\r\nFrom: b@y.org\r\n")),
        Err(AuthorError::NotOne)
    );
    assert_eq!(
        authors(&Header::parse(b"To: a@x.org\r\n")),
        Err(AuthorError::NotOne)
    );
}
