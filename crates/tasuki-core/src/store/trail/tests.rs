use super::{End, Fate, Received, Story, Traced, bare_message_id};
use crate::clock::Timestamp;
use crate::ids::{DeliverySeq, MailId};
use crate::store::mail::LaneKey;

fn story() -> Story {
    Story {
        mail: MailId(7),
        delivery: DeliverySeq(0),
        accepted_at: Timestamp(1),
        reverse_path: "alice@example.org".parse().unwrap(),
        principal: None,
        size_bytes: 5,
        received: Some(Box::new(Received {
            message_id: Some("a.B@example.org".into()),
            ..Received::default()
        })),
        at: Timestamp(2),
        attempt: 1,
        lane: LaneKey("mx:example.com".into()),
        fates: vec![Fate {
            recipients: vec!["Bob@example.com".parse().unwrap()],
            end: End::Relayed,
            words: "250 2.0.0 ok".into(),
            server: None,
        }],
        aliases: vec![(
            "sales@shop.test".parse().unwrap(),
            "Bob@example.com".parse().unwrap(),
        )],
        notices: Vec::new(),
    }
}

#[test]
fn a_story_is_found_by_all_that_a_person_knows_of_its_mail() {
    let story = story();
    let prints: Vec<_> = story.fingerprints().collect();
    for (traced, is_told) in [
        (Traced::Mail(MailId(7)), true),
        (Traced::Mail(MailId(8)), false),
        (Traced::Recipient("bob@EXAMPLE.com".parse().unwrap()), true),
        (Traced::Recipient("sales@shop.test".parse().unwrap()), true),
        (Traced::Recipient("alice@example.org".parse().unwrap()), false),
        (Traced::MessageId("<a.B@example.org>".into()), true),
        (Traced::MessageId("a.B@example.org".into()), true),
        (Traced::MessageId("a.b@example.org".into()), false),
    ] {
        assert_eq!(traced.is_told_by(&story), is_told, "{traced:?}");
        assert_eq!(prints.contains(&traced.fingerprint()), is_told, "{traced:?}");
    }
}

#[test]
fn fingerprints_never_change() {
    let traced = Traced::Recipient("bob@example.com".parse().unwrap());
    assert_eq!(traced.fingerprint(), FINGERPRINT_OF_BOB);
    assert_eq!(bare_message_id(" <x@y> "), "x@y");
}

const FINGERPRINT_OF_BOB: [u8; 4] = [0xc2, 0xab, 0x54, 0xc0];
