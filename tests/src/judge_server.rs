//! A loopback OpenAI-compatible server that fails as it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What a request is answered with instead of a judgment.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    TooMany {
        retry_after: &'static str,
    },
    ServerError,
    Hang(Duration),
    MalformedJson,
    EmptyContent,
    NullContent,
    /// A body shorter than its Content-Length.
    CutBody,
    /// A chunked body without its end.
    CutChunked,
    /// The connection is closed without a word.
    Reset,
    Unauthorized,
    BadRequest,
    /// 400 about how the judge is asked.
    WrongParameter,
    /// 403 about one answer.
    Flagged,
    /// A judgment with a score in it that was cut by the token limit.
    CutByLimit,
    /// A judgment that says no score.
    NoScore,
    /// A judgment in a stream.
    Stream,
    /// A judgment by another snapshot.
    OtherSnapshot,
    /// A judgment, after a while.
    Slow(Duration),
}

#[derive(Default)]
struct Log {
    times: BTreeMap<u64, Vec<Instant>>,
    answered: BTreeMap<u64, usize>,
    keys: Vec<String>,
    temperatures: BTreeSet<String>,
    bodies: Vec<Value>,
    headers: Vec<String>,
}

/// Judges `q-17-q` with the score 1 + 17 % 10.
pub struct JudgeServer {
    address: String,
    log: Arc<Mutex<Log>>,
}

type Plan = dyn Fn(usize, usize) -> Option<Fault> + Send + Sync;

impl JudgeServer {
    /// `plan` sees the question's number and how often it was asked, this time included.
    pub fn start(plan: impl Fn(usize, usize) -> Option<Fault> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Log::default()));
        let (shared, plan): (_, Arc<Plan>) = (Arc::clone(&log), Arc::new(plan));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, plan) = (Arc::clone(&shared), Arc::clone(&plan));
                std::thread::spawn(move || while serve(&stream, &log, plan.as_ref()).unwrap_or(false) {});
            }
        });
        Self { address, log }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// When each question was asked.
    pub fn times(&self) -> BTreeMap<u64, Vec<Instant>> {
        self.log.lock().unwrap().times.clone()
    }

    /// How many judgments of each question were sent whole.
    pub fn answered(&self) -> BTreeMap<u64, usize> {
        self.log.lock().unwrap().answered.clone()
    }

    pub fn keys_seen(&self) -> Vec<String> {
        self.log.lock().unwrap().keys.clone()
    }

    /// The requests' bodies.
    pub fn bodies(&self) -> Vec<Value> {
        self.log.lock().unwrap().bodies.clone()
    }

    /// The requests' header lines.
    pub fn headers(&self) -> Vec<String> {
        self.log.lock().unwrap().headers.clone()
    }

    pub fn temperatures_seen(&self) -> BTreeSet<String> {
        self.log.lock().unwrap().temperatures.clone()
    }
}

/// Serves one request; whether the connection may be used again.
fn serve(stream: &TcpStream, log: &Mutex<Log>, plan: &Plan) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length, mut key, mut headers) = (String::new(), 0, String::new(), Vec::new());
    if reader.read_line(&mut line)? == 0 {
        return Ok(false);
    }
    assert!(
        line.starts_with("POST /v1/chat/completions ") || line.starts_with("POST /v1/chat/completions?"),
        "{line}"
    );
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        headers.push(header.trim().to_owned());
        match header.trim().split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap()
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => key = value.to_owned(),
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap();
    let prompt = body["messages"][0]["content"].as_str().unwrap();
    let (_, rest) = prompt.split_once("q-").unwrap();
    let id: u64 = rest.split_once("-q").unwrap().0.parse().unwrap();
    let tries = {
        let mut log = log.lock().unwrap();
        log.keys.push(key.clone());
        log.headers.append(&mut headers);
        log.bodies.push(body.clone());
        log.temperatures.insert(body["temperature"].to_string());
        let times = log.times.entry(id).or_default();
        times.push(Instant::now());
        times.len()
    };
    let fault = plan(id as usize, tries);
    let judgment = format!("很好。\n{{'事实正确性': 7, '综合得分': {}}}", 1 + id % 10);
    let good = completion(json!(judgment));
    match fault {
        None => reply(stream, 200, "", &good)?,
        Some(Fault::Slow(wait)) => {
            std::thread::sleep(wait);
            reply(stream, 200, "", &good)?;
        }
        Some(Fault::Hang(wait)) => {
            std::thread::sleep(wait);
            return Ok(false);
        }
        Some(Fault::Reset) => return Ok(false),
        Some(Fault::TooMany { retry_after }) => {
            reply(stream, 429, &format!("retry-after: {retry_after}\r\n"), "{}")?;
            return Ok(true);
        }
        Some(Fault::CutBody) => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", good.len());
            stream_write(stream, &[head.as_bytes(), &good.as_bytes()[..good.len() / 2]].concat())?;
            return Ok(false);
        }
        Some(Fault::CutChunked) => {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = format!("{head}{:x}\r\n{good}\r\n", good.len());
            stream_write(stream, chunk.as_bytes())?;
            return Ok(false);
        }
        Some(fault) => {
            let (status, body) = match fault {
                Fault::MalformedJson => (200, good[..good.len() - 9].to_owned()),
                Fault::EmptyContent => (200, completion(json!(" \n"))),
                Fault::NullContent => (200, completion(Value::Null)),
                Fault::Unauthorized => (401, format!("Incorrect API key provided: {key}")),
                Fault::WrongParameter => (400, "temperature is not supported by this model".to_owned()),
                Fault::Flagged => (403, "input flagged by moderation".to_owned()),
                Fault::CutByLimit => (
                    200,
                    good.replace("\"role\"", "\"x\"").replace("}}]", "},\"finish_reason\":\"length\"}]"),
                ),
                Fault::NoScore => (200, completion(json!("抱歉，我无法评价。"))),
                Fault::Stream => (
                    200,
                    format!(
                        "data: {}\n\ndata: [DONE]\n\n",
                        json!({"choices": [{"delta": {"content": judgment}}]})
                    ),
                ),
                Fault::OtherSnapshot => (200, good.replace("mock-0613", "mock-1106")),
                Fault::BadRequest => (400, "content policy".to_owned()),
                _ => (500, "overloaded".to_owned()),
            };
            reply(stream, status, "", &body)?;
            return Ok(true);
        }
    }
    *log.lock().unwrap().answered.entry(id).or_default() += 1;
    Ok(true)
}

fn completion(content: Value) -> String {
    json!({"model": "mock-0613", "choices": [{"message": {"role": "assistant", "content": content}}]})
        .to_string()
}

fn reply(stream: &TcpStream, status: u16, headers: &str, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    stream_write(stream, format!("{head}{body}").as_bytes())
}

fn stream_write(mut stream: &TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    stream.flush()
}
