//! All requests, of the API and for ranges of files: redirects followed by hand, so that the token goes to
//! the Hub's origin alone, whatever is asked for.

use std::{
    io::Read,
    ops::Range,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ureq::{
    Agent, Body, BodyReader,
    http::{HeaderMap, Response, StatusCode},
};

use crate::credentials::Token;
use crate::digest::{Digest, is_digest};
use crate::error::{HubError, Result};
use crate::url::{Url, shown};

const MAX_REDIRECTS: usize = 5;
/// Bytes a second below which a connection counts as stalled, seen over the time of a stall.
const LEAST_RATE: u64 = 100;
/// What is read of the body of an error.
const MAX_ERROR_BODY: u64 = 16 << 10;

/// A client that stalls never and tells the token to nobody but the endpoint.
pub(crate) struct Transport {
    agent: Agent,
    endpoint: Url,
    token: Option<Token>,
    timeout: Duration,
}

/// A file on the Hub, and where its content was found to be.
pub(crate) struct Source {
    repository: String,
    url: Url,
    /// Where the Hub redirected to; a signed URL that serves for many ranges until it expires.
    direct: Mutex<Option<Url>>,
}

/// What a file should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub file: &'a str,
    pub bytes: u64,
    pub digest: &'a Digest,
}

/// An answer whose body is to be read.
pub(crate) struct Answer {
    body: BodyReader<'static>,
    /// Whether the body is the whole file although a range was asked for.
    pub whole: bool,
    pub url: Url,
    pace: Pace,
}

/// Sees a body that comes byte by byte, so that the timeout of no single read strikes.
struct Pace {
    window: Duration,
    since: Instant,
    bytes: u64,
}

impl Source {
    pub(crate) fn new(repository: &str, url: Url) -> Self {
        Self { repository: repository.into(), url, direct: Mutex::default() }
    }

    fn direct(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.direct.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    pub(crate) fn new(endpoint: &str, token: Option<Token>, timeout: Duration) -> Result<Self> {
        let refused = |reason| HubError::Endpoint { endpoint: shown(endpoint), reason };
        let endpoint = Url::parse(endpoint).map_err(refused)?;
        if endpoint.has_query() {
            return Err(refused("it has a query"));
        }
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
        Ok(Self { agent: config.new_agent(), endpoint, token, timeout })
    }

    /// A URL of the endpoint.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        let endpoint = self.endpoint.as_str().trim_end_matches('/');
        let failed = |reason| HubError::Endpoint { endpoint: self.endpoint.to_string(), reason };
        Url::parse(&format!("{endpoint}/{path}")).map_err(failed)
    }

    fn page(&self, repository: &str) -> String {
        format!("{}/{repository}", self.endpoint.to_string().trim_end_matches('/'))
    }

    /// The body of an answer of the API, of so many bytes at most.
    pub(crate) fn read(&self, url: &Url, repository: &str, limit: u64) -> Result<Vec<u8>> {
        let (url, response) = self.follow("GET", url.clone(), None, &|_| Ok(()))?;
        let response = self.checked(response, repository, &url)?;
        let mut answer = self.answer(url, response, false);
        let mut bytes = Vec::new();
        let mut buf = vec![0; 64 << 10];
        loop {
            let (n, read) = answer.fill(&mut buf);
            read?;
            bytes.extend_from_slice(&buf[..n]);
            if bytes.len() as u64 > limit {
                let reason = format!("it has more than {limit} bytes: not a list of files");
                return Err(HubError::WrongAnswer { url: answer.url.to_string(), reason });
            }
            if n < buf.len() {
                return Ok(bytes);
            }
        }
    }

    /// Asks for `range` of a file, or for all of it.
    pub(crate) fn get(
        &self,
        source: &Source,
        range: Option<Range<u64>>,
        expected: Expected<'_>,
    ) -> Result<Answer> {
        let known = source.direct().clone();
        let first = known.clone().unwrap_or_else(|| source.url.clone());
        let (url, response) =
            self.follow("GET", first, range.as_ref(), &|headers| check_identity(headers, expected))?;
        let ours = self.is_ours(&url);
        if !ours && known.as_ref() == Some(&url) && matches!(response.status().as_u16(), 400..=410) {
            // a signed URL that has expired
            *source.direct() = None;
            return Err(HubError::Network {
                url: url.to_string(),
                reason: "the redirect has expired".into(),
            });
        }
        let response = self.checked(response, &source.repository, &url)?;
        if !ours {
            *source.direct() = Some(url.clone());
        }
        let whole = check_length(&url, &response, range.as_ref(), expected)?;
        Ok(self.answer(url, response, whole))
    }

