//! The few system calls for which no safe wrapper exists. The only `unsafe` of the guest.
//!
//! Nothing here decides anything: each function is one call with checked arguments.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::ioctl::{NoArg, Setter, ioctl, opcode};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Adds `entropy` to the kernel's random pool, credits it, and makes the generator use it at once.
/// At most 512 bytes are taken.
///
/// # Errors
/// EPERM without privilege; ENOTTY where `random` is not the kernel's random device.
pub(crate) fn add_entropy(random: impl AsFd, entropy: &[u8]) -> io::Result<()> {
    /// `struct rand_pool_info` of `linux/random.h`, with room for its flexible array.
    #[repr(C)]
    struct Pool {
        entropy_bits: i32,
        bytes: i32,
        data: [u8; 512],
    }
    const RNDADDENTROPY: rustix::ioctl::Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
    const RNDRESEEDCRNG: rustix::ioctl::Opcode = opcode::none(b'R', 0x07);

    let mut pool = Pool {
        entropy_bits: 0,
        bytes: 0,
        data: [0; 512],
    };
    let length = entropy.len().min(pool.data.len());
    pool.data[..length].copy_from_slice(&entropy[..length]);
    pool.bytes = i32::try_from(length).unwrap_or(0);
    pool.entropy_bits = pool.bytes * 8;
    // SAFETY: the opcode takes a pointer to `struct rand_pool_info`, reads its two integers and
    // then `bytes` bytes of its array; `Pool` has that layout and holds at least so many bytes.
    unsafe { ioctl(&random, Setter::<RNDADDENTROPY, Pool>::new(pool)) }?;
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl(&random, NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}

/// Grows the mounted ext4 file system that `root` is on to `blocks` of its own blocks.
///
/// # Errors
/// ENOTTY for another file system; EINVAL, ENOSPC, EIO as the kernel says.
pub(crate) fn ext4_resize(root: impl AsFd, blocks: u64) -> io::Result<()> {
    const EXT4_IOC_RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
    // SAFETY: the opcode takes a pointer to a u64 and only reads it.
    unsafe { ioctl(root, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) }?;
    Ok(())
}

/// Sends a signal as kill(2) does: to a process, to a group (negative), to all (-1).
///
/// # Errors
/// ESRCH, EPERM, EINVAL.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Watches a file descriptor of ours for readiness. Needs a runtime.
///
/// # Errors
/// EPERM for what cannot be polled (regular files), ENOSPC past the kernel's bound.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped, and the
    // `AsyncFd` owns it from here on. Nothing in this crate takes it out by `get_mut`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Lets every signal do to this process what it does by default, and blocks none. What the agent's own
/// starter ignored (a shell ignores an interrupt for what it runs in the background) is no business of
/// the processes that the agent starts.
pub(crate) fn default_signals() {
    /// The kernel's own `struct sigaction`: handler, flags, restorer, mask. The C library keeps two
    /// signals to itself and would not set them.
    const DEFAULT: [u64; 4] = [0; 4];
    const SET: usize = size_of::<u64>();
    for signal in 1..=64 {
        // SAFETY: the kernel reads 32 bytes that live as long as the program. No handler is replaced
        // that anything still relies on: this process is about to execute another program. SIGKILL and
        // SIGSTOP cannot be set, and stay as they are.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SET,
            );
        }
    }
    let none = 0_u64;
    // SAFETY: the kernel reads the eight bytes of a set that lives across the call.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut::<u64>(),
            SET,
        );
    }
}
