//! Requests for ranges of files: redirects followed by hand, so that the token goes to the Hub alone.

use std::{
    io::Read,
    ops::Range,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, Response, StatusCode, Uri},
};

use crate::digest::{Digest, is_digest};
use crate::error::{HubError, Result};

const MAX_REDIRECTS: usize = 5;

/// A client that stalls never and tells the token to nobody but the endpoint.
pub struct Transport {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// A file on the Hub, and where its content was found to be.
pub struct Source {
    repository: String,
    url: String,
    /// Where the Hub redirected to; a signed URL that serves for many ranges until it expires.
    direct: Mutex<Option<String>>,
}

/// What a file should be.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    pub file: &'a str,
    pub bytes: u64,
    pub digest: &'a Digest,
}

/// An answer whose body is to be read.
pub struct Answer {
    pub body: BodyReader<'static>,
    /// Whether the body is the whole file although a range was asked for.
    pub whole: bool,
    pub url: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
        // `user@host` would be shown in messages and never comes from the Hub
        let plain = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        plain.then_some(())?;
        Some(Self { https, host: uri.host()?.to_ascii_lowercase(), port })
    }
}

impl Source {
    pub fn new(repository: &str, url: String) -> Self {
        Self { repository: repository.into(), url, direct: Mutex::default() }
    }

