//! The commands as their user meets them: whole outputs, exit codes, and what goes to which stream.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use serde_json::Value;

use crate::support::{
    client::ask,
    daemon::{Daemon, binary, command, wait_for},
};

/// Nothing needs its upstream.
const CONFIG: &str = "\
[organization]
ingress = [\"connect.acme.example\"]
contact = \"netsec@acme.example\"
[listen]
LISTEN
[upstream]
servers = [\"udp://127.0.0.1:9\"]
";

/// Exit code, standard output, standard error.
type Outcome = (i32, String, String);

fn outcome(output: Output) -> Outcome {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Runs the binary without a configuration of the machine's: the arguments say all.
fn run(arguments: &[&str]) -> Outcome {
    outcome(Command::new(binary()).args(arguments).stdin(Stdio::null()).env("NO_COLOR", "1").output().unwrap())
}

/// A folder with a configuration in it.
fn folder_with(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = config.replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    fs::write(folder.path().join("tunnelwarden.toml"), config).unwrap();
    folder
}

fn run_in(folder: &Path, arguments: &[&str]) -> Outcome {
    outcome(command(folder, arguments).output().unwrap())
}

/// A copy of the binary that every user may run, and the command run by a user who may do nothing when this is root.
struct Powerless {
    folder: tempfile::TempDir,
}

impl Powerless {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        fs::copy(binary(), folder.path().join("tunnelwarden")).unwrap();
        Self { folder }
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> Outcome {
        let (config, state) = (folder.join("tunnelwarden.toml"), folder.join("state"));
        let mut command = Command::new(self.folder.path().join("tunnelwarden"));
        command.args(arguments).arg("--config").arg(config).arg("--state-dir").arg(state).current_dir("/");
        command.env("NO_COLOR", "1").stdin(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            command.uid(65_534).gid(65_534);
        }
        outcome(command.output().unwrap())
    }
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Takes every right to a folder from everybody, and gives it back when dropped, so that it can be removed.
struct Closed(PathBuf);

impl Closed {
    fn new(folder: PathBuf) -> Self {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o000)).unwrap();
        Self(folder)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700));
    }
}

#[test]
fn help_and_version_are_results_and_wrong_usage_is_an_error() {
    assert_eq!(run(&["--version"]), (0, format!("tunnelwarden {}\n", env!("CARGO_PKG_VERSION")), String::new()));
    let (code, out, err) = run(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let commands: Vec<_> = out
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // What a command is for may go on in a line of its own, further in.
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(
        commands,
        ["serve", "check", "explain", "attempts", "reload", "firewall", "export", "healthcheck", "completions"]
    );
    assert!(out.contains("Exit codes: 0 done; 1 failed at run time; 2 wrong usage;"), "{out}");
    for command in commands {
        let (code, out, err) = run(&[command, "--help"]);
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        assert!(out.contains(&format!("Usage: tunnelwarden {command} [OPTIONS]")), "{out}");
        for option in ["--config <FILE>", "--state-dir <FOLDER>", "--json"] {
            assert!(out.contains(option), "{command}: {out}");
        }
    }
    #[rustfmt::skip]
    let wrong: &[&[&str]] = &[
        &[], &["bogus"], &["--bogus"], &["explain"], &["explain", "a..b"], &["explain", ""],
        &["explain", "a.example", "--client", "here"], &["explain", "a.example", "--type", "NOTYPE"],
        &["explain", "a.example", "--answer", "CNAME"], &["attempts", "--since", "some-day"],
        &["attempts", "--limit", "1", "--all"], &["attempts", "--decision", "maybe"], &["serve", "now"],
    ];
    for arguments in wrong {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}");
        assert!(!err.is_empty(), "{arguments:?} is told why");
    }
}

