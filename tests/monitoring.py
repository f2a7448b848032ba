#!/usr/bin/env python3
"""Has a real Prometheus watch a tunnelwarden binary, with the rules and the dashboard that are shipped.

    tests/monitoring.py [target/release/tunnelwarden]

In networks without a way out of this machine a daemon with its firewall and one without answer, refuse, pass, give up
and reload. What they show has to pass `promtool check metrics`; configuration and rules have to pass promtool's checks
and tests; every query of the dashboard, asked of Prometheus, has to return numbers; every rule has to be evaluated; and
a daemon that ends has to be missed.

Needs Linux, root, Python 3.10, iproute2, nftables, and Debian's package prometheus. No service is started. Exit status:
0 passed, 1 failed, 2 wrong usage.
"""

import json
import math
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "deploy/monitoring"
sys.path.insert(0, str(ROOT / "tests/realclient"))

PATIENCE = 30.0  # seconds for what takes some when all is well
PROMETHEUS = "http://127.0.0.1:9090"
GUARDED, PLAIN = "127.0.0.1:9053", "127.0.0.1:9054"
VARIABLES = {"$job": "tunnelwarden", "$instance": ".+", "$__rate_interval": "10s", "$__range": "1m"}

# What has to be seen of the traffic: a kind of it that nobody counts would prove nothing.
KINDS = (
    'questions_total{transport="udp"}',
    'questions_total{transport="tcp"}',
    'responses_total{rcode="NOERROR"}',
    'responses_total{rcode="NXDOMAIN"}',
    'responses_total{rcode="SERVFAIL"}',
    'responses_total{rcode="REFUSED"}',
    'decisions_total{decision="blocked"}',
    'decisions_total{decision="observed"}',
    'decisions_total{decision="allowed-own"}',
    'bypass_attempts_total{way="dns-redirected",decision="blocked"}',
    'bypass_attempts_total{way="address",decision="blocked"}',
    'bypass_attempts_total{way="tls-gate",decision="blocked"}',
    'gate_connections_total{outcome="refused"}',
    "cache_hits_total",
    "cache_misses_total",
    "turned_away_total",
    "upstream_failures_total",
    "wait_seconds_count",
    'reloads_total{outcome="loaded"}',
    'reloads_total{outcome="refused"}',
    "audit_attempts_total",
)

# With a firewall, and asked by one who may not; it has servers that answer, and for one zone none.
WITH_FIREWALL = """
[organization]
ingress = ["connect.acme.example"]
[listen]
dns = ["127.0.0.1:53", "[::1]:53", "10.77.1.1:53"]
admin = "127.0.0.1:9053"
[upstream]
servers = ["udp://3.77.0.53"]
[[upstream.zones]]
zones = ["dead.example"]
servers = ["udp://3.77.0.99"]
[limits]
clients = ["198.18.0.0/30"]
[firewall]
mode = "host"
user = "nobody"
"""

# Without one, behind the other.
WITHOUT_FIREWALL = """
[listen]
dns = ["127.0.0.1:5300"]
admin = "127.0.0.1:9054"
[upstream]
servers = ["udp://127.0.0.1:53"]
[policy]
mode = "observe"
"""


def main(arguments: list[str]) -> int:
    """Outside: starts this program again inside fresh namespaces, which end with everything in them."""
    if arguments[:1] == ["--internet"]:
        return internet(Path(arguments[1]), Path(arguments[2]))
    if arguments[:1] == ["--watch"]:
        return watch(Path(arguments[1]), Path(arguments[2]))
    binary = Path(*arguments) if len(arguments) == 1 else ROOT / "target/release/tunnelwarden"
    if len(arguments) > 1 or not os.access(binary, os.X_OK) or os.geteuid() != 0:
        print(__doc__, file=sys.stderr)
        return 2
    check_files()
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    with tempfile.TemporaryDirectory(prefix="tunnelwarden-monitoring-") as folder:
        os.chmod(folder, 0o755)  # the forwarder is root no more when it comes here
        again = [sys.executable, __file__, "--internet", str(binary.resolve()), folder]
        return subprocess.run([*unshare, "--mount-proc", *again], timeout=150).returncode


def check_files() -> None:
    """What can be said of the files without anything running."""
    for what in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts.test.yml", "alerts-days.test.yml"],
    ):
        run(["promtool", *what], cwd=SHIPPED)
        print(f"ok  promtool {' '.join(what)}")
    alerts = re.findall(r"- alert: (\w+)", (SHIPPED / "alerts.yml").read_text())
    tests = "".join((SHIPPED / name).read_text() for name in ("alerts.test.yml", "alerts-days.test.yml"))
    untested = [alert for alert in alerts if f"- name: {alert}\n" not in tests]
    expect(f"each of {len(alerts)} alerts is tested", alerts and not untested, untested)


