//! What breaks beside the daemon: the clock, the disk, the store, who reads the record, an interface, the daemon itself.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::Write as _,
    mem::ManuallyDrop,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::TXT},
};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};

use crate::support::{
    bed::{Namespace, installed, possible},
    client::{ask, receive},
    daemon::{Daemon, command, wait_for},
    load::{Load, address_of, upstream_for_all},
    upstream::Upstream,
};

const DAY: i64 = 24 * 3600;

fn config(server: SocketAddr, more: &str) -> String {
    format!("{more}\n[listen]\nLISTEN\n[upstream]\nservers = [\"udp://{server}\"]\n")
}

fn rcode(daemon: SocketAddr, name: &str) -> ResponseCode {
    ask(name, RecordType::A).udp(daemon).metadata.response_code
}

fn is_refused(daemon: &Daemon, name: &str) -> bool {
    rcode(daemon.dns(), name) == ResponseCode::NXDomain
}

/// One of many names that are blocked.
fn numbered(number: u32) -> String {
    format!("connect.n{number}.ngrok-agent.com")
}

fn names(attempts: &[serde_json::Value]) -> HashSet<String> {
    attempts.iter().map(|attempt| attempt["question"]["name"].as_str().unwrap().to_owned()).collect()
}

/// libfaketime stands before the kernel's wall clock; the monotonic one cannot be set, and stays.
#[test]
fn a_clock_that_jumps_by_days_changes_no_ttl_and_no_timeout_and_costs_no_answer() {
    let test = "faults::a_clock_that_jumps_by_days_changes_no_ttl_and_no_timeout_and_costs_no_answer";
    if !installed(test, "faketime", "--version") {
        return;
    }
    let library = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
    let library = format!("LD_PRELOAD={}", String::from_utf8(library.stdout).unwrap().trim());
    let offset = tempfile::NamedTempFile::new().unwrap();
    let jump = |days: i64| fs::write(offset.path(), format!("{:+}", days * DAY)).unwrap();
    jump(0);
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", offset.path().display());
    let switches = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1"];
    let words = [&["env", &library, &file], &switches[..]].concat();
    let upstream = Upstream::start(|question, _| {
        let ttl = if question.queries[0].name().to_ascii().starts_with("short") { 1 } else { 3600 };
        Some(address_of(question, ttl).to_vec().unwrap())
    });
    let asked = |name: &str| upstream.asked().iter().filter(|(asked, _)| asked == name).count();
    let daemon = Daemon::start_under(&words, &config(upstream.address(), ""), |_| {});
    assert_eq!(rcode(daemon.dns(), "long.example"), ResponseCode::NoError);
    for (number, days) in [1, -1, 400, -30].into_iter().enumerate() {
        let (short, fresh) = (format!("short{number}.example"), format!("fresh{number}.example"));
        let blocked = format!("connect.jump{number}.ngrok-agent.com");
        assert_eq!(rcode(daemon.dns(), &short), ResponseCode::NoError);
        jump(days);
        assert!(is_refused(&daemon, &blocked));
        let attempts = daemon.attempts();
        let attempt = attempts.iter().find(|attempt| attempt["question"]["name"] == blocked.as_str()).unwrap();
        let shown: Timestamp = attempt["first"].as_str().unwrap().parse().unwrap();
        let jumped = shown.as_second() - Timestamp::now().as_second();
        assert!((jumped - days * DAY).abs() < 60, "the stamp follows the wall clock: {shown}");

        let kept = ask("long.example", RecordType::A).udp(daemon.dns());
        assert!((3000..=3600).contains(&kept.answers[0].ttl), "{days} days: {}", kept.answers[0].ttl);
        assert_eq!(asked("long.example"), 1, "{days} days: an answer does not end early");
        assert_eq!(rcode(daemon.dns(), &fresh), ResponseCode::NoError);
        wait_for("the end of an answer's second", || {
            assert_eq!(rcode(daemon.dns(), &short), ResponseCode::NoError);
            (asked(&short) > 1).then_some(())
        });
    }
    upstream.silence(true);
    jump(3);
    assert_eq!(rcode(daemon.dns(), "silent.example"), ResponseCode::ServFail, "a question still has its time");
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_kill_at_any_moment_of_writing_tears_nothing_and_loses_nothing_older_than_a_second() {
    const KILLS: usize = 4;
    let upstream = upstream_for_all();
    let sink = "[[audit.sinks]]\nkind = \"file\"\npath = \"attempts.jsonl\"\n";
    // In memory, where there is such a folder: a disk that stalls is not what is tested.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let text = config(upstream.address(), sink).replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    fs::write(folder.path().join("tunnelwarden.toml"), text).unwrap();
    let serve = command(folder.path(), &["serve"]);
    let mut daemon = Daemon::launch(folder, serve);
    let mut owed = HashSet::new();
    for round in 0..KILLS {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(daemon.dns()).unwrap();
        let asker = thread::spawn(move || {
            let mut told = Vec::new();
            for number in 0.. {
                let name = format!("connect.r{round}n{number}.ngrok-agent.com");
                // Dead, it has no port, and the kernel says so.
                if socket.send(&ask(&name, RecordType::A).bytes()).is_err()
                    || receive(&socket, Duration::from_secs(5)).is_none()
                {
                    break;
                }
                told.push((name, Instant::now()));
                // At full speed there would be more names than are told apart within a minute.
                thread::sleep(Duration::from_micros(500));
            }
            told
        });
        // Another moment within the worker's steps each time.
        thread::sleep(Duration::from_millis(1300 + 17 * u64::try_from(round).unwrap()));
        let (killed, log) = (Instant::now(), daemon.log());
        let mut before = 0;
        daemon.crash_and_restart_after(|_| {
            let told = asker.join().unwrap();
            let older = told.into_iter().filter(|(_, at)| *at + Duration::from_secs(1) < killed);
            before = owed.len();
            owed.extend(older.map(|(name, _)| name));
        });
        assert!(owed.len() > before, "it was killed before it had anything to lose");
        let shown = names(&daemon.attempts());
        let missing: Vec<_> = owed.difference(&shown).collect();
        assert!(missing.is_empty(), "kill {round}: {} of {}: {missing:?}\n{log}", missing.len(), owed.len());
    }
    assert!(is_refused(&daemon, "connect.last.ngrok-agent.com"));
    assert!(names(&daemon.attempts()).contains("connect.last.ngrok-agent.com"));
    let text = fs::read_to_string(daemon.folder().join("attempts.jsonl")).unwrap();
    let lines: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.len() + KILLS >= text.lines().count(), "a kill cuts one line short at most");
    let written = names(&lines);
    let missing: Vec<_> = owed.difference(&written).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(written.contains("connect.last.ngrok-agent.com"), "what follows a torn line is whole");
    let store = rusqlite::Connection::open(daemon.folder().join("state/attempts.db")).unwrap();
    let verdict: String = store.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}

