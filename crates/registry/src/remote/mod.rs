//! Talking to one registry, as the OCI distribution specification has it.
//!
//! `oci-client` is not what does it. It reads documents and token servers' answers into memory without a bound, hides
//! the status and `Retry-After` of a refusal and the `Content-Range` of a part, takes every failure to get a token for a
//! wrong password, and knows no identity tokens: what would be left of it is one GET of a token.

mod answer;
mod auth;
mod backoff;
mod client;

use std::sync::Arc;

use cowslip_image::{BlobDigest, Hasher, MANIFEST_TYPES, MAX_DOCUMENT};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, Url};

use crate::credentials::Credentials;
use crate::error::{PullError, show};
use crate::host::Host;
use crate::reference::Reference;

pub(crate) use answer::{Failure, content_length, range_start};
pub(crate) use backoff::Backoff;
pub(crate) use client::Client;
pub use client::ClientError;

use answer::{read_bounded, refused};
use auth::Auth;

const DIGEST_HEADER: &str = "docker-content-digest";
/// A registry sends its clients elsewhere no more often than this, for one request.
const MAX_REDIRECTS: usize = 5;

/// One repository of one registry, for one user and one pull.
pub(crate) struct Remote {
    client: Arc<Client>,
    host: Host,
    base: Url,
    auth: Auth,
}

/// What a tag is, by the registry's word.
pub(crate) struct Head {
    pub(crate) media_type: String,
    pub(crate) digest: BlobDigest,
    /// In bytes.
    pub(crate) size: u64,
}

impl Remote {
    pub(crate) fn new(
        client: Arc<Client>,
        host: &Host,
        repository: &str,
        credentials: Credentials,
    ) -> Result<Self, PullError> {
        let scheme = client.config().scheme(host);
        let text = format!("{scheme}://{}/v2/{repository}/", host.authority());
        let base = Url::parse(&text).map_err(|error| PullError::Protocol {
            registry: host.to_string(),
            why: error.to_string(),
        })?;
        Ok(Self {
            client,
            host: host.clone(),
            base,
            auth: Auth::new(credentials, repository),
        })
    }

    pub(crate) fn name(&self) -> String {
        self.host.to_string()
    }

    /// Asks what a tag is, without fetching it. `None` when the registry does not tell, or not in a usable way.
    pub(crate) async fn head(&self, reference: &Reference) -> Result<Option<Head>, Failure> {
        let path = format!("manifests/{}", reference.wanted());
        let what = format!("image {reference}");
        let response = match self
            .send(Method::HEAD, &path, manifest_headers(), &what)
            .await
        {
            Ok(response) => response,
            // Some registries do not know the method, and an answer to it can give no reasons.
            Err(failure) if failure.is_refusal() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let headers = response.headers();
        let digest = header(headers, DIGEST_HEADER).and_then(|text| text.parse().ok());
        let media_type = header(headers, CONTENT_TYPE.as_str()).map(essence);
        let known = media_type.filter(|given| MANIFEST_TYPES.contains(&given.as_str()));
        Ok(match (known, digest, content_length(headers)) {
            (Some(media_type), Some(digest), Some(size)) => Some(Head {
                media_type,
                digest,
                size,
            }),
            _ => None,
        })
    }

    /// Fetches a manifest or an index, by tag or digest; gives its bytes, too.
    pub(crate) async fn manifest(
        &self,
        wanted: &str,
        expected: Option<&BlobDigest>,
        what: &str,
    ) -> Result<(Head, Vec<u8>), Failure> {
        let path = format!("manifests/{wanted}");
        let response = self
            .send(Method::GET, &path, manifest_headers(), what)
            .await?;
        let told: Option<BlobDigest> =
            header(response.headers(), DIGEST_HEADER).and_then(|text| text.parse().ok());
        let media_type = header(response.headers(), CONTENT_TYPE.as_str()).map(essence);
        let bytes = read_bounded(self, response, MAX_DOCUMENT, what).await?;
        // The digest that was asked for counts, and the registry's own word where there is none.
        let digest = match expected.or(told.as_ref()) {
            Some(expected) => {
                self.check("manifest", expected, &bytes)?;
                expected.clone()
            }
            None => BlobDigest::of(&bytes),
        };
        let known = |given: &String| MANIFEST_TYPES.contains(&given.as_str());
        let media_type = media_type
            .filter(known)
            .or_else(|| own_type(&bytes))
            .unwrap_or_default();
        let size = bytes.len() as u64;
        Ok((
            Head {
                media_type,
                digest,
                size,
            },
            bytes,
        ))
    }

    /// Fetches a document that is kept as a blob.
    pub(crate) async fn document(
        &self,
        digest: &BlobDigest,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let path = format!("blobs/{digest}");
        let response = self
            .send(Method::GET, &path, HeaderMap::new(), what)
            .await?;
        let bytes = read_bounded(self, response, MAX_DOCUMENT, what).await?;
        self.check("config", digest, &bytes)?;
        Ok(bytes)
    }

    /// Begins to fetch a blob, from an offset on if the registry can.
    pub(crate) async fn blob(
        &self,
        digest: &BlobDigest,
        offset: u64,
        what: &str,
    ) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        self.send(Method::GET, &format!("blobs/{digest}"), headers, what)
            .await
    }

