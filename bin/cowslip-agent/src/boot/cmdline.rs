//! What the kernel command line says to the agent.

/// The agent's part of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// `cowslip.mode=probe`: no disk, only answer.
    pub(crate) probe: bool,
    /// `cowslip.root=`: the root disk.
    pub(crate) root: String,
    /// `cowslip.rootfstype=`.
    pub(crate) fs_type: String,
    /// `cowslip.rootflags=`: mount options, separated by commas.
    pub(crate) root_flags: String,
    /// `cowslip.off=reset`: the machine has no power to be cut, a reset ends it.
    pub(crate) off_by_reset: bool,
}

impl Cmdline {
    /// Reads /proc/cmdline's text; what is not the agent's is ignored.
    pub(crate) fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let mut words = text.split_ascii_whitespace().rev();
            words.find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
        };
        Self {
            probe: value("cowslip.mode") == Some("probe"),
            root: value("cowslip.root").unwrap_or("/dev/vda").to_owned(),
            fs_type: value("cowslip.rootfstype").unwrap_or("ext4").to_owned(),
            root_flags: value("cowslip.rootflags").unwrap_or_default().to_owned(),
            off_by_reset: value("cowslip.off") == Some("reset"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_and_the_rest_is_the_kernels() {
        let line = Cmdline::parse(
            "console=ttyS0 root=/dev/x cowslip.root=/dev/vdb cowslip.rootflags=noatime,data=ordered cowslip.root=/dev/vdc\n",
        );
        assert_eq!(line.root, "/dev/vdc");
        assert_eq!(line.root_flags, "noatime,data=ordered");
        assert_eq!(line.fs_type, "ext4");
        assert!(!line.probe);
        assert!(Cmdline::parse("cowslip.mode=probe").probe);
        assert_eq!(Cmdline::parse("").root, "/dev/vda");
        assert!(Cmdline::parse("cowslip.off=reset").off_by_reset && !line.off_by_reset);
    }
}
