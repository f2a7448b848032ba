#!/usr/bin/env python3
"""Runs the steps of deploy/github-action as a runner would, with a tunnelwarden binary.

    tests/github-action.py [target/release/tunnelwarden]

What is run are the `run:` lines of action.yml, with the environment that it gives them, as a user with sudo but without a
password, in networks without a way out of this machine and over a copy of the machine's files that is thrown away.
What GitHub itself does (fetching the action, its own expressions beyond equality) is not played. Shell is checked by
shellcheck.

Needs Linux, root, Python 3.10 with PyYAML, iproute2, nftables, jq, sudo and shellcheck. Exit status: 0 passed, 1 failed,
2 wrong usage.
"""

import html
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / "deploy/github-action"
sys.path.insert(0, str(ROOT / "tests/realclient"))

PATIENCE = 20.0  # seconds for what takes one when all is well
USER = "runner"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Not the one that runs this, which may be in a home that is closed to others.
PYTHON = shutil.which("python3", path=SEARCH)
RECORD = Path("/var/log/tunnelwarden/attempts.jsonl")
SOCKET = Path("/run/docker.sock")
FOREIGN, OWN, SITE = "connect.eu.ngrok-agent.com", "connect.acme.example", "www.example.net"
# Labels that would end a cell, a line or a paragraph, or be markup, were they shown as they are. At most 63 bytes.
HOSTILE = [
    "a|b`c",
    "<img src=x onerror=alert(1)>",
    "x\n\n# A heading\n",
    "[link](https://evil.example)",
    "![i](data:x)",
    "</td></table><script>",
    "&lt;b&gt;",
]
CONTACT = 'net"sec|<script>`\\@acme.example'

# Asks for a name that has a hostile label, whatever the answer.
ASK = """
import socket, struct, sys
label = sys.argv[1].encode().decode("unicode_escape").encode("latin-1")
labels = [b"connect", label, b"ngrok-agent", b"com"]
name = b"".join(bytes([len(part)]) + part for part in labels)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    datagrams.settimeout(5)
    datagrams.sendto(struct.pack("!6H", 7, 256, 1, 0, 0, 0) + name + b"\\0\\0\\1\\0\\1", ("3.77.0.53", 53))
    sys.exit((datagrams.recv(4096)[3] & 15) != 3)
"""


def main(arguments: list[str]) -> int:
    """Outside: starts this program again inside fresh namespaces, which end with everything in them."""
    if arguments[:1] == ["--internet"]:
        return internet(Path(arguments[1]), Path(arguments[2]))
    if arguments[:1] == ["--runner"]:
        return play(Path(arguments[1]))
    binary = Path(*arguments) if len(arguments) == 1 else ROOT / "target/release/tunnelwarden"
    if len(arguments) > 1 or not os.access(binary, os.X_OK) or os.geteuid() != 0:
        print(__doc__, file=sys.stderr)
        return 2
    scripts = sorted(ACTION.glob("*.sh"))
    checked = subprocess.run(["shellcheck", "-x", *scripts], cwd=ACTION)
    expect(f"shellcheck has nothing to say of {len(scripts)} scripts", scripts and checked.returncode == 0)
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    with tempfile.TemporaryDirectory(prefix="tunnelwarden-action-") as folder:
        os.chmod(folder, 0o755)
        again = [sys.executable, __file__, "--internet", str(binary.resolve()), folder]
        return subprocess.run([*unshare, "--mount-proc", *again], timeout=120).returncode


