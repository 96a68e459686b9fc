//! the guest's kernel and initramfs.
