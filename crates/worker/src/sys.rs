//! The process itself: it dies with the daemon, ignores the terminal, and can end at once.
#![expect(unsafe_code, reason = "a few calls of libc; each says why it is sound")]

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Ties this process to its parent. False where the parent has gone already.
///
/// # Errors
/// The kernel refuses, which it has no reason to.
pub fn die_with(daemon: Option<i32>) -> rustix::io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the call above; then it is somebody else's child by now.
    Ok(daemon.is_none_or(|pid| getppid().map(Pid::as_raw_pid) == Some(pid)))
}

/// A terminal's Ctrl+C goes to all its processes. The daemon decides what becomes of the running job.
pub fn ignore_interrupts() {
    // SAFETY: no handler runs.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_IGN) };
}

/// Makes malloc keep what tensors give back, for the next one: else most of them cost a map and a page fault for every
/// 4 KiB. `torch::trim` gives it all back after a job.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers, before any other thread runs. Where it refuses them, it is slower.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 512 << 20);
    }
}

/// Ends the process while other threads compute, without running destructors under their feet.
pub fn exit_at_once(code: i32) -> ! {
    // SAFETY: does not return, and touches nothing of ours.
    unsafe { libc::_exit(code) }
}
