//! The record as a whole: what goes in is found in files, store and followers, whatever happens in between.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rusqlite::Connection;
use tempfile::TempDir;

use super::{attempt::tests::attempt, *};
use crate::{metrics::Metrics, name::DomainName};

struct Bench {
    folder: TempDir,
    options: Options,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = Options { sinks: vec![Sink::File(folder.path().join("attempts.jsonl"))], ..Options::default() };
        Self { folder, options, metrics: Arc::default() }
    }

    fn start(&self) -> Recorder {
        Recorder::start(&self.options, self.folder.path(), Arc::clone(&self.metrics)).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn lines(&self) -> Vec<Record> {
        lines(&self.path("attempts.jsonl"))
    }

    fn rows(&self) -> Vec<Record> {
        Reader::open(&self.path("attempts.db")).unwrap().newest(&Filter::default(), 100_000).unwrap()
    }
}

fn lines(path: &Path) -> Vec<Record> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends within a line", path.display());
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn now_attempt(client: &str, name: &str) -> Attempt {
    Attempt { time: Timestamp::now(), ..attempt(client, name) }
}

#[tokio::test]
async fn an_attempt_is_in_file_and_store_within_a_second_and_they_say_the_same() {
    let bench = Bench::new();
    let recorder = bench.start();
    let started = Instant::now();
    let attempt = Attempt {
        via: Some("10.0.0.53".parse().unwrap()),
        group: Some("build-hosts".into()),
        evidence: Some(Evidence::Alias("tunnel.ngrok.com".parse().unwrap())),
        qtype: Some(65280),
        ..attempt("[::ffff:192.0.2.7]:5353", "connect.eu.ngrok-agent.com")
    };
    recorder.record(attempt);
    while bench.rows().is_empty() || bench.lines().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let id = bench.rows()[0].id;
    let expected = format!(
        r#"{{"version":1,"id":"{id}","time":"2027-01-15T08:00:00.000Z","decision":"blocked","way":"dns","client":{{"address":"192.0.2.7","port":5353}},"via":"10.0.0.53","group":"build-hosts","transport":"udp","question":{{"name":"connect.eu.ngrok-agent.com","type":"TYPE65280","class":"IN"}},"rule":"ngrok/connect","evidence":{{"alias":"tunnel.ngrok.com"}},"action":"nxdomain","rcode":"NXDOMAIN","count":1,"first":"2027-01-15T08:00:00.000Z","last":"2027-01-15T08:00:00.000Z"}}"#
    );
    let written = fs::read_to_string(bench.path("attempts.jsonl")).unwrap();
    assert_eq!(written.trim_end(), expected);
    assert_eq!(bench.rows(), bench.lines());
    recorder.stop().await;
}

#[tokio::test]
async fn repeats_are_one_row_with_a_count_and_two_lines_with_one_id() {
    let bench = Bench::new();
    let recorder = bench.start();
    let mut follower = recorder.subscribe();
    for _ in 0..12 {
        recorder.record(now_attempt("192.0.2.7:1", "a.example"));
    }
    recorder.flush().await;
    assert_eq!(bench.rows().iter().map(|row| row.count).collect::<Vec<_>>(), [12]);
    assert_eq!(bench.lines().iter().map(|line| line.count).collect::<Vec<_>>(), [1]);
    recorder.stop().await;
    let lines = bench.lines();
    assert_eq!(lines.iter().map(|line| line.count).collect::<Vec<_>>(), [1, 12]);
    assert!(lines[0].id == lines[1].id && lines[0].first == lines[1].first);
    assert_eq!(*follower.next().await.unwrap(), lines[0]);
    assert_eq!(*follower.next().await.unwrap(), lines[1]);
    assert!(follower.next().await.is_none(), "the recorder has stopped");
    recorder.record(now_attempt("192.0.2.7:1", "late.example"));
    assert_eq!((bench.metrics.audit_attempts.value(), recorder.health().lost), (12, 1));
    assert!(!bench.path("attempts.db-wal").exists(), "the store was closed before the answer");
    recorder.flush().await;
    recorder.stop().await;
}

