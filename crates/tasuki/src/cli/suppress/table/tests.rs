#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn lists_of_other_services_and_our_own_are_read() {
    for (line, text) in [
        (1, "anna@x.org\n"),
        (2, "\u{feff}Email\r\nanna@x.org\r\n\r\n"),
        (3, "Email\n\nanna@x.org\n"),
        (2, "created,email,status\n1700000000,anna@x.org,5.1.1\n"),
        (
            1,
            "{\"address\": \"anna@x.org\", \"principal\": null, \"since\": \"2026-11-24T00:00:00Z\"}",
        ),
        (2, "address,principal,until\nanna@x.org,,\n"),
    ] {
        let anna = json!({"address": "anna@x.org", "line": line});
        assert_eq!(read(text, None).unwrap(), [anna], "{text}");
    }
    let of_news = json!({"address": "anna@x.org", "principal": "news", "line": 1});
    assert_eq!(read("anna@x.org", Some("news")).unwrap(), [of_news]);
    assert_eq!(read("", None).unwrap(), [] as [Value; 0]);
    assert_eq!(
        read("a@x.org\n{broken\n", None),
        Err("line 2 names no address".to_owned())
    );
    assert_eq!(
        read("email,reason\n,none\n", None),
        Err("line 2 names no address".to_owned())
    );
}

#[test]
fn an_export_is_read_as_it_was() {
    let entry = json!({
        "address": "\"a b\"@x.org", "principal": "news", "until": "2027-01-31T00:00:00Z",
        "reason": "550 5.1.1 \"no\", never", "origin": "automatic", "since": "2026-11-24T00:00:00Z",
    });
    let kept = |line: u64| {
        json!({
            "address": "\"a b\"@x.org", "principal": "news", "until": "2027-01-31T00:00:00Z",
            "reason": "550 5.1.1 \"no\", never", "line": line,
        })
    };
    let csv = format!("{HEAD}\n{}\n", line(&entry));
    assert_eq!(read(&csv, Some("other")).unwrap(), [kept(2)]);
    assert_eq!(read(&entry.to_string(), None).unwrap(), [kept(1)]);
}
