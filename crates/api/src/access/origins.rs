//! Web pages of other sites that may use this server from a browser.

use std::str::FromStr;

use axum::http::{HeaderMap, HeaderValue, Uri, header};

/// Which other sites' pages may send requests and read the answers: none, by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// None.
    #[default]
    None,
    /// Those, such as `https://chat.example.com`.
    Only(Vec<HeaderValue>),
    /// All of them.
    Any,
}

/// What was given is not an origin.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{0}' is not an origin: expected * or a scheme, a host and perhaps a port, like https://chat.example.com:8443"
)]
pub struct BadOrigin(String);

impl Origins {
    /// Reads a list of origins; `*` is any.
    pub fn parse<S: AsRef<str>>(list: &[S]) -> Result<Self, BadOrigin> {
        if list.iter().any(|origin| origin.as_ref() == "*") {
            return Ok(Self::Any);
        }
        let origins: Vec<HeaderValue> = list.iter().map(|origin| one(origin.as_ref())).collect::<Result<_, _>>()?;
        Ok(if origins.is_empty() { Self::None } else { Self::Only(origins) })
    }

    /// Whether a request that does something comes from here, from an allowed site, or from no web page at all. A
    /// browser would let any page send one, though not read the answer.
    pub(super) fn admit(&self, headers: &HeaderMap) -> bool {
        // Said by browsers and by nobody else. Comparing Origin with Host would fail behind a proxy that renames hosts.
        let is_foreign = |site: &HeaderValue| site == "cross-site" || site == "same-site";
        !headers.get("sec-fetch-site").is_some_and(is_foreign) || self.include(headers.get(header::ORIGIN))
    }

    fn include(&self, origin: Option<&HeaderValue>) -> bool {
        match self {
            Self::None => false,
            Self::Only(list) => origin.is_some_and(|origin| list.contains(origin)),
            Self::Any => true,
        }
    }
}

fn one(text: &str) -> Result<HeaderValue, BadOrigin> {
    let bad = || BadOrigin(text.to_owned());
    let uri = Uri::from_str(text).map_err(|_| bad())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(bad()) };
    // Browsers send neither a path nor, for these schemes, the usual port.
    let usual = matches!((scheme, uri.port_u16()), ("http", Some(80)) | ("https", Some(443)));
    if usual || authority.as_str().contains(['@', '*']) || text != format!("{scheme}://{authority}") {
        return Err(bad());
    }
    HeaderValue::from_str(&text.to_ascii_lowercase()).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for origin in ["https://chat.example.com", "http://localhost:3000", "app://obsidian.md", "http://[::1]:8080"] {
            assert_eq!(Origins::parse(&[origin]).unwrap(), Origins::Only(vec![HeaderValue::from_static(origin)]));
        }
        assert_eq!(Origins::parse(&["http://ours", "*"]).unwrap(), Origins::Any);
        assert_eq!(Origins::parse::<&str>(&[]).unwrap(), Origins::None);
        for origin in
            ["", "example.com", "https://example.com/", "https://example.com:443", "https://u@x", "https://*.x"]
        {
            assert!(Origins::parse(&[origin]).is_err(), "{origin}");
        }
    }

    #[test]
    fn only_pages_of_other_sites_are_turned_away() {
        let admit = |origins: &Origins, site: Option<&'static str>, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            site.map(|site| headers.insert("sec-fetch-site", HeaderValue::from_static(site)));
            origin.map(|origin| headers.insert(header::ORIGIN, HeaderValue::from_static(origin)));
            origins.admit(&headers)
        };
        let ours = Origins::parse(&["http://ours"]).unwrap();
        for origins in [&Origins::None, &ours] {
            assert!(admit(origins, None, None));
            assert!(admit(origins, Some("same-origin"), Some("http://host")));
            assert!(admit(origins, Some("none"), None));
            assert!(!admit(origins, Some("cross-site"), Some("http://theirs")));
            assert!(!admit(origins, Some("same-site"), Some("http://localhost:1")));
            assert!(!admit(origins, Some("cross-site"), None));
        }
        assert!(admit(&ours, Some("cross-site"), Some("http://ours")));
        assert!(admit(&Origins::Any, Some("cross-site"), Some("http://theirs")));
    }
}
