#![allow(clippy::unwrap_used)]

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;
use crate::names::Domain;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

const STATUS: &str = "10 00 8206 09 6c6f63616c686f7374 63dd 01";
const LOGIN_1_21_5: &str =
    "10 00 8206 09 6c6f63616c686f7374 63dd 02 | 16 00 04 69747a67 5cddfd26fc864981b52ec42bb10bfdef";
const LOGIN_1_18_2: &str = "10 00 f605 09 6c6f63616c686f7374 63dd 02 | 06 00 04 69747a67";

fn read(input: &[u8]) -> Result<Opening, OpeningError> {
    read_opening(input, &OpeningLimits::default())
}

#[test]
fn numbers_have_the_form_of_the_protocol() {
    let vectors = [
        (0, "00"),
        (127, "7f"),
        (128, "8001"),
        (25565, "ddc701"),
        (2_097_151, "ffff7f"),
        (-1, "ffffffff0f"),
    ];
    for (value, text) in vectors {
        let mut out = Vec::new();
        write_varint(&mut out, value);
        assert_eq!(out, hex(text));
        assert_eq!(read_varint(&out, 5), Ok(Some((value, out.len()))));
        for cut in 0..out.len() {
            assert_eq!(read_varint(&out[..cut], 5), Ok(None));
        }
    }
    assert_eq!(
        read_varint(&hex("ffffffffff01"), 5),
        Err(VarIntTooLong { max_bytes: 5 })
    );
    assert_eq!(
        read_varint(&hex("ffffff01"), 3),
        Err(VarIntTooLong { max_bytes: 3 })
    );
}

#[test]
fn the_handshakes_of_several_versions_are_read() {
    let Opening::Status { handshake, used } = read(&hex(&format!("{STATUS} 0100"))).unwrap() else {
        panic!()
    };
    assert_eq!(
        (handshake.protocol, handshake.port, handshake.next),
        (770, 25565, NextState::Status)
    );
    assert_eq!((handshake.address.as_str(), used), ("localhost", 17));

    for (text, protocol) in [(LOGIN_1_21_5, 770), (LOGIN_1_18_2, 758)] {
        let bytes = hex(text);
        let Opening::Login {
            handshake,
            handshake_used,
            login,
        } = read(&bytes).unwrap()
        else {
            panic!()
        };
        assert_eq!((handshake.protocol, handshake.next), (protocol, NextState::Login));
        assert_eq!((login.name.as_str(), handshake_used), ("itzg", 17));
        assert_eq!(handshake.encode_with("localhost"), bytes[..17]);
    }
    // Protocol 578 with a longer name; and a transfer, which goes on like a login.
    let bytes = hex("13 00 c204 0b 6578616d706c652e636f6d 63dd 03 06 00 04 69747a67");
    let bytes = [&[0x12u8][..], &bytes[1..]].concat();
    let Opening::Login { handshake, .. } = read(&bytes).unwrap() else {
        panic!()
    };
    assert_eq!(
        (handshake.protocol, handshake.address.as_str()),
        (578, "example.com")
    );
    assert_eq!(handshake.next, NextState::Transfer);
}

#[test]
fn any_split_of_the_bytes_gives_the_same_opening() {
    let mut long = Handshake {
        protocol: 767,
        address: "é".repeat(255),
        port: 1,
        next: NextState::Status,
    };
    let mut samples: Vec<Vec<u8>> = vec![
        hex(STATUS),
        hex(LOGIN_1_21_5),
        hex(LOGIN_1_18_2),
        ping_1_6("play.example"),
    ];
    samples.push(long.encode_with(&long.address));
    // A handshake of exactly 254 bytes begins with FE 01, as a legacy ping does.
    long.address = "a".repeat(246);
    let frame = long.encode_with(&long.address);
    assert_eq!(frame[..3], [0xfe, 0x01, 0x00]);
    samples.push(frame);
    for sample in samples {
        let whole = read(&sample).unwrap();
        assert!(
            !matches!(whole, Opening::Incomplete | Opening::MaybeLegacy(_)),
            "{whole:?}"
        );
        for cut in 0..sample.len() {
            let part = read(&sample[..cut]).unwrap();
            let waits = matches!(part, Opening::Incomplete | Opening::MaybeLegacy(_));
            assert!(waits || part == whole, "cut at {cut}: {part:?}");
        }
    }
}

