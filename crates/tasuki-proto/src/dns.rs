//! As much of the DNS as it takes to see where a name leads (RFC 1035, RFC 2782, RFC 3596): a question, and the addresses
//! and services in an answer.
//!
//! Invariant: whatever bytes come, reading them ends and does not panic; names that point to themselves are malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest answer over UDP to a question that does not say more (RFC 1035 4.2.1). A longer one is truncated, and
/// whole over TCP.
pub const MAX_ANSWER: usize = 512;
/// Where the question begins.
const HEAD: usize = 12;
/// There is more than fits (RFC 1035 4.1.1, TC).
const TRUNCATED: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
/// The kind of a CNAME.
const ALIAS: u16 = 5;
/// Names that may stand for each other in one answer.
const MAX_ALIASES: usize = 16;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Services.
    Srv,
}

impl Kind {
    const fn code(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
            Self::Srv => 33,
        }
    }
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An address, of the name itself or of the one that it stands for.
    Address(IpAddr),
    /// A service.
    Service {
        /// Its port.
        port: u16,
        /// Its host, in lower case, without the final dot.
        target: String,
    },
}

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// Not an answer to this question.
    #[error("an answer to another question")]
    Strange,
    /// It cannot be read.
    #[error("a malformed answer")]
    Malformed,
    /// There is more than fits: over TCP it does.
    #[error("a truncated answer")]
    Truncated,
    /// The name server cannot say.
    #[error("the name server answers with error {0}")]
    Failed(u8),
}

/// The question for a name, as it is sent. `None` if the name can be in no DNS.
#[must_use]
pub fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let mut bytes = id.to_be_bytes().to_vec();
    // A recursive query with one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let start = bytes.len();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|n| (1..64).contains(n))?;
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    if bytes.len() - start > 255 {
        return None;
    }
    bytes.extend(kind.code().to_be_bytes());
    bytes.extend([0, 1]);
    Some(bytes)
}

/// The records of an answer to `question` for its name, or for the one that this stands for; none if the name or the kind
/// does not exist.
///
/// # Errors
/// See [`NoAnswer`].
pub fn answer(question: &[u8], bytes: &[u8]) -> Result<Vec<Found>, NoAnswer> {
    let head: &[u8; 12] = bytes.first_chunk().ok_or(NoAnswer::Malformed)?;
    if !question.starts_with(&head[..2]) || head[2] & 0x80 == 0 {
        return Err(NoAnswer::Strange);
    }
    let code = head[3] & 0x0f;
    let (questions, records) = (
        u16::from_be_bytes([head[4], head[5]]),
        u16::from_be_bytes([head[6], head[7]]),
    );
    // A server that cannot read the question does not repeat it.
    let refuses = !matches!(code, 0 | NO_SUCH_NAME);
    if questions != 1 {
        return Err(if refuses {
            NoAnswer::Failed(code)
        } else {
            NoAnswer::Strange
        });
    }
    let (asked, end) = name(question, HEAD)?;
    let (repeated, mut at) = name(bytes, HEAD)?;
    if repeated != asked || bytes.get(at..at + 4) != question.get(end..end + 4) {
        return Err(NoAnswer::Strange);
    }
    at += 4;
    if head[2] & TRUNCATED != 0 {
        return Err(NoAnswer::Truncated);
    }
    match code {
        0 => {}
        NO_SUCH_NAME => return Ok(Vec::new()),
        code => return Err(NoAnswer::Failed(code)),
    }
    let (mut found, mut aliases) = (Vec::new(), Vec::new());
    for _ in 0..records {
        let (owner, after) = name(bytes, at)?;
        let fixed: &[u8; 10] = bytes
            .get(after..)
            .and_then(<[u8]>::first_chunk)
            .ok_or(NoAnswer::Malformed)?;
        let start = after + 10;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        at = start + length;
        let data = bytes.get(start..at).ok_or(NoAnswer::Malformed)?;
        let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
        if kind == Kind::A.code() {
            let octets: [u8; 4] = data.try_into().map_err(|_| NoAnswer::Malformed)?;
            found.push((owner, Found::Address(Ipv4Addr::from(octets).into())));
        } else if kind == Kind::Aaaa.code() {
            let octets: [u8; 16] = data.try_into().map_err(|_| NoAnswer::Malformed)?;
            found.push((owner, Found::Address(Ipv6Addr::from(octets).into())));
        } else if kind == Kind::Srv.code() {
            let fixed: &[u8; 6] = data.first_chunk().ok_or(NoAnswer::Malformed)?;
            let port = u16::from_be_bytes([fixed[4], fixed[5]]);
            let target = name(bytes, start + 6)?.0;
            found.push((owner, Found::Service { port, target }));
        } else if kind == ALIAS {
            aliases.push((owner, name(bytes, start)?.0));
        }
    }
    let mut stands_for = asked;
    for _ in 0..MAX_ALIASES {
        match aliases.iter().find(|(owner, _)| *owner == stands_for) {
            Some((_, target)) => stands_for.clone_from(target),
            None => break,
        }
    }
    found.retain(|(owner, _)| *owner == stands_for);
    Ok(found.into_iter().map(|(_, found)| found).collect())
}

