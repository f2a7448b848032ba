"""The sealed bed: a network in which nothing but this machine's own sockets can be reached.

The namespace has only `lo`, and every address of IPv4 and IPv6 is local to it ("AnyIP"), so
whatever address an answer names or a client has built in, its packets end here and are seen.
Here are the parts that stand in for the world: the upstream resolver, the TLS endpoint behind
the ingress, and a watcher that sees every connection and question on the wire. What is expected
of whom is none of this file's business.
"""

import contextlib
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

OWN_INGRESS = "connect.acme.example"
ALIAS_TARGET = "connect.ngrok-agent.com"
UPSTREAM = "192.0.2.53"
OWN_ADDRESSES = ("198.18.0.10", "2001:db8::10")
OTHER_ADDRESSES = ("198.18.0.66", "2001:db8::66")

A, CNAME, AAAA = 1, 5, 28
SYN, SYN_ACK = 0x02, 0x12


def enter(folder: Path) -> None:
    """Makes every address local and gives this mount namespace its own resolver files.

    Must run as root of fresh network and mount namespaces.
    """
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
    ):
        subprocess.run(command.split(), check=True)
    files = {
        "resolv.conf": "",
        "hosts": "127.0.0.1 localhost\n::1 localhost\n",
        "nsswitch.conf": "hosts: files dns\n",
    }
    for name, text in files.items():
        ours, theirs = folder / name, Path("/etc") / name
        ours.write_text(text)
        if theirs.exists():
            subprocess.run(["mount", "--bind", ours, theirs], check=True)
        elif name == "resolv.conf":
            raise FileNotFoundError("/etc/resolv.conf is missing here, so no client can be pointed at a resolver")
    # A name service cache outside would answer through its socket, past the namespace.
    if Path("/run/nscd").is_dir():
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/nscd"], check=True)


def point_resolver_at(address: str) -> None:
    """Names the one server every client in the bed asks; the empty search list keeps questions as they are."""
    Path("/etc/resolv.conf").write_text(f"nameserver {address}\nsearch .\n")


def lowest_name(message: bytes) -> str:
    """The name of a DNS message's question, in lower case, without its last dot."""
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("latin1"))
        at += 1 + message[at]
    return ".".join(labels).lower() or "."