def internet(binary: Path, folder: Path) -> int:
    """Inside: files that may be changed, the world, and the runner on a machine of its own in it."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    folder.chmod(0o755)
    for place in ("/etc", "/usr/local", "/var/lib", "/var/log"):
        upper, work = (folder / f"{kind}{place.replace('/', '-')}" for kind in ("upper", "work"))
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={place},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    shutil.copytree(ACTION, folder / "action")
    shutil.copy(binary, folder / "tunnelwarden")

    from internet import HOSTS, IPV4, Resolvers
    from networks import Networks, find_servers_by

    networks = Networks(folder)
    Resolvers(IPV4)
    find_servers_by(HOSTS["upstream"][IPV4], "")
    again = [sys.executable, __file__, "--runner", str(folder)]
    return subprocess.run([*networks.appliance.enter, *again]).returncode


def play(folder: Path) -> int:
    """Inside, on the runner's machine: a job that starts it, tries, and reports."""
    make_user()
    runner = Runner(folder)
    start = {"mode": "start", "binary": str(folder / "tunnelwarden"), "ingress": f"{OWN}, own.acme.example"}

    done = runner.action({"mode": "stop"})
    expect("another mode is refused", done.status == 2, done)
    done = runner.action({"mode": "report"})
    expect("a report without a start fails", done.status == 1 and "not started" in done.summary, done)
    done = runner.action({**start, "packs": "ngrok nonsense"})
    expect("a pack that does not exist is named", done.status == 1 and "nonsense" in done.said, done)
    expect("and nothing runs", runner.run("getent", "ahostsv4", FOREIGN) == 0)

    done = runner.action({**start, "contact": CONTACT})
    expect("it starts", done.status == 0 and "ok firewall" in done.said, done)
    done = runner.action(start)
    expect("but once", done.status == 1 and "runs already" in done.said, done)
    done = runner.action({"mode": "report", "fail-on-attempt": "true"})
    expect("nothing was refused so far", done.status == 0 and "Nothing was refused." in done.summary, done)
    expect("and the number says so", done.output == "attempts=0\n", done)

    expect("the system's resolver finds a site", runner.run("getent", "ahostsv4", SITE) == 0)
    expect("and the own ingress", runner.run("getent", "ahostsv4", OWN) == 0)
    expect("and no foreign ingress", runner.run("getent", "ahostsv4", FOREIGN) == 2)
    for label in HOSTILE:
        asked = runner.as_user([PYTHON, "-c", ASK, label.encode("unicode_escape").decode()], {})
        expect(f"nor connect.{label!r}.ngrok-agent.com", asked.returncode == 0, asked)
    until("all of it is on record", lambda: RECORD.read_text().count('"ngrok/connect"') >= len(HOSTILE) + 1)
    done = runner.action({"mode": "report", "contact": CONTACT})
    expect("a report fails nothing unless it is told to", done.status == 0 and "::warning::" in done.said, done)
    check_summary(done)
    done = runner.action({"mode": "report", "fail-on-attempt": "true"})
    expect("and then it does", done.status == 1, done)
    done = runner.action({"mode": "report", "fail-on-attempt": "yes"})
    expect("a word that is neither true nor false is refused", done.status == 1 and "true or false" in done.said, done)

    expect("the job still has sudo", runner.run("sudo", "-n", "true") == 0)
    end_daemon()
    done = runner.action({"mode": "report"})
    expect("a daemon that is gone fails the report", done.status == 1 and "not ready any more" in done.summary, done)
    expect("what it refused stays refused", runner.run("getent", "ahostsv4", FOREIGN) == 2)

    done = runner.action({**start, "remove-sudo": "true"})
    expect("it starts and takes sudo away", done.status == 0, done)
    expect("the job has none", runner.run("sudo", "-n", "true") != 0)
    expect("nor docker", runner.run("test", "-w", str(SOCKET)) == 1)
    expect("it can read the record", runner.run("test", "-r", str(RECORD)) == 0)
    expect("and not change it", runner.run("test", "-w", str(RECORD)) == 1 == runner.run("test", "-w", str(RECORD.parent)))
    pids = daemon_pids()
    expect("nor end the daemon", pids and all(runner.run("kill", str(pid)) != 0 for pid in pids))
    expect("nor take the rules away", runner.run("/usr/local/bin/tunnelwarden", "firewall", "remove") != 0)
    runner.run("getent", "ahostsv4", "connect.ngrok-agent.com")
    until("it is on record", lambda: '"connect.ngrok-agent.com"' in RECORD.read_text())
    done = runner.action({"mode": "report", "fail-on-attempt": "true"})
    expect("and reports without sudo", done.status == 1 and "connect.ngrok-agent.com" in done.summary, done)
    end_daemon()
    print("github-action: passed")
    return 0


def make_user() -> None:
    """The runner's user, with what one has there: sudo without a password, and docker's socket."""
    subprocess.run(["groupadd", "-f", "docker"], check=True)
    subprocess.run(["useradd", "--no-create-home", "--groups", "docker", USER], check=True)
    rule = Path("/etc/sudoers.d") / USER
    rule.write_text(f"{USER} ALL=(ALL) NOPASSWD:ALL\n")
    rule.chmod(0o440)
    SOCKET.touch()
    shutil.chown(SOCKET, "root", "docker")
    SOCKET.chmod(0o660)


class Done:
    """What came of an action: status, what its steps printed, and what they wrote into the runner's files."""

    def __init__(self, status: int, said: str, summary: str, output: str) -> None:
        self.status, self.said, self.summary, self.output = status, said, summary, output

    def __str__(self) -> str:
        return f"exit {self.status}\n{self.said}\n-- summary\n{self.summary}\n-- output\n{self.output}"


