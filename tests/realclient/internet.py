"""The stand-ins for everybody on the internet, and a watcher that sees whom packets are for.

What is expected of whom is none of this file's business.
"""

import contextlib
import ipaddress
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import networks

OWN_INGRESS = "connect.acme.example"
SITE = "www.example.net"
ALIAS_TARGET = "connect.eu.ngrok-agent.com"
NGROK_ZONES = ("ngrok-agent.com", "ngrok.com", "lennut.com")

# Global addresses, because no other is ever taken for an ingress's.
HOSTS = {
    "upstream": ("3.77.0.53", "2602:77::53"),
    "public resolver": ("8.8.8.8", "2001:4860:4860::8888"),
    "public resolver's other": ("8.8.4.4", "2001:4860:4860::8844"),
    "foreign ingress": ("3.77.0.20", "2602:77::20"),
    "shared ingress": ("3.77.0.21", "2602:77::21"),  # the own one, and strangers'
    "bucket": ("3.77.0.43", "2602:77::43"),
    "web": ("3.77.0.80", "2602:77::80"),
}
NAMES = {
    OWN_INGRESS: "shared ingress",
    ALIAS_TARGET: "shared ingress",
    "dns.google": "public resolver",
    "dns.google.com": "public resolver",
    "s3.amazonaws.com": "bucket",
}

A, CNAME, AAAA = 1, 5, 28
IPV4, IPV6 = 0, 1  # where in HOSTS
SYN, SYN_ACK = 0x02, 0x12


def is_within(name: str, zones: tuple[str, ...]) -> bool:
    """Is `name` one of `zones` or below one?"""
    return any(name == zone or name.endswith(f".{zone}") for zone in zones)


def host_named(name: str) -> str:
    """To whom a name leads."""
    return NAMES.get(name) or ("foreign ingress" if is_within(name, NGROK_ZONES) else "web")


def host_at(address: str) -> str:
    """Whose address this is."""
    address = str(ipaddress.ip_address(address))
    return next((host for host, addresses in HOSTS.items() if address in addresses), address)


class Resolvers:
    """The resolver that the forwarder asks, and the public one: they answer every name with an address of one family,
    and keep every question.

    With `alias` the own ingress is an alias of a name of ngrok's.
    """

    def __init__(self, family: int) -> None:
        self.alias = False
        self._family = family
        self.questions: list[tuple[str, str]] = []
        for host in ("upstream", "public resolver", "public resolver's other"):
            for address in HOSTS[host]:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                datagrams = socket.socket(family, socket.SOCK_DGRAM)
                datagrams.bind((address, 53))
                in_background(self._serve_datagrams, datagrams, host)
                in_background(self._serve_streams, socket.create_server((address, 53), family=family), host)

    def _serve_datagrams(self, datagrams: socket.socket, host: str) -> None:
        while True:
            message, asker = datagrams.recvfrom(4096)
            datagrams.sendto(self._answer(message, host), asker)

    def _serve_streams(self, listener: socket.socket, host: str) -> None:
        while True:
            connection, _ = listener.accept()
            in_background(self._serve_stream, connection, host)

    def _serve_stream(self, connection: socket.socket, host: str) -> None:
        with connection, connection.makefile("rb") as incoming:
            while len(length := incoming.read(2)) == 2:
                answer = self._answer(incoming.read(int.from_bytes(length, "big")), host)
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer(self, message: bytes, host: str) -> bytes:
        name = lowest_name(message)
        self.questions.append((host, name))
        # Agents ask for both families in one message, which few servers understand.
        kinds, end = [], 12
        for _ in range(int.from_bytes(message[4:6], "big")):
            end = message.index(0, end) + 5
            kinds.append(int.from_bytes(message[end - 4 : end - 2], "big"))
        owner, records = b"\xc0\x0c", []

        def add(kind: int, value: bytes) -> None:
            records.append(owner + struct.pack("!HHIH", kind, 1, 30, len(value)) + value)

        if self.alias and name == OWN_INGRESS:
            target = b"".join(bytes([len(x)]) + x.encode() for x in ALIAS_TARGET.split(".")) + b"\0"
            add(CNAME, target)
            owner = target
        if (kind := (A, AAAA)[self._family]) in kinds:
            add(kind, ipaddress.ip_address(HOSTS[host_named(name)][self._family]).packed)
        header = message[:2] + struct.pack("!5H", 0x8180, len(kinds), len(records), 0, 0)
        return header + message[12:end] + b"".join(records)


