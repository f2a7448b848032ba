//! The daemon on the appliance of the bed, with its firewall, and whom it guards: those behind it, or beside it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    thread,
    time::Duration,
};

use nix::unistd::Pid;

use super::ways::{OWN, WAYS, Way};
use crate::support::{
    bed::{Bed, Family, Host, Outcome, Vantage, several_users},
    daemon::{Daemon, command, wait_for},
};

/// Where the firewall is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Beside those it guards.
    Host,
    /// Between them and the internet.
    Gateway,
}

impl Mode {
    pub const BOTH: [Self; 2] = [Self::Host, Self::Gateway];
}

const ROOT: (&str, u32) = ("root", 0);

/// The forwarder's user; every Debian has it. Where there is one user only, it is root.
pub fn forwarder() -> (&'static str, u32) {
    if several_users() { ("nobody", 65_534) } else { ROOT }
}

/// What is configured beside the ordinary.
#[derive(Default)]
pub struct Rules {
    /// Lines of `[organization]`.
    pub organization: String,
    /// Lines of `[firewall]`.
    pub firewall: String,
    /// Whole tables.
    pub rest: String,
    /// Jobs of a host run as the forwarder's user, which is root. It is so where there is no other.
    pub shared: bool,
}

impl Rules {
    pub fn configuration(&self, mode: Mode) -> String {
        let ((user, _), upstream) = (self.forwarder(), Host::Upstream.address(Family::V4));
        let own_sockets = if mode == Mode::Host && user == ROOT.0 { "mark" } else { "user" };
        let (firewall, dns) = match mode {
            Mode::Host => ("mode = \"host\"", r#"["127.0.0.1:53", "[::1]:53"]"#),
            Mode::Gateway => ("mode = \"gateway\"\nlan = [\"lan0\"]", r#"["0.0.0.0:53", "[::]:53"]"#),
        };
        let Self { organization, firewall: more, rest, .. } = self;
        format!(
            "[organization]\ningress = [\"{OWN}\"]\n{organization}[listen]\ndns = {dns}\nadmin = \"off\"\n\
             [upstream]\nservers = [\"udp://{upstream}\"]\n\
             [firewall]\n{firewall}\nuser = \"{user}\"\nown-sockets = \"{own_sockets}\"\n{more}\n{rest}"
        )
    }

    fn forwarder(&self) -> (&'static str, u32) {
        if self.shared { ROOT } else { forwarder() }
    }
}

/// A bed with the daemon on the appliance, once it knows every ingress.
pub struct Guarded {
    pub bed: Bed,
    pub daemon: Daemon,
    mode: Mode,
    shared: bool,
}

impl Guarded {
    pub fn by(mode: Mode, rules: Rules) -> Self {
        Self::on(Bed::new(), mode, rules)
    }

    pub fn on(bed: Bed, mode: Mode, rules: Rules) -> Self {
        Self::prepared(bed, mode, rules, |_, _| {})
    }

    /// The same, after something was done on the bed with the folder of the configuration.
    pub fn after(mode: Mode, rules: Rules, prepare: impl FnOnce(&Bed, &Path)) -> Self {
        Self::prepared(Bed::new(), mode, rules, prepare)
    }

    fn prepared(bed: Bed, mode: Mode, rules: Rules, prepare: impl FnOnce(&Bed, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::write(folder.path().join("tunnelwarden.toml"), rules.configuration(mode)).unwrap();
        // The forwarder is root no more when it comes there.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&state).unwrap();
        let (_, uid) = rules.forwarder();
        chown(&state, Some(uid), Some(uid)).unwrap();
        prepare(&bed, folder.path());
        let serve = command(folder.path(), &["serve"]);
        let daemon = bed.appliance().inside(|_| Daemon::launch(folder, serve));
        daemon.first_round();
        Self { bed, daemon, mode, shared: rules.shared }
    }

    /// Puts another configuration in force, whatever it takes away.
    pub fn reload(&self, configuration: &str) {
        self.daemon.rewrite(configuration);
        let output = self.daemon.command(&["reload", "--accept"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Whom it guards.
    pub fn job(&self) -> Vantage<'_> {
        if self.shared { self.bed.appliance() } else { job_in(&self.bed, self.mode) }
    }

    pub fn keeper(&self) -> Pid {
        let daemon = self.daemon.pid();
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        let children = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
        let all = children.collect::<String>();
        let mut pids = all.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap()));
        // Beside it there is a scout, for a moment.
        let is_keeper = |pid: &Pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"tunnelwarden-keeper"))
        };
        pids.find(is_keeper).expect("the daemon has no keeper")
    }

    pub fn assert_every_way(&self) {
        self.assert_ways(|_| true);
    }

    /// Tries them all before it complains.
    pub fn assert_ways(&self, counts: impl Fn(&Way) -> bool) {
        let failures: Vec<_> = self.try_ways(counts, |way, outcome| outcome == way.enforced);
        assert!(failures.is_empty(), "{:?}:\n{}", self.mode, failures.join("\n"));
    }

    /// Whatever a closed way ends in now, it is not its goal; what has to stay open may be broken.
    pub fn assert_nothing_leaks(&self) {
        let failures = self.try_ways(Way::is_closed, |way, outcome| outcome != way.open || way.open == way.enforced);
        assert!(failures.is_empty(), "{:?}:\n{}", self.mode, failures.join("\n"));
    }

    fn try_ways(&self, counts: impl Fn(&Way) -> bool, ends_well: impl Fn(&Way, Outcome) -> bool) -> Vec<String> {
        let mut failures = Vec::new();
        for family in Family::BOTH {
            for way in WAYS.iter().filter(|way| way.exists(family) && counts(way)) {
                self.bed.forget();
                let outcome = self.job().inside(|prober| (way.attempt)(prober, family));
                let reached: Vec<_> = way.spared.iter().flat_map(|&host| self.bed.arrivals(host)).collect();
                if !ends_well(way, outcome) || !reached.is_empty() {
                    failures.push(format!("{} ({family:?}): {outcome:?}; reached: {reached:?}", way.name));
                }
            }
        }
        failures
    }

    /// Waits until the rules know an ingress, and a little longer than it takes to end what goes there.
    pub fn wait_for_denied(&self, host: Host) {
        let address = host.address(Family::V4).to_string();
        let set = ["nft", "list", "set", "inet", "tunnelwarden", "ingress_v4"];
        wait_for("a denied address", || self.bed.appliance().must(&set, "").contains(&address).then_some(()));
        thread::sleep(Duration::from_millis(500));
    }

    /// Waits until the record has an attempt of this way; of any decision where none is named.
    pub fn wait_for_attempt(&self, way: &str, decision: &str) {
        wait_for(&format!("an attempt, {way} {decision}"), || {
            let attempts = self.daemon.attempts();
            let is = |attempt: &serde_json::Value| {
                attempt["way"] == way && (decision.is_empty() || attempt["decision"] == decision)
            };
            attempts.iter().any(is).then_some(())
        });
    }
}

pub fn job_in(bed: &Bed, mode: Mode) -> Vantage<'_> {
    match mode {
        Mode::Host => bed.job(),
        Mode::Gateway => bed.client(),
    }
}
