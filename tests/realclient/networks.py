"""Three networks joined by cables: a client's, the appliance's, and an internet without a way out of this machine.

    client 10.77.1.2 -- lan0 appliance wan0 -- internet: this process, at every address of the world

The internet is the namespace this process was started in. Every address of IPv4 and IPv6 is local to it ("AnyIP"), so
whatever address an answer names or a client has built in, its packets end here and are seen. The appliance routes.
"""

import os
import subprocess
from pathlib import Path

# Of IPv4 and of IPv6.
CLIENT = "10.77.1.2", "fd77:1::2"
LAN = "10.77.1.1", "fd77:1::1"
WAN = "198.18.0.1", "fd77:2::1"
CABLE = "i0"  # the internet's end

LINKS = {
    "internet": """
link set lo up
route add local 0.0.0.0/0 dev lo
route add local ::/0 dev lo
""",
    "appliance": f"""
link set lo up
link add lan0 type veth peer name c0 netns THE_CLIENT
link add wan0 type veth peer name {CABLE} netns THE_INTERNET
addr add {LAN[0]}/24 dev lan0
addr add {LAN[1]}/64 dev lan0 nodad
addr add {WAN[0]}/30 dev wan0
addr add {WAN[1]}/64 dev wan0 nodad
link set lan0 up
link set wan0 up
""",
    "client": f"""
link set lo up
addr add {CLIENT[0]}/24 dev c0
addr add {CLIENT[1]}/64 dev c0 nodad
link set c0 up
route add default via {LAN[0]}
route add default via {LAN[1]}
""",
    # The way back is more specific than AnyIP, and has to stand in the same table.
    "ways": f"""
addr add 198.18.0.2/30 dev {CABLE}
addr add fd77:2::2/64 dev {CABLE} nodad
link set {CABLE} up
route add 198.18.0.0/30 dev {CABLE} table local
route add fd77:2::/64 dev {CABLE} table local
route add 10.77.1.0/24 via {WAN[0]} table local
route add fd77:1::/64 via {WAN[1]} table local
""",
    "out": """
route add default via 198.18.0.2
route add default via fd77:2::2
""",
}


class Network:
    """A network namespace beside this process's own. It ends with the process namespace that both are in."""

    def __init__(self) -> None:
        hold = ["unshare", "--net", "sh", "-c", "echo made; exec sleep infinity"]
        holder = subprocess.Popen(hold, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        holder.stdout.readline()
        self.pid = holder.pid
        self.enter = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def run(self, command: list[str], text: str = "") -> None:
        """Runs a command in it that has to work."""
        subprocess.run([*self.enter, *command], input=text, text=True, check=True)


class Networks:
    """All three, and the files by which programs in them find a resolver.

    Must be made by root of fresh network, mount and process namespaces.
    """

    def __init__(self, folder: Path) -> None:
        self.client, self.appliance = Network(), Network()
        links = LINKS["appliance"].replace("THE_CLIENT", str(self.client.pid)).replace("THE_INTERNET", str(os.getpid()))
        ip = ["ip", "-batch", "-"]
        subprocess.run(ip, input=LINKS["internet"], text=True, check=True)
        self.appliance.run(ip, links)
        self.client.run(ip, LINKS["client"])
        subprocess.run(ip, input=LINKS["ways"], text=True, check=True)
        self.appliance.run(ip, LINKS["out"])
        # IPv6 lets nobody bind an address that only a route makes local.
        Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")
        for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            self.appliance.run(["sh", "-c", f"echo 1 >/proc/sys/net/{switch}"])
        self._own_files(folder)

    def _own_files(self, folder: Path) -> None:
        for name in ("resolv.conf", "hosts", "nsswitch.conf"):
            ours, theirs = folder / name, Path("/etc") / name
            ours.write_text("hosts: files dns\n" if name == "nsswitch.conf" else "")
            if theirs.exists():
                subprocess.run(["mount", "--bind", ours, theirs], check=True)
            elif name != "nsswitch.conf":
                raise FileNotFoundError(f"{theirs} is missing here, and where there is none ours cannot lie over it")
        # A name service cache outside would answer through its socket, past the networks.
        if Path("/run/nscd").is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/nscd"], check=True)


def find_servers_by(resolver: str, hosts: str) -> None:
    """Names the one server that programs ask, and lines of their hosts file; the empty search list keeps questions as
    they are."""
    Path("/etc/resolv.conf").write_text(f"nameserver {resolver}\nsearch .\n")
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{hosts}")
