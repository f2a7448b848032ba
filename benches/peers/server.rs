//! A server process: started in a folder of its own on given CPUs, awaited, measured, ended by its id.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::{
    kernel,
    machine::{cpu_time, resident},
    question::encode,
};

/// Where servers run.
pub(crate) const SERVER_CPU: usize = 1;

/// Where this program, the load and the upstream run.
pub(crate) const LOAD_CPU: usize = 0;

/// Longest start; a million names take some servers a while.
const START: Duration = Duration::from_secs(180);

/// How long a server may take to end before it is killed.
const STOP: Duration = Duration::from_secs(15);

/// A server that runs; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddrV4,
    child: Child,
    dir: PathBuf,
    began: Instant,
}

/// What a start took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// From the start of the process to the first right answer.
    pub(crate) time: Duration,
    pub(crate) cpu: Duration,
    /// Bytes.
    pub(crate) resident: u64,
}

/// A loopback address with a port that is free over UDP and TCP now.
pub(crate) fn free_address() -> anyhow::Result<SocketAddrV4> {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot look for a free port")?;
        let port = udp.local_addr()?.port();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        }
    }
    bail!("found no port that is free over both UDP and TCP")
}

impl Server {
    /// Starts a program in `dir`, where its output goes too.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        dir: &Path,
        address: SocketAddrV4,
        cpus: &[usize],
    ) -> anyhow::Result<Self> {
        let output = File::create(dir.join("output")).context("cannot write into the bench's folder")?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(dir).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        kernel::end_with_us(&mut command);
        // What is started inherits the CPUs of the thread that starts it.
        kernel::pin(cpus).context("cannot choose a CPU")?;
        let began = Instant::now();
        let child = command.spawn();
        kernel::pin(&[LOAD_CPU]).context("cannot choose a CPU")?;
        let child = child.with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { address, child, dir: dir.to_owned(), began })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it answers this name with this code.
    pub(crate) fn await_answer(&mut self, name: &str, rcode: u8) -> anyhow::Result<Start> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(self.address)?;
        let question = encode(name);
        let mut answer = [0; 512];
        while self.began.elapsed() < START {
            // Refused while nobody listens, and told so at once.
            if socket.send(&question).and_then(|_| socket.recv(&mut answer)).is_ok() && answer[3] & 15 == rcode {
                let time = self.began.elapsed();
                return Ok(Start { time, cpu: cpu_time(self.pid()), resident: resident(self.pid()) });
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}): {}", self.last_words());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("it does not answer {name} as it should: {}", self.last_words())
    }

    /// Is it the process that was started?
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end, and kills it where it does not; how it ended by itself.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        if self.is_running() {
            kernel::terminate(self.pid());
        }
        let asked = Instant::now();
        while asked.elapsed() < STOP {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                ended => return ended.ok().flatten(),
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        None
    }

    /// What it has written so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("output")).unwrap_or_default()).into_owned()
    }

    /// The last lines of it.
    pub(crate) fn last_words(&self) -> String {
        let text = self.output();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
