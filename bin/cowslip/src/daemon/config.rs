//! The configuration file.

use std::io;
use std::path::{Path, PathBuf};

use cowslip_engine::Config;

use crate::exit::Failure;

/// Reads `path`, which must exist, or else the usual file where it exists.
pub(crate) fn load(path: Option<&Path>) -> Result<Config, Failure> {
    let (place, named) = match path {
        Some(path) => (Some(path.to_owned()), true),
        None => (usual(), false),
    };
    let Some(place) = place else {
        return Ok(Config::default());
    };
    match std::fs::read_to_string(&place) {
        Ok(text) => parse(&text, &place),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Ok(Config::default()),
        Err(error) => Err(Failure::io(
            format!("read the configuration \"{}\"", place.display()),
            &error,
        )),
    }
}

fn parse(text: &str, place: &Path) -> Result<Config, Failure> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            text.get(..span.start)
                .unwrap_or_default()
                .matches('\n')
                .count()
                + 1
        });
        Failure::usage(format!(
            "\"{}\", line {line}: {}",
            place.display(),
            error.message()
        ))
    })
}

/// `/etc/cowslip/config.toml` for root, in the user's own configuration for others.
fn usual() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some("/etc/cowslip/config.toml".into());
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|base| base.join("cowslip/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse("# a comment\nodd = 1\n", Path::new("/c.toml"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"/c.toml\", line 2") && error.contains("odd"),
            "{error}"
        );
    }

    #[test]
    fn a_chain_of_images_has_a_bound() {
        let place = Path::new("/c.toml");
        let longest = parse("[machine]\nmemory_chain = 64\n", place).unwrap();
        assert_eq!(longest.machine.memory_chain, 64);
        let error = parse("[machine]\nmemory_chain = 65\n", place).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("line 2") && error.contains("at most 64"),
            "{error}"
        );
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = load(Some(Path::new("/does/not/exist")))
            .unwrap_err()
            .to_string();
        assert!(error.contains("read the configuration"), "{error}");
    }
}
