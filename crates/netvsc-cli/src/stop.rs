//! How the verbs that run on are asked to stop.

use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::error::Error;

/// A socket that becomes readable when the program is asked to stop.
pub(crate) fn stop_signal() -> Result<UnixStream, Error> {
    let system = |source| Error::System { doing: "watch for signals", source };
    let (read, write) = UnixStream::pair().map_err(system)?;
    read.set_nonblocking(true).map_err(system)?;
    for signal in [SIGINT, SIGTERM] {
        let end = write.try_clone().map_err(system)?;
        signal_hook::low_level::pipe::register(signal, end).map_err(system)?;
    }
    Ok(read)
}