class Upstream:
    """The resolver behind the one under test: answers every name with an address, keeps every question.

    The own ingress has an address of its own; with `alias` it is an alias of ngrok's shared ingress as well.
    """

    def __init__(self) -> None:
        self.alias = False
        self.questions: list[str] = []
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((UPSTREAM, 53))
        self._stream = socket.create_server((UPSTREAM, 53))
        for loop in (self._serve_datagrams, self._serve_streams):
            threading.Thread(target=loop, daemon=True).start()

    def _serve_datagrams(self) -> None:
        while True:
            message, asker = self._datagrams.recvfrom(4096)
            self._datagrams.sendto(self._answer(message), asker)

    def _serve_streams(self) -> None:
        while True:
            connection, _ = self._stream.accept()
            threading.Thread(target=self._serve_stream, args=(connection,), daemon=True).start()

    def _serve_stream(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as incoming:
            while len(length := incoming.read(2)) == 2:
                answer = self._answer(incoming.read(int.from_bytes(length, "big")))
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer(self, message: bytes) -> bytes:
        name = lowest_name(message)
        self.questions.append(name)
        end = message.index(0, 12) + 5
        question = message[12:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        owner, records = b"\xc0\x0c", []

        def add(kind: int, value: bytes) -> None:
            records.append(owner + struct.pack("!HHIH", kind, 1, 30, len(value)) + value)

        addresses = OWN_ADDRESSES if name == OWN_INGRESS else OTHER_ADDRESSES
        if self.alias and name == OWN_INGRESS:
            target = b"".join(bytes([len(x)]) + x.encode() for x in ALIAS_TARGET.split(".")) + b"\0"
            add(CNAME, target)
            owner = target
        if kind == A:
            add(A, ipaddress.ip_address(addresses[0]).packed)
        elif kind == AAAA:
            add(AAAA, ipaddress.ip_address(addresses[1]).packed)
        header = message[:2] + struct.pack("!5H", 0x8180, 1, len(records), 0, 0)
        return header + question + b"".join(records)


class Authority:
    """A throw-away CA and a certificate for the own ingress alone, made with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "ca.pem"
        authority_key, key, certificate = folder / "ca.key", folder / "ingress.key", folder / "ingress.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        issue = ["-CA", self.certificate, "-CAkey", authority_key, "-addext", "basicConstraints=critical,CA:FALSE"]
        name = ["-subj", f"/CN={OWN_INGRESS}", "-addext", f"subjectAltName=DNS:{OWN_INGRESS}"]
        for command in (
            [*make, "-subj", "/CN=throw-away CA of the test bed", "-keyout", authority_key, "-out", self.certificate],
            [*make, *issue, *name, "-keyout", key, "-out", certificate],
        ):
            subprocess.run(command, check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)


class Endpoint:
    """What stands behind port 443 of every address: speaks TLS as the own ingress, to nobody else.

    A connection for another server name is noted and closed without a byte, so that what lies behind
    other addresses can make a test neither pass nor fail.
    """

    def __init__(self, authority: Authority) -> None:
        self.greetings: list[str | None] = []
        self.established: list[bytes] = []
        self._context = authority.context
        for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
            listener = socket.create_server((address, 443), family=family)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(3)
        with connection, contextlib.suppress(OSError):
            name = server_name(connection)
            self.greetings.append(name)
            if name != OWN_INGRESS:
                return
            with self._context.wrap_socket(connection, server_side=True) as stream:
                self.established.append(stream.recv(64))


def server_name(connection: socket.socket) -> str | None:
    """The server name of the ClientHello that waits on `connection`, which is left unread."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _stream, name, _context: names.append(name)
    until = time.monotonic() + 2
    while not names and time.monotonic() < until:
        incoming = ssl.MemoryBIO()
        if not incoming.write(connection.recv(65536, socket.MSG_PEEK)):
            break
        try:
            context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
        except ssl.SSLWantReadError:
            time.sleep(0.01)
        except ssl.SSLError:
            break
    return names[0] if names else None


class Watcher:
    """Sees every packet in the bed; keeps what was asked of which resolver, and what was dialled but our upstream."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.dialled: list[tuple[str, int]] = []
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        threading.Thread(target=self._watch, daemon=True).start()

    def forget(self) -> None:
        """Starts a new page."""
        self.asked, self.dialled = [], []

    def _watch(self) -> None:
        while True:
            packet, (_, protocol, direction, *_) = self._wire.recvfrom(65535)
            # lo shows each packet leaving and arriving; what has no whole header is not of interest.
            if direction != socket.PACKET_OUTGOING:
                with contextlib.suppress(IndexError, struct.error):
                    self._note(packet, protocol)

    def _note(self, packet: bytes, protocol: int) -> None:
        if protocol == 0x0800:
            transport, destination, body = packet[9], packet[16:20], packet[(packet[0] & 15) * 4 :]
        elif protocol == 0x86DD:
            transport, destination, body = packet[6], packet[24:40], packet[40:]
        else:
            return
        address = str(ipaddress.ip_address(destination))
        (port,) = struct.unpack("!H", body[2:4])
        if transport == socket.IPPROTO_UDP and port == 53:
            self.asked.append((address, lowest_name(body[8:])))
        elif (address, port) == (UPSTREAM, 53):
            return
        elif transport == socket.IPPROTO_TCP and body[13] & SYN_ACK == SYN:
            self.dialled.append((address, port))
        elif transport == socket.IPPROTO_UDP and port < 1024:  # QUIC and the like; above are ports of answers
            self.dialled.append((address, port))


def environment(folder: Path) -> dict[str, str]:
    """This process's environment without proxies and tokens, with `folder` for a home."""
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("NGROK")}
    return kept | {"HOME": str(folder)}
