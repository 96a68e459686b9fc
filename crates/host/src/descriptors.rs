//! Open descriptors that a shell or a service manager left to this process.

use std::io;

/// The first descriptor that is not a standard stream.
const FIRST: libc::c_uint = 3;

/// Marks every descriptor above standard error to be closed in programs started from now on. A
/// background process that kept what its starter had open would keep pipes from ending and locks
/// from being given up.
///
/// # Errors
/// The failing system call's.
pub fn keep_from_children() -> io::Result<()> {
    // SAFETY: a system call on integers. It closes nothing here, it only sets a flag on descriptors.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Linux before 5.11, or a filter that does not know the call.
        Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => one_by_one(),
        _ => Err(error),
    }
}

fn one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|text| text.parse::<libc::c_int>().ok());
        let Some(fd) = number.filter(|&fd| fd > libc::STDERR_FILENO) else {
            continue;
        };
        // SAFETY: as above. That of the listing itself may be gone by now, which is no failure.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::io::FdFlags;

    use super::*;

    fn is_kept(fd: &std::fs::File) -> bool {
        rustix::io::fcntl_getfd(fd)
            .unwrap()
            .contains(FdFlags::CLOEXEC)
    }

    #[test]
    fn both_ways_mark_a_descriptor_that_was_left_to_us() {
        for way in [keep_from_children, one_by_one] {
            let file = std::fs::File::open("/dev/null").unwrap();
            assert!(file.as_raw_fd() > 2);
            rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
            assert!(!is_kept(&file));
            way().unwrap();
            assert!(is_kept(&file));
        }
    }
}
