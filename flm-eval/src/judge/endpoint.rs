//! A judge behind OpenAI's chat protocol.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::judge::backoff::{retry_after, retry_after_ms, wait};
use crate::judge::prompt::Prompt;
use crate::judge::reply::{self, Unusable, excerpt, is_about_content};
use crate::judge::{Case, Judge, Sink, Verdict};

/// How often an answer is asked for whose reply can hardly be better next time.
const DOUBTFUL_TRIES: u32 = 2;

/// No judgment is longer.
const LONGEST_BODY: u64 = 16 << 20;

/// How to reach a judge.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// Base such as `https://api.openai.com/v1`.
    pub url: String,
    /// Name of the model that judges, as the endpoint knows it.
    pub model: String,
    /// Sent as a bearer token; never shown, never stored.
    pub key: Option<String>,
    /// Name of the variable that holds the key, for messages.
    pub key_env: String,
    /// Of one request, from the first byte sent to the last received.
    pub timeout: Duration,
    /// Tries for one answer.
    pub attempts: u32,
    /// The first wait between tries.
    pub retry_wait: Duration,
    /// Requests in flight.
    pub concurrency: usize,
    /// More fields of the request's body; they go before those that are sent anyway.
    pub fields: Map<String, Value>,
    /// More headers; never shown, never stored.
    pub headers: Vec<(String, String)>,
    /// Tokens that a judgment may have; the endpoint's own limit without.
    pub max_tokens: Option<u64>,
    /// Not sent where there is none.
    pub temperature: Option<f64>,
    /// Ask for the judgment as a stream.
    pub stream: bool,
}

/// An OpenAI-compatible endpoint.
#[derive(Debug)]
pub struct Endpoint {
    options: EndpointOptions,
    prompt: Prompt,
    url: String,
    agent: ureq::Agent,
}

/// An address as messages and results show it: neither a user's name and password nor a query belongs there.
pub fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}/{path}")
}

/// Why a request gave no judgment.
#[derive(Debug)]
enum Problem {
    /// No request will succeed.
    Fatal(String),
    /// This one will not.
    Hopeless(String),
    /// It may next time, but hardly later.
    Doubtful(String),
    /// It may next time.
    Passing { why: String, after: Option<Duration> },
}

impl Endpoint {
    /// An endpoint that judges with `prompt`. Nothing is sent yet.
    ///
    /// # Errors
    /// A URL that is neither http nor https; a client that cannot be made.
    pub fn new(options: EndpointOptions, prompt: Prompt) -> anyhow::Result<Self> {
        if !options.url.starts_with("http://") && !options.url.starts_with("https://") {
            bail!("--judge-url {}: expected http://… or https://…", shown_url(&options.url));
        }
        // a query, as Azure's api-version, stays at the end
        let (base, query) = options.url.split_at(options.url.find('?').unwrap_or(options.url.len()));
        let base = base.trim_end_matches('/').trim_end_matches("/chat/completions");
        let url = format!("{base}/chat/completions{query}");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(options.timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(crate::provenance::version().replace(' ', "/"))
            .build();
        Ok(Self { agent: config.into(), url, prompt, options })
    }

    fn ask(&self, prompt: &str) -> Result<Verdict, Problem> {
        let passing = |why: String| Problem::Passing { why, after: None };
        let mut body = json!({
            "model": self.options.model,
            "messages": [{"role": "user", "content": prompt}],
        });
        if let Some(temperature) = self.options.temperature {
            // 0, not 0.0: some endpoints look at the text
            let whole = temperature.fract() == 0.0 && temperature.abs() < 1e9;
            body["temperature"] = if whole { (temperature as i64).into() } else { temperature.into() };
        }
        if let Some(limit) = self.options.max_tokens {
            body["max_tokens"] = limit.into();
        }
        if self.options.stream {
            body["stream"] = true.into();
        }
        for (name, value) in &self.options.fields {
            body[name.as_str()] = value.clone();
        }
        let mut request = self.agent.post(&self.url).content_type("application/json");
        if let Some(key) = &self.options.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        for (name, value) in &self.options.headers {
            request = request.header(name, value);
        }
        let mut response = request.send(body.to_string()).map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => Problem::Fatal(error.to_string()),
            _ => passing(error.to_string()),
        })?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let after =
            header("retry-after-ms").and_then(retry_after_ms).or(header("retry-after").and_then(retry_after));
        let body = response.body_mut().with_config().limit(LONGEST_BODY).read_to_vec();
        if status != 200 {
            let said = body.map(|body| excerpt(&body)).unwrap_or_default();
            let why = self.without_key(format!("HTTP {status}: {said}"));
            let quota = said.contains("insufficient_quota");
            return match status {
                400 | 403 | 422 if is_about_content(&said) => Ok(Verdict::refused(why)),
                413 => Ok(Verdict::refused(why)),
                401 => Err(Problem::Fatal(format!("{why} (the key is read from {})", self.options.key_env))),
                403 => {
                    Err(Problem::Hopeless(format!("{why} (the key is read from {})", self.options.key_env)))
                }
                404 => Err(Problem::Fatal(format!("{why} (is it the right --judge-url and --judge-model?)"))),
                429 if quota => Err(Problem::Fatal(why)),
                408 | 409 | 425 | 429 | 500.. => Err(Problem::Passing { why, after }),
                300..=399 => Err(Problem::Fatal(format!("{why} (redirects are not followed)"))),
                _ => Err(Problem::Hopeless(why)),
            };
        }
        let body = body.map_err(|error| passing(format!("the answer was cut: {error}")))?;
        reply::read(&body).map_err(|unusable| match unusable {
            Unusable::Passing(why) => passing(self.without_key(why)),
            Unusable::Doubtful(why) => Problem::Doubtful(self.without_key(why)),
            Unusable::Hopeless(why) => Problem::Hopeless(self.without_key(why)),
        })
    }

    /// Asks until there is a judgment, up to the allowed number of tries.
    fn judge_one(&self, index: usize, case: &Case, stop: &AtomicBool) -> Result<Verdict, Problem> {
        let prompt = self.prompt.render(case).map_err(|error| Problem::Fatal(format!("{error:#}")))?;
        let mut failures = 0;
        loop {
            let asked = self.ask(&prompt);
            let doubtful = matches!(asked, Err(Problem::Doubtful(_)));
            let asked = match asked {
                Err(Problem::Doubtful(why)) => Err(Problem::Passing { why, after: None }),
                asked => asked,
            };
            let attempts = self.options.attempts.min(if doubtful { DOUBTFUL_TRIES } else { u32::MAX });
            match asked {
                Err(Problem::Passing { why, after }) => {
                    failures += 1;
                    if failures >= attempts {
                        let why = format!("{why} ({failures} tries)");
                        return Err(match doubtful {
                            true => Problem::Doubtful(why),
                            false => Problem::Passing { why, after: None },
                        });
                    }
                    let chance =
                        index as u64 ^ (u64::from(failures) << 32) ^ u64::from(std::process::id()) << 40;
                    let until = Instant::now() + wait(self.options.retry_wait, failures - 1, after, chance);
                    while let left = until.saturating_duration_since(Instant::now())
                        && !left.is_zero()
                    {
                        if stop.load(Ordering::Relaxed) {
                            return Err(Problem::Hopeless(why));
                        }
                        std::thread::sleep(left.min(Duration::from_millis(100)));
                    }
                }
                done => return done,
            }
        }
    }

    /// A message without the key and the headers' values; short ones stand in ordinary words.
    fn without_key(&self, text: String) -> String {
        let secrets = self.options.key.iter().chain(self.options.headers.iter().map(|(_, value)| value));
        secrets
            .filter(|secret| secret.len() >= 8)
            .fold(text, |text, secret| text.replace(secret.as_str(), "[key]"))
    }
}