#[test]
fn random_bytes_never_panic_and_never_need_more_than_the_limit() {
    let mut rng = StdRng::seed_from_u64(7);
    let limits = OpeningLimits::default();
    let seeds = [
        hex(STATUS),
        hex(LOGIN_1_21_5),
        ping_1_6("play.example"),
        vec![0xfe, 0x01, 0xfa],
        vec![],
    ];
    for round in 0..20_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..rng.random_range(0..6) {
            if !bytes.is_empty() {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
        }
        let mut tail = vec![0; rng.random_range(0..40)];
        rng.fill_bytes(&mut tail);
        bytes.extend(tail);
        if let Ok(Opening::Status { handshake, .. } | Opening::Login { handshake, .. }) = read(&bytes) {
            let _ = (target_of(&handshake.address), rebuild_address(&handshake.address));
        }
        bytes.resize(limits.buffer_bytes(), 0x41);
        assert_ne!(
            read(&bytes),
            Ok(Opening::Incomplete),
            "a full buffer always decides"
        );
        let mut talk = StatusTalk::new(StatusPage::closed("x"));
        talk.handle_input(&mut BytesMut::from(&bytes[..]));
        while talk.poll_event().is_some() {}
    }
}

#[test]
fn a_promise_of_two_mebibytes_is_refused_at_its_prefix() {
    assert_eq!(
        read(&hex("ffff7f")),
        Err(OpeningError::TooLong {
            length: 2_097_151,
            max: 1050
        })
    );
    assert_eq!(read(&hex("ffffff7f")), Err(OpeningError::NotMinecraft));
    assert_eq!(read(b"GET / HTTP/1.1\r\n"), Err(OpeningError::NotMinecraft));
    assert_eq!(read(&hex("16 03 01 02 00 01")), Err(OpeningError::NotMinecraft));
    assert_eq!(
        read(&hex("10 00 8206 09 6c6f63616c686f7374 63dd 04")),
        Err(OpeningError::UnknownState(4))
    );
}

#[test]
fn the_name_is_found_under_every_decoration() {
    let name = Target::Name(Domain::parse("play.example.com").unwrap());
    for raw in [
        "play.example.com",
        "PLAY.Example.COM.",
        "play.example.com\0FML\0",
        "play.example.com\0FML2\0",
        "play.example.com\0FML3\0",
        "play.example.com\0FORGE",
        "play.example.com\0FORGE2",
        "play.example.com\0^Floodgate^abc\x01def",
        "play.example.com\x00192.0.2.1\x00069a79f444e94726a5befca90e38aaf5\0[]",
        "play.example.com///192.0.2.1:4711///1700000000///c2lnbmF0dXJl",
        "play.example.com\\\\stuff",
        "play.example.com.///1.2.3.4:5///6\0FML2\0",
        "_minecraft._tcp.play.example.com",
        "_Minecraft._TCP.play.example.com.",
        "play.example.com:25565",
        "play.example.com.:25565",
    ] {
        assert_eq!(target_of(raw), name, "{raw:?}");
    }
    for raw in [
        "",
        "\0FML\0",
        "192.0.2.7",
        "192.0.2.7:25565",
        "::1",
        "[2001:db8::1]:25565",
        "[::1]",
        "192.0.2.7\0FML3\0",
        "192.0.2.7.",
    ] {
        assert_eq!(target_of(raw), Target::Default, "{raw:?}");
    }
    for raw in [
        "a b",
        "x..y",
        "-a.example",
        "*.example.com",
        "a/b",
        &"a".repeat(64),
    ] {
        assert_eq!(target_of(raw), Target::Invalid, "{raw:?}");
    }
    assert_eq!(target_of("ＰＬＡＹ.example.com"), name);
    assert_eq!(
        target_of("日本.example"),
        Target::Name(Domain::parse("xn--wgv71a.example").unwrap())
    );
}

#[test]
fn an_identity_in_the_address_does_not_reach_the_server() {
    for (raw, rebuilt) in [
        ("play.example.com", "play.example.com"),
        ("play.example.com\0FML2\0", "play.example.com\0FML2\0"),
        ("play.example.com\0FML\0", "play.example.com\0FML\0"),
        ("play.example.com\0FORGE", "play.example.com\0FORGE"),
        (
            "play.example.com\x0010.0.0.1\x00069a79f444e94726a5befca90e38aaf5",
            "play.example.com",
        ),
        (
            "play.example.com\0FML2\x0010.0.0.1\x00069a79f444e94726a5befca90e38aaf5\0[]",
            "play.example.com\0FML2\0",
        ),
        ("play.example.com\0^Floodgate^x", "play.example.com"),
        ("play.example.com///10.0.0.1:1///2///sig", "play.example.com"),
        (
            "play.example.com///10.0.0.1:1///2\0FML3\0",
            "play.example.com\0FML3\0",
        ),
        ("play.example.com\0FMLevil\0", "play.example.com"),
        ("play.example.com\0FORGE123", "play.example.com"),
    ] {
        assert_eq!(rebuild_address(raw), rebuilt, "{raw:?}");
    }
}

