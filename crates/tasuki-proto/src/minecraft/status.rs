//! The answers a relay gives by itself: a status page with pong, and a kick text.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::json;

use super::varint::{frame, read_varint, write_string};

/// What the server list shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusPage {
    /// Shown in red in the place of the player count when `protocol` is not the client's.
    pub version: String,
    /// The protocol number; -1 fits no client.
    pub protocol: i32,
    /// Players now.
    pub online: u32,
    /// Places.
    pub max: u32,
    /// One or two lines.
    pub description: String,
}

impl StatusPage {
    /// A page that says why nobody can join now.
    pub fn closed(description: &str) -> Self {
        Self {
            version: "offline".into(),
            protocol: -1,
            online: 0,
            max: 0,
            description: description.into(),
        }
    }

    /// The status response as a frame.
    pub fn encode(&self) -> Vec<u8> {
        let text = json!({
            "version": { "name": self.version, "protocol": self.protocol },
            "players": { "max": self.max, "online": self.online },
            "description": { "text": self.description },
        });
        string_packet(&text.to_string())
    }
}

/// A kick in the login state. It is a JSON text component there in every version, also after 1.20.3.
pub fn encode_login_disconnect(text: &str) -> Vec<u8> {
    string_packet(&json!({ "text": text }).to_string())
}

fn string_packet(text: &str) -> Vec<u8> {
    let mut body = vec![0x00];
    write_string(&mut body, text);
    frame(&body)
}

/// What a [`StatusTalk`] wants its shell to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TalkEvent {
    /// Send these bytes.
    Reply(Bytes),
    /// Send what is queued, then close.
    Close,
}

/// The gateway's side of a server list request, after the handshake: status and ping in any order, either may be left
/// out, three requests at most. A packet that belongs to neither ends the talk.
#[derive(Debug)]
pub struct StatusTalk {
    page: StatusPage,
    requests_left: u8,
    closed: bool,
    events: VecDeque<TalkEvent>,
}

impl StatusTalk {
    /// A talk that answers with `page`.
    pub fn new(page: StatusPage) -> Self {
        Self {
            page,
            requests_left: 3,
            closed: false,
            events: VecDeque::new(),
        }
    }

    /// Takes whole packets from `input`, leaves the rest.
    pub fn handle_input(&mut self, input: &mut BytesMut) {
        while !self.closed {
            // A ping is 9 bytes and a request 1, so a longer length needs no second byte to be wrong.
            let length = match read_varint(input, 1) {
                Ok(None) => return,
                Ok(Some((length, _))) => length as usize,
                Err(_) => return self.close(),
            };
            if !matches!(length, 1 | 9) || self.requests_left == 0 {
                return self.close();
            }
            if input.len() < 1 + length {
                return;
            }
            let packet = input.split_to(1 + length);
            self.requests_left -= 1;
            match (packet[1], length) {
                (0x00, 1) => self.events.push_back(TalkEvent::Reply(self.page.encode().into())),
                (0x01, 9) => {
                    // The same bytes go back; after a pong the game closes, and so do we.
                    self.events.push_back(TalkEvent::Reply(packet.freeze()));
                    self.close();
                }
                _ => self.close(),
            }
        }
        input.advance(input.len());
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<TalkEvent> {
        self.events.pop_front()
    }

    fn close(&mut self) {
        self.closed = true;
        self.events.push_back(TalkEvent::Close);
    }
}
