"""Plays one client through every case in every setup, and says what held."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import internet
import networks
from internet import HOSTS, NGROK_ZONES, OWN_INGRESS, is_within

PATIENCE = 10.0  # seconds for what takes a blink when all is well
FALLBACKS = 16.0  # seconds a client that never gives up is watched: its first round of ways round takes 7 to 14
LONGEST = 40.0  # the same, where it is watched until it has gone through them
JOB = 1  # `daemon`: a user that every Debian has, and not the forwarder's
FORWARDER = "nobody"
INGRESSES = ("foreign ingress", "shared ingress")
# Everybody's, so not refused. In this bed there is nobody behind it whom an agent would trust.
HARMLESS = {("bucket", 443), ("web", 443)}
REACHED, REFUSED = "reached", "refused"


@dataclass(frozen=True)
class Setup:
    """What of tunnelwarden is in the way, and where the client is."""

    name: str
    firewall: str | None  # lines of [firewall]; None: no tunnelwarden
    doors: tuple[str, ...] = ()
    beside: bool = False  # the client runs on the appliance itself, as on a host

    @property
    def enforces(self) -> bool:
        """Is there a firewall?"""
        return bool(self.firewall)


OPEN = Setup("open", None)
RESOLVER = Setup("resolver", "", doors=networks.LAN)
HOST = Setup("host", 'mode = "host"', doors=("127.0.0.1", "::1"), beside=True)
GATEWAY = Setup("gateway", 'mode = "gateway"\nlan = ["lan0"]', doors=("0.0.0.0", "::"))


class Stage:
    """The networks, the binary under test, and what came of it: by setup and case, and the count of what held.

    Names lead to addresses of one family only, so that clients use it; the networks have both.
    """

    def __init__(self, binary: Path, folder: Path, client, family: int, several_users: bool) -> None:
        self.binary, self.folder, self.client, self.family = binary, folder, client, family
        self.several_users = several_users
        self.passed = self.failed = 0
        self.outcomes: dict[str, str] = {}
        self.networks = networks.Networks(folder)
        self.resolvers = internet.Resolvers(family)
        self.authority = internet.Authority(folder)
        self.doors = internet.Doors(self.authority)
        self.watcher = internet.Watcher()
        self.own_lookups: Counter = Counter()

    def play_all(self) -> None:
        """Every case of a client of ngrok."""
        self.default_ingress(OPEN)
        self.hosts_file(OPEN)
        self.default_ingress(RESOLVER)
        if self.client.speaks_tls:
            self.own_ingress(RESOLVER)
            self.own_ingress(RESOLVER, alias=True)
        for setup in self.firewalls():
            self.default_ingress(setup)
            self.hosts_file(setup)
            self.own_ingress(setup)

    def play_ordinary(self) -> None:
        """Every case of a client that wants nothing of ngrok."""
        for setup in (OPEN, RESOLVER, *self.firewalls()):
            self.ordinary_site(setup)

    def firewalls(self) -> tuple[Setup, ...]:
        """The forwarder is known by its user, so without a second one there is no firewall."""
        return (HOST, GATEWAY) if self.several_users else ()

    # -- the cases

    def default_ingress(self, setup: Setup) -> None:
        """As it comes out of the box."""
        client = self.client
        self.open_page(setup, "default ingress")
        gets_out = setup == OPEN or (setup == RESOLVER and client.outwits_names)
        with self.tunnelwarden(setup) as record:
            said = self.play(setup, LONGEST if gets_out else FALLBACKS, lambda: gets_out and self.went_to_ingress())
            attempts = record()
        self.expect_outcome(setup, "default", self.went_to_ingress(), gets_out)
        if setup == OPEN:
            return
        self.expect(f"it shows its user an error: {client.complaint}", client.complaint in said, said[-600:])
        self.expect_record_once(attempts, client.ingress, "blocked", "ngrok/")
        for name in client.over_https:
            self.expect_record_once(attempts, name, "blocked", "dns-bypass/")
        asked = Counter(name for host, name in self.resolvers.questions if host == "upstream") - self.own_lookups
        leaked = sorted(name for name in asked if is_within(name, NGROK_ZONES) or name in client.over_https)
        self.expect("no such question reaches the upstream, but for the lookups at the start", not leaked, leaked)
        if setup.enforces:
            self.expect_record(attempts, ("dns-redirected", "blocked", "public resolver", ""))
        else:
            self.note_ways_round()
        if not gets_out:
            self.expect_arrivals(set() if client.gives_up else HARMLESS)

    def hosts_file(self, setup: Setup) -> None:
        """The hosts file says where the ingress is, and who is to be asked over HTTPS."""
        client = self.client
        self.open_page(setup, "foreign ingress by hosts file")
        places = {client.ingress: "foreign ingress"} | {name: "public resolver" for name in client.over_https}
        hosts = "".join(f"{HOSTS[host][self.family]} {name}\n" for name, host in places.items())
        if not setup.enforces:
            names = {client.ingress, *client.disguises} if client.speaks_tls else {internet.SSH}
            wanted = {("foreign ingress", name) for name in names} | {("public resolver", name) for name in client.over_https}
            self.play(setup, LONGEST, lambda: wanted <= set(self.doors.greetings), hosts=hosts)
            self.expect_outcome(setup, "hosts", self.went_to_ingress(), expected=True)
            for host, name in sorted(wanted - set(self.doors.greetings)):
                self.expect(f"it greets the {host}, {name}", False, self.doors.greetings)
            return
        if client.speaks_tls:
            refused = [("tls-gate", "blocked", "foreign ingress", name) for name in (client.ingress, *client.disguises)]
            refused += [("doh", "blocked", "public resolver", "") for _ in client.over_https]
        else:
            refused = [("address", "blocked", "foreign ingress", "")]
        with self.tunnelwarden(setup) as record:
            self.play(setup, LONGEST, lambda: all(self.has(record(), row) for row in refused), hosts=hosts)
            attempts = record()
        self.expect_outcome(setup, "hosts", self.went_to_ingress(), expected=False)
        self.expect_arrivals(set() if client.gives_up else HARMLESS)
        for row in refused:
            self.expect_record(attempts, row)

    def own_ingress(self, setup: Setup, alias: bool = False) -> None:
        """The company's ingress, at an address that it shares with strangers', set by the client's own option."""
        reaches = self.client.speaks_tls
        self.open_page(setup, f"own ingress {OWN_INGRESS}" + (f", an alias of {internet.ALIAS_TARGET}" if alias else ""))
        self.resolvers.alias = alias
        with self.tunnelwarden(setup) as record:
            self.play(setup, PATIENCE, lambda: self.doors.established, own_ingress=OWN_INGRESS)
            attempts = record()
        self.resolvers.alias = False
        went = self.doors.established if reaches else self.doors.greetings
        spoke = "shared ingress" in {host for host, _ in went}
        self.expect_outcome(setup, "alias" if alias else "own", spoke, expected=reaches)
        greeted = {name for host, name in self.doors.greetings if host != "web"}
        self.expect("it greets no other name", greeted == ({OWN_INGRESS} if reaches else set()), greeted)
        self.expect_record_once(attempts, OWN_INGRESS, "allowed-own", "organization.ingress")
        if setup.enforces and reaches:
            self.expect_record(attempts, ("tls-gate", "allowed-own", "shared ingress", OWN_INGRESS))
        own = {("shared ingress", 443)} if reaches else set()
        self.expect_arrivals(own | (set() if self.client.gives_up else HARMLESS))

    def ordinary_site(self, setup: Setup) -> None:
        """A name that was resolved through us, and nobody between the client and the site."""
        self.open_page(setup, self.client.site)
        address = networks.WAN if setup.beside else networks.CLIENT
        with self.tunnelwarden(setup):
            said = self.play(setup, PATIENCE, lambda: self.doors.established)
        self.expect_outcome(setup, "default", bool(self.doors.established), expected=True)
        itself = [("web", address[self.family])]
        self.expect("the site sees the client's own address", self.doors.established == itself, (self.doors.established, said))

    # -- what the cases are made of

    def open_page(self, setup: Setup, case: str) -> None:
        """Begins a case with nothing seen yet."""
        print(f"\n{setup.name}: {self.client.title}, {case}", flush=True)
        self.forget()
        self.resolvers.questions.clear()

    def forget(self) -> None:
        """Forgets who came."""
        for seen in (self.watcher.arrivals, self.doors.greetings, self.doors.established):
            seen.clear()

    def went_to_ingress(self) -> bool:
        """Did the client speak to any ingress?"""
        return any(host in INGRESSES for host, _ in self.doors.greetings)

    def expect(self, sentence: str, holds: object, seen: object = "") -> None:
        """Counts and prints one sentence; what was seen instead, where it does not hold."""
        self.passed, self.failed = self.passed + bool(holds), self.failed + (not holds)
        print(f"  ok      {sentence}" if holds else f"  FAILED  {sentence}\n          seen: {seen}", flush=True)

    def expect_outcome(self, setup: Setup, case: str, reached: bool, expected: bool) -> None:
        """Expects the client to have reached whom it wanted, or not; for the table as well."""
        self.outcomes[f"{setup.name} {case}"] = (REACHED if reached else REFUSED) + ("" if reached == expected else "!")
        self.expect("it gets there" if expected else "it is refused", reached == expected, self.doors.greetings)

    def expect_arrivals(self, allowed: set[tuple[str, int]]) -> None:
        """Expects nothing of the client to have come out of the appliance but for these."""
        for (host, port), count in Counter(self.watcher.arrivals).items():
            note(f"came to the {host}, port {port}, {count} times")
        but = f" but the {' or the '.join(sorted(host for host, _ in allowed))}" if allowed else ""
        others = set(self.watcher.arrivals) - allowed
        self.expect(f"it comes to nobody{but}", not others, others)

    def expect_record_once(self, attempts: list[dict], name: str, decision: str, rule: str) -> None:
        """Expects the record to have one row of this question, and one only, that says so: retries fold."""
        rows = [row for row in attempts if question(row) == name and row["way"] != "tls-gate"]
        fits = len(rows) == 1 and rows[0]["decision"] == decision and rows[0]["rule"].startswith(rule)
        self.expect(f"the record has it once: {name} {decision} by {rule}", fits, rows)

    def expect_record(self, attempts: list[dict], row: tuple[str, str, str, str]) -> None:
        """Expects a packet or connection on record: of this way, so decided, for this host, by this server name."""
        way, decision, host, name = row
        sentence = f"the record has it: {way} to the {host} {decision}" + (f", as {name}" if name else "")
        self.expect(sentence, self.has(attempts, row), attempts)

    def has(self, attempts: list[dict], row: tuple[str, str, str, str]) -> bool:
        """Is it on record?"""
        *wanted, host, name = row
        found = [x for x in attempts if [x["way"], x["decision"]] == wanted and question(x) == name]
        return any(HOSTS[host][self.family] in (x.get("destination") or "") for x in found)

    def note_ways_round(self) -> None:
        """What names alone do not close."""
        for (host, name), count in Counter(self.resolvers.questions).items():
            if host != "upstream":
                note(f"not closed by names alone: asked the {host} for {name}, {count} times")
        for (host, name), count in Counter(self.doors.greetings).items():
            note(f"not closed by names alone: greeted the {host} as {name}, {count} times")

    @contextlib.contextmanager
    def tunnelwarden(self, setup: Setup):
        """The binary under test, fresh, with a state folder of its own; yields how to read its record."""
        if setup.firewall is None:
            yield list
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as home, open(Path(home, "log"), "w+") as log:
            os.chmod(home, 0o755)
            Path(home, "tunnelwarden.toml").write_text(configuration(setup, HOSTS["upstream"][self.family]))
            common = ["--config", f"{home}/tunnelwarden.toml", "--state-dir", f"{home}/state"]
            serve = [*self.networks.appliance.enter, str(self.binary), "serve", *common]
            daemon = subprocess.Popen(serve, stdout=log, stderr=subprocess.STDOUT, env=environment(home))
            try:
                if not self.first_round(daemon, common):
                    log.seek(0)
                    raise SystemExit(f"  FAILED  tunnelwarden does not look up the ingress names\n{log.read()}")
                yield lambda: self.record(common)
            finally:
                stop(daemon)

    def first_round(self, daemon: subprocess.Popen, common: list[str]) -> bool:
        """Waits until the daemon has looked up each ingress name: it does not do so again within a minute, so that
        what is asked later is the client's."""
        command = [str(self.binary), "explain", "--learned", "--json", *common]
        until = time.monotonic() + PATIENCE
        while daemon.poll() is None and time.monotonic() < until:
            said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            if said.returncode == 0 and json.loads(said.stdout)["pending"] == 0:
                self.own_lookups = Counter(name for _, name in self.resolvers.questions)
                self.forget()
                return True
            time.sleep(0.05)
        return False

    def record(self, common: list[str]) -> list[dict]:
        """Every attempt on record, once the second within which they are promised to be there is over."""
        time.sleep(1)
        command = [str(self.binary), "attempts", "--json", "--all", *common]
        lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout
        return [json.loads(line) for line in lines.splitlines()]

    def play(self, setup: Setup, seconds: float, until, own_ingress: str = "", hosts: str = "") -> str:
        """Runs the client until it ends, `until` holds or its time is over; returns all it said."""
        # Where no firewall is, nobody is asked but us; where one is, anybody may be.
        resolver = networks.LAN if setup == RESOLVER else HOSTS["public resolver"]
        networks.find_servers_by(resolver[self.family], hosts)
        place = self.networks.appliance if setup.beside else self.networks.client
        with tempfile.TemporaryDirectory(dir=self.folder) as home, open(Path(home, "said"), "w+") as said:
            command = self.client.command(Path(home), own_ingress, self.authority.certificate)
            command = [*place.enter, *(AS_JOB if self.several_users else []), *command]
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment(home))
            while process.poll() is None and not until() and time.monotonic() < began + seconds:
                time.sleep(0.02)
            ended = "ended by itself" if process.poll() is not None else "was stopped"
            note(f"{ended} after {time.monotonic() - began:.1f} s")
            # What it sent last may still be on its way into the lists.
            time.sleep(0.2)
            stop(process)
            said.seek(0)
            return said.read()


