//! Who one is, and who gets to know it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cowslip_registry::{Credentials, Pull, PullError};
use tokio::sync::watch;

use crate::bench::Bench;
use crate::images::{layer, single};
use crate::peer::{Answer, Asked, Files, Peer};

fn user(password: &str) -> Credentials {
    Credentials::Basic {
        user: "user".into(),
        password: password.into(),
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A registry that wants a token, from the server at `realm` or else its own.
async fn with_tokens(files: Files, realm: Option<String>) -> Peer {
    Peer::start(files, move |asked| {
        let given = asked.authorization.as_deref().unwrap_or_default();
        match asked.path.as_str() {
            "/token" => Some(token(asked)),
            _ if given.starts_with("Bearer token") => None,
            _ => Some(challenge(asked, realm.as_deref())),
        }
    })
    .await
}

fn challenge(asked: &Asked, realm: Option<&str>) -> Answer {
    let own = format!("http://{}/token", asked.host);
    let realm = realm.unwrap_or(&own);
    let challenge =
        format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:other:push\"");
    Answer::refusal(401, "UNAUTHORIZED", "who are you").with("www-authenticate", challenge)
}

fn token(asked: &Asked) -> Answer {
    let good = match asked.method.as_str() {
        "POST" => {
            asked.body.contains("refresh_token=identity")
                && asked.body.contains("grant_type=refresh_token")
        }
        _ => asked
            .authorization
            .as_ref()
            .is_none_or(|given| *given == basic("user", "right")),
    };
    let scoped =
        format!("{}&{}", asked.query, asked.body).contains("scope=repository%3Aa%2Fb%3Apull");
    match (good, scoped) {
        (true, true) => Answer::of(
            200,
            format!("{{\"token\":\"token{}\"}}", asked.before).as_bytes(),
        ),
        (true, false) => Answer::of(400, b"scope"),
        (false, _) => Answer::refusal(401, "UNAUTHORIZED", "incorrect password"),
    }
}

#[tokio::test]
async fn tokens_are_got_once_and_as_whom_one_is() {
    let layers: Vec<_> = (0..5).map(|n| layer(&format!("{n}"), 1000)).collect();
    for credentials in [
        Credentials::Anonymous,
        user("right"),
        Credentials::IdentityToken("identity".into()),
    ] {
        let peer = with_tokens(single(&layers), None).await;
        let bench = Bench::new();
        bench
            .pull_as(peer.address, Pull::Missing, &credentials)
            .await
            .unwrap();
        let tokens: Vec<_> = peer
            .asked()
            .into_iter()
            .filter(|asked| asked.path == "/token")
            .collect();
        assert_eq!(tokens.len(), 1, "{tokens:#?}");
        let secret = match &credentials {
            Credentials::Basic { .. } => Some(basic("user", "right")),
            _ => None,
        };
        assert_eq!(tokens[0].authorization, secret);
        assert_eq!(
            tokens[0].method == "POST",
            matches!(credentials, Credentials::IdentityToken(_))
        );
        // The password is for the token server only.
        let others = peer
            .asked()
            .into_iter()
            .filter(|asked| asked.path != "/token");
        for asked in others {
            assert!(
                asked
                    .authorization
                    .is_none_or(|given| given == "Bearer token0")
            );
        }
    }
}

// All layers are refused at once, and one of them gets the new token for all.
#[tokio::test]
async fn a_token_that_is_over_is_got_anew_once() {
    let layers: Vec<_> = (0..4).map(|n| layer(&format!("{n}"), 1000)).collect();
    let paths: Vec<_> = layers.iter().map(|layer| layer.path()).collect();
    let refused = watch::Sender::new(0);
    let peer = Peer::start(single(&layers), move |asked| {
        let is_layer = paths.iter().any(|path| asked.path.ends_with(path));
        match asked.authorization.as_deref() {
            _ if asked.path == "/token" => Some(token(asked)),
            None => Some(challenge(asked, None)),
            Some("Bearer token0") if is_layer => {
                refused.send_modify(|refused| *refused += 1);
                let mut refused = refused.subscribe();
                let all = async move { drop(refused.wait_for(|refused| *refused == 4).await) };
                Some(challenge(asked, None).after(all))
            }
            Some(_) => None,
        }
    })
    .await;
    let bench = Bench::new();
    bench
        .pull_as(peer.address, Pull::Always, &user("right"))
        .await
        .unwrap();
    assert_eq!(peer.count("GET", "/token"), 2);
}

#[tokio::test]
async fn wrong_passwords_are_told_and_tried_once() {
    let peer = with_tokens(single(&[layer("top", 10)]), None).await;
    let error = Bench::new()
        .pull_as(peer.address, Pull::Missing, &user("wrong"))
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    let text = error.to_string();
    for part in ["\"user\"", "incorrect password", "docker login 127.0.0.1:"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!format!("{error:?}").contains("wrong"));
    assert_eq!(peer.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_password_is_given_where_it_is_asked_for() {
    let peer = Peer::start(single(&[layer("top", 10)]), |asked| {
        let good = asked.authorization.as_deref() == Some(basic("user", "right").as_str());
        (!good).then(|| Answer::of(401, b"").with("www-authenticate", "Basic realm=\"here\""))
    })
    .await;
    let bench = Bench::new();
    bench
        .pull_as(peer.address, Pull::Missing, &user("right"))
        .await
        .unwrap();
    for credentials in [
        Credentials::Anonymous,
        user("wrong"),
        Credentials::IdentityToken("identity".into()),
    ] {
        let bench = Bench::new();
        let error = bench
            .pull_as(peer.address, Pull::Missing, &credentials)
            .await
            .unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    }
}

// CVE-2020-15157 and its kind.
#[tokio::test]
async fn nobody_else_gets_the_credentials() {
    let top = layer("top", 100_000);
    let files = single(std::slice::from_ref(&top));
    let elsewhere = Peer::plain(files.clone()).await;
    let (path, to) = (top.path(), elsewhere.address);
    for wanted in ["Basic", "Bearer"] {
        elsewhere.forget();
        let path = path.clone();
        let peer = Peer::start(files.clone(), move |asked| {
            if asked.path == "/token" {
                return Some(token(asked));
            }
            if asked.authorization.is_none() {
                let realm = format!("{wanted} realm=\"http://{}/token\"", asked.host);
                return Some(Answer::of(401, b"").with("www-authenticate", realm));
            }
            let location = format!("http://{to}{}", asked.path);
            asked
                .path
                .ends_with(&path)
                .then(|| Answer::of(307, b"").with("location", location))
        })
        .await;
        let bench = Bench::new();
        bench
            .pull_as(peer.address, Pull::Missing, &user("right"))
            .await
            .unwrap();
        assert_eq!(bench.blob(&top), top.bytes);
        let asked = elsewhere.asked();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].authorization, None);
        assert!(
            peer.asked()
                .iter()
                .any(|asked| asked.authorization.is_some())
        );
    }
}

#[tokio::test]
async fn redirects_have_an_end_and_stay_on_http() {
    let top = layer("top", 1000);
    for (location, said) in [
        ("", "more than 5 redirects"),
        ("file:///etc/passwd", "away from https"),
    ] {
        let path = top.path();
        let peer = Peer::start(single(std::slice::from_ref(&top)), move |asked| {
            let redirect = || Answer::of(302, b"").with("location", location);
            asked.path.ends_with(&path).then(redirect)
        })
        .await;
        let error = Bench::new()
            .pull(peer.address, Pull::Missing)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(peer.count("GET", &top.path()) <= 6);
    }
}

// A refresh token is in the body, which a client that follows redirects would send again.
#[tokio::test]
async fn a_token_server_sends_nobody_elsewhere() {
    let files = single(&[layer("top", 10)]);
    let thief = Peer::start(files.clone(), |_| {
        Some(Answer::of(200, b"{\"token\":\"token0\"}"))
    })
    .await;
    let to = thief.address;
    let server = Peer::start(Files::new(), move |_| {
        Some(Answer::of(307, b"").with("location", format!("http://{to}/token")))
    })
    .await;
    let peer = with_tokens(files, Some(format!("http://{}/token", server.address))).await;
    let identity = Credentials::IdentityToken("identity".into());
    let error = Bench::new()
        .pull_as(peer.address, Pull::Missing, &identity)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("status 307"), "{error}");
    assert!(thief.asked().is_empty());
}

#[tokio::test]
async fn a_mirror_gets_no_credentials() {
    let files = single(&[layer("top", 1000)]);
    let (registry, mirror) = (
        Peer::plain(files.clone()).await,
        Peer::start(files, |asked| {
            let challenge = "Basic realm=\"give it to me\"";
            asked
                .authorization
                .is_none()
                .then(|| Answer::of(401, b"").with("www-authenticate", challenge))
        })
        .await,
    );
    let bench = Bench::with(|config| {
        let host = |address: std::net::SocketAddr| address.to_string().parse().unwrap();
        config
            .mirrors
            .insert(host(registry.address), vec![host(mirror.address)]);
    });
    bench
        .pull_as(registry.address, Pull::Missing, &user("right"))
        .await
        .unwrap();
    assert!(
        mirror
            .asked()
            .iter()
            .all(|asked| asked.authorization.is_none())
    );
}
