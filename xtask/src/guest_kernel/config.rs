//! The fragment, and the proof that the kernel's configuration kept all of it.
//!
//! Kconfig drops an option whose dependencies are not met without a word that fails a build; a
//! kernel without, say, `VIRTIO_CONSOLE` would then be noticed only when no guest answers.

use super::GuestKernelError;

/// One line of a fragment or of a `.config`.
#[derive(Debug, PartialEq, Eq)]
enum Setting<'a> {
    /// `CONFIG_X=value`.
    Set { name: &'a str, value: &'a str },
    /// `# CONFIG_X is not set`.
    Unset { name: &'a str },
}

/// A parsed fragment.
#[derive(Debug)]
pub(super) struct Fragment {
    text: String,
}

impl Fragment {
    /// Checks that each line is an option, a comment or empty.
    pub(super) fn parse(text: String) -> Result<Self, GuestKernelError> {
        for (number, line) in (1..).zip(text.lines()) {
            let comment = line.starts_with('#') && !line.starts_with("# CONFIG_");
            if !comment && !line.trim().is_empty() && setting(line).is_none() {
                return Err(GuestKernelError::Fragment {
                    line: number,
                    text: line.to_owned(),
                });
            }
        }
        Ok(Self { text })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Fails with every line of the fragment that `config`, the finished `.config`, contradicts.
    pub(super) fn check(&self, config: &str) -> Result<(), GuestKernelError> {
        let settings: Vec<_> = config.lines().filter_map(setting).collect();
        let value_of = |wanted: &str| {
            settings.iter().find_map(|setting| match setting {
                Setting::Set { name, value } if *name == wanted => Some(*value),
                _ => None,
            })
        };
        let kept = |line: &&str| match setting(line) {
            Some(Setting::Set { name, value }) => value_of(name) == Some(value),
            // An option that is not even offered is as good as one that is off.
            Some(Setting::Unset { name }) => value_of(name).is_none(),
            None => true,
        };
        let dropped: Vec<String> = self
            .text
            .lines()
            .filter(|line| !kept(line))
            .map(|line| format!("  {line}"))
            .collect();
        if dropped.is_empty() {
            Ok(())
        } else {
            Err(GuestKernelError::Dropped(dropped))
        }
    }
}

fn setting(line: &str) -> Option<Setting<'_>> {
    let is_name = |name: &str| {
        name.strip_prefix("CONFIG_").is_some_and(|rest| {
            !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    if let Some(name) = line
        .strip_prefix("# ")
        .and_then(|line| line.strip_suffix(" is not set"))
    {
        return is_name(name).then_some(Setting::Unset { name });
    }
    let (name, value) = line.split_once('=')?;
    (is_name(name) && !value.is_empty()).then_some(Setting::Set { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fragment: &str, config: &str) -> Result<(), Vec<String>> {
        Fragment::parse(fragment.to_owned())
            .unwrap()
            .check(config)
            .map_err(|error| match error {
                GuestKernelError::Dropped(lines) => lines,
                other => panic!("{other}"),
            })
    }

    #[test]
    fn a_fragment_that_survived_is_accepted() {
        let fragment = "# why\nCONFIG_A=y\n\n# CONFIG_B is not set\n# CONFIG_C is not set\n";
        assert_eq!(
            check(fragment, "CONFIG_A=y\n# CONFIG_B is not set\n"),
            Ok(())
        );
    }

    #[test]
    fn what_was_dropped_or_changed_is_named() {
        let fragment = "CONFIG_A=y\nCONFIG_N=64\n# CONFIG_B is not set\nCONFIG_AB=y\n";
        let config = "# CONFIG_A is not set\nCONFIG_N=8192\nCONFIG_B=y\nCONFIG_ABC=y\n";
        let dropped = check(fragment, config).unwrap_err();
        let expected = [
            "  CONFIG_A=y",
            "  CONFIG_N=64",
            "  # CONFIG_B is not set",
            "  CONFIG_AB=y",
        ];
        assert_eq!(dropped, expected);
    }

    #[test]
    fn a_slip_of_the_pen_is_not_taken_for_a_comment() {
        for line in [
            "CONFG_A=y",
            "CONFIG_A",
            "CONFIG_A =y",
            "# CONFIG_A is not st",
            "A=y",
        ] {
            let parsed = Fragment::parse(format!("# ok\n{line}\n"));
            assert!(
                matches!(parsed, Err(GuestKernelError::Fragment { line: 2, .. })),
                "{line:?}"
            );
        }
    }

    #[test]
    fn the_fragment_in_the_tree_is_well_formed_and_says_nothing_twice() {
        let path = crate::root().join("guest-kernel/config.fragment");
        let fragment = Fragment::parse(std::fs::read_to_string(path).unwrap()).unwrap();
        let mut names: Vec<_> = fragment
            .text()
            .lines()
            .filter_map(setting)
            .map(|setting| match setting {
                Setting::Set { name, .. } | Setting::Unset { name } => name,
            })
            .collect();
        assert!(names.len() > 100);
        names.sort_unstable();
        let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}
