//! The command line's side of the control socket. Blocking: a command has nothing else to do.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;

use super::{Reply, Request};

/// How long the daemon may take to read a policy of a million names, and then some.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why the daemon could not be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon answers at {path}; is `tunnelwarden serve` running with this configuration and state folder?", path = path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file's permissions keep us out, or the daemon does.
    #[error("not permitted to use {path}", path = path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// What the system or the daemon says.
        source: io::Error,
    },
    /// The connection broke, or what came is no reply.
    #[error("the daemon at {path} gave no answer", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Asks one thing and waits for the answer.
///
/// # Errors
/// When no daemon listens at `path`, when it may not be asked, or when it does not answer in a minute.
pub fn send(path: &Path, request: &Request) -> Result<Reply, ClientError> {
    converse(path, request).map(|(reply, _)| reply)
}

/// Asks for the attempts as they come: JSON objects, a line each, for ever. None that is recorded after the return is
/// missed, unless the reader falls far behind.
///
/// # Errors
/// As [`send`].
pub fn follow(path: &Path) -> Result<impl Iterator<Item = io::Result<String>> + use<>, ClientError> {
    let (_, stream) = converse(path, &Request::Follow)?;
    // Hours may pass between two attempts.
    let patient = stream.get_ref().set_read_timeout(None);
    patient.map_err(|source| ClientError::Broken { path: path.into(), source })?;
    Ok(stream.lines())
}

/// The answer, and the connection for what may follow.
fn converse(path: &Path, request: &Request) -> Result<(Reply, BufReader<UnixStream>), ClientError> {
    let broken = |source| ClientError::Broken { path: path.into(), source };
    let stream = connect(path)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    let asked = ask(&stream, request);
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    // Who may not ask is told so before the question was read; then it is the asking that fails.
    let read = stream.read_line(&mut line);
    if line.is_empty() {
        asked.and(read).map_err(broken)?;
    }
    match serde_json::from_str(&line).map_err(|error| broken(error.into()))? {
        Reply::Refused { reason } => {
            Err(ClientError::NotPermitted { path: path.into(), source: io::Error::other(reason) })
        }
        reply @ (Reply::Reload(_) | Reply::Flushed | Reply::Learned(_) | Reply::Firewall(_) | Reply::Following) => {
            Ok((reply, stream))
        }
    }
}

fn connect(path: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(path).map_err(|source| {
        let path = path.into();
        if source.kind() == io::ErrorKind::PermissionDenied {
            ClientError::NotPermitted { path, source }
        } else {
            ClientError::Absent { path, source }
        }
    })
}

fn ask(mut stream: &UnixStream, request: &Request) -> io::Result<()> {
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())
}
