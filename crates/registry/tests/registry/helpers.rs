//! Helpers that keep credentials, as scripts.
//!
//! Here, and not beside the code: for a moment a process that is being started has the locks of the one that starts it,
//! which tests of locks in the same process would see.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use cowslip_registry::Credentials;
use cowslip_registry::credentials::{CredentialsError, lookup};

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic {
        user: user.to_owned(),
        password: password.to_owned(),
    }
}

/// Helpers are found in PATH, so the test is run again with one that has them.
const AGAIN: &str = "COWSLIP_TEST_HELPERS";

#[test]
fn helpers_are_asked() {
    if std::env::var_os(AGAIN).is_none() {
        let bin = tempfile::tempdir().unwrap();
        let helper = |name: &str, script: &str| {
            let path = bin.path().join(format!("docker-credential-{name}"));
            fs::write(&path, format!("#!/bin/sh\nread -r server\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let answer = r#"printf '{"ServerURL":"%s","Username":"%s","Secret":"%s"}' "$server" "$USER_NAME" "$server""#;
        helper(
            "one",
            &format!("[ \"$1\" = get ] && USER_NAME=one && {answer}"),
        );
        helper("token", &format!("USER_NAME='<token>' && {answer}"));
        helper(
            "none",
            "echo 'credentials not found in native keychain'; exit 1",
        );
        helper("bad", "echo secret; echo 'it is locked' >&2; exit 3");
        helper("odd", "echo secret");
        let path = std::env::var("PATH").unwrap();
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helpers::helpers_are_asked"])
            .env(AGAIN, "yes")
            .env("PATH", format!("{}:{path}", bin.path().display()))
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("config.json");
    let config = r#"{ "auths": { "filed.lan": { "auth": "ZmlsZTpzZWNyZXQ=" }, "stored.lan": {} },
             "credHelpers": { "a.lan": "token", "none.lan": "none", "bad.lan": "bad", "odd.lan": "odd",
                              "path.lan": "../../bin/sh", "gone.lan": "gone" },
             "credsStore": "one" }"#;
    fs::write(&file, config).unwrap();
    let look = |registry: &str| lookup(&[&file], &registry.parse().unwrap());
    let get = |registry: &str| look(registry).unwrap();
    assert_eq!(get("a.lan"), Credentials::IdentityToken("a.lan".into()));
    assert_eq!(get("filed.lan"), basic("file", "secret"));
    assert_eq!(get("stored.lan"), basic("one", "stored.lan"));
    assert_eq!(
        get("docker.io"),
        basic("one", "https://index.docker.io/v1/")
    );
    assert_eq!(get("none.lan"), Credentials::Anonymous);
    let error = |registry: &str| look(registry).unwrap_err();
    let bad = error("bad.lan");
    assert!(
        bad.to_string().contains("it is locked") && !format!("{bad:?}").contains("secret"),
        "{bad:?}"
    );
    let odd = error("odd.lan");
    assert!(
        matches!(odd, CredentialsError::Damaged { .. }) && !format!("{odd:?}").contains("secret"),
        "{odd:?}"
    );
    assert!(matches!(
        error("path.lan"),
        CredentialsError::HelperName { .. }
    ));
    let gone = error("gone.lan").to_string();
    assert!(
        gone.contains("cannot run \"docker-credential-gone\""),
        "{gone}"
    );
}
