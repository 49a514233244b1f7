#![allow(clippy::unwrap_used)]

use super::{ClientHello, MAX_SIZE_BYTES, Opening, read};

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = kind.to_be_bytes().to_vec();
    out.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    out.extend(body);
    out
}

fn message(name: &[u8], alpn: &[&[u8]], padding: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    if !name.is_empty() {
        let length = u16::try_from(name.len()).unwrap();
        let mut body = (length + 3).to_be_bytes().to_vec();
        body.push(0);
        body.extend(length.to_be_bytes());
        body.extend(name);
        extensions.extend(extension(0, &body));
    }
    if !alpn.is_empty() {
        let list: Vec<u8> = alpn
            .iter()
            .flat_map(|name| [&[u8::try_from(name.len()).unwrap()], *name].concat())
            .collect();
        let mut body = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        body.extend(list);
        extensions.extend(extension(16, &body));
    }
    extensions.extend(extension(21, &vec![0; padding]));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut out = vec![1];
    out.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    out.extend(body);
    out
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[0x16, 3, 1], &length[..], part].concat()
        })
        .collect()
}

fn wanted() -> Opening {
    Opening::Hello(ClientHello {
        server_name: Some("relay.example".to_owned()),
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    })
}

#[test]
fn name_and_protocols_are_read_whole_split_and_byte_by_byte() {
    let message = message(b"Relay.Example.", &[b"h2", b"http/1.1"], 1200);
    for size in [message.len(), 300, 128] {
        let bytes = records(&message, size);
        assert_eq!(read(&bytes), wanted(), "records of {size}");
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Opening::Incomplete, "first {end} bytes");
        }
        let followed = [bytes.as_slice(), b"early data"].concat();
        assert_eq!(read(&followed), wanted());
    }
}

#[test]
fn a_hello_without_name_or_protocols_is_a_hello() {
    let bytes = records(&message(b"", &[], 0), 4000);
    assert_eq!(read(&bytes), Opening::Hello(ClientHello::default()));
}

#[test]
fn other_protocols_are_told_by_their_first_byte() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"EHLO x\r\n",
        b"\x80\x2e\x01",
        b"PRI * HTTP/2.0",
    ] {
        assert_eq!(read(bytes), Opening::NotTls);
    }
}

#[test]
fn wrong_lengths_names_and_records_are_malformed_and_never_panic() {
    let good = message(b"relay.example", &[b"h2"], 0);
    let malformed = |bytes: &[u8]| matches!(read(bytes), Opening::Malformed(_));
    assert!(malformed(&records(&good, 4)), "too many records");
    assert!(malformed(&[0x16, 3, 1, 0, 0]), "an empty record");
    assert!(malformed(&[0x16, 9, 1, 0, 4]), "another version");
    assert!(malformed(&[0x16, 3, 1, 0, 4, 2, 0, 0, 0]), "a ServerHello");
    assert!(
        malformed(&[0x16, 3, 1, 0x40, 0, 1, 0xff, 0, 0]),
        "longer than is allowed"
    );
    assert!(
        malformed(&records(&message(b"a b", &[], 0), 4000)),
        "no host name"
    );
    assert!(malformed(&vec![0x16; MAX_SIZE_BYTES + 1]));
    let bytes = records(&good, 4000);
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bent = bytes.clone();
            bent[at] = value;
            let _ = read(&bent);
        }
    }
}