/// The name at `at`, and where what follows it begins (RFC 1035 4.1.4).
fn name(bytes: &[u8], mut at: usize) -> Result<(String, usize), NoAnswer> {
    let mut text = String::new();
    let mut end = None;
    // Pointers lead only back, so this ends.
    let mut limit = at;
    loop {
        let length = *bytes.get(at).ok_or(NoAnswer::Malformed)?;
        if length & 0xc0 == 0xc0 {
            let low = *bytes.get(at + 1).ok_or(NoAnswer::Malformed)?;
            end.get_or_insert(at + 2);
            let to = usize::from(u16::from_be_bytes([length & 0x3f, low]));
            if to >= limit {
                return Err(NoAnswer::Malformed);
            }
            (at, limit) = (to, to);
            continue;
        }
        if length == 0 {
            return Ok((text, end.unwrap_or(at + 1)));
        }
        let label = bytes.get(at + 1..at + 1 + usize::from(length));
        let label = label.filter(|_| length < 64).ok_or(NoAnswer::Malformed)?;
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|octet| char::from(octet.to_ascii_lowercase())));
        if text.len() > 255 * 2 {
            return Err(NoAnswer::Malformed);
        }
        at += 1 + usize::from(length);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An answer to this question with these records, each of the question's name.
    fn reply(question: &[u8], code: u8, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = question.to_vec();
        (bytes[2], bytes[3], bytes[7]) = (0x81, 0x80 | code, records.len() as u8);
        for (kind, data) in records {
            bytes.extend([0xc0, 12]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0, 1, 0, 0, 1, 44]);
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        bytes
    }

    #[test]
    fn addresses_and_services_are_read_and_other_records_passed_over() {
        let asked = question(7, "_minecraft._tcp.Mc.example", Kind::Srv).unwrap();
        // Port 4711 at `relay` and then the last label of the question.
        let mut service = vec![0, 0, 0, 5, 0x12, 0x67, 5];
        service.extend(b"Relay");
        let last = asked.len() - 4 - 9;
        service.extend([0xc0, last as u8]);
        let records = [
            (33, service),
            (16, vec![3, b'a', b'b', b'c']),
            (1, vec![192, 0, 2, 1]),
            (28, vec![0; 16]),
        ];
        let found = answer(&asked, &reply(&asked, 0, &records)).unwrap();
        assert_eq!(
            found,
            [
                Found::Service {
                    port: 4711,
                    target: "relay.example".to_owned()
                },
                Found::Address(Ipv4Addr::new(192, 0, 2, 1).into()),
                Found::Address(Ipv6Addr::UNSPECIFIED.into()),
            ]
        );
    }

    /// A record of the name whose labels these are.
    fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = labels(owner);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 1, 44]);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn labels(name: &str) -> Vec<u8> {
        let mut bytes: Vec<u8> = name
            .split('.')
            .flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat())
            .collect();
        bytes.push(0);
        bytes
    }

    #[test]
    fn aliases_are_followed_and_what_belongs_to_other_names_is_left_out() {
        let asked = question(7, "Play.example", Kind::A).unwrap();
        let with = |records: &[Vec<u8>]| {
            let mut bytes = reply(&asked, 0, &[]);
            bytes[7] = records.len() as u8;
            bytes.extend(records.concat());
            answer(&asked, &bytes)
        };
        let address = |owner, last| record(owner, 1, &[192, 0, 2, last]);
        let alias = |owner, target| record(owner, 5, &labels(target));
        let here = Found::Address(Ipv4Addr::new(192, 0, 2, 1).into());
        let found = with(&[
            address("other.example", 9),
            address("c.example", 1),
            alias("B.example", "c.example"),
            alias("play.example", "b.example"),
        ]);
        assert_eq!(found, Ok(vec![here]), "in any order");
        assert_eq!(with(&[address("other.example", 9)]), Ok(Vec::new()));
        let loops = [
            alias("play.example", "b.example"),
            alias("b.example", "play.example"),
        ];
        assert_eq!(with(&loops), Ok(Vec::new()));
    }

    #[test]
    fn an_answer_to_another_question_is_none_and_a_truncated_one_is_not_empty() {
        let asked = question(7, "a.example", Kind::A).unwrap();
        for other in [
            question(7, "b.example", Kind::A).unwrap(),
            question(7, "a.example", Kind::Aaaa).unwrap(),
            question(8, "a.example", Kind::A).unwrap(),
        ] {
            assert_eq!(answer(&asked, &reply(&other, 0, &[])), Err(NoAnswer::Strange));
            assert_eq!(answer(&asked, &reply(&other, 3, &[])), Err(NoAnswer::Strange));
        }
        let mut truncated = reply(&asked, 0, &[]);
        truncated[2] |= TRUNCATED;
        assert_eq!(answer(&asked, &truncated), Err(NoAnswer::Truncated));
        let mut silent = reply(&asked, 1, &[]);
        silent.truncate(HEAD);
        silent[5] = 0;
        assert_eq!(answer(&asked, &silent), Err(NoAnswer::Failed(1)));
        silent[3] = 0;
        assert_eq!(answer(&asked, &silent), Err(NoAnswer::Strange));
    }

    #[test]
    fn no_name_is_nothing_and_a_failure_is_one() {
        let asked = question(7, "a.example", Kind::A).unwrap();
        assert_eq!(answer(&asked, &reply(&asked, 3, &[])), Ok(Vec::new()));
        assert_eq!(answer(&asked, &reply(&asked, 2, &[])), Err(NoAnswer::Failed(2)));
        assert_eq!(answer(&asked, &asked), Err(NoAnswer::Strange));
        for name in ["", "a..b", &"x".repeat(64), &"abc.".repeat(70)] {
            assert!(question(7, name, Kind::A).is_none(), "{name}");
        }
    }

    #[test]
    fn loops_and_short_answers_are_malformed() {
        let asked = question(7, "a.example", Kind::A).unwrap();
        let mut looping = reply(&asked, 0, &[(1, vec![192, 0, 2, 1])]);
        let at = asked.len() as u8;
        looping[asked.len() + 1] = at;
        assert_eq!(answer(&asked, &looping), Err(NoAnswer::Malformed));
        let whole = reply(&asked, 0, &[(33, vec![0, 0, 0, 5, 1, 2, 0xc0, 12])]);
        for length in 0..whole.len() {
            assert!(answer(&asked, &whole[..length]).is_err(), "{length}");
        }
        for position in 12..whole.len() {
            for value in [0, 1, 63, 64, 0xc0, 0xff] {
                let mut broken = whole.clone();
                broken[position] = value;
                let _ = answer(&asked, &broken);
            }
        }
    }
}