    fn check(
        &self,
        what: &'static str,
        expected: &BlobDigest,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let mut hasher = Hasher::like(expected);
        hasher.update(bytes);
        let found = hasher.finish();
        match found == *expected {
            true => Ok(()),
            false => Err(Failure::last(PullError::Digest {
                registry: self.name(),
                what,
                found,
                expected: expected.clone(),
            })),
        }
    }

    /// Sends a request; whoever the registry sends us to gets it without our credentials.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        what: &str,
    ) -> Result<Response, Failure> {
        let url = self
            .base
            .join(path)
            .map_err(|_| self.protocol("an unusable path"))?;
        // Once as we are, once more with a new token.
        let mut attempts = 2;
        loop {
            let authorization = self.auth.current().await;
            let response = self
                .follow(&method, url.clone(), &headers, authorization.header())
                .await?;
            let status = response.status();
            let is_own = response.url().origin() == url.origin();
            attempts -= 1;
            if status == 401 && is_own && attempts > 0 {
                self.auth
                    .renew(self, &authorization, response.headers())
                    .await?;
                continue;
            }
            return match status.as_u16() {
                // Whether a part can be given is for the caller to see.
                200 | 206 | 416 => Ok(response),
                _ => Err(refused(self, response, is_own, what).await),
            };
        }
    }

    async fn follow(
        &self,
        method: &Method,
        mut url: Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failure> {
        let origin = url.origin();
        for _ in 0..=MAX_REDIRECTS {
            let own = authorization.filter(|_| url.origin() == origin);
            let mut request = self
                .client
                .request(method.clone(), url.clone())
                .headers(headers.clone());
            if let Some(authorization) = own {
                request = request.header(reqwest::header::AUTHORIZATION, authorization.clone());
            }
            let response = request
                .send()
                .await
                .map_err(|error| self.broken(error, "an answer"))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = header(response.headers(), "location").unwrap_or_default();
            let next = url
                .join(location)
                .map_err(|_| self.protocol("a redirect to nowhere"))?;
            if !is_as_safe(&url, &next) {
                return Err(self.protocol("a redirect away from https"));
            }
            url = next;
        }
        Err(self.protocol("more than 5 redirects for one request"))
    }

    fn protocol(&self, why: &str) -> Failure {
        Failure::last(PullError::Protocol {
            registry: self.name(),
            why: why.to_owned(),
        })
    }

    pub(crate) fn broken(&self, error: reqwest::Error, what: &str) -> Failure {
        answer::broken(self.name(), error, what)
    }
}

/// Whether what follows from an answer is no less safe than what was asked: TLS is never left, and the rest of what an
/// address may name is never read.
fn is_as_safe(from: &Url, to: &Url) -> bool {
    to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http")
}

/// What documents are asked for as: without it registries make up older kinds.
fn manifest_headers() -> HeaderMap {
    MANIFEST_TYPES
        .iter()
        .map(|kind| (ACCEPT, HeaderValue::from_static(kind)))
        .collect()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A media type without its parameters.
fn essence(media_type: &str) -> String {
    show(media_type.split(';').next().unwrap_or_default())
}

/// What a document says it is: for registries that do not.
fn own_type(bytes: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: String,
    }
    Some(serde_json::from_slice::<Document>(bytes).ok()?.media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_is_never_left() {
        let safe =
            |from: &str, to: &str| is_as_safe(&Url::parse(from).unwrap(), &Url::parse(to).unwrap());
        assert!(safe("https://a", "https://b"));
        assert!(safe("http://a", "http://b"));
        assert!(safe("http://a", "https://b"));
        assert!(!safe("https://a", "http://a"));
        assert!(!safe("https://a", "file:///etc/passwd"));
        assert!(!safe("http://a", "ftp://a"));
    }
}
