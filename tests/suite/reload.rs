//! Files that change while the daemon runs: nothing is lost, nothing half-read, nothing taken away unasked.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        RData, Record, RecordType,
        rdata::{A, CNAME},
    },
};
use jiff::Timestamp;
use nix::sys::signal::Signal;

use crate::support::{
    client::ask,
    daemon::{Daemon, binary, wait_for},
    load::{Load, address_of, upstream_for_all},
    upstream::Upstream,
};

/// A pack that is not built in, with a list.
const PACK: &str =
    "name = \"ours\"\nversion = \"1\"\n[[rules]]\nid = \"one\"\nreason = \"test\"\nlists = [\"names.txt\"]\n";

fn config(upstream: &Upstream, more: &str) -> String {
    format!("{more}\n[listen]\nLISTEN\n[upstream]\nservers = [\"{}\"]\n", upstream.uri())
}

fn write_pack(folder: &Path) {
    fs::create_dir(folder.join("policies")).unwrap();
    fs::write(folder.join("policies/ours.toml"), PACK).unwrap();
    fs::write(folder.join("policies/names.txt"), "listed.example\n").unwrap();
}

fn rcode(daemon: &Daemon, name: &str) -> ResponseCode {
    ask(name, RecordType::A).udp(daemon.dns()).metadata.response_code
}

fn is_blocked(daemon: &Daemon, name: &str) -> bool {
    let rcode = rcode(daemon, name);
    assert!(matches!(rcode, ResponseCode::NXDomain | ResponseCode::NoError), "{name}: {rcode}");
    rcode == ResponseCode::NXDomain
}

fn becomes_blocked(daemon: &Daemon, name: &str) {
    wait_for(name, || is_blocked(daemon, name).then_some(()));
}

/// Exit code, standard output and standard error.
fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// How many reloads the log tells of.
fn reloads(daemon: &Daemon) -> usize {
    daemon.log().matches("files read again").count()
}

/// Returns once a reload that began after this call is over.
fn read_again(daemon: &Daemon) {
    assert_eq!(daemon.command(&["reload", "--accept"]).status.code(), Some(0));
}

#[test]
fn a_reload_with_a_broken_file_under_load_loses_nothing_and_changes_nothing() {
    let upstream = upstream_for_all();
    let good = config(&upstream, "[policy]\npacks = [\"ngrok\", \"dns-bypass\", \"ours\"]");
    let daemon = Daemon::start_with(&good, write_pack);
    let load = Load::on(daemon.dns());
    load.go_on_for(50);
    let at = |name: &str| daemon.folder().join(name);
    #[rustfmt::skip]
    let broken = [
        ("tunnelwarden.toml",   "[policy]\nmode = \"perhaps\"\n",  "tunnelwarden.toml:2:8"),
        ("tunnelwarden.toml",   "[policy\n",                       "tunnelwarden.toml:1:"),
        ("policies/ours.toml",  "name = 7\n",                      "ours.toml:1:8"),
        ("policies/names.txt",  "",                                "ours.toml"),
    ];
    for (file, text, place) in broken {
        let kept = fs::read(at(file)).unwrap();
        fs::write(at(file), text).unwrap();
        if text.is_empty() {
            fs::remove_file(at(file)).unwrap();
        }
        let (code, output, errors) = said(&daemon.command(&["reload"]));
        assert_eq!(code, Some(3), "{file}: {output}{errors}");
        assert!(output.starts_with("refused: the files are broken; still in force: "), "{output}");
        assert!(errors.contains(place), "{errors}");
        wait_for("the log says where", || daemon.log().contains(place).then_some(()));
        load.go_on_for(50);
        assert!(is_blocked(&daemon, "listed.example"), "the old policy stays");
        fs::write(at(file), kept).unwrap();
    }
    let (code, output, errors) = said(&daemon.command(&["reload", "--json"]));
    assert_eq!(code, Some(0), "{output}{errors}");
    let report: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!((&report["outcome"], &report["groups"]), (&"loaded".into(), &0.into()), "{report}");
    assert!(report["rules"].as_u64().unwrap() > 3, "{report}");
    load.go_on_for(50);
    let (wrong, asked) = load.end();
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
}

