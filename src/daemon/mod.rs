//! Puts the pieces together, keeps them going, takes them apart: start, reload, stop. Decides nothing.

mod banner;
mod confinement;
mod firewall;
pub mod guard;
mod limits;
mod reload;
mod state;
#[cfg(test)]
mod tests;
mod watch;
mod watchdog;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::{self, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use confinement::Confinement;
pub use state::{State, StateError, admin_address, latest_time};

use crate::{
    admin::{self, Files},
    audit::Recorder,
    cache::{self, Cache},
    config::{Config, Loaded},
    control::{self, Asked, Command},
    firewall::{Mode, OwnSockets},
    gate::Gate,
    gateway::{Access, Clock, Gateway, InForce},
    ingress::{Ingress, KEPT, Progress, Terms},
    keeper::{Keeper, Keyed, Leases},
    lasting,
    listen::{Doors, Given, House, Serving},
    metrics::Metrics,
    sys::memory,
    upstream::{Lanes, Outlet, Surroundings, Upstream},
};
use firewall::Enforcement;
use guard::Guard;
use reload::{Cause, Reloader};
use watch::Watch;

/// Reload requests that may wait. They are taken together, so few ever do.
const COMMANDS: usize = 16;

/// How often the latest time is kept.
const ROUND: Duration = Duration::from_secs(30);

/// How long after a reload what was in force before is held by nobody: questions wait no longer for their upstream.
const SETTLED: Duration = Duration::from_secs(3);

/// How long a stop may take before what still waits is let go.
const DRAIN: Duration = Duration::from_secs(5);

/// What the daemon runs with, read and found good.
#[derive(Debug)]
pub struct Setup {
    /// What the command line named, to be read again on reload.
    pub config_path: Option<PathBuf>,
    /// When reading of it began.
    pub read_at: SystemTime,
    /// What was read.
    pub loaded: Loaded,
    /// The configuration in it.
    pub config: Config,
    /// What is kept over a restart.
    pub state: State,
    /// What enforces, where a firewall is configured.
    pub guard: Option<Guard>,
    /// What this process may still do.
    pub confinement: Confinement,
    /// Where questions are taken.
    pub doors: Doors,
    /// Where health and metrics are shown.
    pub admin: Option<TcpListener>,
    /// Sockets that systemd opened.
    pub given: Given,
}

/// Everything that runs.
struct Running {
    gateway: Arc<Gateway>,
    ingress: Arc<Ingress>,
    recorder: Recorder,
    clock: Arc<Clock>,
    state: State,
    confinement: Confinement,
    doors: Serving,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// What holds the firewall.
    enforcement: Option<Enforcement>,
    /// Ends the admin door, which tells of the stop until then.
    close: CancellationToken,
    commands: mpsc::Receiver<Command>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: state folder, record, an address to listen on, an upstream that is ourselves.
pub async fn run(setup: Setup) -> anyhow::Result<()> {
    let Setup { config_path, read_at, loaded, config, state, guard, confinement, doors, admin, given } = setup;
    // Before anything else is opened, so that a stop during the start is not lost.
    let mut signals = Signals::new()?;
    let metrics = Arc::new(Metrics::default());
    let (mut running, mut reloader) =
        start(config_path, &loaded, config, (state, guard, confinement), (doors, admin, given), &metrics)?;
    let mut watch = Watch::new(&loaded.files, read_at);
    drop(loaded);
    running.tasks.spawn(tell_ready(running.enforcement.is_some().then(|| running.ingress.progress())));

    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut settles_at, mut failed) = (None, false);
    loop {
        let cause = tokio::select! {
            signal = signals.next() => match signal {
                Heard::Stop => break,
                Heard::HangUp => {
                    running.recorder.reopen().await;
                    Cause::Signal
                }
                Heard::Reopen => {
                    running.recorder.reopen().await;
                    continue;
                }
            },
            () = watch.changed() => Cause::Files,
            () = keeper_gone(&mut running.enforcement) => {
                tracing::error!("the keeper of the firewall has ended; what it denied stays denied, and nothing new opens");
                failed = true;
                break;
            }
            Some(command) = running.commands.recv() => Cause::Commands(together(command, &mut running.commands)),
            _ = round.tick() => {
                running.keep_time();
                continue;
            }
            () = sleep_until(settles_at.unwrap_or_else(Instant::now)), if settles_at.is_some() => {
                settles_at = None;
                memory::give_back();
                continue;
            }
        };
        let read = reloader.reload(&running, cause, &mut watch);
        if lasting::once(&metrics, "a reload", read).await.is_none() {
            reloader.tell_of_a_defect();
        }
        // Of several reloads the first: however often there is one, the turn comes.
        settles_at.get_or_insert(Instant::now() + SETTLED);
    }
    running.stop().await;
    anyhow::ensure!(!failed, "the firewall is not held any more");
    Ok(())
}

/// Returns when what holds the firewall has ended; never where there is none.
async fn keeper_gone(enforcement: &mut Option<Enforcement>) {
    match enforcement {
        Some(enforcement) => enforcement.gone().await,
        None => std::future::pending().await,
    }
}

/// Tells systemd that we are ready. With a firewall, ingresses are looked up first, for a while: until then nobody knows
/// where they are, and who waits for us is not let loose before.
async fn tell_ready(learning: Option<sync::watch::Receiver<Progress>>) {
    if let Some(mut progress) = learning {
        let _ = tokio::time::timeout(admin::LEARNING, progress.wait_for(Progress::is_complete)).await;
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// Requests that came in while another was served are served by one reload.
fn together(first: Command, commands: &mut mpsc::Receiver<Command>) -> Vec<Command> {
    let rest = std::iter::from_fn(|| commands.try_recv().ok());
    std::iter::once(first).chain(rest).collect()
}

/// Opens everything. What it returns drops cleanly, so a failure half-way leaves nothing behind.
fn start(
    config_path: Option<PathBuf>,
    loaded: &Loaded,
    config: Config,
    (state, guard, confinement): (State, Option<Guard>, Confinement),
    (doors, admin, mut given): (Doors, Option<TcpListener>, Given),
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Running, Reloader)> {
    let started = Timestamp::now();
    let recorder = Recorder::start(&config.audit, state.folder(), Arc::clone(metrics))?;
    let gate = guard.is_some().then(|| Gate::open(&config.firewall.gate())).transpose()?;
    let lanes =
        Lanes::start(doors.workers(), metrics).context("cannot start the thread that hears upstream servers")?;
    let outlet = guard.as_ref().map(|guard| outlet_by(config.firewall.own_sockets, &guard.keeper)).unwrap_or_default();
    let surroundings = Surroundings { outlet, ..Surroundings::new(doors.addresses().collect(), lanes) };
    let upstream = Arc::new(Upstream::start(&config.upstream, surroundings.clone(), Arc::clone(metrics))?);
    let access = Arc::new(Access::new(&config.limits, config.client_networks.iter().copied(), Arc::clone(metrics)));
    access.listen_on(doors.addresses().map(|address| address.ip()).collect());
    let clock = Arc::new(Clock::new(state.latest_time()));
    if !clock.moment(Timestamp::now()).trusted {
        let latest = clock.latest();
        tracing::warn!(%latest, "the clock is behind the latest time seen: no exception is in force until it has caught up");
    }
    let (stop, close) = (CancellationToken::new(), CancellationToken::new());
    let tasks = TaskTracker::new();

    let terms = terms_by(&config, Arc::clone(&upstream));
    let learned = state.folder().join(KEPT);
    let (ingress, learning) = Ingress::start(terms, learned, Arc::clone(metrics), stop.clone());
    let ingress = Arc::new(ingress);
    tasks.spawn(learning);

    let (sender, commands) = mpsc::channel(COMMANDS);
    let socket = config.listen.socket.clone().unwrap_or_else(|| state.folder().join("control"));
    let keeper = guard.as_ref().map(|guard| Arc::clone(&guard.keeper));
    let asked =
        Asked { recorder: recorder.clone(), ingress: Arc::clone(&ingress), keeper: keeper.clone(), commands: sender };
    tasks.spawn(control::serve(&socket, given.unix(&socket), asked, Arc::clone(metrics), stop.clone())?);
    given.all_taken()?;

    let leases = keeper.map(|keeper| Arc::new(Leases::new(keeper, keyed_by(config.firewall.mode))));
    let gateway = Arc::new(Gateway::new(
        in_force_by(&config, &ingress, leases.clone()),
        upstream,
        Arc::clone(&access),
        Cache::new(&within_memory(&config.cache, memory::there_is()), Arc::clone(metrics)),
        recorder.clone(),
        Arc::clone(&clock),
        Arc::clone(metrics),
    ));
    let house = House { gateway: Arc::clone(&gateway), access, metrics: Arc::clone(metrics) };
    let addresses: Vec<_> = doors.addresses().collect();
    let skipped = doors.skipped().to_vec();
    let doors =
        doors.serve(house, &surroundings.lanes, &Handle::current(), stop.clone()).context("cannot begin to answer")?;
    tasks.spawn(watchdog::keep(doors.pulse(), Arc::clone(metrics), stop.clone()));
    tasks.spawn(limits::watch(Arc::clone(metrics), stop.clone()));
    let enforcement = match (guard, gate, leases.clone()) {
        (Some(guard), Some(gate), Some(leases)) => {
            let watched = firewall::Watched {
                gateway: Arc::clone(&gateway),
                ingress: Arc::clone(&ingress),
                recorder: recorder.clone(),
                metrics: Arc::clone(metrics),
            };
            Some(Enforcement::begin(guard, gate, leases, watched, &tasks, &stop)?)
        }
        _ => None,
    };
    if let Err(error) = state.keep_last_good(&loaded.sources) {
        tracing::warn!(%error, "cannot keep a copy of the files in force");
    }
    let (files, seen) = sync::watch::channel(Files::at_start(started));
    let view = admin::View {
        gateway: Arc::clone(&gateway),
        recorder: recorder.clone(),
        metrics: Arc::clone(metrics),
        listening: addresses.clone(),
        files: seen,
        firewall: leases.as_ref().map(|leases| (Arc::clone(leases.keeper()), ingress.progress())),
        sandbox: confinement.sandbox.clone(),
        started,
        stop: stop.clone(),
    };
    let admin = serve_admin(admin, view, &state, &close, &tasks).context("cannot open the admin door")?;
    let standing = leases.as_ref().map(|leases| leases.keeper().standing());
    banner::print(&config, (&addresses, &skipped, admin), (standing, &confinement.sandbox), state.folder());
    banner::follow(&recorder);
    let reloader = Reloader::new(config_path, config, surroundings, Arc::clone(metrics), files);
    Ok((
        Running {
            gateway,
            ingress,
            recorder,
            clock,
            state,
            confinement,
            doors,
            tasks,
            stop,
            enforcement,
            close,
            commands,
        },
        reloader,
    ))
}

/// The cache takes no more than half of the memory there is, whatever is configured: the rest is for the answering, and a
/// process that has none is killed when many names are asked for, not when it starts.
fn within_memory(options: &cache::Options, there_is: Option<u64>) -> cache::Options {
    let most = there_is.map_or(u64::MAX, |there_is| there_is / 2);
    if options.size > most {
        let [asked, given, all] = [options.size, most, there_is.unwrap_or(u64::MAX)].map(|size| size >> 20);
        tracing::warn!(
            "the cache takes {given} MiB, half of the {all} MiB that this process may have; [cache] size is {asked} MiB"
        );
    }
    cache::Options { size: options.size.min(most), ..options.clone() }
}

/// Opens the admin door where there is one, and leaves word of where it is.
fn serve_admin(
    listener: Option<TcpListener>,
    view: admin::View,
    state: &State,
    close: &CancellationToken,
    tasks: &TaskTracker,
) -> io::Result<Option<SocketAddr>> {
    let address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    if let Some(listener) = listener {
        tasks.spawn(admin::serve(listener, view, close.clone())?);
    }
    if let Err(error) = state.keep_admin_address(address) {
        tracing::warn!(%error, "cannot keep the admin door's address in the state folder");
    }
    Ok(address)
}

/// What of a configuration the gateway swaps whole.
fn in_force_by(config: &Config, ingress: &Ingress, leases: Option<Arc<Leases>>) -> InForce {
    let (policy, learned) = (Arc::clone(&config.policy), Arc::clone(ingress.published()));
    InForce { policy, learned, leases, udp_size: config.limits.udp_size, others: config.limits.others }
}

/// What makes sockets that the rules know.
fn outlet_by(own: OwnSockets, keeper: &Arc<Keeper>) -> Outlet {
    let keeper = Arc::clone(keeper);
    match own {
        OwnSockets::User => Outlet::default(),
        OwnSockets::Mark => Outlet::marking(move |socket| {
            keeper.mark(socket).map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))
        }),
    }
}

/// Whose a lease is.
fn keyed_by(mode: Mode) -> Keyed {
    match mode {
        Mode::Off | Mode::Host => Keyed::ByAddress,
        Mode::Gateway => Keyed::ByClient,
    }
}

/// What of it learning goes by.
fn terms_by(config: &Config, upstream: Arc<Upstream>) -> Terms {
    Terms { policy: Arc::clone(&config.policy), upstream, options: config.ingress.clone() }
}

impl Running {
    /// Keeps the latest time seen, so that a clock set back over a restart revives no exception.
    fn keep_time(&self) {
        // The moment advances the clock even when nobody asks.
        let _ = self.clock.moment(Timestamp::now());
        if let Err(error) = self.state.keep_latest_time(self.clock.latest()) {
            tracing::warn!(%error, "cannot keep the latest time seen in the state folder");
        }
    }

    /// Stops accepting, lets what waits end, writes the record.
    async fn stop(self) {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping");
        self.stop.cancel();
        if !self.doors.stopped().await {
            tracing::warn!("some questions were still waiting");
        }
        if let Some(enforcement) = self.enforcement {
            enforcement.stop().await;
        }
        self.gateway.upstream().stop().await;
        self.recorder.stop().await;
        self.close.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if let Err(error) = self.state.keep_latest_time(self.clock.latest()) {
            tracing::warn!(%error, "cannot keep the latest time seen in the state folder");
        }
        tracing::info!("stopped");
    }
}

/// The signals that mean something to us.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
}

/// What a signal asks for.
enum Heard {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    HangUp,
    /// SIGUSR1.
    Reopen,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
            user_1: listen(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop,
            _ = self.interrupt.recv() => Heard::Stop,
            _ = self.hang_up.recv() => Heard::HangUp,
            _ = self.user_1.recv() => Heard::Reopen,
        }
    }
}
