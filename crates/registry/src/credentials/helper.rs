//! Helper programs that keep credentials: `docker-credential-NAME get`, with the registry on standard input.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::file::server;
use super::{Credentials, CredentialsError};
use crate::host::Host;

/// As much of a helper's complaint is shown, in bytes.
const MAX_MESSAGE: usize = 500;
/// What a helper says that knows nothing of a registry.
const NOT_FOUND: &str = "credentials not found";
/// A helper's user name for what is a token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a helper that the file at `path` names.
pub(super) fn get(
    path: &Path,
    name: &str,
    registry: &Host,
) -> Result<Credentials, CredentialsError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.len() > 100 || !name.bytes().all(plain) {
        return Err(CredentialsError::HelperName {
            path: path.to_owned(),
            name: name.chars().take(100).collect(),
        });
    }
    let program = format!("docker-credential-{name}");
    let failed = |source| CredentialsError::HelperStart {
        path: path.to_owned(),
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A helper may answer without reading; what became of it is seen from its status.
        let _ = input.write_all(server(registry).as_bytes());
    }
    let ended = child.wait_with_output().map_err(failed)?;
    if ended.status.success() {
        let answer: Answer =
            serde_json::from_slice(&ended.stdout).map_err(|_| CredentialsError::Damaged {
                path: path.to_owned(),
                registry: registry.to_string(),
                why: format!("\"{program}\" does not answer with credentials"),
            })?;
        return Ok(match answer.username.as_str() {
            TOKEN_USER => Credentials::IdentityToken(answer.secret),
            "" if answer.secret.is_empty() => Credentials::Anonymous,
            _ => Credentials::Basic {
                user: answer.username,
                password: answer.secret,
            },
        });
    }
    let said = String::from_utf8_lossy(&ended.stdout);
    if said.contains(NOT_FOUND) {
        return Ok(Credentials::Anonymous);
    }
    // Only what it complains of: the other stream is for secrets.
    let message = &ended.stderr[..ended.stderr.len().min(MAX_MESSAGE)];
    Err(CredentialsError::HelperFailed {
        program,
        registry: registry.to_string(),
        status: ended.status,
        message: String::from_utf8_lossy(message).trim().to_owned(),
    })
}
