//! Control messages: requests of a guest, replies and indications of a host.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::structs::{self, Header};
use super::{BASE, DecodeError, MessageType, Oid, Status};

/// A control message from the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage<'a> {
    /// INITIALIZE. Answered by [`HostMessage::InitializeComplete`].
    Initialize {
        /// Repeated in the reply.
        request_id: u32,
        /// 1.
        major: u32,
        /// 0.
        minor: u32,
        /// Most bytes that the guest takes in one message.
        max_transfer: u32,
    },
    /// HALT; no reply.
    Halt {
        /// Means nothing.
        request_id: u32,
    },
    /// QUERY. Answered by [`HostMessage::QueryComplete`].
    Query {
        /// Repeated in the reply.
        request_id: u32,
        /// The object.
        oid: Oid,
        /// What the host needs to know for the answer; mostly empty.
        info: &'a [u8],
    },
    /// SET. Answered by [`HostMessage::SetComplete`].
    Set {
        /// Repeated in the reply.
        request_id: u32,
        /// The object.
        oid: Oid,
        /// Its value.
        info: &'a [u8],
    },
    /// RESET. Answered by [`HostMessage::ResetComplete`].
    Reset,
    /// KEEPALIVE. Answered by [`HostMessage::KeepAliveComplete`].
    KeepAlive {
        /// Repeated in the reply.
        request_id: u32,
    },
    /// KEEPALIVE_CMPLT: the answer to [`HostMessage::KeepAlive`].
    KeepAliveComplete {
        /// Id of the request.
        request_id: u32,
        /// Success.
        status: Status,
    },
}

/// What a host says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitializeComplete {
    /// Id of the request.
    pub request_id: u32,
    /// Success, or nothing of this is worth anything.
    pub status: Status,
    /// 1.
    pub major: u32,
    /// 0.
    pub minor: u32,
    /// 1: connectionless.
    pub device_flags: u32,
    /// 0: 802.3.
    pub medium: u32,
    /// Most PACKET messages in one buffer.
    pub max_packets: u32,
    /// Most bytes in one buffer.
    pub max_transfer: u32,
    /// Each PACKET of a buffer starts at a multiple of 2 to this power.
    pub alignment_factor: u32,
}

/// A control message from the host to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage<'a> {
    /// INITIALIZE_CMPLT.
    InitializeComplete(InitializeComplete),
    /// QUERY_CMPLT.
    QueryComplete {
        /// Id of the request.
        request_id: u32,
        /// Success, or there is no value.
        status: Status,
        /// The value.
        info: &'a [u8],
    },
    /// SET_CMPLT.
    SetComplete {
        /// Id of the request.
        request_id: u32,
        /// Success, or nothing was set.
        status: Status,
    },
    /// RESET_CMPLT.
    ResetComplete {
        /// Success, or nothing was reset.
        status: Status,
        /// Whether addresses and filters have to be set again.
        addressing_reset: bool,
    },
    /// INDICATE_STATUS.
    Indicate {
        /// What it is about.
        status: Status,
        /// More about it, mostly empty.
        buffer: &'a [u8],
    },
    /// KEEPALIVE_CMPLT.
    KeepAliveComplete {
        /// Id of the request.
        request_id: u32,
        /// Success.
        status: Status,
    },
    /// KEEPALIVE: the specification of RNDIS lets either side ask. No Hyper-V host is known to. Answered by
    /// [`GuestMessage::KeepAliveComplete`].
    KeepAlive {
        /// Repeated in the reply.
        request_id: u32,
    },
}

/// KEEPALIVE, from either side.
fn keep_alive(out: &mut Vec<u8>, request_id: u32) {
    let message = structs::Bare {
        kind: MessageType::KEEPALIVE.0.into(),
        length: 0.into(),
        request_id: request_id.into(),
    };
    append(out, &message, &[]);
}

/// SET_CMPLT or KEEPALIVE_CMPLT.
fn complete(out: &mut Vec<u8>, kind: MessageType, request_id: u32, status: Status) {
    let message = structs::Complete {
        kind: kind.0.into(),
        length: 0.into(),
        request_id: request_id.into(),
        status: status.0.into(),
    };
    append(out, &message, &[]);
}

/// Appends a message; `length` of it is set here.
fn append<T: IntoBytes + Immutable>(out: &mut Vec<u8>, message: &T, tail: &[u8]) {
    let start = out.len();
    out.extend_from_slice(message.as_bytes());
    out.extend_from_slice(tail);
    let length = (out.len() - start) as u32;
    if let Some(field) = out.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}

/// Offset, as on the wire, of what follows a `T`.
fn behind<T>() -> u32 {
    (size_of::<T>() - BASE) as u32
}

