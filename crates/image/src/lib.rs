//! root file systems: tar or directory to an ext4 template.