def internet(binary: Path, folder: Path) -> int:
    """Inside, in the middle of the world: answers names, and has the rest done where the daemons run."""
    from internet import IPV4, Resolvers
    from networks import Networks

    networks = Networks(folder)
    Resolvers(IPV4)
    threading.Thread(target=ask_as_stranger, args=(networks.client.enter,), daemon=True).start()
    again = [sys.executable, __file__, "--watch", str(binary), str(folder)]
    return subprocess.run([*networks.appliance.enter, *again]).returncode


def ask_as_stranger(enter: list[str]) -> None:
    """Somebody behind the appliance, who may not ask, asks all the same."""
    program = "from monitoring import ask; import time\nwhile True: ask('www.example.net', server='10.77.1.1'); time.sleep(1)"
    subprocess.run([*enter, sys.executable, "-c", program], cwd=ROOT / "tests", stderr=subprocess.DEVNULL)


def watch(binary: Path, folder: Path) -> int:
    """Inside, on the appliance: both daemons, what they have to do, and Prometheus."""
    guarded = Daemon(binary, folder / "guarded", WITH_FIREWALL)
    plain = Daemon(binary, folder / "plain", WITHOUT_FIREWALL)
    for door in (GUARDED, PLAIN):
        until(f"{door} is ready", lambda door=door: fetch(f"http://{door}/readyz"), guarded.log, plain.log)
    over = threading.Event()
    traffic = threading.Thread(target=keep_busy, args=(guarded, over))
    traffic.start()
    try:
        prometheus = start_prometheus(folder)
        until("Prometheus has scraped both", lambda: samples("count_over_time(tunnelwarden_ready[1m]) > 8", 2), folder / "prometheus.log")
        for door in (GUARDED, PLAIN):
            run(["promtool", "check", "metrics"], input=fetch(f"http://{door}/metrics"))
            print(f"ok  promtool check metrics, {door}")
        for kind in KINDS:
            until(f"counted: {kind}", lambda kind=kind: samples(f"tunnelwarden_{kind} > 0"), quiet=True)
        print(f"ok  {len(KINDS)} kinds of traffic are counted")
        check_dashboard()
        check_rules()
    finally:
        over.set()
        traffic.join()
    plain.stop()
    down = {"alertname": "TunnelwardenDown", "instance": PLAIN}
    until("it is missed when it ends", lambda: alerts(down))
    guarded.stop()
    prometheus.terminate()
    prometheus.wait()
    print("monitoring: passed")
    return 0


class Daemon:
    """One that is started with a configuration."""

    def __init__(self, binary: Path, folder: Path, configuration: str) -> None:
        folder.mkdir()
        (folder / "state").mkdir()
        self.log, self.file = folder / "log", folder / "tunnelwarden.toml"
        self.file.write_text(configuration)
        self.words = [str(binary)]
        self.options = ["--config", str(self.file), "--state-dir", str(folder / "state")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*self.words, "serve", *self.options], stdout=log, stderr=log)

    def reload(self, appended: str) -> int:
        """With something at the end of its configuration, which is then as before."""
        before = self.file.read_text()
        self.file.write_text(before + appended)
        status = subprocess.run([*self.words, "reload", *self.options], capture_output=True).returncode
        self.file.write_text(before)
        return status

    def stop(self) -> None:
        self.process.terminate()
        expect(f"{self.file.parent.name} stops", self.process.wait(timeout=PATIENCE) == 0, self.log.read_text())


def keep_busy(daemon: Daemon, over: threading.Event) -> None:
    """Something of every kind, again and again."""
    number = 0
    expect("a broken file is refused", daemon.reload("[nonsense") == 3)
    expect("and a sound one taken", daemon.reload("\n") == 0)
    while not over.wait(0.1):
        number += 1
        for server, port in (("127.0.0.1", 53), ("127.0.0.1", 5300)):
            for name in ("connect.ngrok-agent.com", "connect.acme.example", "www.example.net", f"n{number}.example.net"):
                ask(name, server, port)
            ask(f"n{number}.dead.example", server, port)
            ask("www.example.net", server, port, over_tcp=True)
        ask("www.example.net", "8.8.8.8")
        knock("3.77.0.20", 22)
        for name in ("connect.eu.ngrok-agent.com", "connect.acme.example"):
            knock("3.77.0.20", 443, name)


