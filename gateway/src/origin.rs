//! Browser origins, compared in one form: browsers, proxies and people write the same origin differently.

use std::fmt;
use std::str::FromStr;

use http::header::{HOST, HeaderMap, ORIGIN};
use reqwest::Url;
use serde::Deserialize;

/// An origin as browsers send it: scheme and host in small letters, no default port, no path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin(String);

/// Not an origin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: a scheme, a host and at most a port, like \"https://chat.example.com\"")]
pub struct NotAnOrigin(String);

impl FromStr for Origin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let url = Url::parse(text).ok()?;
            let is_bare = matches!(url.path(), "" | "/")
                && url.query().or(url.fragment()).or(url.password()).is_none()
                && url.username().is_empty();
            // A wildcard is a legal host, which no page has.
            let host = url.host_str().filter(|host| is_bare && !host.is_empty() && !host.contains('*'))?;
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            // A host of a scheme that the URL standard does not know (`capacitor://`) keeps its capitals.
            Some(Self(format!("{}://{}{port}", url.scheme(), host.to_ascii_lowercase())))
        };
        read().ok_or_else(|| NotAnOrigin(text.to_owned()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key `allowed_origins`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct AllowedOrigins {
    any: bool,
    named: Vec<Origin>,
}

impl TryFrom<Vec<String>> for AllowedOrigins {
    type Error = NotAnOrigin;

    fn try_from(texts: Vec<String>) -> Result<Self, Self::Error> {
        let (any, named): (Vec<_>, Vec<_>) = texts.iter().partition(|text| *text == "*");
        let named = named.into_iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(Self { any: !any.is_empty(), named })
    }
}

impl AllowedOrigins {
    /// Whether a browser page may use this server: its origin is a configured one, or the server's own. A client that is
    /// not a browser sends no origin.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(ORIGIN) else {
            return true;
        };
        if self.any {
            return true;
        }
        let Some(origin) = origin.to_str().ok().and_then(|origin| origin.parse::<Origin>().ok()) else {
            return false;
        };
        // The proxy in front may speak TLS, so the page's scheme is taken for the server's own.
        let own = headers.get(HOST).and_then(|host| host.to_str().ok()).and_then(|host| {
            let (scheme, _) = origin.0.split_once("://")?;
            format!("{scheme}://{host}").parse::<Origin>().ok()
        });
        self.named.contains(&origin) || own == Some(origin)
    }
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;

    fn allowed(texts: &[&str]) -> Result<AllowedOrigins, NotAnOrigin> {
        texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().try_into()
    }

    fn is_allowed(allowed: &AllowedOrigins, origin: &str, host: &str) -> bool {
        let header = |value: &str| HeaderValue::from_str(value).unwrap();
        allowed.allow(&HeaderMap::from_iter([(ORIGIN, header(origin)), (HOST, header(host))]))
    }

    #[test]
    fn a_page_may_come_from_the_server_itself_or_an_allowed_origin() {
        let allowed = allowed(&["https://app.example"]).unwrap();
        for (origin, wanted) in [
            ("https://app.example", true),
            ("http://naru.example:8080", true),
            ("https://app.example.evil.example", false),
            ("http://app.example", false),
            ("http://naru.example", false),
            ("null", false),
        ] {
            assert_eq!(is_allowed(&allowed, origin, "naru.example:8080"), wanted, "{origin}");
        }
        assert!(allowed.allow(&HeaderMap::new()), "an app sends no origin");
    }

    #[test]
    fn the_servers_own_origin_is_found_however_its_host_is_written() {
        let none = allowed(&[]).unwrap();
        for (origin, host, wanted) in [
            ("https://chat.example.com", "chat.example.com:443", true),
            ("http://chat.example.com", "chat.example.com:80", true),
            ("https://chat.example.com", "Chat.Example.COM", true),
            ("https://chat.example.com:8443", "chat.example.com:8443", true),
            ("https://[2001:db8::1]", "[2001:db8::1]:443", true),
            ("https://chat.example.com", "chat.example.com:80", false),
            ("https://chat.example.com:8443", "chat.example.com", false),
            ("https://chat.example.com", "chat.example.com/@evil.example", false),
            ("https://evil.example", "user@evil.example", false),
        ] {
            assert_eq!(is_allowed(&none, origin, host), wanted, "{origin} at {host}");
        }
    }

    #[test]
    fn a_configured_origin_matches_however_it_is_written() {
        for configured in [
            "https://chat.example.com",
            "https://chat.example.com/",
            "https://Chat.Example.com",
            "HTTPS://chat.example.com:443",
        ] {
            let allowed = allowed(&[configured]).unwrap();
            assert!(is_allowed(&allowed, "https://chat.example.com", "naru.example"), "{configured}");
        }
        let webview = allowed(&["capacitor://LocalHost"]).unwrap();
        assert!(is_allowed(&webview, "capacitor://localhost", "naru.example"));
        assert!(is_allowed(&allowed(&["*"]).unwrap(), "null", "naru.example"));
    }

    #[test]
    fn what_cannot_be_an_origin_is_refused() {
        for bad in [
            "chat.example.com",
            "chat.example.com:443",
            "https://",
            "https://chat.example.com/chat",
            "https://chat.example.com?x",
            "https://user@chat.example.com",
            "https://*.example.com",
            "null",
            "",
        ] {
            assert_eq!(allowed(&["https://good.example", bad]).unwrap_err(), NotAnOrigin(bad.to_owned()));
        }
    }
}
