//! URLs of requests: checked when they are made, compared by origin, shown without what may be a secret.

use std::fmt;

use ureq::http::Uri;

/// An http or https URL without userinfo.
///
/// `Display` leaves out the query, which in a signed URL is a key; [`Url::as_str`] is for requests only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    origin: Origin,
}

/// Scheme, host and port: whom a secret is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub https: bool,
    host: String,
    port: u16,
}

impl Url {
    /// Reads an absolute URL; the error is a reason that does not repeat it.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let uri: Uri = text.parse().map_err(|_| "not an http or https URL")?;
        let https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("not an http or https URL"),
        };
        let authority = uri.authority().ok_or("no host")?.as_str();
        if authority.contains('@') {
            return Err("a user name or password in a URL is not taken");
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("no host")?;
        let port = match authority.get(host.len()..).unwrap_or_default().strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("the port is none")?,
            None if https => 443,
            None => 80,
        };
        let origin = Origin { https, host: host.to_ascii_lowercase(), port };
        // a fragment is not sent
        let text = text.split('#').next().unwrap_or(text).to_owned();
        Ok(Self { text, origin })
    }

    /// The whole URL, as a request needs it.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn has_query(&self) -> bool {
        self.text.contains('?')
    }

    /// Where a Location leads, absolute or relative (RFC 3986, section 5.2); never from https to http.
    pub(crate) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let scheme_end = self.text.find("://").map_or(0, |at| at + 3);
        let path_start =
            self.text[scheme_end..].find(['/', '?']).map_or(self.text.len(), |at| scheme_end + at);
        let (root, rest) = self.text.split_at(path_start);
        let path = rest.split('?').next().unwrap_or_default();
        let scheme = location.split(['/', '?', '#']).next().unwrap_or_default();
        let text = if location.is_empty() || location.starts_with('#') {
            return Err("it names no other place");
        } else if scheme.contains(':') {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{}{location}", &self.text[..scheme_end.saturating_sub(2)])
        } else if location.starts_with('?') {
            format!("{root}{path}{location}")
        } else {
            let (to, query) = location.split_at(location.find(['?', '#']).unwrap_or(location.len()));
            let base =
                if to.starts_with('/') { "" } else { path.rsplit_once('/').map_or("", |(dir, _)| dir) };
            let slash = if to.starts_with('/') { "" } else { "/" };
            format!("{root}{}{query}", without_dots(&format!("{base}{slash}{to}")))
        };
        let url = Self::parse(&text)?;
        if self.origin.https && !url.origin.https {
            return Err("from https only https is followed");
        }
        Ok(url)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.split('?').next().unwrap_or_default())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What of a text that should be a URL, and may not be one, is shown: no userinfo, no query.
pub(crate) fn shown(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    // the last @, and before the query is cut off: a password may hold any character
    let rest = rest.rsplit('@').next().unwrap_or_default();
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

/// A path with `.` and `..` resolved (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    parts.pop();
                }
                if last {
                    parts.push("");
                }
            }
            _ => parts.push(segment),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_resolved_and_never_become_less_secure() {
        let from = Url::parse("https://hub.example/a/b?c").unwrap();
        for (location, whole) in [
            ("/x?y", "https://hub.example/x?y"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("https://cdn.example/x", "https://cdn.example/x"),
            ("x", "https://hub.example/a/x"),
            ("../x?y=/../z", "https://hub.example/x?y=/../z"),
            ("./x:y", "https://hub.example/a/x:y"),
            ("?z", "https://hub.example/a/b?z"),
            ("x/.", "https://hub.example/a/x/"),
        ] {
            assert_eq!(
                from.join(location).map(|u| u.as_str().to_owned()),
                Ok(whole.to_owned()),
                "{location}"
            );
        }
        assert_eq!(Url::parse("http://h").unwrap().join("x").unwrap().as_str(), "http://h/x");
        let bad = ["http://cdn.example/x", "file:///etc/passwd", "", "#x", "https://u:p@cdn.example/"];
        for bad in bad.iter().chain(&["https://cdn.example:99999/", "data:x"]) {
            assert!(from.join(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let origin = |text: &str| Url::parse(text).unwrap().origin;
        let hub = origin("https://hub.example");
        for same in ["https://hub.example/x", "https://HUB.example:443/x"] {
            assert_eq!(origin(same), hub, "{same}");
        }
        for other in ["http://hub.example/x", "https://hub.example:444/x", "https://hub.example.evil/x"] {
            assert_ne!(origin(other), hub, "{other}");
        }
        assert_eq!(origin("http://[::1]:8080/x").port, 8080);
        for bad in [
            "hub.example",
            "https://a@hub.example/",
            "http://h:99999",
            "http://h:0",
            "http://h:x",
            "http://:80",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let url = Url::parse("https://cdn.example/x?signature=secret").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://cdn.example/x https://cdn.example/x");
        for (text, seen) in [
            ("http://u:secret@h/x?y", "http://h/x"),
            ("http://u:sec/ret?@h", "http://h"),
            ("u:secret@h", "h"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(shown(text), seen);
        }
    }
}
