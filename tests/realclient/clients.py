"""The clients: ngrok's own programs, fetched from their registries into target/realclient/; OpenSSH; and one that wants
nothing of ngrok.

What is tested is what people run, so nothing here imitates a client. Versions are pinned: another version is another
test.
"""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "target" / "realclient"


class Unavailable(Exception):
    """A client could not be had here; the text says why."""


class Client:
    """What is known of a client beforehand."""

    title: str
    ingress: str  # where it goes by default
    complaint: str  # what it tells its user when that has no address
    gives_up = True  # or tries for ever
    speaks_tls = True  # or has no server name, by which the own ingress is known
    over_https: tuple[str, ...] = ()  # resolvers that it asks over HTTPS when it gets no address
    disguises: tuple[str, ...] = ()  # server names that it gives itself when its own is refused
    outwits_names = False  # gets out where names are refused and nothing else


class Sdk(Client):
    """What the SDKs have in common: a core in Rust, which tries once."""

    ingress = "connect.ngrok-agent.com"
    complaint = "failed to establish tcp connection"


class PythonSdk(Sdk):
    """The SDK for Python."""

    version = "1.4.0"
    title = f"Python SDK {version}"

    python = CACHE / "python" / "bin" / "python"
    # Leaves without the interpreter's clean-up: this version may crash in it, after all is said.
    program = """
import asyncio, os, sys, ngrok
async def connect(address, ca):
    builder = ngrok.SessionBuilder().authtoken("none")
    if address:
        builder = builder.server_addr(address).root_cas(ca)
    try:
        await builder.connect()
        print("connected", flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
asyncio.run(connect(*sys.argv[1:3]))
"""

    def fetch(self) -> None:
        """Installs into a virtual environment of its own; a second call finds it there."""
        if not self.python.exists():
            run([sys.executable, "-m", "venv", str(self.python.parents[1])])
        run([str(self.python), "-m", "pip", "install", "--quiet", f"ngrok=={self.version}"])

    def command(self, folder: Path, own_ingress: str, ca: Path) -> list[str]:
        """The command line; with an own ingress, by the SDK's own options for it and its CA."""
        return [str(self.python), "-c", self.program, own_ingress and f"{own_ingress}:443", str(ca)]


class NodeSdk(Sdk):
    """The SDK for JavaScript."""

    version = "1.7.0"
    title = f"JavaScript SDK {version}"

    folder = CACHE / "node"
    program = """
const [folder, address, ca] = process.argv.slice(1);
const builder = new (require(folder + '/node_modules/@ngrok/ngrok').SessionBuilder)();
builder.authtoken('none');
if (address) builder.serverAddr(address).rootCas(ca);
builder.connect().then(() => console.log('connected'), (error) => console.log(error.message)).then(() => process.exit());
"""

    def fetch(self) -> None:
        """Installs it, with the part that is built for this machine; a second call finds it there."""
        if not shutil.which("node"):
            raise Unavailable("node is not installed")
        install(self.folder, "@ngrok/ngrok", self.version)

    def command(self, folder: Path, own_ingress: str, ca: Path) -> list[str]:
        """The command line; with an own ingress, by the SDK's own options for it and its CA."""
        return ["node", "-e", self.program, str(self.folder), own_ingress and f"{own_ingress}:443", str(ca)]


class Agent(Client):
    """The official agent, second generation: the last that a package registry carries whole."""

    ingress = "tunnel.us.ngrok.com"
    complaint = "no such host"
    gives_up = False
    over_https = ("dns.google.com",)
    disguises = ("korgn.su.lennut.com",)

    package = "@expo/ngrok-bin-linux-x64"

    def __init__(self, version: str, package_version: str, outwits_names: bool) -> None:
        self.version, self.package_version, self.outwits_names = version, package_version, outwits_names
        self.title = f"agent {version}"
        self.folder = CACHE / f"agent-{version}"
        self.binary = self.folder / "node_modules" / self.package / "ngrok"

    def fetch(self) -> None:
        """Installs the package; a second call finds it there."""
        if platform.machine() != "x86_64":
            raise Unavailable(f"the agent's package is built for x86_64, this machine is {platform.machine()}")
        install(self.folder, self.package, self.package_version)
        version = run([str(self.binary), "version"]).split()[-1]
        if version != self.version:
            raise Unavailable(f"the agent in {self.package} says it is {version}, not {self.version}")

    def command(self, folder: Path, own_ingress: str, ca: Path) -> list[str]:
        """The command line; with an own ingress, by the agent's own settings for it and its CA."""
        settings = ["authtoken: none", "web_addr: false", "update: false"]
        if own_ingress:
            settings += [f"server_addr: {own_ingress}:443", f"root_cas: {ca}"]
        file = folder / "ngrok.yml"
        file.write_text("\n".join(settings) + "\n")
        return [str(self.binary), "http", "-config", str(file), "-log", "stdout", "-log-level", "debug", "8080"]


class Ssh(Client):
    """OpenSSH, as ngrok describes it for those without an agent."""

    title = "ssh -R"
    ingress = "connect.ngrok-agent.com"
    complaint = "Could not resolve hostname"
    speaks_tls = False

    def fetch(self) -> None:
        """Is it there?"""
        if not shutil.which("ssh"):
            raise Unavailable("ssh is not installed")

    def command(self, folder: Path, own_ingress: str, ca: Path) -> list[str]:
        """The command line."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=5"]
        words = [word for option in options for word in ("-o", option)]
        return ["ssh", "-F", "/dev/null", *words, "-R", "443:localhost:80", f"v2@{own_ingress or self.ingress}", "http"]


class Https:
    """No client of ngrok: ordinary HTTPS to an ordinary site."""

    title = "ordinary https"
    site = "www.example.net"

    def fetch(self) -> None:
        """Is it there?"""
        if not shutil.which("openssl"):
            raise Unavailable("openssl is not installed")

    def command(self, folder: Path, own_ingress: str, ca: Path) -> list[str]:
        """The command line."""
        options = ["-quiet", "-verify_return_error", "-CAfile", str(ca), "-servername", self.site, "-connect", f"{self.site}:443"]
        return ["sh", "-c", """printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client "$@" """, "sh", *options]


ALL = {
    "python": PythonSdk(),
    "node": NodeSdk(),
    "agent-2.3": Agent("2.3.41", "2.3.42", outwits_names=False),
    "agent-2.2": Agent("2.2.8", "2.2.8", outwits_names=True),
    "ssh": Ssh(),
    "https": Https(),
}


def install(folder: Path, package: str, version: str) -> None:
    """Installs an npm package without running any script of it, unless it is there."""
    manifest = folder / "node_modules" / package / "package.json"
    if not manifest.exists() or json.loads(manifest.read_text())["version"] != version:
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error"]
        run(["npm", "install", *options, "--prefix", str(folder), f"{package}@{version}"])


def run(command: list[str]) -> str:
    """Runs one step of an installation, 3 minutes at most."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
    except FileNotFoundError as error:
        raise Unavailable(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command)}: no end after {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{' '.join(command)}: {(error.stderr or error.stdout).strip()[-400:]}") from error
    return done.stdout
