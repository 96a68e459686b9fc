//! Files as users have them.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::{Credentials, CredentialsError, files_from, lookup};
use crate::host::Host;

struct Home(tempfile::TempDir);

impl Home {
    fn new(config: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::write(home.file(), config).unwrap();
        home
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("config.json")
    }

    fn get(&self, registry: &str) -> Result<Credentials, CredentialsError> {
        lookup(
            &[self.0.path().join("nothing.json"), self.file()],
            &host(registry),
        )
    }
}

fn host(text: &str) -> Host {
    text.parse().unwrap()
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

#[test]
fn a_registry_is_found_under_its_names() {
    let home = Home::new(
        r#"{ "auths": {
            "https://index.docker.io/v1/": { "auth": "aHViOnNlY3JldA==" },
            "quay.io": { "auth": "cXVheTpzZTpjcmV0AAA" },
            "quay.io/team": { "auth": "dGVhbTpzZWNyZXQ=" },
            "ghcr.io/owner": { "auth": "dGVhbTpzZWNyZXQ=" },
            "https://registry.lan:5000/v2/": { "username": "me", "password": "plain" },
            "token.lan": { "auth": "eDp5", "identitytoken": "refresh" },
            "empty.lan": {}
        }, "detachKeys": "ctrl-e", "HttpHeaders": { "a": "b" } }"#,
    );
    let get = |registry: &str| home.get(registry).unwrap();
    assert_eq!(get("docker.io"), basic("hub", "secret"));
    assert_eq!(get("registry-1.docker.io"), basic("hub", "secret"));
    assert_eq!(get("quay.io"), basic("quay", "se:cret"));
    assert_eq!(get("registry.lan:5000"), basic("me", "plain"));
    assert_eq!(
        get("token.lan"),
        Credentials::IdentityToken("refresh".into())
    );
    // Those are somebody else's: another port, another repository, nobody's.
    for other in ["registry.lan", "quay.io:8443", "ghcr.io", "empty.lan", "io"] {
        assert_eq!(get(other), Credentials::Anonymous, "{other}");
    }
}

#[test]
fn damaged_files_are_named_and_not_quoted() {
    for bad in [
        "{ \"auths\": { \"a.lan\": { \"auth\": secret } } }",
        "{ \"auths\": [\"secret\"] }",
        "{ \"auths\": { \"a.lan\": { \"auth\": \"!secret!\" } } }",
        "{ \"auths\": { \"a.lan\": { \"auth\": \"c2VjcmV0\" } } }",
    ] {
        let home = Home::new(bad);
        let error = home.get("a.lan").unwrap_err();
        assert!(
            matches!(error, CredentialsError::Damaged { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("config.json"), "{error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
    let home = Home::new("");
    fs::remove_file(home.file()).unwrap();
    assert_eq!(home.get("a.lan").unwrap(), Credentials::Anonymous);
    fs::create_dir(home.file()).unwrap();
    assert!(matches!(
        home.get("a.lan"),
        Err(CredentialsError::Read { .. })
    ));
}

#[test]
fn nothing_secret_is_shown() {
    let basic = Credentials::Basic {
        user: "me".into(),
        password: "hunter2".into(),
    };
    let token = Credentials::IdentityToken("hunter2".into());
    assert_eq!(
        format!("{basic:?} {token:?}"),
        "Basic { user: \"me\", .. } IdentityToken(..)"
    );
}

#[test]
fn files_are_where_other_programs_have_them() {
    let with = |variables: &'static [(&str, &str)]| {
        let files = files_from(|name| {
            let found = variables.iter().find(|(given, _)| *given == name);
            found.map(|(_, value)| OsString::from(value))
        });
        files
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        with(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/x")]),
        "/h/.docker/config.json /x/containers/auth.json"
    );
    assert_eq!(
        with(&[("HOME", "/h"), ("DOCKER_CONFIG", "/d")]),
        "/d/config.json"
    );
    assert_eq!(with(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/f")]), "/f");
    assert_eq!(with(&[]), "");
}
