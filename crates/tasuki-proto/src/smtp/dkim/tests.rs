#![allow(clippy::unwrap_used)]

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

use super::*;

fn body_hash(body: &str) -> String {
    let whole = {
        let mut hash = BodyHash::default();
        hash.update(body.as_bytes());
        STANDARD.encode(hash.finish())
    };
    let mut hash = BodyHash::default();
    for octet in body.bytes() {
        hash.update(&[octet]);
    }
    assert_eq!(
        whole,
        STANDARD.encode(hash.finish()),
        "however it is cut: {body:?}"
    );
    whole
}

fn sha256(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text.as_bytes()))
}

#[test]
fn a_body_is_hashed_in_its_relaxed_form() {
    for (body, relaxed) in [
        // RFC 6376 3.4.5 and 3.4.4.
        (" C \r\nD \t E\r\n\r\n\r\n", " C\r\nD E\r\n"),
        ("", ""),
        ("\r\n\r\n", ""),
        ("a", "a\r\n"),
        ("a\r\n", "a\r\n"),
        // Lines of white space alone at the end are empty lines.
        ("a\r\n \r\n\t \r\n", "a\r\n"),
        ("a\r\n \t", "a\r\n"),
        (" \r\n \r\n", ""),
        ("\r\n\r\na \r\n\r\nb", "\r\n\r\na\r\n\r\nb\r\n"),
    ] {
        assert_eq!(body_hash(body), sha256(relaxed), "{body:?}");
    }
}

/// RFC 8463 A.3.
const HEADER: &str = "From: Joe SixPack <joe@football.example.com>\r\n\
    To: Suzie Q <suzie@shopping.example.net>\r\n\
    Subject: Is dinner ready?\r\n\
    Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
    Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n";
const BODY: &str = "Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
const NAMES: [&str; 8] = [
    "from",
    "to",
    "subject",
    "date",
    "message-id",
    "from",
    "subject",
    "date",
];

#[test]
fn the_signatures_of_rfc_8463_verify() {
    assert_eq!(body_hash(BODY), "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=");
    let header = Header::parse(HEADER.as_bytes());
    let ed25519 = "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n \
        d=football.example.com; i=@football.example.com;\r\n \
        q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n \
        subject : date : message-id : from : subject : date;\r\n \
        bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=";
    let value = "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==";
    let key = STANDARD
        .decode("11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
        .unwrap();
    let signed = digest(&header, &NAMES, ed25519.as_bytes());
    UnparsedPublicKey::new(&ED25519, key)
        .verify(&signed, &STANDARD.decode(value).unwrap())
        .unwrap();
}

#[test]
fn a_field_says_what_it_signs_and_is_folded() {
    let domain = Domain::parse("football.example.com").unwrap();
    let signer = Signer {
        domain: &domain,
        selector: "brisbane",
        algorithm: Algorithm::Ed25519Sha256,
        time: 1_528_637_909,
    };
    let mut message = MessageHash::new(1000);
    message.update(b"Received: x\r\nX-Other: y\r\n").unwrap();
    message.update(HEADER.as_bytes()).unwrap();
    message.update(b"\r").unwrap();
    message.update(b"\n").unwrap();
    message.update(BODY.as_bytes()).unwrap();
    let (header, hash) = message.finish();
    assert!(header.ends_with(b"com>\r\n"));
    let field = prepare(&header, &hash, &signer).finish(&[0xff; 64]);
    assert!(field.starts_with(
        "DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n\td=football.example.com; s=brisbane; t=1528637909;\r\n"
    ));
    assert!(field.contains("bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;"));
    let signed: String = field
        .split("h=from")
        .nth(1)
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(signed, ":from:to:to:subject:subject:date:date:message-id");
    assert!(field.lines().all(|line| line.len() <= 78), "{field}");
    assert!(field.ends_with("==\r\n"));
}

#[test]
fn a_message_whose_header_never_ends_is_not_kept() {
    let mut message = MessageHash::new(100);
    assert_eq!(message.update(&[b'x'; 101]), Err(HeaderTooLong));
    // A message without a body, and one whose body starts without an empty line.
    let mut message = MessageHash::new(100);
    message.update(b"From: a@x.org\r\n").unwrap();
    assert_eq!(
        message.finish(),
        (b"From: a@x.org\r\n".to_vec(), Sha256::digest(b"").into())
    );
    let mut message = MessageHash::new(100);
    message.update(b"From: a@x.org\r\nbody\r\n").unwrap();
    assert_eq!(
        message.finish(),
        (b"From: a@x.org\r\n".to_vec(), Sha256::digest(b"body\r\n").into())
    );
}

#[test]
fn fields_are_unfolded_and_their_gaps_are_one_space() {
    for (field, relaxed) in [
        ("Subject:  a  b\t c \r\n", "subject:a b c"),
        ("B : Y\t\r\n\tZ  \r\n", "b:Y Z"),
        ("X:\r\n", "x:"),
        ("X: a\r\n b\r\n", "x:a b"),
    ] {
        assert_eq!(
            String::from_utf8(relaxed_field(field.as_bytes())).unwrap(),
            relaxed
        );
    }
    // The lowest instance is signed first, and a name too many stands for none.
    let header = Header::parse(b"To: 1\r\nTo: 2\r\n");
    let once = digest(&header, &["to"], b"x:");
    let mut hash = Sha256::new();
    hash.update(b"to:2\r\nx:");
    assert_eq!(once, <[u8; 32]>::from(hash.finalize()));
    assert_eq!(
        digest(&header, &["to", "to"], b"x:"),
        digest(&header, &["to", "to", "to"], b"x:")
    );
}
