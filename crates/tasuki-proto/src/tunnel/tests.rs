#![allow(clippy::unwrap_used)]

use bytes::BytesMut;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

fn hello() -> FromAgent {
    FromAgent::Hello(Hello {
        version: VERSION,
        software: "test".into(),
        code: Some(EnrolCode("s3cret".into())),
    })
}

#[test]
fn control_frames_survive_any_split() {
    let declare = FromAgent::Declare {
        endpoints: vec![
            Declared {
                id: EndpointId(1),
                label: "mc".into(),
                kind: EndpointKind::Minecraft,
                name: Some("a.example".into()),
                port: None,
            },
            Declared {
                id: EndpointId(2),
                label: "ssh".into(),
                kind: EndpointKind::Tcp,
                name: None,
                port: Some(0),
            },
        ],
    };
    let frames = [hello(), declare, FromAgent::Goodbye];
    let bytes: Vec<u8> = frames
        .iter()
        .flat_map(|frame| encode_frame(frame).unwrap())
        .collect();
    for step in [1, 2, 3, 7, bytes.len()] {
        let mut input = BytesMut::new();
        let mut read = Vec::new();
        for part in bytes.chunks(step) {
            input.extend_from_slice(part);
            while let Some(frame) = take_frame::<FromAgent>(&mut input).unwrap() {
                read.push(frame);
            }
        }
        assert_eq!(read, frames);
    }
}

#[test]
fn unknown_frames_kinds_and_states_are_read_as_such() {
    let read = |json: &str| {
        let mut input = BytesMut::from(&(json.len() as u32).to_be_bytes()[..]);
        input.extend_from_slice(json.as_bytes());
        take_frame::<FromAgent>(&mut input).unwrap().unwrap()
    };
    assert_eq!(read(r#"{"type":"resume","flow":7}"#), FromAgent::Unknown);
    let declared =
        read(r#"{"type":"declare","endpoints":[{"id":1,"label":"x","kind":"udp","port":5,"new":true}]}"#);
    let FromAgent::Declare { endpoints } = declared else {
        panic!()
    };
    assert_eq!(endpoints[0].kind, EndpointKind::Unknown);

    let status: EndpointStatus = serde_json::from_str(r#"{"id":1,"state":"asleep","since":3}"#).unwrap();
    assert_eq!(status.state, EndpointState::Unknown);
    let refused = EndpointStatus {
        id: EndpointId(4),
        state: EndpointState::Refused {
            reason: RefusedEndpoint::NotGranted,
            text: "ask".into(),
        },
    };
    let json = serde_json::to_string(&refused).unwrap();
    assert_eq!(serde_json::from_str::<EndpointStatus>(&json).unwrap(), refused);
}

#[test]
fn a_frame_too_long_is_refused_at_its_length() {
    let mut input = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
    assert!(matches!(
        take_frame::<FromAgent>(&mut input),
        Err(ControlError::TooLong(_))
    ));
    let mut input = BytesMut::from(&b"\0\0\0\x02{]"[..]);
    assert!(matches!(
        take_frame::<FromAgent>(&mut input),
        Err(ControlError::Malformed(_))
    ));
}

#[test]
fn an_enrolment_code_is_not_printed() {
    assert!(!format!("{:?}", hello()).contains("s3cret"));
}

#[test]
fn stream_headers_keep_both_families_and_skip_what_is_new() {
    let header = StreamHeader {
        kind: StreamKind::Minecraft,
        endpoint: EndpointId(70_000),
        visitor: "[2001:db8::1]:4711".parse().unwrap(),
        door: "[::ffff:192.0.2.1]:25565".parse().unwrap(),
    };
    let mut bytes = header.encode();
    assert!(bytes.len() <= MAX_STREAM_HEADER);
    assert_eq!(
        StreamHeader::rest_length([bytes[0], bytes[1]]),
        Ok(bytes.len() - 2)
    );
    bytes.extend_from_slice(b"later");
    let read = StreamHeader::decode_rest(&bytes[2..]).unwrap();
    assert_eq!(
        read,
        StreamHeader {
            door: "192.0.2.1:25565".parse().unwrap(),
            ..header
        }
    );
    for cut in 2..bytes.len() - 5 {
        assert_eq!(
            StreamHeader::decode_rest(&bytes[2..cut]),
            Err(HeaderError::Malformed)
        );
    }
    assert_eq!(StreamHeader::rest_length([9, 3]), Err(HeaderError::Version(9)));
}

#[test]
fn random_bytes_never_panic() {
    let mut rng = StdRng::seed_from_u64(11);
    for _ in 0..20_000 {
        let mut bytes = vec![0; rng.random_range(0..80)];
        rng.fill_bytes(&mut bytes);
        let _ = StreamHeader::decode_rest(&bytes);
        let _ = take_frame::<FromGateway>(&mut BytesMut::from(&bytes[..]));
    }
}

#[test]
fn close_codes_and_open_replies_keep_their_numbers() {
    for code in 0..11 {
        assert_eq!(u64::from(CloseCode::from_code(code).unwrap().code()), code);
    }
    assert_eq!(CloseCode::from_code(99), None);
    assert_eq!((CloseCode::BadCode.code(), CloseCode::Replaced.code()), (3, 6));
    for byte in 0..6 {
        assert_eq!(OpenReply::from_byte(byte).byte(), byte);
    }
    assert_eq!(OpenReply::from_byte(200), OpenReply::Failed);
}