class Authority:
    """A throw-away CA and a certificate for the own ingress and an ordinary site, made with the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "ca.pem"
        authority_key, key, certificate = folder / "ca.key", folder / "ingress.key", folder / "ingress.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        issue = ["-CA", self.certificate, "-CAkey", authority_key, "-addext", "basicConstraints=critical,CA:FALSE"]
        name = ["-subj", f"/CN={OWN_INGRESS}", "-addext", f"subjectAltName=DNS:{OWN_INGRESS},DNS:{SITE}"]
        for command in (
            [*make, "-subj", "/CN=throw-away CA of the test bed", "-keyout", authority_key, "-out", self.certificate],
            [*make, *issue, *name, "-keyout", key, "-out", certificate],
        ):
            subprocess.run(command, check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)


SSH = "as an SSH client"


class Doors:
    """What stands behind ports 22 and 443 of every address: speaks TLS as the own ingress and as an ordinary site.

    Whoever greets another server name is noted and hung up on: clients have their own authorities for those, so
    whatever lay behind would be turned down as well.
    """

    def __init__(self, authority: Authority) -> None:
        self.greetings: list[tuple[str, str | None]] = []
        self.established: list[tuple[str, str]] = []  # what said something over TLS: to which host, from which address
        self._context = authority.context
        for family, address in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
            for port, serve in ((22, self._serve_ssh), (443, self._serve_tls)):
                in_background(self._accept, socket.create_server((address, port), family=family), serve)

    def _accept(self, listener: socket.socket, serve) -> None:
        while True:
            connection, _ = listener.accept()
            connection.settimeout(3)
            in_background(self._serve, connection, serve)

    def _serve(self, connection: socket.socket, serve) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection, host_at(connection.getsockname()[0]))

    def _serve_ssh(self, connection: socket.socket, host: str) -> None:
        connection.sendall(b"SSH-2.0-ingress\r\n")
        if connection.recv(64).startswith(b"SSH-"):
            self.greetings.append((host, SSH))

    def _serve_tls(self, connection: socket.socket, host: str) -> None:
        name = server_name(connection)
        self.greetings.append((host, name))
        if name in (OWN_INGRESS, SITE):
            with self._context.wrap_socket(connection, server_side=True) as stream:
                if stream.recv(64):
                    self.established.append((host, stream.getpeername()[0]))


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
    """Sees every packet that comes out of the appliance, and keeps whom it is for; our upstream does not count."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[str, int]] = []
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        self._wire.bind((networks.CABLE, 0x0003))
        in_background(self._watch)

    def _watch(self) -> None:
        while True:
            packet, (_, protocol, direction, *_) = self._wire.recvfrom(65535)
            # What has no whole header is not of interest.
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
        host = host_at(str(ipaddress.ip_address(destination)))
        (port,) = struct.unpack("!H", body[2:4])
        opens = transport == socket.IPPROTO_TCP and body[13] & SYN_ACK == SYN
        if (opens or transport == socket.IPPROTO_UDP) and host != "upstream":
            self.arrivals.append((host, port))


def lowest_name(message: bytes) -> str:
    """The name of a DNS message's question, in lower case, without its last dot."""
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("latin1"))
        at += 1 + message[at]
    return ".".join(labels).lower() or "."


def in_background(work, *arguments) -> None:
    """Runs `work` until this process ends."""
    threading.Thread(target=work, args=arguments, daemon=True).start()
