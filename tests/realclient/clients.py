"""The clients: ngrok's own programs, fetched from their registries into target/realclient/.

What is tested is what people run, so nothing here imitates a client. Versions are pinned: another
version is another test.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "target" / "realclient"


class Unavailable(Exception):
    """A client could not be had here; the text says why."""


class Sdk:
    """The Python SDK, which shares its Rust core with the SDKs for Rust and JavaScript."""

    version = "1.4.0"
    title = f"Python SDK {version}"
    ingress = "connect.ngrok-agent.com"
    complaint = "failed to establish tcp connection"
    gives_up = True
    ways_round = ()

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


class Agent:
    """The official agent, second generation: the last that a package registry carries whole."""

    version = "2.3.41"
    title = f"agent {version}"
    ingress = "tunnel.us.ngrok.com"
    complaint = "no such host"
    gives_up = False
    ways_round = ("dns.google.com",)  # asked of the system's resolver, so as to ask Google over HTTPS

    package = "@expo/ngrok-bin-linux-x64"
    package_version = "2.3.42"
    binary = CACHE / "agent" / "node_modules" / package / "ngrok"

    def fetch(self) -> None:
        """Installs the package without running any script of it; a second call finds it there."""
        if platform.machine() != "x86_64":
            raise Unavailable(f"the agent's package is built for x86_64, this machine is {platform.machine()}")
        manifest = self.binary.with_name("package.json")
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != self.package_version:
            folder = CACHE / "agent"
            folder.mkdir(parents=True, exist_ok=True)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--loglevel=error"]
            run(["npm", "install", *options, "--prefix", str(folder), f"{self.package}@{self.package_version}"])
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


ALL = {"sdk": Sdk(), "agent": Agent()}


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