#[test]
fn check_prints_problems_on_standard_error_and_its_summary_on_standard_output() {
    let folder = folder_with(CONFIG);
    let (code, out, err) = run_in(folder.path(), &["check", "--strict"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let words: Vec<_> = out.lines().map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(words[0], "valid: 0 errors, 0 warnings");
    #[rustfmt::skip]
    assert_eq!(words[1..], ["file", "for", "ingress", "mode", "pack", "pack", "addresses", "listen", "upstream", "record", "not held", "not held", "not held"]);

    let broken = folder_with("[policy]\nmode = \"enforced\"\nblokc = []\n");
    let (code, out, err) = run_in(broken.path(), &["check"]);
    assert_eq!((code, out.as_str()), (3, "invalid: 2 errors, 0 warnings\n"));
    let file = broken.path().join("tunnelwarden.toml").display().to_string();
    let expected = format!(
        "{file}:2:8: error: \"mode\" cannot be \"enforced\"\n    mode = \"enforced\"\n    \
         hint: did you mean \"enforce\"? It can be \"enforce\", \"observe\"\n\
         {file}:3:1: error: unknown key \"blokc\" in [policy]\n    blokc = []\n    hint: did you mean \"block\"?\n"
    );
    assert_eq!(err, expected);
}

#[test]
fn a_named_configuration_that_is_missing_is_code_3_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for command in [&["serve"][..], &["check"], &["explain", "a.example"], &["attempts"], &["reload"]] {
        let (code, out, err) = run_in(folder.path(), command);
        assert_eq!(code, 3, "{command:?}");
        assert!(err.contains("tunnelwarden.toml: no such file"), "{command:?}: {err}");
        assert!(out.is_empty() || command == ["check"], "{command:?}: {out}");
    }
}

#[test]
fn explain_names_step_rule_file_and_line_and_exits_4_for_what_is_blocked() {
    let folder = folder_with(CONFIG);
    #[rustfmt::skip]
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["connect.eu.ngrok-agent.com"], 4, "blocked by ngrok/connect, step 4 (packs)", "built-in/ngrok.toml:"),
        (&["CONNECT.eu.NGROK-agent.com."], 4, "blocked by ngrok/connect, step 4 (packs)", "built-in/ngrok.toml:"),
        (&["connect.eu.ngrok-agent.com", "--type", "HTTPS"], 4, "HTTPS for 127.0.0.1", "built-in/ngrok.toml:"),
        (&["my.example.net", "--answer", "CNAME connect.ngrok-agent.com"], 4, "blocked by ngrok/connect, step 5 (answer)", "built-in/ngrok.toml:"),
        (&["crl.ngrok-agent.com"], 0, "allowed by ngrok/revocation, step 4 (packs)", "built-in/ngrok.toml:"),
        (&["tunnel.us.ngrok.com.example.org"], 0, "allowed, step 6 (otherwise)", ""),
        (&["notngrok-agent.com", "--answer", "A 192.0.2.1"], 0, "allowed, step 6 (otherwise)", ""),
        (&["connect.acme.example"], 0, "allowed by organization.ingress, step 1 (own ingress)", "tunnelwarden.toml:2:"),
        (&["connect.acme.example", "--answer", "CNAME connect.ngrok-agent.com"], 0, "step 1 (own ingress)", "tunnelwarden.toml:2:"),
    ];
    for (arguments, expected, headline, place) in cases {
        let arguments: Vec<_> = ["explain"].iter().chain(*arguments).copied().collect();
        let (code, out, err) = run_in(folder.path(), &arguments);
        assert_eq!((code, err.as_str()), (*expected, ""), "{arguments:?}: {out}");
        assert!(out.lines().next().unwrap().contains(headline), "{arguments:?}: {out}");
        assert!(out.contains(place), "{arguments:?}: {out}");
        let told = if *expected == 4 { "The client is told NXDOMAIN" } else { "" };
        assert!(out.contains(told), "{out}");

        let (code, out, err) = run_in(folder.path(), &[arguments.as_slice(), &["--json"]].concat());
        assert_eq!((code, err.as_str(), out.lines().count()), (*expected, "", 1));
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["conclusion"], if *expected == 4 { "block" } else { "allow" });
    }
}

#[test]
fn an_explanation_reads_as_a_whole() {
    let folder = folder_with(CONFIG);
    let (_, out, _) = run_in(folder.path(), &["explain", "connect.acme.example"]);
    let file = folder.path().join("tunnelwarden.toml").display().to_string();
    let expected = format!("\
connect.acme.example A for 127.0.0.1 (default group, mode enforce): allowed by organization.ingress, step 1 (own ingress)

  1 own ingress  decides
      organization.ingress allow .connect.acme.example: counts
        {file}:2:12: own ingress

The client is told what the upstream answers.
");
    assert_eq!(out, expected);
}

#[test]
fn attempts_shows_a_refusal_at_once_as_table_and_as_json_lines() {
    let daemon = Daemon::start(CONFIG);
    let (code, out, err) = outcome(daemon.command(&["attempts"]));
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.starts_with("no attempts since "), "{err}");
    ask("Connect.eu.ngrok-agent.com.", RecordType::AAAA).udp(daemon.dns());
    ask("tunnel.ngrok.com.", RecordType::A).tcp(daemon.dns());

    let (code, out, err) = outcome(daemon.command(&["attempts"]));
    assert_eq!((code, err.as_str()), (0, ""));
    let rows: Vec<Vec<_>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["FIRST", "SEEN", "DECISION", "CLIENT", "NAME", "TYPE", "RULE", "ANSWER", "COUNT"]);
    #[rustfmt::skip]
    assert_eq!(rows[1][2..], ["blocked", "127.0.0.1", "connect.eu.ngrok-agent.com", "AAAA", "ngrok/connect", "NXDOMAIN", "1"]);
    assert_eq!(rows[2][2..], ["blocked", "127.0.0.1", "tunnel.ngrok.com", "A", "ngrok/tunnel", "NXDOMAIN", "1"]);
    assert_eq!(rows.len(), 3);
    assert!(!out.contains('\u{1b}'), "no colour where there is no terminal");

    let (code, out, err) = outcome(daemon.command(&["attempts", "--json", "--rule", "ngrok/tunnel"]));
    assert_eq!((code, err.as_str(), out.lines().count()), (0, "", 1));
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&value["question"]["name"], &value["transport"]), (&"tunnel.ngrok.com".into(), &"tcp".into()));
}

