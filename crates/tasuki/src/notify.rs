//! Words to systemd (sd_notify(3)), where it asks for them with `NOTIFY_SOCKET`: that the gateway serves, and which process
//! it is after an upgrade.

use std::ffi::OsString;
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

/// Where systemd listens.
struct Systemd(OsString);

/// The gateway serves.
pub(crate) fn ready() {
    if let Some(systemd) = Systemd::find() {
        systemd.say("READY=1");
    }
}

/// The gateway is about to end.
pub(crate) fn stopping() {
    if let Some(systemd) = Systemd::find() {
        systemd.say("STOPPING=1");
    }
}

/// Another process is the gateway from now on. Returns when systemd has heard it, so that the end of this one is not the
/// service's.
pub(crate) fn main_process(pid: u32) {
    if let Some(systemd) = Systemd::find() {
        systemd.main_process(pid);
    }
}

impl Systemd {
    fn find() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        Some(Self(name))
    }

    fn main_process(&self, pid: u32) {
        self.say(&format!("MAINPID={pid}\nREADY=1"));
        if let Err(error) = self.socket().and_then(|socket| barrier(&socket)) {
            tracing::warn!(%error, "systemd may not have heard which process is the gateway now");
        }
    }

    fn say(&self, words: &str) {
        if let Err(error) = self.socket().and_then(|socket| socket.send(words.as_bytes())) {
            tracing::warn!(%error, "systemd cannot be told");
        }
    }

    fn socket(&self) -> io::Result<UnixDatagram> {
        let address = match self.0.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(&self.0)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(socket)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd hears; descriptors that come along are closed as it does after BARRIER=1.
    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    fn hears_the_new_process(socket: &UnixDatagram, name: OsString) {
        socket.set_read_timeout(Some(BARRIER)).unwrap();
        let telling = std::thread::spawn(move || {
            let systemd = Systemd(name);
            systemd.say("READY=1");
            systemd.main_process(4711);
        });
        assert_eq!(heard(socket), "READY=1");
        assert_eq!(heard(socket), "MAINPID=4711\nREADY=1");
        assert!(
            !telling.is_finished(),
            "it waits until systemd has read everything"
        );
        assert_eq!(heard(socket), "BARRIER=1");
        telling.join().unwrap();
    }

    #[test]
    fn systemd_hears_which_process_is_the_gateway_before_the_old_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        hears_the_new_process(&UnixDatagram::bind(&path).unwrap(), path.into_os_string());
        let name = format!("tasuki-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        hears_the_new_process(&socket, format!("@{name}").into());
    }
}
