//! One file of credentials, as `docker login` and its likes write it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{Credentials, CredentialsError, helper};
use crate::host::Host;

/// No file of credentials is longer, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Under which Docker has its own registry, as a URL and as a host.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Padding is left out by some programs.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is used of the file; it has settings of other programs too.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Looks a registry up in one file; nobody where there is no file, or nothing in it.
pub(super) fn lookup(path: &Path, registry: &Host) -> Result<Credentials, CredentialsError> {
    let Some(bytes) = read(path)? else {
        return Ok(Credentials::Anonymous);
    };
    let damaged = |why: String| CredentialsError::Damaged {
        path: path.to_owned(),
        registry: registry.to_string(),
        why,
    };
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| {
        // The parser's words may quote what is in the file.
        damaged(format!("line {} is not as expected", error.line()))
    })?;
    let named = |key: &str| names(key, registry);
    if let Some((_, name)) = document.cred_helpers.iter().find(|(key, _)| named(key))
        && !name.is_empty()
    {
        return helper::get(path, name, registry);
    }
    // Between a host and an old URL of it the host counts.
    let mut entries: Vec<_> = document
        .auths
        .iter()
        .filter(|(key, _)| named(key))
        .collect();
    entries.sort_by_key(|(key, _)| (key.contains("://"), key.as_str()));
    for (_, entry) in entries {
        match entry.read().map_err(|why| damaged(why.to_owned()))? {
            Credentials::Anonymous => {}
            found => return Ok(found),
        }
    }
    match document.creds_store.filter(|name| !name.is_empty()) {
        Some(name) => helper::get(path, &name, registry),
        None => Ok(Credentials::Anonymous),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialsError> {
    let failed = |source| CredentialsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(failed(io::Error::other("it is longer than 1 MiB"))),
        false => Ok(Some(bytes)),
    }
}

/// Whether a key means a registry: as a host, or as a URL of it. A key of a host and a path is for some repositories
/// only, and must not be used for all.
fn names(key: &str, registry: &Host) -> bool {
    let host = match key.split_once("://") {
        Some(("http" | "https", rest)) => rest.split('/').next().unwrap_or_default(),
        Some(_) => return false,
        None => key,
    };
    host.parse::<Host>().as_ref() == Ok(registry)
}

/// What a helper knows a registry by.
pub(super) fn server(registry: &Host) -> String {
    match *registry == Host::docker_hub() {
        true => DOCKER_HUB.to_owned(),
        false => registry.to_string(),
    }
}

impl Entry {
    fn read(&self) -> Result<Credentials, &'static str> {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Credentials::IdentityToken(token));
        }
        if let Some(encoded) = given(&self.auth) {
            let decoded = BASE64
                .decode(encoded.trim())
                .map_err(|_| "an \"auth\" is no base64")?;
            let decoded = String::from_utf8(decoded).map_err(|_| "an \"auth\" is no text")?;
            let (user, password) = decoded
                .split_once(':')
                .ok_or("an \"auth\" is no USER:PASSWORD")?;
            return Ok(Credentials::Basic {
                user: user.to_owned(),
                // Old versions of Docker padded it.
                password: password.trim_end_matches('\0').to_owned(),
            });
        }
        Ok(match (given(&self.username), given(&self.password)) {
            (Some(user), Some(password)) => Credentials::Basic { user, password },
            _ => Credentials::Anonymous,
        })
    }
}
