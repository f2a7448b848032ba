//! `export squid`, read and obeyed by a real Squid. Where there is none, its tests say so and do nothing; with
//! `CI=true` they fail.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::support::{
    daemon::{Daemon, PATIENCE, command, wait_for},
    upstream::{Upstream, Zone},
};

/// The ingress has an address, which others and the own ingress have as well.
const ZONE: &str = "
connect.ngrok-agent.com.      60 IN A     3.133.228.214
connect.ngrok-agent.com.      60 IN AAAA  2a05:d014:21b::6e74
";

/// A Squid that does what the fragment in its folder says, and else lets loopback through. It ends when dropped.
struct Squid {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

/// Where Squid is; `None`, said aloud, where it is not.
fn squid() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("squid")).find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "there is no squid: apt-get install squid-openssl"
        );
        eprintln!("SKIPPED: there is no squid here");
    }
    found
}

/// A configuration of its own in every respect. Squid gives up root for a user who must be able to read and write here.
fn prepare(folder: &Path, port: u16) -> PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    let shown = folder.display();
    let names = "127.0.0.1 connect.acme.example connect.ngrok-agent.com www.site.example \
                 s1.n1.listed.example x.n8.listed.example below.example\n";
    fs::write(folder.join("hosts"), names).unwrap();
    let text = format!(
        "http_port 127.0.0.1:{port}\npid_filename none\ncache_log {shown}/cache.log\naccess_log none\ncache deny all\n\
         coredump_dir {shown}\nhosts_file {shown}/hosts\ndns_nameservers 127.0.0.1\nmemory_cache_shared off\n\
         pinger_enable off\nshutdown_lifetime 0 seconds\ninclude {shown}/tunnelwarden.conf\n\
         acl here src 127.0.0.0/8\nhttp_access allow here\nhttp_access deny all\n"
    );
    let path = folder.join("squid.conf");
    fs::write(&path, text).unwrap();
    path
}

impl Squid {
    /// With the fragment that `fragment` writes to a path.
    fn start(program: &Path, fragment: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fragment(&folder.path().join("tunnelwarden.conf"));
        // Squid does not say which port the system chose, so it is told one that was free a moment ago.
        for _ in 0..20 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let mut child = Self::launch(program, &prepare(folder.path(), address.port()), address.port());
            let is_up = wait_for("squid", || {
                let is_gone = child.try_wait().unwrap().is_some();
                (is_gone || TcpStream::connect(address).is_ok()).then_some(!is_gone)
            });
            if is_up {
                return Self { child, address, folder };
            }
        }
        panic!("squid did not start:\n{}", fs::read_to_string(folder.path().join("cache.log")).unwrap_or_default());
    }

    fn launch(program: &Path, config: &Path, port: u16) -> Child {
        // A service name of its own: what it shares with others of its kind is found by that.
        let mut command = Command::new(program);
        command.args(["-N", "-n"]).arg(format!("test{port}")).arg("-f").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The status with which a request of a client is answered, and the connection.
    fn ask(&self, client: &str, request: &str) -> (u16, TcpStream) {
        let mut stream = connect_from(client, self.address);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
    }

    fn status(&self, client: &str, request: &str) -> u16 {
        self.ask(client, request).0
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // Asked to, it takes away what it shares in memory.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("cache.log")).unwrap_or_default());
        }
    }
}

/// A connection from an address of loopback.
fn connect_from(client: &str, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let client: SocketAddr = format!("{client}:0").parse().unwrap();
    socket.bind(&client.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Whatever comes is sent back.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = stream.try_clone().unwrap();
            thread::spawn(move || std::io::copy(&mut reader, &mut stream));
        }
    });
    address
}

