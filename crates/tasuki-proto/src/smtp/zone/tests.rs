use super::{line, reverse_name, strings};

#[test]
fn long_texts_are_cut_at_255_octets_and_nothing_is_lost() {
    for len in [0, 1, 254, 255, 256, 510, 511, 1000] {
        let text: String = "0123456789".chars().cycle().take(len).collect();
        let cut = strings(&text);
        assert!(cut.iter().all(|string| string.len() <= 255), "{len}");
        assert_eq!(cut.len(), len.div_ceil(255).max(1), "{len}");
        assert_eq!(cut.concat(), text);
    }
    // A letter of three octets is not cut.
    let text = "あ".repeat(100);
    assert_eq!(strings(&text).concat(), text);
}

#[test]
fn lines_of_a_zone_file_are_quoted_where_they_must_be() {
    assert_eq!(
        line("x.org", "TXT", "v=spf1 ~all"),
        "x.org. IN TXT \"v=spf1 ~all\""
    );
    assert_eq!(
        line("x.org", "TXT", "a\"\\\n"),
        "x.org. IN TXT \"a\\\"\\\\\\010\""
    );
    assert_eq!(line("x.org", "MX", "10 mx.x.org."), "x.org. IN MX 10 mx.x.org.");
    let long = line("x.org", "TXT", &"k".repeat(300));
    let (first, second) = ("k".repeat(255), "k".repeat(45));
    assert_eq!(long, format!("x.org. IN TXT ( \"{first}\" \"{second}\" )"));
}

#[test]
fn reverse_names_follow_the_family() {
    let name = |ip: &str| reverse_name(ip.parse().unwrap());
    assert_eq!(name("192.0.2.7"), "7.2.0.192.in-addr.arpa");
    assert_eq!(
        name("2001:db8::1"),
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
    );
}