#[tokio::test]
async fn what_many_threads_repeat_is_counted_to_the_last_while_folds_are_closed_under_them() {
    const TIMES: u64 = 3000;
    let bench = Bench::new();
    let recorder = bench.start();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let recorder = recorder.clone();
            std::thread::spawn(move || {
                for number in 0..TIMES {
                    recorder
                        .record(now_attempt("192.0.2.7:1", ["a.example", "b.example"][usize::from(number % 3 == 0)]));
                }
            })
        })
        .collect();
    let mut rounds = 0;
    while threads.iter().any(|thread| !thread.is_finished()) {
        recorder.reconfigure(&bench.options, bench.folder.path()).await.unwrap();
        rounds += 1;
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    recorder.flush().await;
    let counted: u64 = bench.rows().iter().map(|row| row.count).sum();
    assert_eq!((counted, bench.metrics.audit_attempts.value()), (4 * TIMES, 4 * TIMES), "{rounds} rounds");
    assert!(bench.rows().len() <= 2 * (rounds + 1), "{} rows", bench.rows().len());
    recorder.stop().await;
    assert_eq!(recorder.health().lost, 0);
}

#[tokio::test]
async fn a_flood_of_pairs_of_client_and_name_is_counted_whole_and_leaves_the_queue_room() {
    const PAIRS: u64 = 100_000;
    let bench = Bench::new();
    let recorder = bench.start();
    for number in 0..PAIRS {
        let client = format!("10.{}.{}.1:1", number / 1000 % 10, number % 100);
        recorder.record(now_attempt(&client, &format!("n{number}.example")));
    }
    recorder.flush().await;
    let counted: u64 = bench.rows().iter().map(|row| row.count).sum();
    assert_eq!((counted, recorder.health().lost), (PAIRS, 0));
    recorder.stop().await;
}

#[tokio::test]
async fn hostile_names_break_neither_a_line_nor_json_nor_a_row() {
    let bench = Bench::new();
    let recorder = bench.start();
    let labels: &[&[u8]] = &[
        b"\0\x01\x1b[31m",
        b"\"quoted\"\n",
        b"\r\n\t\x7f",
        b"\x80\xff\xe2\x80\xae",
        br"back\slash.dot",
        b"'; DROP",
        b"xn--zz--",
    ];
    for label in labels {
        let mut wire = vec![u8::try_from(label.len()).unwrap()];
        wire.extend_from_slice(label);
        wire.extend_from_slice(b"\x07example\0");
        let name = DomainName::from_wire(&wire).unwrap();
        let evidence = Some(Evidence::Alias(name.clone()));
        recorder.record(Attempt { name: Some(name), evidence, ..now_attempt("192.0.2.7:1", "replaced.example") });
    }
    recorder.stop().await;
    let text = fs::read(bench.path("attempts.jsonl")).unwrap();
    assert!(text.iter().all(|byte| *byte == b'\n' || (0x20..0x7f).contains(byte)), "{}", text.escape_ascii());
    assert_eq!(bench.lines().len(), labels.len());
    assert_eq!(bench.rows(), bench.lines());
    for record in bench.rows() {
        let filter =
            Filter { name: record.question.name.as_ref().map(|name| name.parse().unwrap()), ..Filter::default() };
        let found = Reader::open(&bench.path("attempts.db")).unwrap().newest(&filter, 10).unwrap();
        assert_eq!(found, [record], "what is shown can be asked for");
    }
}

