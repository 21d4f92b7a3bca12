//! How a registry asks who we are, and what it is told.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::{RegistryError, Session, read_bounded, with_query};
use crate::credentials::{Credential, Secret};

/// The header that the registry takes from us, once it has asked for one.
#[derive(Debug)]
pub(super) struct Authorizer {
    credential: Credential,
    current: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<Secret>,
    access_token: Option<Secret>,
}

impl Authorizer {
    pub(super) fn new(credential: Credential) -> Self {
        Self { credential, current: Mutex::new(None) }
    }

    pub(super) fn current(&self) -> Option<HeaderValue> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers the challenge in `headers`. Nothing is answered if we have nothing to show.
    pub(super) async fn answer(
        &self,
        session: &Session<'_>,
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let challenges: Vec<Challenge> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| parse(value.to_str().ok()?))
            .collect();
        let named = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let value = if let Some(bearer) = named("bearer") {
            let token = self.token(session, bearer).await?;
            Some(header("Bearer", token.reveal()))
        } else if named("basic").is_some() {
            basic(&self.credential)
        } else {
            return Err(unsupported(session, "it names neither `Basic` nor `Bearer`"));
        };
        let value = value.transpose().map_err(|_| unsupported(session, "the token is no text"))?;
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&value);
        Ok(value)
    }

    /// Gets a token where the registry says that tokens are had.
    async fn token(&self, session: &Session<'_>, challenge: &Challenge) -> Result<Secret, RegistryError> {
        let pull = format!("repository:{}:pull", session.remote.repository);
        let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
        let realm = parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let realm = realm.ok_or_else(|| unsupported(session, "its realm is no address"))?;
        // Whoever can read a token on the way can use it; and a registry far away has no business with what
        // listens on this machine.
        if realm.scheme() != "https" && !session.base.starts_with("http:") {
            return Err(unsupported(session, "its realm is in plain text"));
        }
        let mut scope = vec![("service", parameter("service").unwrap_or_default())];
        // A login asks for nothing in particular.
        match parameter("scope") {
            Some(named) => scope.push(("scope", named)),
            None if session.remote.repository.is_empty() => {}
            None => scope.push(("scope", &pull)),
        }
        let request = match &self.credential {
            Credential::Refresh(token) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "bouvet"),
                    ("refresh_token", token.reveal()),
                ];
                let mut form_url = realm.clone();
                form_url.set_query(None);
                let form_url = with_query(with_query(form_url, &form), &scope);
                let body = form_url.query().unwrap_or_default().to_owned();
                session.http.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(body)
            }
            credential => {
                let mut request = session.http.get(with_query(realm, &scope));
                if let Some(Ok(value)) = basic(credential) {
                    request = request.header(AUTHORIZATION, value);
                }
                request
            }
        };
        let response = request.send().await.map_err(|error| session.broken(error))?;
        match response.status() {
            StatusCode::OK => {}
            _ => return Err(session.refusal("token", response).await),
        }
        let body = read_bounded(response, &session.remote.registry).await?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        token.ok_or_else(|| unsupported(session, "there is no token in the answer of its realm"))
    }
}

fn basic(credential: &Credential) -> Option<Result<HeaderValue, reqwest::header::InvalidHeaderValue>> {
    let Credential::Basic { username, password } = credential else { return None };
    let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
    Some(header("Basic", &pair))
}

fn header(scheme: &str, value: &str) -> Result<HeaderValue, reqwest::header::InvalidHeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn unsupported(session: &Session<'_>, reason: &str) -> RegistryError {
    RegistryError::Challenge { registry: session.registry(), reason: reason.to_owned() }
}

/// `Bearer realm="…",service="…"`
#[derive(Debug, PartialEq)]
struct Challenge {
    /// In lower case.
    scheme: String,
    parameters: BTreeMap<String, String>,
}

fn parse(header: &str) -> Option<Challenge> {
    let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    let mut parameters = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let Some((name, after)) = rest.split_once('=') else { break };
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        parameters.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    Some(Challenge { scheme: scheme.to_ascii_lowercase(), parameters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge =
            parse(r#"Bearer realm="https://a/token?x=1",service=b, scope="repository:c:pull,push""#).unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.parameters["realm"], "https://a/token?x=1");
        assert_eq!(challenge.parameters["service"], "b");
        assert_eq!(challenge.parameters["scope"], "repository:c:pull,push");
        assert_eq!(parse("BASIC").unwrap().scheme, "basic");
        assert_eq!(parse(r#"Bearer realm="open"#), None);
    }
}
