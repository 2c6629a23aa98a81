//! A Hub on the loopback: the protocol as it was observed, with faults on command.
//!
//! Two listeners: the Hub on 127.0.0.1, which resolves, lists and redirects, and its content network on
//! 127.0.0.2. Every request is logged; bytes of content are counted as they are given to the socket.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPOSITORY: &str = "acme/tiny";

/// What goes wrong with an answer that carries content.
#[derive(Debug, Clone, Default)]
pub enum Fault {
    #[default]
    None,
    /// The connection is closed after so many bytes, whatever Content-Length said.
    Truncate(u64),
    /// The connection is reset after so many bytes.
    Reset(u64),
    /// Nothing more comes after so many bytes, and the connection stays open.
    Stall(u64),
    /// Body and Content-Length agree, and both are so many bytes too short.
    ShortBody(u64),
    /// Content-Range tells of a file of another size.
    WrongTotal,
    /// The right number of wrong bytes.
    WrongBytes,
    /// X-Linked-Etag is of another file.
    WrongEtag,
    /// An error status; the seconds of Retry-After.
    Status(u16, Option<u64>),
    /// 401 or 403 as the Hub answers for a gated repository.
    Gated(u16),
    /// A status with headers and a body, as something on the way answers.
    Says(u16, Vec<(&'static str, String)>, &'static str),
    /// The body comes in single bytes, so many milliseconds apart.
    Drip(u64),
    /// Ranges are not understood: 200 with the whole file.
    NoRanges,
}

/// A request for content, as the choice of a fault sees it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub file: String,
    /// How many requests for this file were answered before, on this listener.
    pub nth: usize,
    pub on_cdn: bool,
}

/// A request, for assertions.
#[derive(Debug, Clone)]
pub struct Logged {
    pub method: String,
    /// With its query.
    pub target: String,
    pub path: String,
    pub authorization: Option<String>,
    pub on_cdn: bool,
}

pub type Choose = dyn Fn(&Asked) -> Fault + Send + Sync;

/// How a file is described and served.
#[derive(Clone)]
pub struct ServedFile {
    pub bytes: Arc<Vec<u8>>,
    /// Stored as LFS: known by SHA-256, else by git's SHA-1.
    pub lfs: bool,
    sha256: String,
    git_sha1: String,
}

impl ServedFile {
    fn new(name: &str, bytes: Vec<u8>) -> Self {
        let (sha256, git_sha1) = (sha256(&bytes), git_sha1(&bytes));
        Self { bytes: Arc::new(bytes), lfs: !name.ends_with(".json"), sha256, git_sha1 }
    }
}

struct State {
    files: Mutex<HashMap<String, ServedFile>>,
    fault: Mutex<Arc<Choose>>,
    log: Mutex<Vec<Logged>>,
    counts: Mutex<HashMap<(String, bool), usize>>,
    content: AtomicU64,
    stopped: AtomicBool,
    options: Options,
    cdn: Mutex<String>,
}