#[tokio::test]
async fn rotation_loses_no_line() {
    let bench = Bench::new();
    let recorder = bench.start();
    let writer = std::thread::spawn({
        let recorder = recorder.clone();
        move || {
            for number in 0..3000 {
                recorder.record(now_attempt("192.0.2.7:1", &format!("n{number}.example")));
                if number % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    });
    let mut rotated = Vec::new();
    for number in 0..4 {
        recorder.flush().await;
        let old = bench.path(&format!("attempts.jsonl.{number}"));
        fs::rename(bench.path("attempts.jsonl"), &old).unwrap();
        recorder.reopen().await;
        rotated.push(old);
    }
    writer.join().unwrap();
    recorder.flush().await;
    let mut names: Vec<_> = rotated.iter().flat_map(|path| lines(path)).chain(bench.lines()).collect();
    names.sort_by_key(|record| record.id);
    names.dedup_by_key(|record| record.id);
    assert_eq!(names.len(), 3000);
    assert_eq!(recorder.health().lost, 0);
    recorder.stop().await;
}

#[tokio::test]
async fn readers_see_whole_rows_while_the_worker_writes() {
    let bench = Bench::new();
    let recorder = bench.start();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let path = bench.path("attempts.db");
            std::thread::spawn(move || {
                let mut seen = 0;
                while seen < 400 {
                    seen = Reader::open(&path).unwrap().newest(&Filter::default(), 10_000).unwrap().len();
                }
            })
        })
        .collect();
    for number in 0..400 {
        recorder.record(now_attempt("192.0.2.7:1", &format!("n{number}.example")));
        if number % 20 == 0 {
            recorder.flush().await;
        }
    }
    recorder.flush().await;
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(bench.metrics.audit_failures_store.value(), 0);
    recorder.stop().await;
}

#[tokio::test]
async fn a_worker_that_panics_starts_again_and_goes_on_writing() {
    let bench = Bench::new();
    let recorder = bench.start();
    recorder.record(now_attempt("192.0.2.7:1", "before.example"));
    recorder.flush().await;
    recorder.shake();
    recorder.record(now_attempt("192.0.2.7:1", "after.example"));
    // The first may be asked of the worker that panics.
    recorder.flush().await;
    recorder.flush().await;
    assert_eq!(bench.rows(), bench.lines());
    assert_eq!(bench.rows().len(), 2);
    let health = recorder.health();
    assert_eq!((health.restarts, health.is_working()), (1, true));
    recorder.stop().await;
}

#[tokio::test]
async fn a_full_disk_makes_nobody_wait_and_is_seen_and_counted() {
    let mut bench = Bench::new();
    bench.options.sinks = vec![Sink::File("/dev/full".into()), Sink::File(bench.path("attempts.jsonl"))];
    let recorder = bench.start();
    let started = Instant::now();
    for number in 0..20_000 {
        recorder.record(now_attempt("192.0.2.7:1", &format!("n{number}.example")));
    }
    // A millisecond for each is no wait, whatever else the machine does.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    recorder.flush().await;
    let health = recorder.health();
    assert!(matches!(&health.sinks[0].condition, Condition::Failing { why, .. } if why.contains("No space")));
    assert!(!health.is_working() && health.lost > 0, "{}", health.lost);
    assert_eq!(health.sinks[1].condition, Condition::Working, "the others go on");
    assert!(bench.rows().len() > 10_000);
    recorder.stop().await;
}