#[test]
fn following_shows_a_new_refusal_within_a_second() {
    let daemon = Daemon::start(CONFIG);
    ask("tunnel.ngrok.com.", RecordType::A).udp(daemon.dns());
    let mut follower = command(daemon.folder(), &["attempts", "--follow", "--json"]);
    let mut follower = Ended(follower.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follower.0.stdout.take().unwrap()).lines();
    // What was there before tells that it listens.
    assert!(lines.next().unwrap().unwrap().contains("tunnel.ngrok.com"));
    let asked = Instant::now();
    ask("connect.eu.ngrok-agent.com.", RecordType::A).udp(daemon.dns());
    let line = lines.next().unwrap().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let value: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["question"]["name"], "connect.eu.ngrok-agent.com");
}

/// A process that is ended when the test is over.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn output_that_nobody_reads_ends_a_command_quietly() {
    let daemon = Daemon::start(CONFIG);
    ask("tunnel.ngrok.com.", RecordType::A).udp(daemon.dns());
    #[rustfmt::skip]
    let commands: &[&[&str]] = &[
        &["attempts"], &["attempts", "--json", "--all"], &["check"], &["check", "--json"],
        &["explain", "connect.ngrok-agent.com"], &["explain", "a.example", "--json"], &["reload"], &["--help"],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(daemon.folder(), arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn reload_says_what_came_of_it() {
    let daemon = Daemon::start(CONFIG);
    let (code, out, err) = outcome(daemon.command(&["reload"]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("loaded: ") && out.ends_with(" rules, 0 client groups, 0 exceptions\n"), "{out}");

    let (code, out, err) = outcome(daemon.command(&["reload", "--json"]));
    assert_eq!((code, err.as_str(), out.lines().count()), (0, "", 1));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "loaded");

    daemon.rewrite(&format!("{CONFIG}\nbogus = 1\n"));
    let (code, out, err) = outcome(daemon.command(&["reload"]));
    assert_eq!(code, 3, "{out}{err}");
    assert!(out.starts_with("refused: the files are broken; still in force: "), "{out}");
    assert!(err.contains("unknown key \"bogus\""), "{err}");

    daemon.rewrite(&CONFIG.replace("[organization]", "[policy]\npacks = [\"dns-bypass\"]\n[organization]"));
    let (code, out, _) = outcome(daemon.command(&["reload"]));
    assert_eq!(code, 4, "taking a pack away waits: {out}");
    assert!(out.starts_with("held: "), "{out}");
    let (code, out, _) = outcome(daemon.command(&["reload", "--accept"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.starts_with("loaded: "), "{out}");
}

#[test]
fn without_a_daemon_or_a_record_it_is_code_1_and_says_what_to_do() {
    let folder = folder_with(CONFIG);
    let (code, out, err) = run_in(folder.path(), &["reload"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("is `tunnelwarden serve` running"), "{err}");
    let (code, out, err) = run_in(folder.path(), &["attempts"]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("there is no record at "), "{err}");
}

#[test]
fn what_the_user_may_not_touch_is_code_5() {
    let powerless = Powerless::new();
    let daemon = Daemon::start(CONFIG);
    open_to_all(daemon.folder());
    let _closed = Closed::new(daemon.folder().join("state"));
    for arguments in [&["reload"][..], &["attempts"], &["attempts", "--follow"], &["serve"]] {
        let (code, out, err) = powerless.run(daemon.folder(), arguments);
        assert_eq!((code, out.as_str()), (5, ""), "{arguments:?}: {err}");
        assert!(err.contains("ermi"), "{arguments:?}: {err}");
    }
}

#[test]
fn the_control_socket_is_for_owner_and_group_and_asks_the_kernel_who_calls() {
    let daemon = Daemon::start(CONFIG);
    let socket = daemon.folder().join("state/control");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    // Somebody opened the door to all: who calls is still asked. Only root can be somebody else here.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    open_to_all(daemon.folder());
    open_to_all(&daemon.folder().join("state"));
    let (code, out, err) = Powerless::new().run(daemon.folder(), &["reload"]);
    let expected = if nix::unistd::geteuid().is_root() { 5 } else { 0 };
    assert_eq!(code, expected, "{out}{err}");
}

#[test]
fn a_port_that_needs_a_right_is_code_5_and_names_the_address() {
    // A network of its own begins with the kernel's default, ports below 1024 for the privileged, whatever this
    // machine has. Who makes one has every right in it, so they are laid down.
    let own_network = ["--user", "--map-root-user", "--net", "setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let possible = Command::new("unshare").args(own_network).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("not tested: this machine lets nobody make a network namespace (unshare, setpriv of util-linux)");
        assert!(std::env::var_os("CI").is_none(), "nothing may be skipped");
        return;
    }
    let folder = folder_with(&CONFIG.replace("LISTEN", "dns = [\"0.0.0.0:53\"]\nadmin = \"off\""));
    let mut command = Command::new("unshare");
    command.args(own_network).args([binary(), "serve", "--config"]).arg(folder.path().join("tunnelwarden.toml"));
    command.arg("--state-dir").arg(folder.path().join("state")).stdin(Stdio::null()).env("NO_COLOR", "1");
    let (code, out, err) = outcome(command.output().unwrap());
    assert_eq!((code, out.as_str()), (5, ""), "{err}");
    assert!(err.contains("cannot listen on 0.0.0.0:53 over UDP: not permitted"), "{err}");
}

#[test]
fn an_address_in_use_says_by_whom() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = folder_with(&CONFIG.replace("LISTEN", &format!("dns = [\"{address}\"]\nadmin = \"off\"")));
    let (code, out, err) = run_in(folder.path(), &["serve"]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    let holder = format!("cannot listen on {address} over UDP: the port is in use by ");
    assert!(err.contains(&holder), "{err}");
    assert!(err.contains(&format!("process {}", std::process::id())), "{err}");
}

#[test]
fn a_state_folder_has_one_daemon() {
    let daemon = Daemon::start(CONFIG);
    let (code, out, err) = outcome(daemon.command(&["serve"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains(&format!("is in use by another tunnelwarden, process {}", daemon.pid())), "{err}");
    assert!(ask("tunnel.ngrok.com.", RecordType::A).udp(daemon.dns()).answers.is_empty(), "the first goes on");
}

#[test]
fn sigterm_ends_the_daemon_with_code_0() {
    let (code, said) = Daemon::start(CONFIG).stop();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("stopped") && !said.contains('\u{1b}'), "{said}");
}

#[test]
fn a_daemon_whose_output_nobody_reads_any_more_goes_on_refusing() {
    let folder = folder_with(&format!("{CONFIG}[[audit.sinks]]\nkind = \"stdout\"\n"));
    let mut child = command(folder.path(), &["serve"]);
    let mut child = Ended(child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    // Where standard output is a sink's, the banner goes to standard error.
    drop(child.0.stdout.take());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let listening = lines.find(|line| line.trim_start().starts_with("listening")).unwrap();
    let address = listening.split_whitespace().nth(1).unwrap().parse().unwrap();
    lines.find(|line| line.trim_start().starts_with("record")).unwrap();
    for name in ["tunnel.ngrok.com.", "connect.ngrok-agent.com.", "ngrokd.ngrok.com."] {
        ask(name, RecordType::A).udp(address);
    }
    // The store has them all, whatever becomes of the other sink.
    let shown = run_in(folder.path(), &["attempts", "--json"]).1;
    assert_eq!(shown.lines().count(), 3, "{shown}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = wait_for("the end", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn rust_log_says_what_is_logged_and_nonsense_in_it_is_passed_over_aloud() {
    let said_with = |words: &str| {
        let daemon = Daemon::start_under(&["env", &format!("RUST_LOG={words}")], CONFIG, |_| {});
        let (code, said) = daemon.stop();
        assert_eq!(code, Some(0), "{said}");
        said
    };
    assert!(!said_with("error").contains("stopped"));
    assert!(said_with("error,tunnelwarden::daemon=info").contains("stopped"));
    let said = said_with("");
    assert!(said.contains("stopped") && !said.contains("RUST_LOG"), "an empty one is none: {said}");
    let said = said_with("tunnelwarden=shout");
    assert!(said.contains("WARN RUST_LOG is passed over: ") && said.contains("stopped"), "{said}");
}