#[derive(Clone, Copy, Default)]
pub struct Options {
    /// LFS files are redirected to the second host.
    pub redirect: bool,
    /// Bytes a second of each connection.
    pub pace: Option<u64>,
    /// The listing tells neither size nor digest.
    pub bare_listing: bool,
    /// A name that the listing tells in addition.
    pub evil_name: Option<&'static str>,
    /// A file of whose size the listing tells this instead.
    pub told_size: Option<(&'static str, u64)>,
}

pub struct HubServer {
    pub endpoint: String,
    state: Arc<State>,
    addresses: Vec<std::net::SocketAddr>,
}

impl HubServer {
    pub fn start(files: &[(&str, Vec<u8>)], options: Options) -> Self {
        let served = |(n, b): &(&str, Vec<u8>)| ((*n).to_owned(), ServedFile::new(n, b.clone()));
        let files = files.iter().map(served).collect();
        let state = Arc::new(State {
            files: Mutex::new(files),
            fault: Mutex::new(Arc::new(|_: &Asked| Fault::None)),
            log: Mutex::default(),
            counts: Mutex::default(),
            content: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            options,
            cdn: Mutex::default(),
        });
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let cdn = TcpListener::bind("127.0.0.2:0").unwrap();
        let addresses = vec![hub.local_addr().unwrap(), cdn.local_addr().unwrap()];
        *state.cdn.lock().unwrap() = format!("http://{}", addresses[1]);
        for (listener, on_cdn) in [(hub, false), (cdn, true)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if state.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let (Ok(stream), state) = (stream, Arc::clone(&state)) else { continue };
                    std::thread::spawn(move || while serve(&state, &stream, on_cdn).is_some() {});
                }
            });
        }
        Self { endpoint: format!("http://{}", addresses[0]), state, addresses }
    }

    pub fn fault(&self, choose: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        *self.state.fault.lock().unwrap() = Arc::new(choose);
        self.state.counts.lock().unwrap().clear();
    }

    pub fn log(&self) -> Vec<Logged> {
        self.state.log.lock().unwrap().clone()
    }

    /// Where the second listener is, another origin.
    pub fn other_origin(&self) -> String {
        self.state.cdn.lock().unwrap().clone()
    }

    /// Requests that were answered with content.
    pub fn content_requests(&self) -> usize {
        self.log().iter().filter(|l| l.method == "GET" && !l.path.starts_with("/api")).count()
    }

    /// Bytes of content given to sockets.
    pub fn content(&self) -> u64 {
        self.state.content.load(Ordering::Relaxed)
    }

    pub fn forget_log(&self) {
        self.state.log.lock().unwrap().clear();
        self.state.content.store(0, Ordering::Relaxed);
    }

    /// Bytes of a file.
    pub fn served(&self, name: &str) -> u64 {
        self.state.files.lock().unwrap().get(name).map_or(0, |file| file.bytes.len() as u64)
    }

    pub fn replace(&self, name: &str, bytes: Vec<u8>) {
        self.state.files.lock().unwrap().insert(name.into(), ServedFile::new(name, bytes));
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        for address in &self.addresses {
            let _ = TcpStream::connect(address);
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers one request; `None` where the connection is over.
fn serve(state: &State, stream: &TcpStream, on_cdn: bool) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    (reader.read_line(&mut first).ok()? > 0).then_some(())?;
    let mut words = first.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let path = target.split('?').next()?.to_owned();
    state.log.lock().unwrap().push(Logged {
        method: method.clone(),
        target: target.clone(),
        path: path.clone(),
        authorization: headers.get("authorization").cloned(),
        on_cdn,
    });
    let answer = Answer { state, stream, head: method == "HEAD" };
    if let Some(revision) = path.strip_prefix(&format!("/api/models/{REPOSITORY}/revision/")) {
        return answer.listing(revision);
    }
    let resolved = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let wanted = if on_cdn { path.strip_prefix("/cdn/") } else { resolved };
    let Some(name) = wanted else {
        return answer.send(404, &[("X-Error-Code", "RepoNotFound".into())], b"");
    };
    let nth = {
        let mut counts = state.counts.lock().unwrap();
        let count = counts.entry((name.to_owned(), on_cdn)).or_insert(0);
        *count += 1;
        *count - 1
    };
    let choose = Arc::clone(&state.fault.lock().unwrap());
    let fault = choose(&Asked { file: name.into(), nth, on_cdn });
    answer.file(name, headers.get("range").map(String::as_str), on_cdn, fault)
}

struct Answer<'a> {
    state: &'a State,
    stream: &'a TcpStream,
    head: bool,
}