class Runner:
    """Does with action.yml what GitHub's runner does, as far as it is used there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder / "runner", folder / "action"
        self.folder.mkdir()
        shutil.chown(self.folder, USER, USER)
        self.action_file = yaml.safe_load((self.path / "action.yml").read_text())

    def action(self, given: dict[str, str]) -> Done:
        """Runs the steps whose condition holds, up to one that fails."""
        inputs = {name: str(words.get("default", "")) for name, words in self.action_file["inputs"].items()}
        expect("every input is known", given.keys() <= inputs.keys(), given, quiet=True)
        inputs.update(given)
        files = {name: self.folder / name for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ENV")}
        for file in files.values():
            file.write_text("")
            shutil.chown(file, USER, USER)
        status, said = 0, ""
        for step in self.action_file["runs"]["steps"]:
            if status != 0 or not holds(step["if"], inputs):
                continue
            expect("steps are bash's", step["shell"] == "bash", step, quiet=True)
            script = self.folder / "step.sh"
            script.write_text(step["run"])
            environment = {name: str(file) for name, file in files.items()}
            environment |= {"GITHUB_ACTION_PATH": str(self.path), "RUNNER_TEMP": str(self.folder)}
            environment |= {name: filled(value, inputs) for name, value in step.get("env", {}).items()}
            # As the runner's documentation has it for `shell: bash`.
            bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
            done = self.as_user(bash, environment)
            status, said = done.returncode, said + done.stdout + done.stderr
        return Done(status, said, files["GITHUB_STEP_SUMMARY"].read_text(), files["GITHUB_OUTPUT"].read_text())

    def run(self, *command: str) -> int:
        """Runs a command as the job would; its status."""
        return self.as_user(list(command), {}).returncode

    def as_user(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
        words = [f"{name}={value}" for name, value in {"PATH": SEARCH, "HOME": str(self.folder), "CI": "true", **environment}.items()]
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "env", "-i", *words]
        return subprocess.run([*user, *command], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def holds(condition: str, inputs: dict[str, str]) -> bool:
    """A condition that is made of equalities."""
    parts = [re.fullmatch(r"inputs\.([a-z-]+) (==|!=) '([a-z]*)'", part) for part in condition.split(" && ")]
    return all((inputs[part[1]] == part[3]) == (part[2] == "==") for part in parts)


def filled(value: str, inputs: dict[str, str]) -> str:
    """A value with its expressions replaced."""
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda found: inputs[found[1]], value)


def check_summary(done: Done) -> None:
    """The summary is a heading, a table and a sentence, whatever was asked for; and it shows all that was."""
    lines = done.summary.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    others = [line for line in lines if line and not line.startswith("|")]
    expect("a heading and a sentence are all besides the table", len(others) == 2 and others[0] == "## tunnelwarden", done)
    expect("every row has seven cells", all(row.count("|") == 8 for row in rows), done)
    expect("nothing in it is markup", not re.search(r"[<>`\[\]\\*_!@\"]|&(?!#\d+;)", "".join(rows[2:] + others[1:])), done)
    shown = [[html.unescape(cell.strip()) for cell in row.split("|")[1:-1]] for row in rows[2:]]
    names = [row[3] for row in shown if row[4] == "ngrok/connect"]
    expect(f"the table has {FOREIGN}", FOREIGN in names, done)
    expect("and each hostile name once, as the record escapes it", len(names) == len(set(names)) == len(HOSTILE) + 1, done)
    # In presentation format (RFC 1035, section 5.1) and lower case.
    plain = [re.sub(r"\\(\d{3}|.)", lambda one: chr(int(one[1])) if len(one[1]) == 3 else one[1], name) for name in names]
    for label in HOSTILE:
        expect(f"among them {label!r}", f"connect.{label.lower()}.ngrok-agent.com" in plain, plain)
    expect("the contact stands there as it was given", CONTACT in html.unescape(others[1]), done)
    count = int(done.output.removeprefix("attempts="))
    expect("their number is an output", count == len(shown), done)


def daemon_pids() -> list[int]:
    """The forwarder's and the keeper's, this namespace having no others; but for those that only wait to be buried."""
    found = subprocess.run(["pgrep", "-x", "-r", "D,R,S", "tunnelwarden"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def end_daemon() -> None:
    for pid in daemon_pids():
        os.kill(pid, signal.SIGKILL)
    until("it is gone", lambda: not daemon_pids())


def until(what: str, holds) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        expect(what, time.monotonic() < deadline, RECORD.read_text() if RECORD.exists() else "no record", quiet=True)
        time.sleep(0.05)
    expect(what, True)


def expect(what: str, holds, *evidence, quiet: bool = False) -> None:
    if not holds:
        print(f"FAILED  {what}", *evidence, sep="\n  ", file=sys.stderr)
        sys.exit(1)
    if not quiet:
        print(f"ok  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
