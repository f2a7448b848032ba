//! seccomp: system calls that nothing here makes, and that whoever took the process over would (seccomp(2)).
//!
//! What is forbidden is listed, not what is allowed: libraries, allocator and libc change what they call from one version
//! to the next, and a resolver that stops at an update of libc helps nobody. systemd's unit has a list of what is allowed.

use std::{collections::BTreeMap, env::consts::ARCH};

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use super::Programs;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// How another program is run.
pub(super) const PROGRAMS: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// Never called, whatever the arguments.
pub(super) const NEVER: &[libc::c_long] = &[
    // Other processes' memory and files.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    // Parts of the kernel that have been ways into it.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_personality,
    // The machine itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Families of sockets that there are: streams and datagrams, and netlink for what changes on interfaces.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What a new process must not be in alone.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// Forbids it all for this thread and those it starts, and their programs.
pub(super) fn forbid(programs: Programs) -> Result<(), Error> {
    // Its flags are in memory, where no filter looks. libc takes clone where there is no clone3, and for no other answer.
    let structured = Rules::from([(libc::SYS_clone3, Vec::new())]);
    apply_filter(&program(structured, libc::ENOSYS)?)?;
    apply_filter(&program(forbidden(programs)?, libc::EPERM)?)
}

fn forbidden(programs: Programs) -> Result<Rules, BackendError> {
    let of_programs = if programs == Programs::None { PROGRAMS } else { &[] };
    let mut rules: Rules = NEVER.iter().chain(of_programs).map(|&number| (number, Vec::new())).collect();
    let is_foreign =
        FAMILIES.map(|family| argument(0, SeccompCmpOp::Ne, family)).into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(is_foreign)?]);
    let namespaces = NAMESPACES.map(|flag| has_bits(0, flag)).into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, namespaces);
    // No memory that was written is run.
    rules.insert(libc::SYS_mmap, vec![has_bits(2, libc::PROT_WRITE | libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mprotect, vec![has_bits(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_pkey_mprotect, vec![has_bits(2, libc::PROT_EXEC)?]);
    Ok(rules)
}

/// All of these bits are set in an argument.
fn has_bits(index: u8, bits: i32) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![argument(index, SeccompCmpOp::MaskedEq(word(bits)), bits)?])
}

fn argument(index: u8, comparison: SeccompCmpOp, value: i32) -> Result<SeccompCondition, BackendError> {
    // The kernel looks at the lower half of each, whatever is in the upper one.
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, word(value))
}

fn word(bits: i32) -> u64 {
    bits.cast_unsigned().into()
}

fn program(rules: Rules, errno: i32) -> Result<BpfProgram, BackendError> {
    let refusal = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, ARCH.try_into()?)?;
    let program = BpfProgram::try_from(filter)?;
    Ok(without_x32().into_iter().chain(program).collect())
}

/// x86 has all calls a second time, for programs with short pointers, under numbers that no list has.
#[cfg(target_arch = "x86_64")]
fn without_x32() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let step =
        |code: u32, jt, jf, k| seccompiler::sock_filter { code: u16::try_from(code).unwrap_or_default(), jt, jf, k };
    vec![
        // The number is the first word of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, SeccompAction::Errno(libc::EPERM.cast_unsigned()).into()),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn without_x32() -> BpfProgram {
    BpfProgram::new()
}