#[tokio::test]
async fn no_more_of_a_client_than_configured_is_written_or_heard_even_across_a_reload() {
    let mut bench = Bench::new();
    bench.options.clients = ClientMask::Prefix;
    let recorder = bench.start();
    let mut follower = recorder.subscribe();
    for client in ["192.0.2.7:1", "192.0.2.8:1", "192.0.2.7:1"] {
        recorder.record(now_attempt(client, "a.example"));
    }
    recorder.flush().await;
    bench.options.clients = ClientMask::KeyedHash;
    recorder.reconfigure(&bench.options, bench.folder.path()).await.unwrap();
    recorder.record(now_attempt("192.0.2.7:1", "a.example"));
    recorder.stop().await;
    let mut shown: Vec<_> = bench.rows().iter().map(|row| (row.client.to_string(), row.count)).collect();
    let (hash, count) = shown.pop().unwrap();
    assert_eq!(shown, [("192.0.2.0/24".to_owned(), 2), ("192.0.2.0/24".to_owned(), 1)], "two clients are two attempts");
    assert_eq!((hash.len(), count), (32, 1));
    while let Some(record) = follower.next().await {
        assert!(!record.json_line().contains("192.0.2.7"), "{}", record.json_line());
    }
    let written = fs::read_to_string(bench.path("attempts.jsonl")).unwrap();
    assert!(!written.contains("192.0.2.7") && written.lines().count() == 4, "{written}");
}

#[tokio::test]
async fn own_use_is_recorded_only_where_it_is_wanted() {
    let mut bench = Bench::new();
    bench.options.own_use = false;
    let recorder = bench.start();
    let own = |name: &str| Attempt { decision: Decision::AllowedOwn, ..now_attempt("192.0.2.7:1", name) };
    recorder.record(own("one.example"));
    bench.options.own_use = true;
    recorder.reconfigure(&bench.options, bench.folder.path()).await.unwrap();
    recorder.record(own("two.example"));
    recorder.stop().await;
    assert_eq!(bench.rows().iter().map(|row| row.question.name.clone().unwrap()).collect::<Vec<_>>(), ["two.example"]);
}

#[tokio::test]
async fn ids_grow_over_a_restart_even_if_the_clock_went_back() {
    let bench = Bench::new();
    let future = Timestamp::now() + Duration::from_secs(3600);
    for (time, name) in [(future, "one.example"), (Timestamp::now(), "two.example")] {
        let recorder = bench.start();
        recorder.record(Attempt { time, ..attempt("192.0.2.7:1", name) });
        recorder.stop().await;
    }
    let names: Vec<_> = bench.rows().into_iter().map(|row| row.question.name.unwrap()).collect();
    assert_eq!(names, ["one.example", "two.example"]);
}

#[tokio::test]
async fn a_reload_that_goes_over_to_another_store_spoils_no_row_of_it() {
    let mut bench = Bench::new();
    let recorder = bench.start();
    let future = Timestamp::now() + Duration::from_secs(3600);
    recorder.record(Attempt { time: future, ..attempt("192.0.2.7:1", "one.example") });
    recorder.stop().await;
    bench.options.store = Store::Off;
    let recorder = bench.start();
    bench.options.store = Store::File("attempts.db".into());
    recorder.reconfigure(&bench.options, bench.folder.path()).await.unwrap();
    recorder.record(Attempt { time: future, ..attempt("192.0.2.7:1", "two.example") });
    recorder.stop().await;
    let names: Vec<_> = bench.rows().into_iter().map(|row| row.question.name.unwrap()).collect();
    assert_eq!(names, ["one.example", "two.example"]);
}

#[test]
fn a_state_folder_that_cannot_be_written_is_an_error_that_names_it() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "").unwrap();
    let folder = bench.path("file").join("state");
    let error = Recorder::start(&bench.options, &folder, Arc::default()).unwrap_err();
    assert!(matches!(&error, StartError::Folder { .. }), "{error:?}");
    assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
    let without = Options { store: Store::Off, sinks: Vec::new(), ..Options::default() };
    assert!(Recorder::start(&without, &folder, Arc::default()).is_ok(), "nothing has to be written");
}

#[test]
fn a_later_versions_store_is_left_alone() {
    let bench = Bench::new();
    let path = bench.path("attempts.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Recorder::start(&bench.options, bench.folder.path(), Arc::default()).unwrap_err();
    assert!(matches!(error, StartError::LaterSchema { found: 99, .. }), "{error:?}");
    assert!(matches!(Reader::open(&path), Err(SearchError::Schema { found: 99, .. })));
}
