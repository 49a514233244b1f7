#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

fn hello() -> FromAgent {
    FromAgent::Hello(Hello {
        version: VERSION,
        software: "test".into(),
        code: Some(EnrolCode("s3cret".into())),
        resume: Some(u64::MAX),
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
        read(r#"{"type":"declare","endpoints":[{"id":1,"label":"x","kind":"sctp","port":5,"new":true}]}"#);
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
        player: Some("Hanako".into()),
        flow: Some(FlowNumber(1 << 40)),
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
            ..header.clone()
        }
    );
    let without_flow = bytes.len() - "later".len() - 8;
    let without_player = without_flow - 1 - "Hanako".len();
    for cut in 2..bytes.len() - 5 {
        let read = StreamHeader::decode_rest(&bytes[2..cut]);
        if cut == without_player {
            assert_eq!(
                read.unwrap().player,
                None,
                "an older side says nothing of players"
            );
        } else if cut >= without_flow {
            assert_eq!(read.unwrap().flow, None, "an older side says nothing of flows");
        } else {
            assert_eq!(read, Err(HeaderError::Malformed), "{cut}");
        }
    }
    let nobody = StreamHeader {
        player: Some("x".repeat(MAX_PLAYER + 1)),
        ..header
    };
    let nobody = StreamHeader::decode_rest(&nobody.encode()[2..]).unwrap();
    assert_eq!(nobody.player, None, "no server takes such a name");
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
        let _ = Datagram::decode(Bytes::from(bytes));
    }
}

#[test]
fn close_codes_and_open_replies_keep_their_numbers() {
    for code in 0..11 {
        assert_eq!(u64::from(CloseCode::from_code(code).unwrap().code()), code);
    }
    assert_eq!(CloseCode::from_code(99), None);
    assert_eq!((CloseCode::BadCode.code(), CloseCode::Replaced.code()), (3, 6));
    for byte in 0..7 {
        assert_eq!(OpenReply::from_byte(byte).byte(), byte);
    }
    assert_eq!(OpenReply::from_byte(200), OpenReply::Failed);
}

fn udp_header() -> StreamHeader {
    StreamHeader {
        kind: StreamKind::Udp,
        endpoint: EndpointId(3),
        visitor: "192.0.2.7:19132".parse().unwrap(),
        door: "198.51.100.1:19132".parse().unwrap(),
        player: None,
        flow: None,
    }
}

#[test]
fn datagrams_come_out_as_they_went_in() {
    let flow = FlowId(0x0102_0304);
    let payload = Bytes::from_static(b"\x01ping");
    let all = [
        Datagram::Data {
            flow,
            payload: payload.clone(),
        },
        Datagram::Data {
            flow,
            payload: Bytes::new(),
        },
        Datagram::Open {
            flow,
            header: udp_header(),
            payload,
        },
        Datagram::Unknown { flow },
        Datagram::Padding { zeros: 9 },
    ];
    assert_eq!(&all[0].encode()[..], b"\0\x01\x02\x03\x04\x01ping");
    for datagram in all {
        assert_eq!(Datagram::decode(datagram.encode()), Ok(datagram));
    }
}

#[test]
fn a_datagram_that_is_cut_or_of_another_kind_is_refused() {
    let open = Datagram::Open {
        flow: FlowId(1),
        header: udp_header(),
        payload: Bytes::new(),
    };
    let bytes = open.encode();
    for cut in 0..bytes.len() {
        assert!(Datagram::decode(bytes.slice(..cut)).is_err(), "{cut}");
    }
    assert_eq!(
        Datagram::decode(Bytes::from_static(&[9, 0, 0, 0, 1])),
        Err(HeaderError::Kind(9))
    );
    let mut tcp = bytes.to_vec();
    tcp[7] = 0;
    assert_eq!(Datagram::decode(tcp.into()), Err(HeaderError::Malformed));
}

fn queue(flow_bytes: usize, total_bytes: usize) -> DatagramQueue {
    DatagramQueue::new(QueueLimits {
        flow_bytes,
        total_bytes,
        max_age: Duration::from_millis(50),
    })
}

#[test]
fn flows_take_turns_and_each_keeps_its_order() {
    let now = Instant::now();
    let mut queue = queue(100, 1000);
    for datagram in ["a1", "a2", "a3"] {
        queue.push(FlowId(1), datagram.into(), now);
    }
    queue.push(FlowId(2), "b1".into(), now);
    let order: Vec<Bytes> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(order, ["a1", "b1", "a2", "a3"]);
    assert_eq!((queue.bytes(), queue.take_dropped()), (0, 0));
}

#[test]
fn a_flood_drops_its_own_oldest_and_nobody_elses() {
    let now = Instant::now();
    let mut queue = queue(4, 1000);
    queue.push(FlowId(2), "bb".into(), now);
    for datagram in ["a1", "a2", "a3", "a4"] {
        queue.push(FlowId(1), datagram.into(), now);
    }
    assert_eq!(queue.take_dropped(), 2);
    let order: Vec<Bytes> = std::iter::from_fn(|| queue.pop(now)).collect();
    assert_eq!(order, ["bb", "a3", "a4"]);
}

#[test]
fn many_flows_together_keep_within_the_total_and_the_oldest_go() {
    let now = Instant::now();
    let mut queue = queue(4, 8);
    for flow in 0..6 {
        queue.push(FlowId(flow), "xx".into(), now);
        assert!(queue.bytes() <= 8);
    }
    assert_eq!(queue.take_dropped(), 2);
    assert_eq!(std::iter::from_fn(|| queue.pop(now)).count(), 4);
    queue.push(FlowId(1), "much too long".into(), now);
    assert_eq!((queue.bytes(), queue.take_dropped()), (0, 1));
}

#[test]
fn what_is_too_old_is_not_sent() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut queue = queue(100, 1000);
    queue.push(FlowId(1), "old".into(), at(0));
    queue.push(FlowId(1), "young".into(), at(40));
    queue.push(FlowId(2), "old too".into(), at(1));
    assert_eq!(queue.pop(at(60)), Some("young".into()));
    assert_eq!(queue.pop(at(60)), None);
    assert_eq!(queue.take_dropped(), 2);
}

#[test]
fn a_path_is_suspect_when_packets_stay_unanswered_and_not_when_nobody_speaks() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut path = PathWatch::default();
    // Answered, then quiet for a minute.
    assert!(!path.observe(10, 10, at(0)));
    assert!(!path.observe(10, 10, at(60_000)));
    // We speak, nobody answers.
    assert!(!path.observe(11, 10, at(61_000)));
    assert!(!path.observe(12, 10, at(63_900)));
    assert!(path.observe(13, 10, at(64_000)));
    // Once for each stretch of silence.
    assert!(!path.observe(14, 10, at(64_500)));
    assert!(path.observe(15, 10, at(67_000)));
    // An answer ends the suspicion.
    assert!(!path.observe(16, 11, at(69_900)));
    assert!(!path.observe(17, 11, at(70_100)));
    assert!(!path.observe(18, 11, at(73_000)));
    assert!(path.observe(18, 11, at(73_100)));
}
