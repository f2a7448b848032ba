//! What systemd does for a service, and the daemon with it: sockets that are passed, readiness, the watchdog.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::Command,
    time::Instant,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use nix::sys::signal::Signal;

use crate::support::{
    client::ask,
    daemon::{Daemon, PATIENCE, binary, command},
};

const BLOCKED: &str = "connect.eu.ngrok-agent.com.";

/// A daemon's folder, with a configuration that needs no upstream.
fn folder(listen: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[listen]\n{listen}\n[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n");
    fs::write(folder.path().join("tunnelwarden.toml"), text).unwrap();
    folder
}

/// `serve`, with a socket as systemd passes it: the third descriptor, for this very process.
fn with_socket(folder: &Path, socket: impl Into<OwnedFd>) -> Command {
    let serve = command(folder, &["serve"]);
    let mut passing = Command::new("sh");
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
    passing.args(["-c", script, binary()]).args(serve.get_args());
    passing.stdin(socket.into()).env_remove("RUST_LOG").env("NO_COLOR", "1");
    passing
}

#[test]
fn questions_are_answered_at_sockets_that_systemd_opened_and_over_tcp_beside_them() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let folder = folder(&format!("dns = [\"{address}\"]\nadmin = \"off\""));
    let launch = with_socket(folder.path(), socket.try_clone().unwrap());
    let daemon = Daemon::launch(folder, launch);
    assert_eq!(daemon.dns(), address);
    // Asked before and after: the socket outlives the daemon, and with it the question.
    for _ in 0..20 {
        let reply = ask(BLOCKED, RecordType::A).udp(address);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(ask(BLOCKED, RecordType::A).tcp(address).metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn the_admin_door_and_the_control_socket_may_be_passed_too() {
    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = admin.local_addr().unwrap();
    let at_admin = folder(&format!("dns = [\"127.0.0.1:0\"]\nadmin = \"{address}\""));
    let launch = with_socket(at_admin.path(), admin);
    assert_eq!(Daemon::launch(at_admin, launch).admin, Some(address));

    let at_control = folder("dns = [\"127.0.0.1:0\"]\nadmin = \"off\"\nsocket = \"control\"");
    let path = at_control.path().join("control");
    let launch = with_socket(at_control.path(), UnixListener::bind(&path).unwrap());
    let daemon = Daemon::launch(at_control, launch);
    let reload = daemon.command(&["reload"]);
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    daemon.signal(Signal::SIGTERM);
    let end = Instant::now() + PATIENCE;
    while daemon.command(&["reload"]).status.success() {
        assert!(Instant::now() < end, "it did not stop");
    }
    assert!(path.exists(), "who made it takes it away");
}

#[test]
fn a_socket_that_the_configuration_does_not_name_keeps_it_from_starting_and_is_named() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let folder = folder("dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    let output = with_socket(folder.path(), socket).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("systemd passed a socket for {address} over UDP")), "{said}");
    assert!(said.contains("hint: name it under [listen]"), "{said}");
}

#[test]
fn systemd_hears_that_we_are_ready_and_then_again_and_again_that_we_are_well() {
    let folder = folder("dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    let path = folder.path().join("notify");
    let ear = UnixDatagram::bind(&path).unwrap();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut room = [0; 512];
        let length = ear.recv(&mut room).unwrap();
        String::from_utf8_lossy(&room[..length]).trim().to_owned()
    };
    let mut serve = command(folder.path(), &["serve"]);
    serve.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").env_remove("WATCHDOG_PID");
    let _daemon = Daemon::launch(folder, serve);
    let mut all = vec![heard(), heard(), heard(), heard()];
    all.sort();
    assert_eq!(all, ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]);
}

#[test]
fn files_of_the_record_are_opened_again_without_a_yes_to_what_is_held() {
    let base = "[listen]\nLISTEN\n[upstream]\nservers = [\"udp://127.0.0.1:9\"]\n";
    let sink = "[audit]\n[[audit.sinks]]\nkind = \"file\"\npath = \"out.jsonl\"\nformat = \"json\"\n";
    let daemon = Daemon::start(&format!("{base}[policy]\npacks = [\"ngrok\", \"dns-bypass\"]\n{sink}"));
    let (file, moved) = (daemon.folder().join("out.jsonl"), daemon.folder().join("out.jsonl.1"));
    // Takes a pack away: held.
    daemon.rewrite(&format!("{base}[policy]\npacks = [\"dns-bypass\"]\n{sink}"));
    assert_eq!(daemon.command(&["reload"]).status.code(), Some(4));
    fs::rename(&file, &moved).unwrap();
    daemon.signal(Signal::SIGUSR1);
    crate::support::daemon::wait_for("the file anew", || file.exists().then_some(()));
    let reply = ask(BLOCKED, RecordType::A).udp(daemon.dns());
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "the pack is still in force");
}