impl Answer<'_> {
    fn send(&self, status: u16, headers: &[(&str, String)], body: &[u8]) -> Option<()> {
        self.head(status, headers, body.len() as u64)?;
        if !self.head {
            let mut stream = self.stream;
            stream.write_all(body).ok()?;
        }
        Some(())
    }

    fn head(&self, status: u16, headers: &[(&str, String)], length: u64) -> Option<()> {
        let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        let mut stream = self.stream;
        stream.write_all(format!("{text}\r\n").as_bytes()).ok()
    }

    fn listing(&self, revision: &str) -> Option<()> {
        let choose = Arc::clone(&self.state.fault.lock().unwrap());
        let nth = {
            let mut counts = self.state.counts.lock().unwrap();
            let count = counts.entry((String::new(), false)).or_insert(0);
            *count += 1;
            *count - 1
        };
        match choose(&Asked { file: String::new(), nth, on_cdn: false }) {
            Fault::Gated(status) => return self.send(status, &[("X-Error-Code", "GatedRepo".into())], b"{}"),
            Fault::Status(status, after) => return self.status(status, after),
            Fault::Says(status, headers, body) => return self.send(status, &headers, body.as_bytes()),
            _ => {}
        }
        if revision != "main" && revision != COMMIT {
            return self.send(404, &[("X-Error-Code", "RevisionNotFound".into())], b"{}");
        }
        let files = self.state.files.lock().unwrap();
        let mut siblings: Vec<_> = files
            .iter()
            .map(|(name, file)| {
                if self.state.options.bare_listing {
                    return json!({ "rfilename": name });
                }
                let told = self.state.options.told_size.filter(|(told, _)| told == name);
                let size = told.map_or(file.bytes.len() as u64, |(_, size)| size);
                let lfs = json!({ "sha256": file.sha256, "size": size, "pointerSize": 134 });
                let mut entry = json!({ "rfilename": name, "size": size, "blobId": file.git_sha1 });
                if file.lfs {
                    entry["lfs"] = lfs;
                }
                entry
            })
            .collect();
        siblings.extend(self.state.options.evil_name.map(|name| json!({ "rfilename": name, "size": 1 })));
        let body = json!({ "id": REPOSITORY, "sha": COMMIT, "siblings": siblings }).to_string();
        self.send(200, &[("Content-Type", "application/json".into())], body.as_bytes())
    }

    fn status(&self, status: u16, retry_after: Option<u64>) -> Option<()> {
        let after = retry_after.map(|seconds| ("Retry-After", seconds.to_string()));
        self.send(status, after.as_slice(), b"{\"error\":\"no\"}")
    }

    fn file(&self, name: &str, range: Option<&str>, on_cdn: bool, fault: Fault) -> Option<()> {
        let Some(file) = self.state.files.lock().unwrap().get(name).cloned() else {
            return self.send(404, &[("X-Error-Code", "EntryNotFound".into())], b"Entry not found");
        };
        match fault {
            Fault::Status(status, after) => return self.status(status, after),
            Fault::Says(status, headers, body) => return self.send(status, &headers, body.as_bytes()),
            Fault::Gated(status) => return self.send(status, &[("X-Error-Code", "GatedRepo".into())], b"{}"),
            _ => {}
        }
        let (total, mut headers) = (file.bytes.len() as u64, vec![("Accept-Ranges", "bytes".to_owned())]);
        if !on_cdn {
            headers.push(("X-Repo-Commit", COMMIT.into()));
            if file.lfs {
                let wrong = matches!(fault, Fault::WrongEtag);
                let etag = if wrong { sha256(b"another") } else { file.sha256.clone() };
                headers.push(("X-Linked-Etag", format!("\"{etag}\"")));
                headers.push(("X-Linked-Size", total.to_string()));
            } else {
                headers.push(("ETag", format!("W/\"{}\"", file.git_sha1)));
            }
        }
        if self.state.options.redirect && file.lfs && !on_cdn {
            let cdn = self.state.cdn.lock().unwrap().clone();
            headers.push(("Location", format!("{cdn}/cdn/{name}?signature=x")));
            return self.send(302, &headers, b"");
        }
        let wanted = range.and_then(parse_range).filter(|_| !matches!(fault, Fault::NoRanges));
        let mut span = wanted.clone().unwrap_or(0..total);
        span.end = span.end.min(total);
        if let Fault::ShortBody(by) = fault {
            span.end = span.end.saturating_sub(by).max(span.start);
        }
        if wanted.is_some() {
            let total = if matches!(fault, Fault::WrongTotal) { total + 1 } else { total };
            headers.push((
                "Content-Range",
                format!("bytes {}-{}/{total}", span.start, span.end.saturating_sub(1)),
            ));
        }
        self.head(if wanted.is_some() { 206 } else { 200 }, &headers, span.end - span.start)?;
        if self.head {
            return Some(());
        }
        self.body(&file.bytes, span, &fault)
    }

    fn body(&self, bytes: &[u8], span: Range<u64>, fault: &Fault) -> Option<()> {
        let mut sent = 0;
        let body = &bytes[span.start as usize..span.end as usize];
        let (chunk, drip) = if let Fault::Drip(ms) = fault { (1, *ms) } else { (32 << 10, 0) };
        for chunk in body.chunks(chunk) {
            std::thread::sleep(Duration::from_millis(drip));
            let stop = match fault {
                Fault::Truncate(n) | Fault::Reset(n) | Fault::Stall(n) => n.saturating_sub(sent),
                _ => u64::MAX,
            };
            let part = &chunk[..chunk.len().min(stop as usize)];
            let wrong: Vec<u8>;
            let part = if matches!(fault, Fault::WrongBytes) {
                wrong = part.iter().map(|b| !b).collect();
                &wrong
            } else {
                part
            };
            self.state.content.fetch_add(part.len() as u64, Ordering::Relaxed);
            let mut stream = self.stream;
            stream.write_all(part).ok()?;
            sent += part.len() as u64;
            if part.len() < chunk.len() || stop == part.len() as u64 {
                return self.break_off(fault);
            }
            if let Some(pace) = self.state.options.pace {
                std::thread::sleep(Duration::from_secs_f64(chunk.len() as f64 / pace as f64));
            }
        }
        Some(())
    }

    fn break_off(&self, fault: &Fault) -> Option<()> {
        match fault {
            Fault::Stall(_) => {
                while !self.state.stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::Reset(_) => {
                // the reader first gets what was sent
                std::thread::sleep(Duration::from_millis(30));
                rustix::net::sockopt::set_socket_linger(self.stream, Some(Duration::ZERO)).unwrap();
            }
            _ => {}
        }
        None
    }
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    Some(start.parse().ok()?..end.parse::<u64>().ok()? + 1)
}
