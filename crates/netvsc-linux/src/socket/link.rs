//! The socket itself, with a queue for what does not fit now.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::{Decoder, MAX_DESCRIPTORS, MAX_MESSAGE, Message, WireError};

/// Messages that wait for a peer that does not read.
const MOST_WAITING: usize = 256;
/// Messages that are taken before something else gets its turn.
const BURST: usize = 16;

/// Why a socket is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed it, or died.
    #[error("the other side has hung up")]
    HungUp,
    /// The peer talks nonsense.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// More descriptors than fit came at once.
    #[error("more descriptors than {MAX_DESCRIPTORS} came with a message")]
    Truncated,
    /// The peer does not read.
    #[error("{MOST_WAITING} messages wait for a peer that does not read")]
    Deaf,
    /// The kernel says no.
    #[error("the socket: {0}")]
    Kernel(#[from] io::Error),
}

/// A connected socket.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    decoder: Decoder<OwnedFd>,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Link {
    /// A link over a connected socket, which does not block from here on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, decoder: Decoder::default(), waiting: VecDeque::new() })
    }

    /// Sends a message with its descriptors, now or when there is room.
    ///
    /// # Errors
    /// [`LinkError::HungUp`], [`LinkError::Deaf`], [`LinkError::Kernel`].
    pub fn send(&mut self, message: &Message, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        debug_assert_eq!(message.descriptors(), descriptors.len());
        if self.waiting.len() >= MOST_WAITING {
            return Err(LinkError::Deaf);
        }
        self.waiting.push_back((message.encode(), descriptors));
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some((bytes, descriptors)) = self.waiting.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            let sent =
                sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
            match sent {
                Ok(sent) if sent >= bytes.len() => {
                    self.waiting.pop_front();
                }
                Ok(sent) => {
                    // The descriptors went with the first byte.
                    descriptors.clear();
                    bytes.drain(..sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkError::HungUp),
                Err(error) => return Err(LinkError::Kernel(error.into())),
            }
        }
        Ok(())
    }

    /// Whether something waits for room.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes what has come, as messages with their descriptors. An empty list means that there is nothing more now.
    ///
    /// # Errors
    /// [`LinkError`]: the connection is at its end. What came before a hang-up is returned first.
    pub fn receive(&mut self) -> Result<Vec<(Message, Vec<OwnedFd>)>, LinkError> {
        let mut messages = Vec::new();
        for _ in 0..BURST {
            let came = match self.read() {
                Ok(came) => came,
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error),
            };
            if !came {
                break;
            }
            while let Some(message) = self.decoder.next_message()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    /// Reads once. False if there is nothing.
    fn read(&mut self) -> Result<bool, LinkError> {
        let mut bytes = [0; MAX_MESSAGE];
        // Room for more than may come, so that too many are seen and closed and not left over.
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = loop {
            let buffer = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.stream, buffer, &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::CONNRESET) => return Err(LinkError::HungUp),
                Err(error) => return Err(LinkError::Kernel(error.into())),
            }
        };
        let mut descriptors = Vec::new();
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = item {
                descriptors.extend(rights);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(LinkError::Truncated);
        }
        if message.bytes == 0 {
            return Err(LinkError::HungUp);
        }
        self.decoder.push(bytes.get(..message.bytes).unwrap_or_default(), descriptors);
        Ok(true)
    }
}

impl AsFd for Link {
    /// For polling; readable means a message, or the end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
