//! the only crate that makes handles on the host: processes, directories, files, sockets, mounts.
