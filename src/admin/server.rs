//! Connections of the admin door: few, short, one request each.

use std::{convert::Infallible, future, io, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{View, host::OwnNames, page};
use crate::lasting;

/// What is said of it where it panics.
const DOOR: &str = "the admin door";
const REQUEST: &str = "a request to the admin door";

/// Connections at once.
const CONNECTIONS: usize = 32;

/// Longest request head, in bytes.
const HEAD: usize = 8192;

/// How long a request may take, from the connection to the last byte of its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long accepting rests after an error that would come back at once, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers at `listener` until `close`. Must be called within a tokio runtime.
///
/// # Errors
/// When the socket cannot be handed to the runtime.
pub fn serve(
    listener: std::net::TcpListener,
    view: View,
    close: CancellationToken,
) -> io::Result<impl Future<Output = ()>> {
    let listener = TcpListener::from_std(listener)?;
    let (view, tasks) = (Arc::new(view), TaskTracker::new());
    Ok(async move {
        lasting::task(&view.metrics, DOOR, || accept(&listener, &view, &close, &tasks)).await;
        tasks.close();
        tasks.wait().await;
    })
}

async fn accept(listener: &TcpListener, view: &Arc<View>, close: &CancellationToken, tasks: &TaskTracker) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(accepted) = close.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    view.metrics.admin_crowded.increment();
                    continue;
                };
                let (view, close) = (Arc::clone(view), close.clone());
                tasks.spawn(async move {
                    let answered = lasting::once(&view.metrics, REQUEST, answer(stream, &view));
                    let _ = close.run_until_cancelled(answered).await;
                    drop(place);
                });
            }
            Err(error) => {
                view.metrics.accept_errors.increment();
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    close.run_until_cancelled(sleep(PAUSE)).await;
                }
            }
        }
    }
}

/// One request. hyper itself refuses one that cannot be read (400) or is too long (431).
async fn answer(stream: TcpStream, view: &View) {
    let names = OwnNames::read();
    let service = service_fn(|request| future::ready(Ok::<_, Infallible>(page::answer(&request, view, &names))));
    let mut http = http1::Builder::new();
    // The timer is ours: it has to bound the answer too.
    http.keep_alive(false).max_header_size(HEAD).max_buf_size(2 * HEAD).header_read_timeout(None);
    match timeout(PATIENCE, http.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Err(error)) if error.is_parse() => view.metrics.admin_malformed.increment(),
        // Whoever goes away without asking, or without hearing, is a port scan or a health check over TCP.
        Ok(Ok(()) | Err(_)) => {}
        Err(_) => view.metrics.admin_slow.increment(),
    }
}
