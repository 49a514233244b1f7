//! What gateway and agent say to each other over QUIC, as bytes and values.
//!
//! The agent opens one stream for **control**: frames of JSON behind a length ([`encode_frame`], [`take_frame`]), rare
//! and readable. Every visitor is one stream that the gateway opens: a short binary [`StreamHeader`], then the visitor's
//! bytes; towards the gateway one byte of [`OpenReply`], then the server's bytes.
//!
//! Visitors of UDP ports travel in QUIC datagrams ([`Datagram`]): one flow for each visitor, nothing sent twice, and what
//! is too old is dropped before it is sent ([`DatagramQueue`]).
//!
//! A flow outlives the session when both sides can do it ([`Hello::resume`], [`Accepted::resume`]): each keeps what the
//! other's socket has not taken, and hears on a second stream of the agent, which begins with [`WORDS`], how far that is
//! ([`Taken`]). In the next session the gateway opens a stream with a [`Resume`] for each flow.
//!
//! Where no UDP passes, the same QUIC packets go inside of TLS connections ([`Preface`], [`take_packet`]).
//!
//! Both can grow. Control frames and fields that a side does not know are skipped; a stream header carries its own
//! length, and what stands behind the known fields is skipped. [`VERSION`] rises only when that is not enough.
//!
//! Invariant: no frame larger than [`MAX_CONTROL_FRAME`] is ever buffered, and no input can panic.

mod carried;
mod close;
mod control;
mod datagram;
mod http_proxy;
mod kept;
mod path;
mod queue;
mod resume;
mod stream;

#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod tests;

pub use carried::{CarriedError, MAX_CARRIED, Preface, WayId, put_packet, take_packet, whole_packets};
pub use close::{CloseCode, RESET_ABORTED, RESET_REFUSED, RESET_STALLED};
pub use control::{
    Accepted, ControlError, Declared, EndpointKind, EndpointState, EndpointStatus, EnrolCode, FromAgent,
    FromGateway, Hello, MAX_CONTROL_FRAME, RefusedEndpoint, encode_frame, take_frame,
};
pub use datagram::{Datagram, FlowId};
pub use http_proxy::{BadProxy, HttpProxy, MAX_PROXY_ANSWER, ProxyAnswer, read_proxy_answer};
pub use kept::{BadKept, Kept};
pub use path::{PathWatch, SUSPECT_AFTER};
pub use queue::{DatagramQueue, QueueLimits};
pub use resume::{
    BadOffset, FlowNumber, MAX_RETAINED, Next, RESUME_WITHIN, Resume, Retained, TELL_AFTER, TELL_EVERY,
    Taken, WORDS,
};
pub use stream::{
    EndpointId, HeaderError, MAX_PLAYER, MAX_STREAM_HEADER, OpenReply, StreamHeader, StreamKind,
};

/// The ALPN of this protocol.
pub const ALPN: &[u8] = b"tasuki/1";
/// Version of the control frames, told in the Hello.
pub const VERSION: u16 = 1;
/// The TLS server name that agents send. The gateway is known by its pinned key, never by a name.
pub const SERVER_NAME: &str = "tasuki.invalid";
