//! Completions taken apart.

use zerocopy::FromBytes;

use super::{
    AssignedInterrupts, AssignedResources, BARS, MessageError, MessageType, Resource,
    ResourceRequirementsReply, ResourcesReply, Status,
};

/// The status at the start of a completion.
///
/// # Errors
/// [`MessageError::ReplyTooShort`] if there is none.
pub fn status_of(request: MessageType, reply: &[u8]) -> Result<Status, MessageError> {
    match reply.first_chunk() {
        Some(status) => Ok(Status(u32::from_le_bytes(*status))),
        None => Err(MessageError::ReplyTooShort { request, len: reply.len(), expected: 4 }),
    }
}

/// Takes the completion of QUERY_RESOURCE_REQUIREMENTS apart: the BAR masks, or the status of a refusal.
///
/// # Errors
/// [`MessageError::ReplyTooShort`] if it lacks its status, or its masks although it succeeded.
pub fn requirements_of(reply: &[u8]) -> Result<Result<[u32; BARS], Status>, MessageError> {
    let request = MessageType::QUERY_RESOURCE_REQUIREMENTS;
    let status = status_of(request, reply)?;
    if status.is_failure() {
        return Ok(Err(status));
    }
    let expected = size_of::<ResourceRequirementsReply>();
    let (wire, _) = ResourceRequirementsReply::ref_from_prefix(reply)
        .map_err(|_| MessageError::ReplyTooShort { request, len: reply.len(), expected })?;
    Ok(Ok(wire.bars.map(zerocopy::little_endian::U32::get)))
}

/// Takes the completion of GET_RESOURCES apart: a resource per BAR, or the status of a refusal. The completion has no
/// status otherwise; the version that stands in its place never looks like a failure.
///
/// # Errors
/// [`MessageError::ReplyTooShort`] if it is neither.
pub fn resources_of(reply: &[u8]) -> Result<Result<[Resource; BARS], Status>, MessageError> {
    let request = MessageType::GET_RESOURCES;
    let status = status_of(request, reply)?;
    if status.is_failure() {
        return Ok(Err(status));
    }
    let expected = size_of::<ResourcesReply>();
    let (wire, _) = ResourcesReply::ref_from_prefix(reply)
        .map_err(|_| MessageError::ReplyTooShort { request, len: reply.len(), expected })?;
    Ok(Ok(wire.resources))
}

/// The interrupts in a successful completion of a form of ASSIGNED_RESOURCES; each begins with a [`RemappedMsi`](super::structs::RemappedMsi).
///
/// OpenVMM answers form 3 in the shape of form 2, which the length tells. As hosts may leave room for one more, ten
/// interrupts in the one shape are as long as nine and a spare one in the other; then it is taken for form 3.
///
/// # Errors
/// [`MessageError::ReplyTooShort`] if not all of them are there, [`MessageError::TooManyInterrupts`].
pub fn assigned_of(
    request: MessageType,
    reply: &[u8],
) -> Result<AssignedInterrupts<'_>, MessageError> {
    let head = size_of::<AssignedResources>();
    let (wire, rest) = AssignedResources::ref_from_prefix(reply)
        .map_err(|_| MessageError::ReplyTooShort { request, len: reply.len(), expected: head })?;
    let count = wire.msi_count.get();
    let number = usize::try_from(count).unwrap_or(usize::MAX);
    let exactly = |kind| {
        let stride = AssignedInterrupts::stride(kind);
        let room = rest.len() / stride;
        rest.len().is_multiple_of(stride) && (room == number || room == number.saturating_add(1))
    };
    let two = request == MessageType::ASSIGNED_RESOURCES3
        && !exactly(request)
        && exactly(MessageType::ASSIGNED_RESOURCES2);
    let kind = if two { MessageType::ASSIGNED_RESOURCES2 } else { request };
    AssignedInterrupts::parse(kind, count, rest).map_err(|error| match error {
        MessageError::TooShort { len, expected, .. } => {
            MessageError::ReplyTooShort { request, len, expected }
        }
        other => other,
    })
}