impl Judge for Endpoint {
    fn id(&self) -> String {
        self.options.model.clone()
    }

    fn prompt(&self) -> Option<&Prompt> {
        Some(&self.prompt)
    }

    fn details(&self) -> Map<String, Value> {
        let temperature = self
            .options
            .temperature
            .map_or(Value::Null, |t| if t.fract() == 0.0 { (t as i64).into() } else { t.into() });
        let mut details = Map::from_iter([
            ("judge_url".to_owned(), shown_url(&self.url).into()),
            ("judge_temperature".to_owned(), temperature),
        ]);
        if !self.options.fields.is_empty() {
            details.insert("judge_fields".to_owned(), Value::Object(self.options.fields.clone()));
        }
        if let Some(limit) = self.options.max_tokens {
            details.insert("judge_max_tokens".to_owned(), limit.into());
        }
        details
    }

    fn judge(&self, cases: &[Case], proved: bool, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        let workers = self.options.concurrency.clamp(1, cases.len().max(1));
        // a server that fails for every answer is down, or does not know what it is asked
        let give_up_after = workers + 4;
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (send, next, stop) = (send.clone(), &next, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(index) else { break };
                        if send.send((index, self.judge_one(index, case, stop))).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            let (mut in_a_row, mut judged) = (0, proved);
            let mut result = Ok(());
            for (index, verdict) in receive {
                if result.is_err() {
                    // what was already paid for is kept
                    if let Ok(verdict) = verdict {
                        sink(index, Ok(verdict)).ok();
                    }
                    continue;
                }
                judged |= verdict.is_ok();
                // once some answers were judged, what is wrong with one says nothing of the others
                in_a_row = match &verdict {
                    Ok(_) => 0,
                    Err(Problem::Hopeless(_) | Problem::Doubtful(_)) if judged => in_a_row,
                    Err(_) => in_a_row + 1,
                };
                result =
                    match verdict {
                        Ok(verdict) => sink(index, Ok(verdict)),
                        Err(Problem::Fatal(why)) => Err(anyhow::anyhow!(why)),
                        Err(
                            Problem::Hopeless(why) | Problem::Doubtful(why) | Problem::Passing { why, .. },
                        ) if in_a_row < give_up_after => sink(index, Err(why)),
                        Err(
                            Problem::Hopeless(why) | Problem::Doubtful(why) | Problem::Passing { why, .. },
                        ) => Err(anyhow::anyhow!(
                            "{in_a_row} answers in a row could not be judged; the last: {why}"
                        )),
                    };
                stop.fetch_or(result.is_err(), Ordering::Relaxed);
            }
            result
        })
        .with_context(|| format!("the judge at {}", self.details()["judge_url"].as_str().unwrap_or_default()))
    }
}
