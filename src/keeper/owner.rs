//! Whose a socket is: the user and control group as the kernel says, and the process that has it open, where it is
//! found in time. Evidence for the record, never a reason for a decision.

use std::{
    fs,
    net::SocketAddr,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::message::Process;
use crate::sys::netlink::{FoundSocket, SocketTable, Transport};

/// Everything else waits while it is looked for.
const BUDGET: Duration = Duration::from_millis(2);
/// Processes that had sockets that were asked for; they will be asked for again.
const REMEMBERED: usize = 16;

/// Finds whose sockets are.
#[derive(Debug)]
pub(super) struct Owners {
    sockets: SocketTable,
    recent: Vec<u32>,
    budget: Duration,
}

impl Owners {
    pub(super) fn open() -> std::io::Result<Self> {
        Ok(Self { sockets: SocketTable::open()?, recent: Vec::new(), budget: BUDGET })
    }

    /// `None` where the socket is gone.
    pub(super) fn find(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<Process> {
        let deadline = Instant::now() + self.budget;
        let transport = match i32::from(protocol) {
            libc::IPPROTO_TCP => Transport::Tcp,
            libc::IPPROTO_UDP => Transport::Udp,
            _ => return None,
        };
        let exact = self.sockets.find(transport, local, remote).ok().flatten();
        // The packet was redirected: its socket wanted another end.
        let found = exact.or_else(|| self.sockets.find_at(transport, local).ok().flatten())?;
        let id = self.process_of(&found, deadline);
        let exe = id.and_then(|id| fs::read_link(folder(id).join("exe")).ok());
        let exe = exe.map(|path| clean(path.as_os_str().as_bytes())).unwrap_or_default();
        Some(Process { user: found.user, cgroup: found.cgroup, id, exe })
    }

    fn process_of(&mut self, socket: &FoundSocket, deadline: Instant) -> Option<u32> {
        let wanted = format!("socket:[{}]", socket.inode);
        let known = self.recent.iter().rev().copied().find(|id| has_open(*id, &wanted, deadline));
        let id = known.or_else(|| {
            let processes = fs::read_dir("/proc").ok()?.flatten().take_while(|_| Instant::now() < deadline);
            let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            ids.find(|id| is_of_user(*id, socket.user) && has_open(*id, &wanted, deadline))
        })?;
        self.recent.retain(|recent| *recent != id);
        self.recent.push(id);
        if self.recent.len() > REMEMBERED {
            self.recent.remove(0);
        }
        Some(id)
    }
}

fn folder(id: u32) -> PathBuf {
    Path::new("/proc").join(id.to_string())
}

fn is_of_user(id: u32, user: u32) -> bool {
    fs::metadata(folder(id)).is_ok_and(|found| found.uid() == user)
}

fn has_open(id: u32, wanted: &str, deadline: Instant) -> bool {
    let Ok(descriptors) = fs::read_dir(folder(id).join("fd")) else { return false };
    let mut in_time = descriptors.flatten().take_while(|_| Instant::now() < deadline);
    in_time.any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted))
}

/// A user names programs as he likes: what a terminal could take for an order is escaped.
pub(super) fn clean(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_process_of_a_socket_is_found_though_its_packet_was_redirected() {
        let mut owners = Owners::open().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.1:9").unwrap();
        let redirected = "127.0.0.1:5300".parse().unwrap();
        let local = socket.local_addr().unwrap();
        owners.budget = Duration::ZERO;
        assert_eq!(owners.find(17, local, redirected).unwrap().id, None);
        owners.budget = Duration::from_secs(60);
        let found = owners.find(17, local, redirected).unwrap();
        assert_eq!(found.id, Some(std::process::id()));
        assert_eq!(found.user, nix::unistd::getuid().as_raw());
        assert_eq!(found.exe, clean(std::env::current_exe().unwrap().as_os_str().as_bytes()));
        drop(socket);
        assert_eq!(owners.find(17, local, redirected), None);
    }

    #[test]
    fn the_name_of_a_program_gives_no_orders() {
        assert_eq!(clean(b"/tmp/\x1b[2Jx\xff"), "/tmp/\\x1b[2Jx\\xff");
    }
}
