//! Words to systemd (sd_notify(3)), where it asks for them with `NOTIFY_SOCKET`: that the gateway serves, and which process
//! it is after an upgrade.

use std::io::{self, IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// How long systemd may take to hear that another process is the gateway.
const BARRIER: Duration = Duration::from_secs(5);

/// The gateway serves.
pub(crate) fn ready() {
    say("READY=1");
}

/// The gateway is about to end.
pub(crate) fn stopping() {
    say("STOPPING=1");
}

/// Another process is the gateway from now on. Returns when systemd has heard it, so that the end of this one is not the
/// service's.
pub(crate) fn main_process(pid: u32) {
    say(&format!("MAINPID={pid}\nREADY=1"));
    if let Some(Err(error)) = socket().map(|socket| socket.and_then(|socket| barrier(&socket))) {
        tracing::warn!(%error, "systemd may not have heard which process is the gateway now");
    }
}

fn say(words: &str) {
    if let Some(Err(error)) = socket().map(|socket| socket?.send(words.as_bytes())) {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

fn socket() -> Option<io::Result<UnixDatagram>> {
    let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
    let connected = || {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(socket)
    };
    Some(connected())
}

/// sd_notify(3), BARRIER=1: systemd closes the descriptor that comes with it when everything before was heard.
fn barrier(socket: &UnixDatagram) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[IoSlice::new(b"BARRIER=1")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    drop(theirs);
    ours.set_read_timeout(Some(BARRIER))?;
    ours.read(&mut [0]).map(drop)
}
