//! The signal that tells of ended children.

/// Has the kernel keep the exit statuses of this process' children. Whoever started it may ignore
/// SIGCHLD, and exec hands that on: then the kernel throws every status away, and each wait for a child
/// fails with ECHILD (R11). To be called before there are threads or children.
pub fn keep_statuses() {
    // SAFETY: a system call on integers. It sets no handler, and so nothing runs in one.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
