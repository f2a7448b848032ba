//! Which servers serve which names. A server in two roles is one server with one health; it keeps what is known of
//! it when resolv.conf changes and still names it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use super::{
    Options, Server as Kind, ServerHealth, StartError, Surroundings,
    canary::{Canaries, watch},
    context::Context,
    locked,
    own::OwnAddresses,
    server::Server,
    system::NoServers,
};
use crate::{
    lasting,
    name::{DomainName, NameRef},
};

/// Everybody we may ask.
#[derive(Debug)]
pub(super) struct Roster {
    default: Arc<Role>,
    /// By zone, in wire form.
    zones: HashMap<Box<[u8]>, Arc<Role>>,
    roles: Vec<Arc<Role>>,
    known: Mutex<HashMap<Kind, Weak<Server>>>,
    surroundings: Surroundings,
    context: Arc<Context>,
    canaries: Arc<Canaries>,
}

/// The servers of one set of names.
#[derive(Debug)]
struct Role {
    /// Empty for every name that no zone has.
    zones: Vec<DomainName>,
    configured: Vec<Kind>,
    servers: ArcSwap<Vec<Arc<Server>>>,
}

/// How often resolv.conf is looked at. Reading the text itself is proof against every way of replacing a file, which
/// watching it is not.
const LOOK: Duration = Duration::from_secs(1);

impl Roster {
    /// Reads resolv.conf where it is wanted, and follows it from then on.
    pub(super) fn start(
        options: &Options,
        surroundings: Surroundings,
        context: Arc<Context>,
        canaries: Arc<Canaries>,
    ) -> Result<Arc<Self>, StartError> {
        let role = |zones: &[DomainName], servers: &[Kind]| {
            Arc::new(Role { zones: zones.into(), configured: servers.into(), servers: ArcSwap::default() })
        };
        let default = role(&[], &options.servers);
        let mut roles = vec![Arc::clone(&default)];
        let mut zones = HashMap::new();
        for zone in &options.zones {
            let role = role(&zone.zones, &zone.servers);
            zones.extend(zone.zones.iter().map(|zone| (zone.as_wire().into(), Arc::clone(&role))));
            roles.push(role);
        }
        let roster = Self { default, zones, roles, known: Mutex::default(), surroundings, context, canaries };
        roster.refuse_ourselves()?;
        let roster = Arc::new(roster);
        if roster.follows_system() {
            let system = told(&roster.surroundings.system_servers());
            roster.install(&system);
            let (followed, mut installed) = (Arc::clone(&roster), Some(system));
            // Begun anew it knows of none, and puts in place what it finds.
            let begin = move || follow(Arc::clone(&followed), installed.take().unwrap_or_default());
            roster.context.keep("the look at resolv.conf", begin);
        } else {
            roster.install(&[]);
        }
        Ok(roster)
    }

    /// The servers for a name: those of its most specific zone, else the default ones; never both.
    pub(super) fn servers_for(&self, name: NameRef<'_>) -> Arc<Vec<Arc<Server>>> {
        if self.zones.is_empty() {
            return self.default.servers.load_full();
        }
        let zone = name.suffixes().find_map(|suffix| self.zones.get(suffix.as_wire()));
        let role = zone.or_else(|| self.zones.get(DomainName::root().as_wire())).unwrap_or(&self.default);
        role.servers.load_full()
    }

    /// The servers of names that no zone has.
    pub(super) fn default_servers(&self) -> Arc<Vec<Arc<Server>>> {
        self.default.servers.load_full()
    }

    fn follows_system(&self) -> bool {
        self.roles.iter().any(|role| role.configured.contains(&Kind::System))
    }

    pub(super) fn health(&self) -> Vec<ServerHealth> {
        let of_role = |role: &Arc<Role>| {
            let zones = role.zones.clone();
            let servers = role.servers.load_full();
            let health = move |server: &Arc<Server>| ServerHealth {
                server: server.kind.clone(),
                zones: zones.clone(),
                state: server.vitals.state(),
                round_trip: server.vitals.with(|health| health.round_trip()),
            };
            servers.iter().map(health).collect::<Vec<_>>()
        };
        self.roles.iter().flat_map(of_role).collect()
    }

    fn refuse_ourselves(&self) -> Result<(), StartError> {
        let own = OwnAddresses::new(self.surroundings.own.clone());
        for server in self.roles.iter().flat_map(|role| &role.configured) {
            if let Some(listen) = server.address().and_then(|address| own.which(address)) {
                return Err(StartError::OwnAddress { server: server.clone(), listen });
            }
        }
        Ok(())
    }

    /// Puts these servers where `system` is configured.
    fn install(&self, system: &[SocketAddr]) {
        let own = OwnAddresses::new(self.surroundings.own.clone());
        let (ourselves, system): (Vec<SocketAddr>, Vec<_>) =
            system.iter().partition(|server| own.which(**server).is_some());
        for server in ourselves {
            info!("{server} in {} is this daemon itself; left out", self.surroundings.resolv_conf.display());
        }
        for role in &self.roles {
            let mut servers: Vec<Arc<Server>> = Vec::new();
            for configured in &role.configured {
                let kinds = match configured {
                    Kind::System => system.iter().copied().map(Kind::Udp).collect(),
                    Kind::Udp(_) | Kind::Tcp(_) | Kind::Tls { .. } | Kind::Https { .. } => vec![configured.clone()],
                };
                for kind in kinds {
                    if servers.iter().all(|server| server.kind != kind) {
                        servers.extend(self.server(kind, role));
                    }
                }
            }
            role.servers.store(Arc::new(servers));
        }
        locked(&self.known).retain(|_, server| server.strong_count() > 0);
    }

    /// The server as it is known, or a new one.
    fn server(&self, kind: Kind, role: &Role) -> Option<Arc<Server>> {
        let mut known = locked(&self.known);
        if let Some(server) = known.get(&kind).and_then(Weak::upgrade) {
            return Some(server);
        }
        let server = Server::new(kind.clone(), kind.address()?, Arc::clone(&self.context));
        known.insert(kind, Arc::downgrade(&server));
        let zone = role.zones.first().cloned();
        let (canaries, watched) = (Arc::clone(&self.canaries), Arc::downgrade(&server));
        let begin = move || watch(Arc::clone(&canaries), Weak::clone(&watched), zone.clone());
        self.context.keep("the watch for loops of a server", begin);
        Some(server)
    }
}

/// Looks at resolv.conf for as long as we run, and takes over what it names.
async fn follow(roster: Arc<Roster>, mut installed: Vec<SocketAddr>) {
    let mut missing = 0;
    loop {
        sleep(LOOK).await;
        let surroundings = roster.surroundings.clone();
        let read = spawn_blocking(move || surroundings.system_servers()).await;
        let Some(found) = lasting::joined(&roster.context.metrics, read) else { continue };
        // Who writes the file anew may empty it first: that nothing is named is believed the second time.
        missing = if found.is_err() { missing + 1 } else { 0 };
        let servers = found.as_deref().unwrap_or_default();
        if missing != 1 && installed != servers {
            installed = told(&found);
            roster.install(&installed);
        }
    }
}

/// The servers found, said once.
fn told(found: &Result<Vec<SocketAddr>, NoServers>) -> Vec<SocketAddr> {
    match found {
        Ok(servers) => {
            let names: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
            info!("system servers: {}", names.join(", "));
            servers.clone()
        }
        Err(error) => {
            warn!("{error}; there is no system server to ask until it does");
            Vec::new()
        }
    }
}
