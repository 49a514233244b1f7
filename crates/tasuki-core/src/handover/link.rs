//! The Unix socket between the two processes. Blocking, with a limit for each wait: the caller gives it a thread.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::frame::{self, BadFrame, Frame, HEAD, Head, Kind, MAX_FDS};
use super::{Item, Word};

/// The other process takes what is sent within this time, or is given up.
const WRITE: Duration = Duration::from_secs(30);

/// Our end.
#[derive(Debug)]
pub struct Link(UnixStream);

/// Why the link is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other process is gone.
    #[error("the other process has ended")]
    Ended,
    /// It said nothing for the time that it had.
    #[error("the other process did not answer in time")]
    Silent,
    /// It sent what nobody understands.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// Items came where a word was due, or the other way round.
    #[error("the other process said something else than what was its turn")]
    OutOfTurn,
    /// The operating system's.
    #[error("the link to the other process failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                Self::Ended
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

impl Link {
    /// Both ends.
    ///
    /// # Errors
    /// The operating system's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self::over(ours)?, theirs.into()))
    }

    /// The end that came as a descriptor.
    ///
    /// # Errors
    /// It is no socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Self::over(UnixStream::from(fd))
    }

    fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE))?;
        Ok(Self(stream))
    }

    /// Another handle of the same end.
    ///
    /// # Errors
    /// The operating system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Says a word.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn say(&self, word: &Word) -> Result<(), LinkError> {
        self.send(&frame::of_word(word)?, &[])
    }

    /// Hears a word within `limit`; `None` waits as long as the other process lives.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn hear(&self, limit: Option<Duration>) -> Result<Word, LinkError> {
        self.0.set_read_timeout(limit)?;
        let (head, json, _, _) = self.receive()?;
        match head.kind {
            Kind::Word => Ok(frame::to_word(&json)?),
            Kind::Items => Err(LinkError::OutOfTurn),
        }
    }

    /// Sends items, and keeps them.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn give(&self, items: &[Item]) -> Result<(), LinkError> {
        let mut rest = items;
        while !rest.is_empty() {
            let (frame, count) = frame::of_items(rest)?;
            let (now, later) = rest.split_at(count);
            let fds: Vec<BorrowedFd<'_>> = now
                .iter()
                .filter_map(|item| Some(item.fd.as_ref()?.as_fd()))
                .collect();
            self.send(&frame, &fds)?;
            rest = later;
        }
        Ok(())
    }

    /// Takes as many items as were announced; each message may take `limit`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn take(&self, count: u64, limit: Duration) -> Result<Vec<Item>, LinkError> {
        self.0.set_read_timeout(Some(limit))?;
        let mut items = Vec::new();
        while (items.len() as u64) < count {
            let (head, json, bytes, fds) = self.receive()?;
            if head.kind != Kind::Items {
                return Err(LinkError::OutOfTurn);
            }
            let more = frame::to_items(&json, bytes, fds)?;
            if more.is_empty() || items.len() as u64 + more.len() as u64 > count {
                return Err(BadFrame::Shape("not as many items as were announced").into());
            }
            items.extend(more);
        }
        Ok(items)
    }

    fn send(&self, frame: &Frame, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        let head = frame.head.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(BadFrame::TooLong("descriptors").into());
        }
        let sent = loop {
            match sendmsg(
                &self.0,
                &[IoSlice::new(&head)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => break sent,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        };
        // The descriptors went with the first byte.
        let mut stream = &self.0;
        stream.write_all(&head[sent..])?;
        stream.write_all(&frame.json)?;
        for bytes in &frame.bytes {
            stream.write_all(bytes)?;
        }
        Ok(())
    }

    fn receive(&self) -> Result<(Head, Vec<u8>, Bytes, Vec<OwnedFd>), LinkError> {
        let mut head = [0; HEAD];
        let (mut read, fds) = self.receive_with_fds(&mut head)?;
        let mut stream = &self.0;
        while read < HEAD {
            match stream.read(&mut head[read..])? {
                0 => return Err(LinkError::Ended),
                more => read += more,
            }
        }
        let head = Head::decode(&head)?;
        if head.fds != fds.len() {
            return Err(BadFrame::Shape(
                "descriptors were lost on the way; is the limit of open files reached?",
            )
            .into());
        }
        let mut json = vec![0; head.json];
        stream.read_exact(&mut json)?;
        let mut bytes = vec![0; head.bytes];
        stream.read_exact(&mut bytes)?;
        Ok((head, json, bytes.into(), fds))
    }

    fn receive_with_fds(&self, into: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), LinkError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let into = &mut [IoSliceMut::new(into)];
            match recvmsg(&self.0, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(message) => break message,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        };
        if message.bytes == 0 {
            return Err(LinkError::Ended);
        }
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(BadFrame::Shape("more descriptors than fit").into());
        }
        Ok((message.bytes, fds))
    }
}