def ask(name: str, server: str, port: int = 53, over_tcp: bool = False) -> None:
    """Asks for an address and waits a moment for whatever comes."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    message = struct.pack("!6H", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    try:
        if over_tcp:
            with socket.create_connection((server, port), timeout=0.5) as stream:
                stream.sendall(struct.pack("!H", len(message)) + message)
                stream.recv(4096)
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(0.5)
                datagrams.sendto(message, (server, port))
                datagrams.recv(4096)
    except OSError:
        pass  # who is refused may hear so, or nothing


def knock(address: str, port: int, name: str = "") -> None:
    """Connects, and with a name begins TLS for it. Nobody is there."""
    try:
        with socket.create_connection((address, port), timeout=0.5) as stream:
            if name:
                ssl.create_default_context().wrap_socket(stream, server_hostname=name).close()
    except OSError:
        pass


def start_prometheus(folder: Path) -> subprocess.Popen:
    """The shipped configuration, but that it asks both daemons, and every second."""
    text = (SHIPPED / "prometheus.yml").read_text()
    for ours, theirs in (("_interval: 30s", "_interval: 1s"), (f'["{GUARDED}"]', f'["{GUARDED}", "{PLAIN}"]')):
        expect(f"prometheus.yml has {ours}", ours in text)
        text = text.replace(ours, theirs)
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(SHIPPED / "alerts.yml", folder)
    with (folder / "prometheus.log").open("w") as log:
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address={PROMETHEUS.removeprefix('http://')}", "--log.level=warn"]
        return subprocess.Popen(command, stdout=log, stderr=log)


def check_dashboard() -> None:
    """Every query of every panel returns numbers, and so does what the variables offer."""
    dashboard = json.loads((SHIPPED / "dashboard.json").read_text())
    queries = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    for title, query in queries:
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        expect(f"{title}: no variable is left", "$" not in query, query, quiet=True)
        until(f"{title}: {query}", lambda query=query: samples(query), quiet=True)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
            metric = metric.replace("$job", VARIABLES["$job"])
            values = prometheus_says(f"label/{label}/values", {"match[]": metric})
            expect(f"{variable['name']} offers {values}", values)
    print(f"ok  {len(queries)} queries of the dashboard return numbers")


def check_rules() -> None:
    """Each is evaluated, and none of those fires that say a daemon is ill."""
    groups = prometheus_says("rules", {})["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    ill = [rule["name"] for rule in rules if rule["health"] != "ok"]
    expect(f"{len(rules)} rules are evaluated", rules and not ill, ill)
    # A server that nobody is has been asked all the while.
    until("an alert is seen for the zone without servers", lambda: alerts({"alertname": "TunnelwardenUpstreamGone"}))
    for name in ("TunnelwardenDown", "TunnelwardenNotReady", "TunnelwardenFirewallFailed", "TunnelwardenRecordFailing"):
        expect(f"{name} does not fire", not alerts({"alertname": name}))


def alerts(labels: dict[str, str]) -> list:
    """Those that are pending or firing, with these labels."""
    found = prometheus_says("alerts", {})["alerts"]
    return [alert for alert in found if labels.items() <= alert["labels"].items()]


def samples(query: str, least: int = 1) -> bool:
    """Does a query return so many samples, and all of them numbers?"""
    results = prometheus_says("query", {"query": query})["result"]
    return len(results) >= least and not any(math.isnan(float(result["value"][1])) for result in results)


def prometheus_says(what: str, arguments: dict[str, str]):
    """The data of an answer of its HTTP interface."""
    answer = json.loads(fetch(f"{PROMETHEUS}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"))
    expect(f"Prometheus understands {what}", answer["status"] == "success", answer, quiet=True)
    return answer["data"]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def run(command: list[str], **options) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    expect(" ".join(command), done.returncode == 0, done.stdout + done.stderr, quiet=True)


def until(what: str, holds, *logs: Path, quiet: bool = False) -> None:
    """Waits for something that comes to hold; what cannot be asked yet does not."""
    deadline, trouble = time.monotonic() + PATIENCE, None
    while time.monotonic() < deadline:
        try:
            if holds():
                return expect(what, True, quiet=quiet)
        except (OSError, urllib.error.HTTPError) as error:
            trouble = error
            if isinstance(error, urllib.error.HTTPError):
                trouble = f"{error}: {error.read().decode()}"
        time.sleep(0.1)
    expect(what, False, trouble, *(log.read_text() for log in logs))


def expect(what: str, holds, *evidence, quiet: bool = False) -> None:
    if not holds:
        print(f"FAILED  {what}", *evidence, sep="\n  ", file=sys.stderr)
        # From a thread, too: whoever waits for it must not wait for ever.
        sys.stderr.flush()
        os._exit(1)
    if not quiet:
        print(f"ok  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