#[test]
fn squid_lets_the_own_ingress_through_and_no_foreign_one_by_name_or_learned_address() {
    let Some(program) = squid() else { return };
    let upstream = Upstream::of(Zone::parse(ZONE));
    let daemon = Daemon::start(&format!(
        "[organization]\ningress = [\"connect.acme.example\"]\n[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n\
         [[clients]]\nname = \"watched\"\nnetworks = [\"127.0.0.0/24\"]\nmode = \"observe\"\n\
         [[clients]]\nname = \"held\"\nnetworks = [\"127.0.0.1/32\"]\n",
        upstream.uri()
    ));
    daemon.first_round();
    let squid = Squid::start(&program, |path| {
        let output = daemon.command(&["export", "squid", "--out", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    let port = echo().port();

    let (status, mut stream) = squid.ask("127.0.0.1", &format!("CONNECT connect.acme.example:{port}"));
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!((status, &back), (200, b"hello"));

    let reached = |name: &str| format!("CONNECT {name}:{port}");
    assert_eq!(squid.status("127.0.0.1", &reached("www.site.example")), 200);
    // Of no group, of the wider group that only observes, of the group within it that does not.
    for (client, expected) in [("127.9.9.9", 403), ("127.0.0.9", 200), ("127.0.0.1", 403)] {
        assert_eq!(squid.status(client, &reached("connect.ngrok-agent.com")), expected, "{client}");
    }
    for request in [
        "CONNECT CONNECT.ngrok-agent.com.:443",
        "CONNECT connect.eu.ngrok-agent.com:443",
        "GET http://connect.ngrok-agent.com/",
        "CONNECT 3.133.228.214:443",
        "CONNECT 3.133.228.214:22",
        "CONNECT 59106518:443",
        "CONNECT [::ffff:3.133.228.214]:443",
        "CONNECT [64:ff9b::3.133.228.214]:443",
        "CONNECT [2a05:d014:21b::6e74]:443",
        "GET http://3.133.228.214/",
    ] {
        assert_eq!(squid.status("127.0.0.1", request), 403, "{request}");
    }
}

#[test]
fn squid_takes_every_list_without_a_warning_and_obeys_what_is_written_beside() {
    let Some(program) = squid() else { return };
    let folder = tempfile::tempdir().unwrap();
    let names: String =
        (0..20_000).map(|n| format!("n{n}.listed.example\n||s{}.n{n}.listed.example^\n", n % 7)).collect();
    fs::write(folder.path().join("names.txt"), names + "||n7.listed.example^\n@@s1.n1.listed.example\n").unwrap();
    let pack = "name = \"listed\"\nversion = \"1\"\n[[rules]]\nid = \"a\"\nreason = \"r\"\nlists = [\"names.txt\"]\n\
                networks = [\"198.51.100.0/24\", \"198.51.100.7/32\", \"2001:db8::/32\"]\nblock = [\"*.below.example\"]\n";
    fs::write(folder.path().join("listed.toml"), pack).unwrap();
    fs::write(folder.path().join("tunnelwarden.toml"), EVERYTHING).unwrap();
    let squid = Squid::start(&program, |path| {
        let output = command(folder.path(), &["export", "squid", "--out", path.to_str().unwrap()]).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && errors.contains("not in it: learned ingress addresses: no daemon"),
            "{errors}"
        );
        let beside = path.with_file_name("tunnelwarden.conf.names-1");
        assert!(fs::read_to_string(beside).unwrap().lines().count() > 100);
    });

    let config = squid.folder.path().join("squid.conf");
    let parsed = Command::new(&program).args(["-k", "parse", "-f"]).arg(&config).output().unwrap();
    let said = String::from_utf8(parsed.stderr).unwrap();
    let bad = said.lines().find(|line| ["WARNING", "ERROR", "FATAL", "NOTICE"].iter().any(|word| line.contains(word)));
    assert!(parsed.status.success() && bad.is_none(), "{bad:?}");

    for host in ["n19999.listed.example", "s6.n6.listed.example", "x.n7.listed.example", "x.y.below.example"] {
        assert_eq!(squid.status("127.0.0.1", &format!("CONNECT {host}:443")), 403, "{host}");
    }
    for host in ["s1.n1.listed.example", "x.n8.listed.example", "below.example"] {
        assert_ne!(squid.status("127.0.0.1", &format!("CONNECT {host}:443")), 403, "{host}");
    }
}

/// Every built-in pack, and groups within groups.
const EVERYTHING: &str = r#"
[organization]
ingress = ["connect.acme.example"]
addresses = ["203.0.113.0/28"]
[policy]
packs = [
    "ngrok", "dns-bypass", "ngrok-strict", "ngrok-endpoints", "cloudflared", "tailscale", "pinggy", "serveo", "zrok",
    "localtunnel", "dev-tunnels", "playit", "listed.toml",
]
allow = [".ngrok.com"]
block = ["tunnel.ngrok.com", ".sub.ngrok.com"]
[[clients]]
name = "wide"
networks = ["10.0.0.0/8", "2001:db8::/32", "::ffff:192.168.0.0/112"]
packs = ["ngrok"]
[[clients]]
name = "within"
networks = ["10.20.0.0/16", "2001:db8:20::/48"]
mode = "observe"
[[clients]]
name = "innermost"
networks = ["10.20.7.0/24"]
ingress = ["other.acme.example"]
"#;

#[test]
fn without_a_file_the_export_is_one_piece_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tunnelwarden.toml"), "[organization]\ningress = [\"connect.acme.example\"]\n")
        .unwrap();
    let output = command(folder.path(), &["export", "squid"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for line in ["acl tw_own_1 dstdomain -n .connect.acme.example", "# - connections that Squid intercepts"] {
        assert!(text.lines().any(|own| own.starts_with(line)), "{line}: {text}");
    }
    assert!(!text.contains(".names-") && !text.contains("http_access allow"), "{text}");
}
