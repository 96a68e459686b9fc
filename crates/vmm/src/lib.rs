//! the machine monitor: trait Vmm and QEMU.
