//! Paths of a guest, as text.

/// `path` seen from `base`, which is absolute: without `.`, `..` and double slashes.
pub(super) fn join(base: &str, path: &str) -> String {
    let whole = match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{base}/{path}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The directory of an absolute path, and the name in it.
pub(super) fn split(path: &str) -> (String, String) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name.to_owned()),
        Some((directory, name)) => (directory.to_owned(), name.to_owned()),
        None => ("/".to_owned(), path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_joined_as_a_shell_would() {
        for (base, path, expected) in [
            ("/", "app", "/app"),
            ("/app", "sub/", "/app/sub"),
            ("/app", "/opt", "/opt"),
            ("/app", "../x", "/x"),
            ("/app", "../../..", "/"),
            ("/app", ".", "/app"),
            ("/a//b", "./c", "/a/b/c"),
        ] {
            assert_eq!(join(base, path), expected, "{base} {path}");
        }
        assert_eq!(split("/a/b"), ("/a".to_owned(), "b".to_owned()));
        assert_eq!(split("/a"), ("/".to_owned(), "a".to_owned()));
    }
}