#[test]
fn a_long_list_read_again_and_again_keeps_no_memory_and_costs_no_answer() {
    const NAMES: u64 = 100_000;
    let upstream = upstream_for_all();
    let daemon = Daemon::start_with(&config(&upstream, "[policy]\npacks = [\"ngrok\", \"ours\"]"), write_pack);
    let read_names = |round: u64| {
        let line = |number| format!("||n{number}.round{round}.zone{}.example^\n", number % 997);
        let names: String = (0..NAMES).map(line).collect();
        fs::write(daemon.folder().join("policies/names.txt"), names).unwrap();
        read_again(&daemon);
        assert!(is_blocked(&daemon, &format!("x.n99999.round{round}.zone299.example")));
        assert!(!is_blocked(&daemon, &format!("n1.round{round}.zone2.example")));
    };
    read_again(&daemon);
    let before = daemon.memory();
    (0..5).for_each(read_names);
    // What was in force goes once the last question that saw it is answered.
    wait_for("at most 50 bytes a name", || (daemon.memory() < before + 50 * NAMES).then_some(()));
    let load = Load::on(daemon.dns());
    load.go_on_for(50);
    read_names(5);
    load.go_on_for(50);
    let (wrong, asked) = load.end();
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
}

#[test]
fn a_change_that_takes_much_away_waits_for_a_yes() {
    let upstream = upstream_for_all();
    let full = |more: &str| config(&upstream, &format!("{more}\n[organization]\ningress = [\"connect.acme.example\"]"));
    let daemon = Daemon::start(&full("[policy]\npacks = [\"ngrok\", \"bore\"]"));
    daemon.rewrite(&full("[policy]\npacks = [\"ngrok\"]"));
    wait_for("the daemon's own look at the files", || daemon.log().contains("pack bore removed").then_some(()));
    assert!(is_blocked(&daemon, "bore.pub"));
    let (code, output, _) = said(&daemon.command(&["reload"]));
    assert_eq!(code, Some(4), "{output}");
    assert!(output.starts_with("held: ") && output.contains("  pack bore removed"), "{output}");
    assert!(is_blocked(&daemon, "bore.pub"));
    let (code, output, _) = said(&daemon.command(&["reload", "--accept"]));
    assert_eq!(code, Some(0), "{output}");
    assert!(!is_blocked(&daemon, "bore.pub"));

    daemon.rewrite(&config(&upstream, "[policy]\npacks = [\"ngrok\"]"));
    let (code, output, _) = said(&daemon.command(&["reload"]));
    assert_eq!((code, output.contains("own ingress connect.acme.example removed")), (Some(4), true), "{output}");
    daemon.signal(Signal::SIGHUP);
    wait_for("SIGHUP to take it", || (daemon.command(&["reload"]).status.code() == Some(0)).then_some(()));
}

#[test]
fn a_hundred_signals_in_a_burst_cost_no_answer_and_end_with_the_last_file() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(&upstream, ""));
    let load = Load::on(daemon.dns());
    load.go_on_for(20);
    for number in 0..100 {
        daemon.rewrite(&config(&upstream, &format!("[policy]\nblock = [\"n{number}.test\"]")));
        daemon.signal(Signal::SIGHUP);
    }
    becomes_blocked(&daemon, "n99.test");
    assert!(!is_blocked(&daemon, "n98.test"));
    load.go_on_for(50);
    let (wrong, asked) = load.end();
    assert!(wrong.is_empty(), "{} of {asked}: {wrong:?}", wrong.len());
    assert!(reloads(&daemon) <= 100);
}

