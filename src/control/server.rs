//! The daemon's side of the control socket.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::{getegid, geteuid};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Change, Firewall, ReloadReport, Reply, Request};
use crate::{
    audit::Recorder,
    ingress::Ingress,
    keeper::{Keeper, KeeperError},
    lasting,
    metrics::Metrics,
    sys,
};

/// What is said of it where it panics.
const DOOR: &str = "the control socket";
const SAID: &str = "a request to the control socket";

/// Connections at once, followers among them.
const CONNECTIONS: usize = 32;

/// Longest request, in bytes.
const REQUEST: u64 = 4096;

/// How long a client may take to say what it wants, or to take what it asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom requests are passed to.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Knows the attempts.
    pub recorder: Recorder,
    /// Knows what was learned.
    pub ingress: Arc<Ingress>,
    /// Holds the firewall, where there is one.
    pub keeper: Option<Arc<Keeper>>,
    /// Takes what changes the daemon.
    pub commands: mpsc::Sender<Command>,
}

/// What the daemon is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Read the files again, and say what came of it.
    Reload {
        /// Also take a change that takes much away.
        accept: bool,
        /// Where the report goes.
        report: oneshot::Sender<ReloadReport>,
    },
}

/// Why the control socket cannot be opened.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Something that is no socket stands there.
    #[error("{path} is not a socket; move it away or set another [listen] socket", path = .0.display())]
    Occupied(PathBuf),
    /// The socket cannot be made.
    #[error("cannot open the control socket {path}", path = path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Opens the socket at `path`, unless it is given, and answers there until `stop`. A socket left by an earlier process is
/// replaced; the caller holds the state folder's lock, so nobody else is using it. One that is given is its giver's to
/// make accessible and to take away.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    path: &Path,
    given: Option<std::os::unix::net::UnixListener>,
    asked: Asked,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + use<>, ServerError> {
    let own = given.is_none().then(|| path.to_owned());
    let listener = match given {
        Some(given) => {
            UnixListener::from_std(given).map_err(|source| ServerError::Open { path: path.into(), source })?
        }
        None => open(path)?,
    };
    Ok(async move {
        lasting::task(&metrics, DOOR, || accept(&listener, &asked, &metrics, &stop)).await;
        // Gone on stop, so that a client says "no daemon" instead of waiting for one.
        let _ = own.map(std::fs::remove_file);
    })
}

fn open(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Open { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).map_err(failed)?,
        Ok(_) => return Err(ServerError::Occupied(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

async fn accept(listener: &UnixListener, asked: &Asked, metrics: &Arc<Metrics>, stop: &CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: a pause instead of a spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.control_turned_away.increment();
            continue;
        };
        let (asked, metrics, stop) = (asked.clone(), Arc::clone(metrics), stop.clone());
        tokio::spawn(async move {
            let _place = place;
            // A client that goes away in the middle is its own affair.
            tokio::select! {
                () = stop.cancelled() => {}
                _ = lasting::once(&metrics, SAID, converse(stream, &asked, &metrics)) => {}
            }
        });
    }
}

async fn converse(mut stream: UnixStream, asked: &Asked, metrics: &Metrics) -> io::Result<()> {
    let Asked { recorder, ingress, commands, .. } = asked;
    if !permitted(&stream)? {
        return say(&mut stream, &refused("neither your user nor one of your groups owns this daemon")).await;
    }
    let mut line = String::new();
    let (reader, _) = stream.split();
    timeout(PATIENCE, BufReader::new(reader.take(REQUEST)).read_line(&mut line)).await??;
    match serde_json::from_str(&line) {
        Ok(Request::Reload { accept }) => {
            let (report, answer) = oneshot::channel();
            let sent = commands.send(Command::Reload { accept, report }).await.is_ok();
            match answer.await {
                Ok(report) if sent => say(&mut stream, &Reply::Reload(report)).await,
                _ => say(&mut stream, &refused("the daemon is stopping")).await,
            }
        }
        Ok(Request::Flush) => {
            recorder.flush().await;
            say(&mut stream, &Reply::Flushed).await
        }
        Ok(Request::Learned) => say(&mut stream, &Reply::Learned(ingress.report())).await,
        Ok(Request::Firewall { change: Some(_) }) if stream.peer_cred()?.uid() != 0 => {
            say(&mut stream, &refused("the firewall is root's to change")).await
        }
        Ok(Request::Firewall { change }) => {
            let firewall = ask_keeper(asked.keeper.clone(), change, metrics).await;
            say(&mut stream, &Reply::Firewall(firewall)).await
        }
        Ok(Request::Follow) => relay(&mut stream, recorder).await,
        Err(error) => say(&mut stream, &refused(&format!("not a request: {error}"))).await,
    }
}

/// Is the peer root, our own user, or a member of our group? What the kernel says of it, not what it says of itself.
fn permitted(stream: &UnixStream) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    let group = getegid().as_raw();
    Ok(peer.uid() == 0
        || peer.uid() == geteuid().as_raw()
        || peer.gid() == group
        || sys::peer::groups(stream)?.contains(&group))
}

async fn ask_keeper(keeper: Option<Arc<Keeper>>, change: Option<Change>, metrics: &Metrics) -> Firewall {
    let Some(keeper) = keeper else { return Firewall::None };
    let asked = spawn_blocking(move || {
        match change {
            Some(Change::Apply) => keeper.reload()?,
            Some(Change::Remove) => keeper.remove()?,
            None => {}
        }
        Ok((keeper.counts()?, keeper.standing()))
    });
    match lasting::joined(metrics, asked.await).unwrap_or(Err(KeeperError::Gone)) {
        Ok((counts, standing)) => Firewall::Held { standing, counts },
        Err(error) => Firewall::Refused { reason: in_full(&error) },
    }
}

/// An error and what it came from.
fn in_full(error: &KeeperError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

async fn relay(stream: &mut UnixStream, recorder: &Recorder) -> io::Result<()> {
    let mut attempts = recorder.subscribe();
    say(stream, &Reply::Following).await?;
    while let Some(record) = attempts.next().await {
        let mut line = serde_json::to_string(&*record)?;
        line.push('\n');
        timeout(PATIENCE, stream.write_all(line.as_bytes())).await??;
    }
    Ok(())
}

async fn say(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    timeout(PATIENCE, stream.write_all(line.as_bytes())).await?
}

fn refused(reason: &str) -> Reply {
    Reply::Refused { reason: reason.to_owned() }
}
