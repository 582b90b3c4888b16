//! Who may ask: a token, and the names under which browsers may reach the server.
//!
//! A page from anywhere can make its visitor's browser ask a server on the visitor's machine, or under a
//! name that is made to mean that machine. What browsers tell of it, `Host` and `Origin`, is
//! checked; so the server needs no token as long as only this machine reaches it.

use core::hint::black_box;
use core::net::{IpAddr, SocketAddr};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{StatusCode, Version};
use sha2::{Digest as _, Sha256};

use super::problem::Problem;
use crate::error::{Error, Result};
use crate::files;

/// Environment variable with the token.
pub(super) const TOKEN_VARIABLE: &str = "CLLM_TOKEN";

/// Most bytes of a file with a token: the head of a request has no room for more than some thousands.
const TOKEN_BYTES: u64 = 4096;

/// The token that `file` or else the environment has.
///
/// # Errors
/// The file cannot be read, or is longer than a token can be; the token is empty or has characters that no header has.
pub(super) fn token(file: Option<&Path>) -> Result<Option<String>> {
    let (text, source) = match file {
        Some(path) => {
            let text = files::read_given(path, TOKEN_BYTES)
                .and_then(files::text)
                .map_err(|e| Error::io("read the token", path, &e))?;
            (text, path.display().to_string())
        }
        None => match std::env::var(TOKEN_VARIABLE) {
            Ok(text) => (text, TOKEN_VARIABLE.to_owned()),
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Err(error) => return Err(Error::usage(format!("{TOKEN_VARIABLE}: {error}"))),
        },
    };
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::usage(format!(
            "{source}: a token is of letters, digits and signs of ASCII, without spaces"
        )));
    }
    Ok(Some(token.to_owned()))
}

/// What is checked of every request.
#[derive(Debug)]
pub(super) struct Guard {
    /// Of the token.
    sha256: Option<[u8; 32]>,
    reach: Reach,
    /// Pages from elsewhere that may ask.
    origins: Vec<String>,
}

/// From where the server can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// This machine alone.
    Loopback,
    /// A network.
    Network,
}

impl Guard {
    /// For a server at `address`.
    pub(super) fn new(address: SocketAddr, token: Option<&str>, origins: &[String]) -> Self {
        let reach = if address.ip().is_loopback() { Reach::Loopback } else { Reach::Network };
        let origins =
            origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase());
        let sha256 = token.map(|token| Sha256::digest(token).into());
        Self { sha256, reach, origins: origins.collect() }
    }

    /// The origin that a browser may hand the reply to, if a page asks that came from elsewhere.
    ///
    /// # Errors
    /// A name that is not this server's; a page that may not ask.
    pub(super) fn origin(
        &self,
        headers: &HeaderMap,
        version: Version,
    ) -> core::result::Result<Option<HeaderValue>, Problem> {
        let host = self.host(headers, version)?;
        let Some(origin) = headers.get(ORIGIN) else { return Ok(None) };
        let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        if self.origins.contains(&text) {
            return Ok(Some(origin.clone()));
        }
        let own = text.split_once("://").map(|(_, authority)| authority);
        match (own, host) {
            (Some(own), Some(host)) if own == host => Ok(None),
            _ => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "Origin: pages from elsewhere may not ask; --allow-origin lets one",
            )),
        }
    }

    /// The `Host` of a request.
    fn host(
        &self,
        headers: &HeaderMap,
        version: Version,
    ) -> core::result::Result<Option<String>, Problem> {
        let mut all = headers.get_all(HOST).iter();
        let host = match (all.next(), all.next()) {
            // Browsers always say one.
            (None, _) if version < Version::HTTP_11 => return Ok(None),
            (Some(host), None) => host.to_str().unwrap_or_default().to_ascii_lowercase(),
            _ => return Err(Problem::bad("Host: there must be one")),
        };
        let no_host = || Problem::bad("Host: it is no name of a host");
        let authority: Authority = host.parse().map_err(|_| no_host())?;
        let name = authority.host();
        // A name, and at most a port behind it.
        let rest = host.strip_prefix(name).ok_or_else(no_host)?;
        if !rest.is_empty() && authority.port_u16().is_none() {
            return Err(no_host());
        }
        let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
        let local = name == "localhost" || name.ends_with(".localhost");
        let fine = match self.reach {
            Reach::Loopback => local || address.is_some_and(|address| address.is_loopback()),
            // Who knows the token may call the server anything. Without one: what no foreign name
            // server can say of its own names.
            Reach::Network => {
                let near = !name.contains('.') || name.ends_with(".local");
                self.sha256.is_some() || local || near || address.is_some()
            }
        };
        let allowed = |origin: &String| origin.split_once("://").is_some_and(|(_, at)| at == host);
        if fine || self.origins.iter().any(allowed) {
            return Ok(Some(host));
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "Host: the server is not known by this name; ask for it by its address, or name the \
             page with --allow-origin",
        ))
    }

    /// Whether there is a token.
    pub(super) fn has_token(&self) -> bool {
        self.sha256.is_some()
    }

    /// Checks the token, which browsers send as a password.
    ///
    /// # Errors
    /// It is missing or another one.
    pub(super) fn token(&self, headers: &HeaderMap) -> core::result::Result<(), Problem> {
        let Some(expected) = &self.sha256 else { return Ok(()) };
        let Some(given) = headers.get(AUTHORIZATION) else {
            return Err(Problem::token("a token is wanted: Authorization: Bearer TOKEN"));
        };
        let given = given.to_str().unwrap_or_default();
        let (scheme, rest) = given.split_once(' ').unwrap_or((given, ""));
        let token = if scheme.eq_ignore_ascii_case("bearer") {
            rest.trim().as_bytes().to_vec()
        } else if scheme.eq_ignore_ascii_case("basic") {
            let plain = STANDARD.decode(rest.trim()).unwrap_or_default();
            let colon = plain.iter().position(|byte| *byte == b':');
            colon.map_or(Vec::new(), |at| plain[at + 1..].to_vec())
        } else {
            Vec::new()
        };
        // Of hashes, and all of them: the time tells nothing of the token.
        let given: [u8; 32] = Sha256::digest(&token).into();
        let differ = given.iter().zip(expected).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        if differ == 0 { Ok(()) } else { Err(Problem::token("another token is wanted")) }
    }
}