#[test]
fn a_store_that_is_broken_at_the_start_is_set_aside_and_a_new_one_begun() {
    let upstream = upstream_for_all();
    let mut daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon, "connect.before.ngrok-agent.com"));
    assert_eq!(daemon.attempts().len(), 1);
    daemon.crash_and_restart_after(|folder| {
        fs::write(folder.join("state/attempts.db"), [0x55; 50_000]).unwrap();
        // Its log alone would bring it back.
        fs::write(folder.join("state/attempts.db-wal"), [0x55; 50_000]).unwrap();
    });
    for number in 0..50 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    assert_eq!(daemon.attempts().len(), 50);
    let files = fs::read_dir(daemon.folder().join("state")).unwrap();
    let aside: Vec<_> = files.map(|file| file.unwrap()).filter(|file| is_aside(&file.path())).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read(aside[0].path()).unwrap(), [0x55; 50_000], "it is kept for whoever can read it");
    assert_eq!(daemon.log().matches("begun anew").count(), 1, "{}", daemon.log());
}

/// A broken store, and not its log.
fn is_aside(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.starts_with("attempts.db.corrupt-") && name.ends_with('Z')
}

#[test]
fn a_store_that_somebody_keeps_locked_stops_nobody_and_gets_all_of_it_afterwards() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(upstream.address(), ""));
    assert!(is_refused(&daemon, &numbered(0)));
    assert_eq!(daemon.attempts().len(), 1);
    let holder = rusqlite::Connection::open(daemon.folder().join("state/attempts.db")).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let failures =
        || daemon.log().lines().filter(|line| line.contains("attempts.db") && line.contains("fails:")).count();
    assert!(is_refused(&daemon, &numbered(1)));
    wait_for("the log says that it is locked", || (failures() > 0).then_some(()));
    for number in 2..200 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    assert_eq!(rcode(daemon.dns(), "other.example"), ResponseCode::NoError);
    let before: i64 = holder.query_row("SELECT count(*) FROM attempts", [], |row| row.get(0)).unwrap();
    assert_eq!(before, 1, "it was not locked at all");
    holder.execute_batch("COMMIT").unwrap();
    wait_for("all of it", || (daemon.attempts().len() == 200).then_some(()));
    assert_eq!(failures(), 1, "said once: {}", daemon.log());
}

