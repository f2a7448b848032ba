//! The real binary on loopback, on ports the kernel chose, with a state folder of its own. Ended when dropped.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long anything may take before a test says that it never came.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon.
pub struct Daemon {
    /// Where it answers, UDP and TCP; in the order of the configuration.
    pub addresses: Vec<SocketAddr>,
    /// Its admin door, where it has one.
    pub admin: Option<SocketAddr>,
    folder: TempDir,
    child: Child,
    errors: Errors,
}

/// The binary under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_tunnelwarden")
}

impl Daemon {
    /// Starts with `config`. `LISTEN` in it stands for `dns = ["127.0.0.1:0"]` and no admin door.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, |_| {})
    }

    /// The same; `prepare` may put files (packs, say) beside the configuration before the start.
    pub fn start_with(config: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tunnelwarden.toml"), expand(config)).unwrap();
        prepare(folder.path());
        Self::run(folder)
    }

    /// The same by way of other programs that end in `exec`, `prlimit` say: these words stand before its own.
    pub fn start_under(words: &[&str], config: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tunnelwarden.toml"), expand(config)).unwrap();
        prepare(folder.path());
        let command = under(words, &command(folder.path(), &["serve"]));
        Self::launch(folder, command)
    }

    fn run(folder: TempDir) -> Self {
        let command = command(folder.path(), &["serve"]);
        Self::launch(folder, command)
    }

    /// Starts by another command line, which has to use `folder`.
    pub fn launch(folder: TempDir, mut command: Command) -> Self {
        let Started { child, addresses, admin, errors } = Started::from(&mut command);
        Self { addresses, admin, folder, child, errors }
    }

    /// Kills it without warning and starts it again in the same folder.
    pub fn crash_and_restart(&mut self) {
        self.crash_and_restart_after(|_| {});
    }

    /// The same; `meanwhile` may change what lies in the folder.
    pub fn crash_and_restart_after(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        meanwhile(self.folder.path());
        let started = Started::from(&mut command(self.folder.path(), &["serve"]));
        (self.child, self.addresses, self.admin, self.errors) =
            (started.child, started.addresses, started.admin, started.errors);
    }

    /// What it has written to standard error so far.
    pub fn log(&self) -> String {
        self.errors.text.lock().unwrap().clone()
    }

    /// Open file descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Its first address.
    pub fn dns(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Its process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The folder with its configuration; its state is below, in `state`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("tunnelwarden.toml")
    }

    /// Writes another configuration, without telling the daemon. Ports stay: listen lines are not read again.
    pub fn rewrite(&self, config: &str) {
        let beside = self.folder.path().join("new");
        fs::write(&beside, expand(config)).unwrap();
        fs::rename(beside, self.config_path()).unwrap();
    }

    /// Runs another command of the binary with the daemon's configuration and state folder.
    pub fn command(&self, arguments: &[&str]) -> Output {
        command(self.folder.path(), arguments).output().unwrap()
    }

    /// The record as JSON objects, oldest first, everything recorded so far in it.
    pub fn attempts(&self) -> Vec<serde_json::Value> {
        attempts_of(&mut command(self.folder.path(), &["attempts", "--json", "--all"]))
    }

    /// The same, read by way of other programs as in [`start_under`](Self::start_under).
    pub fn attempts_under(&self, words: &[&str]) -> Vec<serde_json::Value> {
        attempts_of(&mut under(words, &command(self.folder.path(), &["attempts", "--json", "--all"])))
    }

    /// What it has learned of ingress addresses, as `explain --learned` tells.
    pub fn learned(&self) -> serde_json::Value {
        let output = self.command(&["explain", "--learned", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Waits until every name that packs resolve was looked up once.
    pub fn first_round(&self) {
        wait_for("the first round of lookups", || (self.learned()["pending"] == 0).then_some(()));
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Processor time it has used, in hundredths of a second: fields 14 and 15 of proc_pid_stat(5).
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        behind_name.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// SIGTERM, then its exit code and what it wrote to standard error.
    pub fn stop(mut self) -> (Option<i32>, String) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let code = self.wait();
        (code, self.errors.finish())
    }

    fn wait(&mut self) -> Option<i32> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("the daemon did not stop");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("what the daemon said:\n{}", self.errors.finish());
        }
    }
}

/// A command of the binary with configuration and state in `folder`.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    let (config, state) = (folder.join("tunnelwarden.toml"), folder.join("state"));
    command.args(arguments).arg("--config").arg(config).arg("--state-dir").arg(state);
    command.stdin(Stdio::null()).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Puts words before a command.
fn under(words: &[&str], inner: &Command) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(inner.get_program()).args(inner.get_args());
    command.stdin(Stdio::null()).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

fn attempts_of(command: &mut Command) -> Vec<serde_json::Value> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until `condition` gives something, or fails the test.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(value) = condition() {
            return value;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("never came: {what}");
}

fn expand(config: &str) -> String {
    config.replace("LISTEN", "dns = [\"127.0.0.1:0\"]\nadmin = \"off\"")
}

/// Reads for as long as the daemon writes, so that it never blocks on a full pipe.
fn lines(source: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// Standard error, as it comes.
struct Errors {
    text: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Errors {
    fn read(source: impl std::io::Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&text);
        let reader = thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                let mut text = written.lock().unwrap();
                text.push_str(&String::from_utf8_lossy(&line));
                text.push('\n');
            }
        });
        Self { text, reader: Some(reader) }
    }

    /// All of it, once the process has ended.
    fn finish(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.text.lock().unwrap().clone()
    }
}

/// A process whose banner is complete.
struct Started {
    child: Child,
    addresses: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    errors: Errors,
}

impl Started {
    fn from(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let banner = lines(child.stdout.take().unwrap());
        let mut errors = Errors::read(child.stderr.take().unwrap());
        let (mut addresses, mut admin) = (Vec::new(), None);
        let end = Instant::now() + PATIENCE;
        loop {
            match banner.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.trim_start().starts_with("listening") => {
                    addresses.push(line.split_whitespace().nth(1).unwrap().parse().unwrap());
                }
                Ok(line) if line.trim_start().starts_with("admin") => {
                    let url = line.split_whitespace().nth(1).unwrap();
                    admin = Some(url.trim_start_matches("http://").parse().unwrap());
                }
                // The last line of the banner.
                Ok(line) if line.trim_start().starts_with("record") => return Self { child, addresses, admin, errors },
                Ok(_) => {}
                Err(error) => {
                    let _ = child.kill();
                    let status = child.wait().unwrap();
                    panic!("the daemon did not come up ({error}, {status}):\n{}", errors.finish());
                }
            }
        }
    }
}