# A user without rights over the network, who still reads what root reads: the checkout may be anywhere.
AS_JOB = f"setpriv --reuid {JOB} --regid {JOB} --clear-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search".split()


def configuration(setup: Setup, upstream: str) -> str:
    """What tunnelwarden is told."""
    dns = ", ".join(f'"{bracketed(door)}:53"' for door in setup.doors)
    firewall = f'[firewall]\n{setup.firewall}\nuser = "{FORWARDER}"\n' if setup.firewall else ""
    return f"""\
[organization]
ingress = ["{OWN_INGRESS}"]

[listen]
dns = [{dns}]
admin = "off"

[upstream]
servers = ["udp://{bracketed(upstream)}"]

{firewall}"""


def bracketed(address: str) -> str:
    """As it stands before a port."""
    return f"[{address}]" if ":" in address else address


def question(row: dict) -> str:
    """The name in a row of the record."""
    return (row.get("question") or {}).get("name", "").rstrip(".")


def environment(home: str) -> dict[str, str]:
    """This process's environment without proxies and tokens, with `home` for a home."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("NGROK")}
    return kept | {"HOME": home}


def note(sentence: str) -> None:
    """Prints what is worth knowing and no verdict."""
    print(f"  note    {sentence}", flush=True)


def stop(process: subprocess.Popen) -> None:
    """Asks a process of ours to end, then makes it."""
    process.terminate()
    try:
        process.wait(timeout=8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