#[test]
fn a_sink_that_nobody_reads_stops_nobody_not_even_a_stop() {
    let upstream = upstream_for_all();
    let sink = "[[audit.sinks]]\nkind = \"file\"\npath = \"pipe\"\n";
    let daemon = Daemon::start_with(&config(upstream.address(), sink), |folder| {
        assert!(Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap().success());
    });
    let pipe = daemon.folder().join("pipe");
    for number in 0..300 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    // A reader that reads nothing: a pipe holds some 150 lines.
    let reader = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(pipe).unwrap();
    for number in 300..1000 {
        assert!(is_refused(&daemon, &numbered(number)));
    }
    assert_eq!(rcode(daemon.dns(), "other.example"), ResponseCode::NoError);
    assert_eq!(daemon.attempts().len(), 1000, "the store has them all");
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.lines().count() < 30, "{log}");
    drop(reader);
}

/// The state folder is a file system of one megabyte, in a mount namespace of the daemon's.
#[test]
fn with_no_byte_of_disk_left_it_answers_and_refuses_and_records_once_there_is_room() {
    if possible("faults::with_no_byte_of_disk_left_it_answers_and_refuses_and_records_once_there_is_room") {
        // Who is root in name only comes to a network whose loopback is down.
        Namespace::new().inside(fill_the_disk);
    }
}

fn fill_the_disk() {
    const SMALL_DISK: &str = "\
        for state; do :; done; mkdir -p \"$state\"; mount -t tmpfs -o size=1m,mode=755 tmpfs \"$state\"; exec \"$@\"";
    let upstream = upstream_for_all();
    let sink = "[[audit.sinks]]\nkind = \"file\"\npath = \"state/attempts.jsonl\"\n";
    let words = ["unshare", "--mount", "sh", "-ec", SMALL_DISK, "sh"];
    let daemon = Daemon::start_under(&words, &config(upstream.address(), sink), |_| {});
    let inside = Path::new("/proc").join(daemon.pid().to_string()).join("root");
    let folder = inside.join(daemon.folder().strip_prefix("/").unwrap());
    let pid = daemon.pid().to_string();
    let attempts = || daemon.attempts_under(&["nsenter", "--mount", "--target", &pid]).len();
    assert!(is_refused(&daemon, &numbered(0)));
    assert_eq!(attempts(), 1);
    let filler = folder.join("state/filler");
    let mut disk = File::create(&filler).unwrap();
    for size in [4096, 1] {
        while disk.write_all(&vec![0; size]).is_ok() {}
    }
    for number in 1..300 {
        assert!(is_refused(&daemon, &numbered(number)));
        assert_eq!(rcode(daemon.dns(), &format!("n{number}.example")), ResponseCode::NoError);
    }
    wait_for("the log says so", || daemon.log().contains("fails:").then_some(()));
    drop(disk);
    fs::remove_file(filler).unwrap();
    wait_for("all of it in the store", || (attempts() == 300).then_some(()));
    let written = || {
        let text = fs::read_to_string(folder.join("state/attempts.jsonl")).unwrap();
        names(&text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()).len()
    };
    wait_for("all of it in the file", || (written() == 300).then_some(()));
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked") && log.lines().count() < 40, "{log}");
}

