//! Who we are to a registry: a password, or a token that its token server gives.
//!
//! A registry says with its first refusal how it wants to be answered. The token server is its own choice, so a registry
//! gets to know its own credentials only, and only for what is pulled: the scope that it asks for is not looked at.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeParser;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::answer::{read_bounded, refused};
use super::{Failure, Remote, is_as_safe};
use crate::credentials::Credentials;

/// No token is longer, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
const CLIENT_ID: &str = "cowslip";

/// The state of being logged in.
pub(super) struct Auth {
    credentials: Credentials,
    scope: String,
    /// Held while a new one is got, so that it is got once.
    current: Mutex<Authorization>,
}

/// What requests carry; each that is got is another.
#[derive(Clone, Default)]
pub(super) struct Authorization(Option<Arc<HeaderValue>>);

impl Authorization {
    pub(super) fn header(&self) -> Option<&HeaderValue> {
        self.0.as_deref()
    }

    fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

/// How a registry wants to be answered.
enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Auth {
    pub(super) fn new(credentials: Credentials, repository: &str) -> Self {
        Self {
            credentials,
            scope: format!("repository:{repository}:pull"),
            current: Mutex::default(),
        }
    }

    /// In words.
    pub(super) fn who(&self) -> String {
        match &self.credentials {
            Credentials::Anonymous => "a user who is not logged in".to_owned(),
            Credentials::Basic { user, .. } => format!("\"{}\"", user.escape_debug()),
            Credentials::IdentityToken(_) => "the owner of this token".to_owned(),
        }
    }

    pub(super) async fn current(&self) -> Authorization {
        self.current.lock().await.clone()
    }

    /// Answers a refusal of what was `used`; whoever comes second finds the answer.
    pub(super) async fn renew(
        &self,
        remote: &Remote,
        used: &Authorization,
        headers: &HeaderMap,
    ) -> Result<(), Failure> {
        let mut current = self.current.lock().await;
        if !current.is(used) {
            return Ok(());
        }
        let mut header = match (challenge(headers), &self.credentials) {
            (Some(Challenge::Bearer { realm, service }), _) => {
                self.token(remote, &realm, service.as_deref()).await?
            }
            (Some(Challenge::Basic), Credentials::Basic { user, password }) => {
                basic(user, password)
                    .ok_or_else(|| remote.protocol("credentials that no header can have"))?
            }
            // The refusal stands.
            _ => return Ok(()),
        };
        header.set_sensitive(true);
        *current = Authorization(Some(Arc::new(header)));
        Ok(())
    }

    async fn token(
        &self,
        remote: &Remote,
        realm: &str,
        service: Option<&str>,
    ) -> Result<HeaderValue, Failure> {
        let url =
            Url::parse(realm).map_err(|_| remote.protocol("its token server has no address"))?;
        if !is_as_safe(&remote.base, &url) {
            return Err(remote.protocol("it speaks https, and its token server does not"));
        }
        let service = service.map(|service| ("service", service));
        let scope = ("scope", self.scope.as_str());
        let request = match &self.credentials {
            Credentials::IdentityToken(token) => {
                let form = [
                    Some(("grant_type", "refresh_token")),
                    Some(("client_id", CLIENT_ID)),
                    Some(("refresh_token", token)),
                    Some(scope),
                    service,
                ];
                let form: Vec<_> = form.into_iter().flatten().collect();
                remote.client.request(Method::POST, url.clone()).form(&form)
            }
            credentials => {
                let query: Vec<_> = [Some(scope), service].into_iter().flatten().collect();
                let mut request = remote
                    .client
                    .request(Method::GET, url.clone())
                    .query(&query);
                if let Credentials::Basic { user, password } = credentials
                    && let Some(mut basic) = basic(user, password)
                {
                    basic.set_sensitive(true);
                    request = request.header(AUTHORIZATION, basic);
                }
                request
            }
        };
        // No redirect is followed: what is sent here is the secret itself.
        let what = "a token";
        let response = request
            .send()
            .await
            .map_err(|error| remote.broken(error, what))?;
        if response.status() != 200 {
            return Err(refused(remote, response, true, what).await);
        }
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = read_bounded(remote, response, MAX_TOKEN, what).await?;
        let answer: Option<Answer> = serde_json::from_slice(&bytes).ok();
        let token = answer.and_then(|answer| answer.token.or(answer.access_token));
        let header = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        header.ok_or_else(|| remote.protocol("its token server gives no token"))
    }
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!(
        "Basic {}",
        STANDARD.encode(format!("{user}:{password}"))
    ))
    .ok()
}

/// The best that is offered.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut best = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = header.to_str() else { continue };
        for offered in ChallengeParser::new(text).flatten() {
            if offered.scheme.eq_ignore_ascii_case("basic") {
                best.get_or_insert(Challenge::Basic);
            }
            if !offered.scheme.eq_ignore_ascii_case("bearer") {
                continue;
            }
            let parameter = |wanted: &str| {
                let mut all = offered.params.iter();
                let found = all.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                found.map(|(_, value)| value.to_unescaped())
            };
            if let Some(realm) = parameter("realm") {
                let service = parameter("service");
                return Some(Challenge::Bearer { realm, service });
            }
        }
    }
    best
}