#[test]
fn changed_servers_limits_and_sinks_take_effect_and_sockets_and_cache_want_a_restart() {
    let one = upstream_for_all();
    let two = Upstream::start(|question, _| {
        let mut reply = address_of(question, 60);
        let address = reply.answers[0].clone();
        reply.answers.extend((0..50).map(|last| {
            let mut other = address.clone();
            other.data = RData::A(A::new(192, 0, 2, 100 + last));
            other
        }));
        Some(reply.to_vec().unwrap())
    });
    let daemon = Daemon::start(&config(&one, ""));
    assert_eq!(rcode(&daemon, "first.example"), ResponseCode::NoError);
    let more = "[limits]\nudp-size = 512\n[[audit.sinks]]\nkind = \"file\"\npath = \"state/attempts.jsonl\"\n[cache]\nsize = \"1MiB\"";
    let changed = config(&two, more).replace("LISTEN", "dns = [\"127.0.0.1:1\"]\nadmin = \"off\"");
    daemon.rewrite(&changed);
    let (code, output, errors) = said(&daemon.command(&["reload"]));
    assert_eq!(code, Some(0), "{output}{errors}");
    assert!(output.contains("  after a restart: [listen]\n  after a restart: [cache]\n"), "{output}");
    assert_eq!(rcode(&daemon, "second.example"), ResponseCode::NoError);
    assert_eq!(two.asked(), [("second.example".to_owned(), "A".to_owned())]);
    assert_eq!(one.asked().len(), 1, "the first server is left alone");
    let reply = ask("second.example", RecordType::A).udp(daemon.dns());
    assert!(reply.metadata.truncation, "850 bytes are more than the new limit");
    assert!(is_blocked(&daemon, "connect.ngrok-agent.com"));
    let sink = daemon.folder().join("state/attempts.jsonl");
    wait_for("a line in the new sink", || fs::read_to_string(&sink).ok().filter(|text| text.contains("connect.ngrok")));
}

#[test]
fn a_sink_in_a_folder_that_was_not_written_to_before_takes_a_restart() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(&upstream, ""));
    daemon.rewrite(&config(&upstream, "[[audit.sinks]]\nkind = \"file\"\npath = \"elsewhere/lines\"\n"));
    let (code, output, errors) = said(&daemon.command(&["reload"]));
    if code == Some(0) {
        assert!(std::env::var_os("CI").is_none(), "this has to run: with Landlock");
        return eprintln!("SKIPPED: no Landlock");
    }
    assert_eq!(code, Some(3), "{output}{errors}");
    assert!(errors.contains("/elsewhere is written only after a restart"), "{errors}");
    assert!(is_blocked(&daemon, "connect.ngrok-agent.com"));
}

#[test]
fn an_exception_that_ends_while_running_is_over_and_a_clock_set_back_revives_none() {
    let upstream = upstream_for_all();
    let exception = |until: Timestamp| {
        let reason = "networks = [\"any\"]\nreason = \"test\"";
        config(&upstream, &format!("[[exceptions]]\nname = \"connect.ngrok-agent.com\"\nuntil = {until}\n{reason}"))
    };
    let soon = Timestamp::now() + Duration::from_secs(6);
    let mut daemon = Daemon::start(&exception(soon));
    let reply = ask("connect.ngrok-agent.com", RecordType::A).udp(daemon.dns());
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers[0].ttl <= 6, "nobody keeps it longer than it may be had: {}", reply.answers[0].ttl);
    becomes_blocked(&daemon, "connect.ngrok-agent.com");
    assert!(Timestamp::now() >= soon, "not before its end");
    read_again(&daemon);
    assert!(is_blocked(&daemon, "connect.ngrok-agent.com"), "it stays over");

    // As a clock set back over a restart looks from here.
    let hour = Duration::from_secs(3600);
    daemon.rewrite(&exception(Timestamp::now() + hour * 2));
    read_again(&daemon);
    assert!(!is_blocked(&daemon, "connect.ngrok-agent.com"));
    daemon.crash_and_restart();
    assert!(!is_blocked(&daemon, "connect.ngrok-agent.com"), "a restart alone changes nothing");
    daemon.crash_and_restart_after(|folder| {
        fs::write(folder.join("state/latest-time"), format!("{}\n", Timestamp::now() + hour)).unwrap();
    });
    assert!(is_blocked(&daemon, "connect.ngrok-agent.com"));
    assert!(daemon.log().contains("the clock is behind the latest time seen"), "{}", daemon.log());
}

