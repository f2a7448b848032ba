//! Three networks joined by cables: a client's, the appliance's, and an internet with stand-ins for everybody on it.
//!
//! ```text
//! client 10.77.1.2, .3 -- lan0 appliance wan0 -- internet: every `Host`, on global addresses
//! ```
//!
//! The appliance only routes, until a test has it do more. On a host of its own the firewall guards what runs beside
//! it: then the appliance is the host, and a [`Vantage`] with a user of its own is what runs there.

mod hello;
mod host;
mod internet;
mod namespace;
mod probe;

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt as _, process::Output, sync::Arc};

use rustls::ClientConfig;

use self::internet::Internet;
pub use self::{
    host::{CROWD_PORT, Family, Host},
    internet::Arrival,
    namespace::{Namespace, installed, possible, several_users, several_users_possible},
    probe::{Outcome, Prober, ask_over, look_up},
};

/// The networks and who is in them. All of it goes when this is dropped.
pub struct Bed {
    client: Namespace,
    appliance: Namespace,
    stand_ins: Internet,
    trust: Arc<ClientConfig>,
}

/// From where, and as whom, something is tried.
#[derive(Clone, Copy)]
pub struct Vantage<'b> {
    namespace: &'b Namespace,
    user: Option<u32>,
    /// IPv4 and IPv6.
    sources: [IpAddr; 2],
    trust: &'b Arc<ClientConfig>,
}

/// `daemon`: a user that every Debian has, and not the forwarder's.
pub const JOB: u32 = 1;

impl Bed {
    /// Lays the cables and starts every stand-in.
    pub fn new() -> Self {
        let [client, appliance, internet] = [(); 3].map(|()| Namespace::new());
        appliance.join("lan0", &client, "c0");
        appliance.join("wan0", &internet, "i0");
        client.ip(CLIENT);
        appliance.ip(APPLIANCE);
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            appliance.set(switch, "1");
        }
        internet.ip(&format!("{INTERNET}{}", host::addresses_on("lo")));
        // Who is in it keeps it.
        let (stand_ins, trust) = internet.inside(Internet::start);
        Self { client, appliance, stand_ins, trust }
    }

    /// The client behind the appliance.
    pub fn client(&self) -> Vantage<'_> {
        self.vantage(&self.client, None, ["10.77.1.2", "fd77:1::2"])
    }

    /// Another one beside it.
    pub fn neighbour(&self) -> Vantage<'_> {
        self.vantage(&self.client, None, ["10.77.1.3", "fd77:1::3"])
    }

    /// The appliance itself.
    pub fn appliance(&self) -> Vantage<'_> {
        self.vantage(&self.appliance, None, ["198.18.0.1", "fd77:2::1"])
    }

    /// A job on the appliance, taken as a host: of a user that is neither root nor the forwarder, where there are others.
    pub fn job(&self) -> Vantage<'_> {
        Vantage { user: several_users().then_some(JOB), ..self.appliance() }
    }

    fn vantage<'b>(&'b self, namespace: &'b Namespace, user: Option<u32>, sources: [&str; 2]) -> Vantage<'b> {
        Vantage { namespace, user, sources: sources.map(|source| source.parse().unwrap()), trust: &self.trust }
    }

    /// Who came to `host` since the last [`forget`](Self::forget), and what was said first.
    pub fn arrivals(&self, host: Host) -> Vec<Arrival> {
        self.stand_ins.arrivals().into_iter().filter(|arrival| arrival.host == host).collect()
    }

    /// Forgets who came.
    pub fn forget(&self) {
        self.stand_ins.forget();
    }

    /// Lines of a zone file which both resolvers answer from too, in place of those given before.
    pub fn also_resolve(&self, zone: &str) {
        self.stand_ins.also_resolve(zone);
    }
}

impl Vantage<'_> {
    /// Does `work` there, on a thread of its own. Sockets that it made stay where they were made.
    pub fn inside<T: Send>(&self, work: impl FnOnce(&Prober) -> T + Send) -> T {
        let prober = Prober { sources: self.sources, trust: Arc::clone(self.trust) };
        let user = self.user;
        self.namespace.inside(move || {
            if let Some(user) = user {
                namespace::sockets_belong_to(user);
            }
            work(&prober)
        })
    }

    /// Its own address.
    pub fn address(&self, family: Family) -> IpAddr {
        family.of(self.sources)
    }

    /// Runs a command there, with `input` on its standard input.
    pub fn run(&self, command: &[&str], input: &str) -> Output {
        self.namespace.run(&as_words(&self.as_its_user(command)), input)
    }

    /// The same of a command that has to work; what it printed.
    pub fn must(&self, command: &[&str], input: &str) -> String {
        self.namespace.must(&as_words(&self.as_its_user(command)), input)
    }

    /// Runs a program that finds its servers by itself: it sees an `/etc` whose resolver is this one, and whose
    /// hosts file has these lines.
    pub fn run_resolving(&self, resolver: IpAddr, hosts: &str, command: &[&str]) -> Output {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let files = [
            ("resolv.conf", format!("nameserver {resolver}\noptions timeout:5 attempts:1\n")),
            ("hosts", format!("127.0.0.1 localhost\n::1 localhost\n{hosts}")),
            ("nsswitch.conf", "hosts: files dns\npasswd: files\ngroup: files\n".to_owned()),
        ];
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let words = self.as_its_user(command);
        let own_etc = ["unshare", "--mount", "sh", "-ec", OWN_ETC, path];
        self.namespace.run(&[&own_etc, &*as_words(&words)].concat(), "")
    }

    fn as_its_user(&self, command: &[&str]) -> Vec<String> {
        let change = self.user.map(|user| format!("setpriv --reuid {user} --regid {user} --clear-groups"));
        let change = change.iter().flat_map(|change| change.split(' '));
        change.chain(command.iter().copied()).map(str::to_owned).collect()
    }
}

fn as_words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// Lays the files of the folder `$0` over those of `/etc`, for the command that follows. A name service cache outside
/// would answer through its socket, past the networks.
const OWN_ETC: &str = r#"
for file in "$0"/*; do
    ! test -e "/etc/${file##*/}" || mount --bind "$file" "/etc/${file##*/}"
done
! test -d /run/nscd || mount -t tmpfs tmpfs /run/nscd
exec "$@"
"#;

// No duplicate address detection anywhere: it costs seconds and there are no duplicates.
const CLIENT: &str = "\
addr add 10.77.1.2/24 dev c0
addr add 10.77.1.3/24 dev c0
addr add fd77:1::2/64 dev c0 nodad
addr add fd77:1::3/64 dev c0 nodad
route add default via 10.77.1.1
route add default via fd77:1::1
";

/// What lies between appliance and internet is on-link, so no stand-in has an address of it: none would be learned.
const APPLIANCE: &str = "\
addr add 10.77.1.1/24 dev lan0
addr add fd77:1::1/64 dev lan0 nodad
addr add 198.18.0.1/30 dev wan0
addr add fd77:2::1/64 dev wan0 nodad
route add default via 198.18.0.2
route add default via fd77:2::2
";

const INTERNET: &str = "\
addr add 198.18.0.2/30 dev i0
addr add fd77:2::2/64 dev i0 nodad
route add 10.77.1.0/24 via 198.18.0.1
route add fd77:1::/64 via fd77:2::1
";