    /// Size and digest by the Hub's headers; redirects to other hosts are not followed: they know neither.
    pub(crate) fn head(&self, source: &Source) -> Result<(Option<u64>, Option<Digest>)> {
        let mut url = source.url.clone();
        let mut response = self.send("HEAD", &url, None)?;
        for _ in 0..MAX_REDIRECTS {
            let named = response.headers().contains_key("x-linked-etag");
            let to =
                is_redirect(response.status()).then(|| redirect(&url, response.headers())).transpose()?;
            // a repository that was renamed
            let Some(to) = to.filter(|to| !named && self.is_ours(to)) else { break };
            response = self.send("HEAD", &to, None)?;
            url = to;
        }
        if !is_redirect(response.status()) {
            response = self.checked(response, &source.repository, &url)?;
        }
        let headers = response.headers();
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
    fn checked(&self, response: Response<Body>, repository: &str, url: &Url) -> Result<Response<Body>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = text(headers, "x-error-message").unwrap_or_default().to_owned();
        let token = self.token.as_ref().filter(|_| self.is_ours(url)).map(|token| token.source.clone());
        let repository = repository.to_owned();
        if self.is_ours(url) {
            let refused = said.to_ascii_lowercase().contains("invalid credentials");
            match (status.as_u16(), code, token) {
                (401 | 403, "GatedRepo", token) => {
                    return Err(HubError::Gated { page: self.page(&repository), repository, token });
                }
                (401, _, Some(token)) if refused || code != "RepoNotFound" => {
                    return Err(HubError::TokenRefused { token });
                }
                (401, _, token) | (_, "RepoNotFound", token) => {
                    return Err(HubError::Unauthorized { repository, token });
                }
                (404, _, _) => {
                    let what = match code {
                        "RevisionNotFound" => format!("this revision of {repository}"),
                        "EntryNotFound" => format!("this file of {repository}"),
                        _ => repository,
                    };
                    return Err(HubError::NotFound { what, url: url.to_string() });
                }
                _ => {}
            }
        }
        let retry_after = text(headers, "retry-after").and_then(|text| wait(text, SystemTime::now()));
        let passing = matches!(status.as_u16(), 408 | 425 | 429 | 500..=599);
        let said = if said.is_empty() && !passing { first_line(response) } else { said };
        let said = if said.is_empty() { said } else { format!(": {said:?}") };
        Err(HubError::Status { url: url.to_string(), status: status.as_u16(), said, retry_after })
    }