fn ping_1_6(host: &str) -> Vec<u8> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
    let units = host.encode_utf16().count() as u16;
    let mut out = hex("fe01fa000b");
    out.extend(utf16("MC|PingHost"));
    out.extend((7 + 2 * units).to_be_bytes());
    out.push(74);
    out.extend(units.to_be_bytes());
    out.extend(utf16(host));
    out.extend(25565u32.to_be_bytes());
    out
}

#[test]
fn the_three_legacy_pings_are_told_apart() {
    assert_eq!(read(&[0xfe]), Ok(Opening::MaybeLegacy(LegacyPing::Beta)));
    assert_eq!(read(&[0xfe, 0x01]), Ok(Opening::MaybeLegacy(LegacyPing::V1_4)));
    let told = LegacyPing::V1_6 {
        protocol: 74,
        host: "play.example".into(),
    };
    assert_eq!(read(&ping_1_6("play.example")), Ok(Opening::Legacy(told)));
    // No more comes from some, and the rest of it must not make others wait.
    let hostless = LegacyPing::V1_6 {
        protocol: 78,
        host: String::new(),
    };
    assert_eq!(
        read(&[0xfe, 0x01, 0xfa]),
        Ok(Opening::MaybeLegacy(hostless.clone()))
    );
    assert_eq!(read(&[0xfe, 0x01, 0xfa, 0x00]), Ok(Opening::Incomplete));
    assert_eq!(settle_legacy(&[0xfe, 0x01, 0xfa]), Some(hostless));
    assert_eq!(settle_legacy(&[0xfe]), Some(LegacyPing::Beta));
    assert_eq!(settle_legacy(&[0xfe, 0x01]), Some(LegacyPing::V1_4));
    assert_eq!(settle_legacy(&hex(STATUS)), None);

    let reply = encode_legacy_reply(&LegacyPing::Beta, "offline", "A§cB\nC", 0, 0);
    assert_eq!(reply, hex("ff 0007 0041 0063 0042 00a7 0030 00a7 0030"));
    let reply = encode_legacy_reply(&LegacyPing::V1_4, "off", "A", 1, 2);
    let text: String = "§1\x00127\0off\0A\x001\x002".into();
    let expected: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(reply[3..], expected);
    assert_eq!(reply[..3], [0xff, 0, text.encode_utf16().count() as u8]);
}

fn talk(input: &[u8]) -> Vec<TalkEvent> {
    let mut talk = StatusTalk::new(StatusPage::closed("休み\nclosed"));
    let mut buffer = BytesMut::new();
    let mut events = Vec::new();
    for byte in input {
        buffer.extend_from_slice(&[*byte]);
        talk.handle_input(&mut buffer);
        events.extend(std::iter::from_fn(|| talk.poll_event()));
    }
    events
}

#[test]
fn a_status_talk_answers_request_and_ping() {
    let ping = hex("09 01 0000018bcfe56800");
    let events = talk(&[&hex("0100")[..], &ping].concat());
    let [TalkEvent::Reply(status), TalkEvent::Reply(pong), TalkEvent::Close] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(pong[..], ping);
    let (length, prefix) = read_varint(status, 3).unwrap().unwrap();
    assert_eq!(length as usize, status.len() - prefix);
    let body = &status[prefix..];
    assert_eq!(body[0], 0);
    let (length, used) = read_varint(&body[1..], 5).unwrap().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&body[1 + used..]).unwrap();
    assert_eq!(length as usize, body.len() - 1 - used);
    assert_eq!(json["version"]["protocol"], -1);
    assert_eq!(json["description"]["text"], "休み\nclosed");
    // A client may send only the ping, and one that talks on is left.
    assert_eq!(talk(&ping).len(), 2);
    assert_eq!(talk(&hex("0100 0100 0100 0100")).len(), 4);
    assert_eq!(talk(&hex("0201")), [TalkEvent::Close]);
}

#[test]
fn a_kick_is_a_json_text_in_the_login_state() {
    let kick = encode_login_disconnect(Page::AgentAway.default_text());
    let start = kick.iter().position(|byte| *byte == b'{').unwrap();
    let json: serde_json::Value = serde_json::from_slice(&kick[start..]).unwrap();
    assert_eq!(
        json["text"],
        "サーバーは現在オフラインです。\nThis server is offline now."
    );
}