#[test]
fn what_is_cached_is_judged_by_the_policy_in_force_and_asked_of_nobody_again() {
    let upstream = Upstream::start(|question, _| {
        let mut reply = address_of(question, 300);
        let alias = RData::CNAME(CNAME("target.test.".parse().unwrap()));
        let alias = Record::from_rdata(question.queries[0].name().clone(), 300, alias);
        // The daemon asks for addresses of another family too, of which there are none.
        for address in &mut reply.answers {
            address.name = "target.test.".parse().unwrap();
        }
        reply.answers.insert(0, alias);
        Some(reply.to_vec().unwrap())
    });
    let daemon = Daemon::start(&config(&upstream, ""));
    for blocks in [false, true, false] {
        let more = if blocks { "[policy]\nblock = [\"target.test\"]" } else { "" };
        daemon.rewrite(&config(&upstream, more));
        read_again(&daemon);
        assert_eq!(is_blocked(&daemon, "alias.example"), blocks);
    }
    assert_eq!(upstream.asked().len(), 1);
}

#[test]
fn files_are_read_again_by_themselves_once_they_are_closed_and_left_alone() {
    let upstream = upstream_for_all();
    let block = |name: &str| config(&upstream, &format!("[policy]\nblock = [\"{name}\"]"));
    let daemon = Daemon::start(&config(&upstream, ""));
    daemon.rewrite(&block("renamed.test"));
    becomes_blocked(&daemon, "renamed.test");

    let text = block("written.test").replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    let (first, second) = text.split_at(text.find("[listen]").unwrap());
    let mut file = File::create(daemon.config_path()).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(1800));
    assert!(is_blocked(&daemon, "renamed.test") && !is_blocked(&daemon, "written.test"), "it is still being written");
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    becomes_blocked(&daemon, "written.test");

    fs::write(daemon.config_path(), "[policy\n").unwrap();
    wait_for("the refusal", || daemon.log().contains("what was in force still is").then_some(()));
    assert!(is_blocked(&daemon, "written.test"));
    daemon.rewrite(&block("mended.test"));
    becomes_blocked(&daemon, "mended.test");
}

#[test]
fn a_swapped_link_a_late_folder_and_a_relative_path_are_noticed() {
    let upstream = upstream_for_all();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let expand = |more: &str| config(&upstream, more).replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"");
    // As Kubernetes mounts a ConfigMap: the file is a link through a link to a folder, and that link is replaced.
    for (version, more) in
        [("..1", "[policy]\npacks = [\"ngrok\"]"), ("..2", "[policy]\npacks = [\"ngrok\"]\nblock = [\"swapped.test\"]")]
    {
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("tunnelwarden.toml"), expand(more)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/tunnelwarden.toml", at("tunnelwarden.toml")).unwrap();
    let mut command = Command::new(binary());
    command.current_dir(folder.path()).env("NO_COLOR", "1").env_remove("RUST_LOG");
    command.args(["serve", "--config", "tunnelwarden.toml", "--state-dir", "state"]);
    let daemon = Daemon::launch(folder, command);
    let at = |name: &str| daemon.folder().join(name);

    symlink("..2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    becomes_blocked(&daemon, "swapped.test");

    // A pack of the built-in name in a folder that was not there goes before the built-in one.
    fs::create_dir(at("policies")).unwrap();
    let mut pack = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/ngrok.toml")).unwrap();
    pack.push_str("\n[[rules]]\nid = \"late\"\nreason = \"test\"\nblock = [\"late.test\"]\n");
    fs::write(at("policies/ngrok.toml"), pack).unwrap();
    becomes_blocked(&daemon, "late.test");
    assert_eq!(daemon.command(&["reload"]).status.code(), Some(0));

    let kept: Vec<_> = fs::read_dir(at("state/last-good")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(kept.contains(&"tunnelwarden.toml".into()) && kept.contains(&"policies%ngrok.toml".into()), "{kept:?}");
}

#[test]
fn a_reload_goes_on_where_the_state_folder_cannot_be_written() {
    let upstream = upstream_for_all();
    let daemon = Daemon::start(&config(&upstream, ""));
    // Also root cannot make a folder where a file is.
    let last_good = daemon.folder().join("state/last-good");
    fs::remove_dir_all(&last_good).unwrap();
    fs::write(&last_good, "").unwrap();
    daemon.rewrite(&config(&upstream, "[policy]\nblock = [\"new.test\"]"));
    assert_eq!(daemon.command(&["reload"]).status.code(), Some(0));
    assert!(is_blocked(&daemon, "new.test"));
    wait_for("the log says so", || daemon.log().contains("cannot keep a copy of the files in force").then_some(()));
}
