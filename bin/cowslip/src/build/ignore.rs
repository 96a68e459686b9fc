//! `.dockerignore`: which files of a directory are not sent.

use globset::{Glob, GlobBuilder, GlobMatcher};

use super::BuildError;

/// The rules of one file, in their order: the last one that fits a path decides.
#[derive(Debug, Default)]
pub(super) struct Ignore(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    /// Fits what it names, and all that is below that.
    matcher: GlobMatcher,
    /// `!`: what fits is sent after all.
    takes_back: bool,
}

impl Ignore {
    /// Reads the file's text.
    pub(super) fn parse(text: &str) -> Result<Self, BuildError> {
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines = lines.map(str::trim).filter(|line| !line.is_empty());
        lines.map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a path, relative and without `./`, is left out.
    pub(super) fn leaves_out(&self, path: &str) -> bool {
        // What is below a directory that is left out is left out as well, unless a rule says otherwise.
        let fits = |rule: &&Rule| {
            let mut part = Some(path);
            while let Some(path) = part {
                if rule.matcher.is_match(path) {
                    return true;
                }
                part = path.rsplit_once('/').map(|(above, _)| above);
            }
            false
        };
        let last = self.0.iter().rev().find(fits);
        last.is_some_and(|rule| !rule.takes_back)
    }

    /// Whether something below a directory that is left out may be sent.
    pub(super) fn takes_back(&self) -> bool {
        self.0.iter().any(|rule| rule.takes_back)
    }
}

fn rule(line: &str) -> Result<Rule, BuildError> {
    let (pattern, takes_back) = match line.strip_prefix('!') {
        Some(rest) => (rest.trim(), true),
        None => (line, false),
    };
    let parts = pattern.split('/').filter(|part| !matches!(*part, "" | "."));
    let plain = parts.collect::<Vec<_>>().join("/");
    Ok(Rule {
        matcher: glob(&plain)?.compile_matcher(),
        takes_back,
    })
}

/// A pattern as Go's filepath.Match has them, and `**`.
pub(super) fn glob(pattern: &str) -> Result<Glob, BuildError> {
    let made = GlobBuilder::new(pattern)
        .literal_separator(true)
        .backslash_escape(true)
        .build();
    made.map_err(|error| BuildError::Pattern {
        pattern: pattern.to_owned(),
        why: error.kind().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_that_fits_decides() {
        let rules = "# a comment\n*.log\n/target/\n**/node_modules\n!important.log\ndocs\n!docs/README.md\n";
        let ignore = Ignore::parse(rules).unwrap();
        for (path, left_out) in [
            ("a.log", true),
            ("sub/a.log", false),
            ("important.log", false),
            ("target", true),
            ("target/debug/x", true),
            ("sub/target", false),
            ("node_modules/x", true),
            ("a/b/node_modules/x", true),
            ("docs", true),
            ("docs/a", true),
            ("docs/README.md", false),
            ("src/main.rs", false),
        ] {
            assert_eq!(ignore.leaves_out(path), left_out, "{path}");
        }
        assert!(ignore.takes_back());
        assert!(!Ignore::default().leaves_out("anything"));
        assert!(Ignore::parse("[").is_err());
    }
}