    fn direct(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    pub fn new(endpoint: &str, token: Option<String>, timeout: Duration) -> Result<Self> {
        let origin = Origin::of(endpoint).ok_or_else(|| HubError::Network {
            url: endpoint.into(),
            reason: "not an http or https URL: check HF_ENDPOINT".into(),
        })?;
        let config = Agent::config_builder()
            .user_agent(concat!("flm/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections_per_host(32)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .build();
        Ok(Self { agent: config.new_agent(), endpoint: endpoint.into(), origin, token })
    }

    pub fn page(&self, repository: &str) -> String {
        format!("{}/{repository}", self.endpoint)
    }

    /// Asks for `range` of a file, or for all of it.
    pub fn get(&self, source: &Source, range: Option<Range<u64>>, expected: Expected<'_>) -> Result<Answer> {
        let known = source.direct().clone();
        let mut url = known.clone().unwrap_or_else(|| source.url.clone());
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send("GET", &url, range.as_ref())?;
            let ours = self.is_ours(&url);
            if ours {
                check_identity(response.headers(), expected)?;
            }
            if is_redirect(response.status()) {
                url = redirect(&url, response.headers())?;
                continue;
            }
            if !ours && known.as_ref() == Some(&url) && matches!(response.status().as_u16(), 400..=410) {
                // a signed URL that has expired
                *source.direct() = None;
                return Err(HubError::Network { url, reason: "the redirect has expired".into() });
            }
            self.check_status(&response, &source.repository, &url)?;
            if !ours {
                *source.direct() = Some(url.clone());
            }
            let whole = check_length(&url, &response, range.as_ref(), expected)?;
            return Ok(Answer { body: response.into_body().into_reader(), whole, url });
        }
        Err(HubError::Redirect { from: source.url.clone(), to: url, reason: "too many redirects" })
    }

    /// Size and digest by the Hub's headers; redirects are not followed, they lead to hosts that know neither.
    pub fn head(&self, source: &Source) -> Result<(Option<u64>, Option<Digest>)> {
        let response = self.send("HEAD", &source.url, None)?;
        let headers = response.headers();
        if !is_redirect(response.status()) {
            self.check_status(&response, &source.repository, &source.url)?;
        }
        let linked = text(headers, "x-linked-size")
            .or_else(|| (!is_redirect(response.status())).then(|| text(headers, "content-length")).flatten());
        let etag = etag(headers, "x-linked-etag").or_else(|| etag(headers, "etag"));
        let digest = etag.and_then(|etag| match etag.len() {
            64 if is_digest(&etag, 64) => Some(Digest::Sha256(etag)),
            40 if is_digest(&etag, 40) => Some(Digest::GitSha1(etag)),
            _ => None,
        });
        Ok((linked.and_then(|n| n.parse().ok()), digest))
    }

    /// Turns a status that is no success into the error that says what to do.
    pub fn check_status(&self, response: &Response<Body>, repository: &str, url: &str) -> Result<()> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        if self.is_ours(url) {
            let gated = || HubError::Gated { repository: repository.into(), page: self.page(repository) };
            match (status.as_u16(), code) {
                (401 | 403, "GatedRepo") | (403, _) => return Err(gated()),
                (401, _) | (_, "RepoNotFound") => {
                    return Err(HubError::Unauthorized { repository: repository.into() });
                }
                (404, _) => {
                    let what = match code {
                        "RevisionNotFound" => format!("this revision of {repository}"),
                        "EntryNotFound" => format!("this file of {repository}"),
                        _ => repository.to_owned(),
                    };
                    return Err(HubError::NotFound { what, url: url.into() });
                }
                _ => {}
            }
        }
        let retry_after = text(headers, "retry-after").and_then(|text| wait(text, SystemTime::now()));
        Err(HubError::Status { url: shown(url), status: status.as_u16(), retry_after })
    }

    fn send(&self, method: &str, url: &str, range: Option<&Range<u64>>) -> Result<Response<Body>> {
        let mut request = if method == "HEAD" { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header("Accept-Encoding", "identity");
        if let Some(range) = range {
            request =
                request.header("Range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| HubError::Network { url: shown(url), reason: network(&error) })
    }

    /// Whether a URL is of the endpoint: same scheme, host and port.
    fn is_ours(&self, url: &str) -> bool {
        Origin::of(url).as_ref() == Some(&self.origin)
    }
}

impl Answer {
    /// Reads until `buf` is full or the body ends.
    pub fn fill(&mut self, buf: &mut [u8]) -> (usize, Result<()>) {
        let mut n = 0;
        while n < buf.len() {
            match self.body.read(&mut buf[n..]) {
                Ok(0) => break,
                Ok(read) => n += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = error.to_string();
                    return (n, Err(HubError::Network { url: shown(&self.url), reason }));
                }
            }
        }
        (n, Ok(()))
    }
}

/// The answer's own words on what it sends, against what was asked; true where it is the whole file.
fn check_length(
    url: &str,
    response: &Response<Body>,
    range: Option<&Range<u64>>,
    expected: Expected<'_>,
) -> Result<bool> {
    let wrong = |reason: String| HubError::WrongAnswer { url: shown(url), reason };
    let headers = response.headers();
    let length = text(headers, "content-length").map(|n| n.parse::<u64>().unwrap_or(u64::MAX));
    let (whole, asked) = match (response.status(), range) {
        (StatusCode::PARTIAL_CONTENT, Some(range)) => {
            let got = text(headers, "content-range").unwrap_or("absent");
            let right = format!("bytes {}-{}/", range.start, range.end - 1);
            let total = got.strip_prefix(right.as_str());
            if total != Some("*") && total.and_then(|n| n.parse().ok()) != Some(expected.bytes) {
                return Err(wrong(format!("Content-Range is {got}, expected {right}{}", expected.bytes)));
            }
            (false, range.end - range.start)
        }
        (StatusCode::OK, _) => (true, expected.bytes),
        (status, _) => return Err(wrong(format!("status {status} does not fit the request"))),
    };
    if length.is_some_and(|length| length != asked) {
        let length = length.unwrap_or_default();
        return Err(wrong(format!("Content-Length is {length}, expected {asked}")));
    }
    Ok(whole && range.is_some())
}

/// The Hub's word on what the file is, against what it should be.
fn check_identity(headers: &HeaderMap, expected: Expected<'_>) -> Result<()> {
    let differs = |what, found: String, expected_value: String| HubError::Differs {
        file: expected.file.into(),
        what,
        expected: expected_value,
        found,
        holder: "what was planned",
    };
    let found = etag(headers, "x-linked-etag");
    match (expected.digest, found) {
        (Digest::Sha256(sha256), Some(found)) if found != *sha256 => {
            return Err(differs("SHA-256", found, sha256.clone()));
        }
        _ => {}
    }
    match text(headers, "x-linked-size") {
        Some(found) if found.parse() != Ok(expected.bytes) => {
            Err(differs("size", found.into(), expected.bytes.to_string()))
        }
        _ => Ok(()),
    }
}

/// How long Retry-After asks to wait: seconds, or until a date (RFC 9110, section 10.2.3).
fn wait(retry_after: &str, now: SystemTime) -> Option<Duration> {
    let text = retry_after.trim();
    let seconds = text.parse().ok().map(Duration::from_secs);
    seconds.or_else(|| {
        let date = httpdate::parse_http_date(text).ok()?;
        // one that has passed asks for no wait
        Some(date.duration_since(now).unwrap_or_default())
    })
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where an answer redirects to: absolute, and never from https to anything less.
fn redirect(from: &str, headers: &HeaderMap) -> Result<String> {
    let to = text(headers, "location").unwrap_or_default();
    let refused = |reason| HubError::Redirect { from: shown(from), to: shown(to), reason };
    let origin_end = from.find("://").map_or(0, |i| i + 3);
    let path_start = from[origin_end..].find(['/', '?']).map_or(from.len(), |i| origin_end + i);
    let url = if to.starts_with("//") {
        format!("{}{to}", &from[..origin_end.saturating_sub(2)])
    } else if to.starts_with('/') {
        format!("{}{to}", &from[..path_start])
    } else {
        to.to_owned()
    };
    let secure = |url: &str| Origin::of(url).map(|o| o.https);
    match (secure(from), secure(&url)) {
        (_, None) => Err(refused("not an http or https URL")),
        (Some(true), Some(false)) => Err(refused("from https only https is followed")),
        _ => Ok(url),
    }
}

/// A URL for people: without its query, which in signed URLs is a key.
pub(crate) fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// An entity tag without `W/` and quotes.
fn etag(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(text(headers, name)?.trim_start_matches("W/").trim_matches('"').to_owned())
}

fn network(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(_) => "nothing came for too long".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(from: &str, location: &str) -> Result<String> {
        let mut headers = HeaderMap::new();
        headers.insert("location", location.parse().unwrap());
        redirect(from, &headers)
    }

    #[test]
    fn redirects_are_resolved_and_never_become_less_secure() {
        let from = "https://hub.example/a/b?c";
        assert_eq!(to(from, "/x?y").unwrap(), "https://hub.example/x?y");
        assert_eq!(to(from, "//cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to(from, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        assert_eq!(to("http://127.0.0.1:80/a", "http://127.0.0.2/x").unwrap(), "http://127.0.0.2/x");
        for bad in ["http://cdn.example/x", "file:///etc/passwd", "", "x", "https://u:p@cdn.example/"] {
            assert!(matches!(to(from, bad), Err(HubError::Redirect { .. })), "{bad}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // the example of RFC 9110, section 5.6.7, in its three forms; as seconds by `date +%s`
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        let dates =
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"];
        for text in dates.iter().chain(&[" 90 ", "90"]) {
            assert_eq!(wait(text, now), Some(Duration::from_secs(90)), "{text}");
        }
        assert_eq!(wait(dates[0], now + Duration::from_secs(91)), Some(Duration::ZERO));
        for text in ["", "-1", "soon", "Sun, 06 Nov"] {
            assert_eq!(wait(text, now), None, "{text}");
        }
    }

    #[test]
    fn only_the_endpoint_is_ours() {
        let transport = Transport::new("https://hub.example", None, Duration::from_secs(1)).unwrap();
        for ours in ["https://hub.example/x", "https://HUB.example:443/x"] {
            assert!(transport.is_ours(ours), "{ours}");
        }
        let others = [
            "http://hub.example/x",
            "https://hub.example:444/x",
            "https://hub.example.evil/x",
            "https://a@hub.example/",
        ];
        for other in others {
            assert!(!transport.is_ours(other), "{other}");
        }
        assert!(Transport::new("hub.example", None, Duration::from_secs(1)).is_err());
    }
}