/// Client and upstream are at the far end of a cable, another client beside the daemon.
#[test]
fn an_interface_that_goes_away_costs_those_on_others_nothing_and_is_served_again_once_it_is_back() {
    const CABLE: &str = "addr add 10.78.0.1/24 dev near\n";
    let test = "faults::an_interface_that_goes_away_costs_those_on_others_nothing_and_is_served_again_once_it_is_back";
    if !possible(test) {
        return;
    }
    let (here, there) = (Namespace::new(), Namespace::new());
    let lay = || {
        here.join("near", &there, "far");
        here.ip(CABLE);
        there.ip("addr add 10.78.0.2/24 dev far\n");
    };
    lay();
    // What wakes their threads has to start from where they are: they are dropped there, at the end.
    let beside = ManuallyDrop::new(here.inside(upstream_for_all));
    let beyond = "10.78.0.2:5399".parse().unwrap();
    let answer = |question: &Message, _| Some(address_of(question, 60).to_vec().unwrap());
    let far = ManuallyDrop::new(there.inside(|| Upstream::start_at(beyond, answer)));
    let text = format!(
        "[listen]\ndns = [\"127.0.0.1:0\", \"10.78.0.1:5398\"]\nadmin = \"off\"\n[upstream]\nservers = [\"{}\"]\n\
         [[upstream.zones]]\nzones = [\"far.example\"]\nservers = [\"{}\"]\n",
        beside.uri(),
        far.uri()
    );
    let daemon = here.inside(|| Daemon::start(&text));
    let [near_door, far_door] = daemon.addresses[..] else { panic!("{:?}", daemon.addresses) };
    let from_far =
        |name: &str| there.inside(|| [ask(name, RecordType::A).udp(far_door), ask(name, RecordType::A).tcp(far_door)]);
    for reply in from_far("one.far.example") {
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
    let load = here.inside(|| Load::on(near_door));
    load.go_on_for(50);
    here.ip("link del near\n");
    assert_eq!(here.inside(|| rcode(near_door, "two.far.example")), ResponseCode::ServFail);
    load.go_on_for(100);
    lay();
    wait_for("the upstream at the far end", || {
        here.inside(|| (rcode(near_door, "three.far.example") == ResponseCode::NoError).then_some(()))
    });
    for (name, expected) in
        [("four.far.example", ResponseCode::NoError), ("connect.ngrok-agent.com", ResponseCode::NXDomain)]
    {
        for reply in from_far(name) {
            assert_eq!(reply.metadata.response_code, expected, "{name}");
        }
    }
    let (wrong, asked) = load.end();
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
    there.inside(move || drop(ManuallyDrop::into_inner(far)));
    here.inside(move || drop(ManuallyDrop::into_inner(beside)));
}

/// A process may have as much memory as its limits say.
#[test]
fn a_cache_that_there_is_no_memory_for_is_made_smaller_and_that_is_said() {
    let upstream = upstream_for_all();
    let words = ["prlimit", "--as=3221225472"];
    let daemon = Daemon::start_under(&words, &config(upstream.address(), "[cache]\nsize = \"64TiB\""), |_| {});
    assert_eq!(rcode(daemon.dns(), "other.example"), ResponseCode::NoError);
    let log = daemon.log();
    let given = log.split_once("the cache takes ").and_then(|(_, rest)| rest.split_once(" MiB")).expect(&log).0;
    // Half of the three gigabytes, or of what a smaller machine has.
    assert!((1..=1536).contains(&given.parse::<u32>().unwrap()), "{log}");
    drop(daemon);
    let fits = Daemon::start(&config(upstream.address(), ""));
    assert!(!fits.log().contains("the cache takes"), "{}", fits.log());
}

/// A control group of the kernel's with little memory. It kills what takes more.
struct Narrow {
    folder: PathBuf,
}

impl Narrow {
    /// Nothing where we may not make one, as in most containers: their groups are the engine's.
    fn new(bytes: u64) -> Option<Self> {
        let versions = [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
        versions.into_iter().find_map(|(root, bound)| {
            let group = Self { folder: Path::new(root).join(format!("tunnelwarden-test-{}", process::id())) };
            fs::create_dir(&group.folder).ok()?;
            let bound = group.folder.join(bound);
            (bound.exists() && fs::write(bound, bytes.to_string()).is_ok()).then_some(group)
        })
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn where_memory_is_short_a_cache_that_fills_gets_nobody_killed() {
    const MEMORY: u64 = 96 << 20;
    const NAMES: usize = 80_000;
    const WINDOW: usize = 64;
    let Some(group) = Narrow::new(MEMORY) else {
        eprintln!("left out: there may be no control group with a bound on memory");
        return;
    };
    let upstream = Upstream::start(|question, _| {
        let mut reply = address_of(question, 600);
        let query = &question.queries[0];
        if query.query_type() == RecordType::TXT {
            let text = TXT::new(vec!["x".repeat(250); 4]);
            reply.answers.push(Record::from_rdata(query.name().clone(), 600, RData::TXT(text)));
        }
        Some(reply.to_vec().unwrap())
    });
    let procs = group.folder.join("cgroup.procs");
    let words = ["sh", "-ec", "echo $$ > \"$0\"; exec \"$@\"", procs.to_str().unwrap()];
    let daemon = Daemon::start_under(&words, &config(upstream.address(), "[cache]\nsize = \"1GiB\""), |_| {});
    assert!(daemon.log().contains("the cache takes 48 MiB, half of the 96 MiB"), "{}", daemon.log());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(daemon.dns()).unwrap();
    let numbers: Vec<_> = (0..NAMES).collect();
    for window in numbers.chunks(WINDOW) {
        for number in window {
            socket.send(&ask(&format!("n{number}.example"), RecordType::TXT).bytes()).unwrap();
        }
        for _ in window {
            receive(&socket, Duration::from_secs(20)).expect("it was killed");
        }
    }
    let taken = daemon.memory();
    assert!((MEMORY / 2..MEMORY).contains(&taken), "{} MiB", taken >> 20);
    assert_eq!(rcode(daemon.dns(), "other.example"), ResponseCode::NoError);
    let (code, log) = daemon.stop();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_standard_output_that_takes_nothing_keeps_nobody_from_being_served() {
    let upstream = upstream_for_all();
    let folder = tempfile::tempdir().unwrap();
    let text = config(upstream.address(), "").replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"127.0.0.1:0\"");
    fs::write(folder.path().join("tunnelwarden.toml"), text).unwrap();
    let log = File::create(folder.path().join("log")).unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut daemon = command(folder.path(), &["serve"]).stdout(full).stderr(log).spawn().unwrap();
    let is_up = || command(folder.path(), &["healthcheck"]).output().unwrap().status.success();
    let said = || fs::read_to_string(folder.path().join("log")).unwrap();
    wait_for("readiness", || (is_up() || daemon.try_wait().unwrap().is_some()).then_some(()));
    kill(nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", said());
    assert!(!said().contains("panicked"), "{}", said());
}