/// The fields at the start of a message, and the message cut to the length it gives itself.
fn fields<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), DecodeError> {
    let header = header(bytes)?;
    let (kind, length) = (MessageType(header.kind.get()), header.length.get());
    let error = DecodeError::Length { kind, length, least: size_of::<T>(), found: bytes.len() };
    let message = usize::try_from(length).ok().and_then(|len| bytes.get(..len)).ok_or(error)?;
    let (fields, _) = T::read_from_prefix(message).map_err(|_| error)?;
    Ok((fields, message))
}

/// Type and length at the start of a message.
fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    match Header::read_from_prefix(bytes) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(DecodeError::NoHeader(bytes.len())),
    }
}

/// The part of `message` that lies `offset` behind byte 8. Nothing lies anywhere.
fn part<'a>(
    message: &'a [u8],
    kind: MessageType,
    part: &'static str,
    offset: u32,
    len: u32,
) -> Result<&'a [u8], DecodeError> {
    if len == 0 {
        return Ok(&[]);
    }
    let error = DecodeError::Outside { kind, part, offset, len, found: message.len() };
    let wide = |value: u32| usize::try_from(value).map_err(|_| error);
    message
        .get(BASE..)
        .and_then(|rest| rest.get(wide(offset).ok()?..))
        .and_then(|rest| rest.get(..wide(len).ok()?))
        .ok_or(error)
}

impl<'a> GuestMessage<'a> {
    /// Appends the bytes of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let bare = |kind: MessageType, request_id: u32| structs::Bare {
            kind: kind.0.into(),
            length: 0.into(),
            request_id: request_id.into(),
        };
        let request =
            |kind: MessageType, request_id: u32, oid: Oid, info: &[u8]| structs::Request {
                kind: kind.0.into(),
                length: 0.into(),
                request_id: request_id.into(),
                oid: oid.0.into(),
                info_len: (info.len() as u32).into(),
                info_offset: behind::<structs::Request>().into(),
                vc_handle: 0.into(),
            };
        match *self {
            Self::Initialize { request_id, major, minor, max_transfer } => append(
                out,
                &structs::Initialize {
                    kind: MessageType::INITIALIZE.0.into(),
                    length: 0.into(),
                    request_id: request_id.into(),
                    major: major.into(),
                    minor: minor.into(),
                    max_transfer: max_transfer.into(),
                },
                &[],
            ),
            Self::Halt { request_id } => append(out, &bare(MessageType::HALT, request_id), &[]),
            Self::Query { request_id, oid, info } => {
                append(out, &request(MessageType::QUERY, request_id, oid, info), info);
            }
            Self::Set { request_id, oid, info } => {
                append(out, &request(MessageType::SET, request_id, oid, info), info);
            }
            Self::Reset => append(out, &bare(MessageType::RESET, 0), &[]),
            Self::KeepAlive { request_id } => keep_alive(out, request_id),
            Self::KeepAliveComplete { request_id, status } => {
                complete(out, MessageType::KEEPALIVE_CMPLT, request_id, status);
            }
        }
    }

    /// Takes a message from a guest apart. Bytes behind the length it gives itself are ignored.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is a [`DecodeError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let kind = MessageType(header(bytes)?.kind.get());
        Ok(match kind {
            MessageType::INITIALIZE => {
                let (message, _) = fields::<structs::Initialize>(bytes)?;
                Self::Initialize {
                    request_id: message.request_id.get(),
                    major: message.major.get(),
                    minor: message.minor.get(),
                    max_transfer: message.max_transfer.get(),
                }
            }
            MessageType::HALT => {
                let (message, _) = fields::<structs::Bare>(bytes)?;
                Self::Halt { request_id: message.request_id.get() }
            }
            MessageType::QUERY | MessageType::SET => {
                let (request, message) = fields::<structs::Request>(bytes)?;
                let (offset, len) = (request.info_offset.get(), request.info_len.get());
                let info = part(message, kind, "value", offset, len)?;
                let (request_id, oid) = (request.request_id.get(), Oid(request.oid.get()));
                if kind == MessageType::QUERY {
                    Self::Query { request_id, oid, info }
                } else {
                    Self::Set { request_id, oid, info }
                }
            }
            MessageType::RESET => {
                fields::<structs::Bare>(bytes)?;
                Self::Reset
            }
            MessageType::KEEPALIVE => {
                let (message, _) = fields::<structs::Bare>(bytes)?;
                Self::KeepAlive { request_id: message.request_id.get() }
            }
            MessageType::KEEPALIVE_CMPLT => {
                let (reply, _) = fields::<structs::Complete>(bytes)?;
                let (request_id, status) = (reply.request_id.get(), Status(reply.status.get()));
                Self::KeepAliveComplete { request_id, status }
            }
            other => return Err(DecodeError::Unexpected(other)),
        })
    }
}