    /// Sends, and goes where it is redirected to; `see` looks at every answer of the Hub's own.
    fn follow(
        &self,
        method: &str,
        first: Url,
        range: Option<&Range<u64>>,
        see: &dyn Fn(&HeaderMap) -> Result<()>,
    ) -> Result<(Url, Response<Body>)> {
        let mut url = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method, &url, range)?;
            if self.is_ours(&url) {
                see(response.headers())?;
            }
            if !is_redirect(response.status()) {
                return Ok((url, response));
            }
            url = redirect(&url, response.headers())?;
        }
        let (from, to) = (first.to_string(), url.to_string());
        Err(HubError::Redirect { from, to, reason: "too many redirects" })
    }

    fn send(&self, method: &str, url: &Url, range: Option<&Range<u64>>) -> Result<Response<Body>> {
        let mut request =
            if method == "HEAD" { self.agent.head(url.as_str()) } else { self.agent.get(url.as_str()) };
        request = request.header("Accept-Encoding", "identity");
        if let Some(range) = range {
            request =
                request.header("Range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(url)) {
            request = request.header("Authorization", token.authorization());
        }
        request.call().map_err(|error| HubError::Network { url: url.to_string(), reason: network(&error) })
    }

    /// Whether a URL is of the endpoint: same scheme, host and port.
    fn is_ours(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    fn answer(&self, url: Url, response: Response<Body>, whole: bool) -> Answer {
        let pace = Pace { window: self.timeout, since: Instant::now(), bytes: 0 };
        Answer { body: response.into_body().into_reader(), whole, url, pace }
    }
}

impl Answer {
    /// Reads until `buf` is full or the body ends.
    pub(crate) fn fill(&mut self, buf: &mut [u8]) -> (usize, Result<()>) {
        let mut n = 0;
        // the time between two calls is the reader's own
        self.pace.begin();
        while n < buf.len() {
            match self.body.read(&mut buf[n..]) {
                Ok(0) => break,
                Ok(read) => {
                    n += read;
                    if n < buf.len() && self.pace.is_stalled(read as u64) {
                        let (url, seconds) = (self.url.to_string(), self.pace.window.as_secs());
                        return (n, Err(HubError::Slow { url, least: LEAST_RATE, seconds }));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let reason = error.to_string();
                    return (n, Err(HubError::Network { url: self.url.to_string(), reason }));
                }
            }
        }
        (n, Ok(()))
    }
}

impl Pace {
    fn begin(&mut self) {
        (self.since, self.bytes) = (Instant::now(), 0);
    }

    /// Counts bytes; true where a window brought too few.
    fn is_stalled(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        let past = self.since.elapsed();
        if past < self.window {
            return false;
        }
        let slow = (self.bytes as f64) < LEAST_RATE as f64 * past.as_secs_f64();
        self.begin();
        slow
    }
}

/// The first line of an error's body that says something, without HTML's tags.
fn first_line(response: Response<Body>) -> String {
    let mut body = Vec::new();
    // what cannot be read says nothing
    let _ = response.into_body().into_reader().take(MAX_ERROR_BODY).read_to_end(&mut body);
    let mut depth = 0u32;
    let visible = |c: char| {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    };
    let text: String = String::from_utf8_lossy(&body)
        .chars()
        .filter_map({
            let mut visible = visible;
            move |c| {
                if visible(c) {
                    Some(c)
                } else if c == '>' {
                    Some(' ')
                } else {
                    None
                }
            }
        })
        .collect();
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(200).collect()
}

/// The answer's own words on what it sends, against what was asked; true where it is the whole file.
fn check_length(
    url: &Url,
    response: &Response<Body>,
    range: Option<&Range<u64>>,
    expected: Expected<'_>,
) -> Result<bool> {
    let wrong = |reason: String| HubError::WrongAnswer { url: url.to_string(), reason };
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

/// Where an answer redirects to.
fn redirect(from: &Url, headers: &HeaderMap) -> Result<Url> {
    let to = text(headers, "location").unwrap_or_default();
    let refused = |reason| HubError::Redirect { from: from.to_string(), to: shown(to), reason };
    from.join(to).map_err(refused)
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
    fn a_body_that_comes_byte_by_byte_is_stalled() {
        let mut pace = Pace { window: Duration::ZERO, since: Instant::now(), bytes: 0 };
        std::thread::sleep(Duration::from_millis(20));
        assert!(pace.is_stalled(1));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!pace.is_stalled(1 << 20));
        let mut pace = Pace { window: Duration::from_secs(60), since: Instant::now(), bytes: 0 };
        assert!(!pace.is_stalled(1));
    }

    #[test]
    fn endpoints_are_checked_and_their_passwords_not_shown() {
        for bad in ["hub.example", "http://u:secret@h", "http://127.0.0.1:99999", "https://h/?secret"] {
            let error = Transport::new(bad, None, Duration::from_secs(1)).err().unwrap().to_string();
            assert!(error.contains("HF_ENDPOINT") && !error.contains("secret"), "{error}");
        }
        let transport = Transport::new("https://hub.example/mirror/", None, Duration::from_secs(1)).unwrap();
        assert_eq!(transport.url("x").unwrap().as_str(), "https://hub.example/mirror/x");
        assert_eq!(transport.page("o/r"), "https://hub.example/mirror/o/r");
    }
}