/// Headers by which a browser lets the page at `origin` read a reply.
pub(super) fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(hyper::header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(hyper::header::VARY, HeaderValue::from_static("Origin"));
}

/// Headers by which it lets the page ask at all.
pub(super) const PREFLIGHT: [(HeaderName, &str); 3] = [
    (hyper::header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
    (hyper::header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type, *"),
    (hyper::header::ACCESS_CONTROL_MAX_AGE, "600"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap()));
        pairs.collect()
    }

    fn guard(address: &str, token: Option<&str>, origins: &[&str]) -> Guard {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Guard::new(address.parse().unwrap(), token, &origins)
    }

    fn status(guard: &Guard, pairs: &[(HeaderName, &str)]) -> u16 {
        let checked = guard.origin(&headers(pairs), Version::HTTP_11);
        checked.map_or_else(|problem| problem.status().as_u16(), |_| 200)
    }

    #[test]
    fn a_server_of_this_machine_is_called_so() {
        let guard = guard("127.0.0.1:80", None, &["https://a.example"]);
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:80", "[::1]:80", "x.localhost", "a.example"]
        {
            assert_eq!(status(&guard, &[(HOST, host)]), 200, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "192.168.0.1", "127.0.0.1.evil.example:80"]
        {
            assert_eq!(status(&guard, &[(HOST, host)]), 403, "{host}");
        }
        for host in ["a b", "", "127.0.0.1:80.evil.example", "me@127.0.0.1", "127.0.0.1:99999"] {
            assert_eq!(status(&guard, &[(HOST, host)]), 400, "{host}");
        }
        assert_eq!(status(&guard, &[]), 400);
        let twice: HeaderMap = [(HOST, "localhost"), (HOST, "localhost")].into_iter().fold(
            HeaderMap::new(),
            |mut all, (name, value)| {
                all.append(name, value.parse().unwrap());
                all
            },
        );
        assert!(guard.origin(&twice, Version::HTTP_11).is_err());
        assert!(guard.origin(&HeaderMap::new(), Version::HTTP_10).is_ok());
    }

    #[test]
    fn a_server_of_a_network_is_called_anything_by_those_who_know_the_token() {
        let open = guard("0.0.0.0:80", None, &[]);
        for (host, expected) in
            [("192.168.0.1:80", 200), ("box", 200), ("box.local", 200), ("box.example", 403)]
        {
            assert_eq!(status(&open, &[(HOST, host)]), expected, "{host}");
        }
        assert_eq!(status(&guard("0.0.0.0:80", Some("t"), &[]), &[(HOST, "box.example")]), 200);
    }

    #[test]
    fn pages_from_elsewhere_may_not_ask_unless_they_are_named() {
        let guard = guard("127.0.0.1:80", None, &["https://a.example/"]);
        let with = |origin| status(&guard, &[(HOST, "localhost:80"), (ORIGIN, origin)]);
        assert_eq!(with("http://localhost:80"), 200);
        assert_eq!(with("https://a.example"), 200);
        for origin in ["http://localhost:81", "https://b.example", "null", "https://a.example.b"] {
            assert_eq!(with(origin), 403, "{origin}");
        }
    }

    #[test]
    fn the_token_is_a_bearers_or_a_password() {
        let guard = guard("127.0.0.1:80", Some("secret"), &[]);
        let with = |value: &str| guard.token(&headers(&[(AUTHORIZATION, value)])).is_ok();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert!(with("Bearer secret") && with("bearer  secret") && with(&basic("me:secret")));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer", "secret", "Basic secret", ""] {
            assert!(!with(wrong), "{wrong}");
        }
        assert!(!with(&basic("secret")) && guard.token(&HeaderMap::new()).is_err());
    }
}