impl<'a> HostMessage<'a> {
    /// Appends the bytes of the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::InitializeComplete(said) => append(out, &initialize_complete(&said), &[]),
            Self::QueryComplete { request_id, status, info } => append(
                out,
                &structs::QueryComplete {
                    kind: MessageType::QUERY_CMPLT.0.into(),
                    length: 0.into(),
                    request_id: request_id.into(),
                    status: status.0.into(),
                    info_len: (info.len() as u32).into(),
                    info_offset: behind::<structs::QueryComplete>().into(),
                },
                info,
            ),
            Self::SetComplete { request_id, status } => {
                complete(out, MessageType::SET_CMPLT, request_id, status);
            }
            Self::ResetComplete { status, addressing_reset } => append(
                out,
                &structs::ResetComplete {
                    kind: MessageType::RESET_CMPLT.0.into(),
                    length: 0.into(),
                    status: status.0.into(),
                    addressing_reset: u32::from(addressing_reset).into(),
                },
                &[],
            ),
            Self::Indicate { status, buffer } => {
                let offset = if buffer.is_empty() { 0 } else { behind::<structs::Indicate>() };
                append(
                    out,
                    &structs::Indicate {
                        kind: MessageType::INDICATE_STATUS.0.into(),
                        length: 0.into(),
                        status: status.0.into(),
                        buffer_len: (buffer.len() as u32).into(),
                        buffer_offset: offset.into(),
                    },
                    buffer,
                );
            }
            Self::KeepAliveComplete { request_id, status } => {
                complete(out, MessageType::KEEPALIVE_CMPLT, request_id, status);
            }
            Self::KeepAlive { request_id } => keep_alive(out, request_id),
        }
    }

    /// Takes a control message from a host apart. Bytes behind the length it gives itself are ignored, except those of an
    /// indication's buffer: some hosts do not count them.
    ///
    /// # Errors
    /// Each way in which the bytes make no sense is a [`DecodeError`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let kind = MessageType(header(bytes)?.kind.get());
        Ok(match kind {
            MessageType::INITIALIZE_CMPLT => {
                let (message, _) = fields::<structs::InitializeComplete>(bytes)?;
                Self::InitializeComplete(InitializeComplete {
                    request_id: message.request_id.get(),
                    status: Status(message.status.get()),
                    major: message.major.get(),
                    minor: message.minor.get(),
                    device_flags: message.device_flags.get(),
                    medium: message.medium.get(),
                    max_packets: message.max_packets.get(),
                    max_transfer: message.max_transfer.get(),
                    alignment_factor: message.alignment_factor.get(),
                })
            }
            MessageType::QUERY_CMPLT => {
                let (reply, message) = fields::<structs::QueryComplete>(bytes)?;
                let (offset, len) = (reply.info_offset.get(), reply.info_len.get());
                Self::QueryComplete {
                    request_id: reply.request_id.get(),
                    status: Status(reply.status.get()),
                    info: part(message, kind, "value", offset, len)?,
                }
            }
            MessageType::SET_CMPLT => {
                let (reply, _) = fields::<structs::Complete>(bytes)?;
                let (request_id, status) = (reply.request_id.get(), Status(reply.status.get()));
                Self::SetComplete { request_id, status }
            }
            MessageType::KEEPALIVE_CMPLT => {
                let (reply, _) = fields::<structs::Complete>(bytes)?;
                let (request_id, status) = (reply.request_id.get(), Status(reply.status.get()));
                Self::KeepAliveComplete { request_id, status }
            }
            MessageType::KEEPALIVE => {
                let (message, _) = fields::<structs::Bare>(bytes)?;
                Self::KeepAlive { request_id: message.request_id.get() }
            }
            MessageType::RESET_CMPLT => {
                let (reply, _) = fields::<structs::ResetComplete>(bytes)?;
                Self::ResetComplete {
                    status: Status(reply.status.get()),
                    addressing_reset: reply.addressing_reset.get() != 0,
                }
            }
            MessageType::INDICATE_STATUS => {
                let (message, _) = fields::<structs::Indicate>(bytes)?;
                let (offset, len) = (message.buffer_offset.get(), message.buffer_len.get());
                Self::Indicate {
                    status: Status(message.status.get()),
                    buffer: part(bytes, kind, "buffer", offset, len)?,
                }
            }
            other => return Err(DecodeError::Unexpected(other)),
        })
    }
}

fn initialize_complete(said: &InitializeComplete) -> structs::InitializeComplete {
    structs::InitializeComplete {
        kind: MessageType::INITIALIZE_CMPLT.0.into(),
        length: 0.into(),
        request_id: said.request_id.into(),
        status: said.status.0.into(),
        major: said.major.into(),
        minor: said.minor.into(),
        device_flags: said.device_flags.into(),
        medium: said.medium.into(),
        max_packets: said.max_packets.into(),
        max_transfer: said.max_transfer.into(),
        alignment_factor: said.alignment_factor.into(),
        af_list_offset: 0.into(),
        af_list_size: 0.into(),
    }
}
