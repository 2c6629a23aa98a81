//! `flm pull`: options to a request, events to bars and lines.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::RecvTimeoutError,
    },
    time::{Duration, Instant},
};

use clap::Args;
use glob::Pattern;
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;

use crate::exit as interrupt;
use crate::output::{Output, size, table};
use flm_hub as hub;
use flm_hub::HubError;
use flm_hub::Manifest;
use flm_hub::{Access, Hub};
use flm_hub::{Event, get};
use flm_hub::{FileProgress, Options};
use flm_hub::{Plan, Request, State, default_dir};

/// Download a checkpoint from the Hugging Face Hub; resumes where it stopped, verifies while it writes.
///
/// A file gets its name only when its digest is that of the manifest, of flm.lock or of the Hub. Interrupted
/// anywhere, the same command goes on. With --json each line of stdout is one JSON object.
#[derive(Debug, Args)]
#[command(
    after_help = "Environment: HF_TOKEN, HF_TOKEN_PATH, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,\n\
                        XDG_CACHE_HOME.\n\n\
                        Examples:\n  flm pull tele-flm-52b --dry-run\n  \
                        flm pull tele-flm-52b --dir /data/52b --convert --delete-source\n  \
                        flm pull HuggingFaceTB/SmolLM2-135M --files '*.json' 'model.safetensors'"
)]
pub(crate) struct Pull {
    /// A name that `flm models` lists, or OWNER/NAME.
    name: String,
    /// Directory to download to [default: the model's name].
    #[arg(long, alias = "to", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Commit, branch or tag [default: the manifest's, else main].
    #[arg(long)]
    revision: Option<String>,
    /// Only the files that match one of these patterns, for example '*.json'.
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    files: Vec<Pattern>,
    /// Turn each PyTorch shard into safetensors as soon as it is verified.
    #[arg(long)]
    convert: bool,
    /// With --convert: remove each shard once its tensors are safe, so that two shards are on disk at most.
    #[arg(long, requires = "convert")]
    delete_source: bool,
    /// Show what would be done without doing it.
    #[arg(long)]
    dry_run: bool,
    /// Verify again the digests that earlier pulls verified.
    #[arg(long)]
    check: bool,
    /// Overwrite local files that were modified or did not come from the Hub.
    #[arg(long)]
    force: bool,
    /// Number of concurrent requests.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Consecutive failures after which a range is given up.
    #[arg(long, default_value_t = 8, value_name = "N")]
    retries: u32,
    /// Seconds without a byte after which a connection is given up.
    #[arg(long, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: u64,
    /// Wait for another process that pulls into the same directory.
    #[arg(long)]
    wait: bool,
    /// Custom manifest.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "plan")]
struct PlanLine<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "waiting")]
struct Waiting<'a> {
    dir: &'a Path,
    /// The process that holds the directory.
    holder: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "progress")]
struct ProgressLine {
    seconds: f64,
    total: u64,
    downloaded: u64,
    received: u64,
    hashed: u64,
    verified: u64,
    converted: u64,
    files: Vec<FileProgress>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename = "done")]
struct Done {
    dir: PathBuf,
    files: usize,
    bytes: u64,
    /// Bytes that came through the network in this process.
    received: u64,
    seconds: f64,
}

impl Pull {
    pub(crate) fn run(&self, output: &Output) -> anyhow::Result<bool> {
        let start = Instant::now();
        // a second Ctrl-C ends at once, whatever is under way: nothing is lost
        let interrupted = interrupt::watch()?;

        let manifest = Manifest::load(self.manifest.as_deref())?;
        let dir = self.dir.clone().unwrap_or_else(|| default_dir(&self.name));
        let hub = Hub::from_env(Access {
            timeout: Duration::from_secs(self.timeout),
            retries: self.retries,
            interrupted: Arc::clone(&interrupted),
            tell: Arc::new(tell(*output)),
        })?;
        let held = if self.dry_run { None } else { Some(self.hold(&dir, &interrupted, output)?) };
        let request = Request {
            name: self.name.clone(),
            dir,
            revision: self.revision.clone(),
            globs: self.files.clone(),
            convert: self.convert,
            check: self.check,
            force: self.force,
            delete_source: self.delete_source,
        };
        let plan = Plan::make(&hub, &manifest, &request)?;
        self.show(&plan, output)?;
        if !plan.lacking.is_empty() {
            output.warn(&format!(
                "{} has no {}: what is fetched is not a whole checkpoint, and no command opens it as it is",
                plan.repository,
                plan.lacking.join(" and no ")
            ));
        }
        let Some(held) = held else {
            return Ok(plan.disk_needed <= plan.disk_free && plan.check_changed().is_ok());
        };
        plan.check_changed()?;
        plan.check_disk(self.delete_source)?;
        if interrupted.load(Ordering::Relaxed) {
            return Err(HubError::Interrupted.into());
        }
        let (dir, files, bytes) = (plan.dir.clone(), plan.files.len(), plan.bytes);
        let options =
            Options { jobs: self.jobs.into(), retries: self.retries, delete_source: self.delete_source };
        let pull = held.start(hub, plan, &options)?;
        self.watch(&pull, &interrupted, start, output)?;
        let (received, seconds) = (get(&pull.progress.received), start.elapsed().as_secs_f64());
        let done = Done { dir, files, bytes, received, seconds };
        if output.json() {
            output.event(&done)?;
        } else {
            let what = format!("{files} files, {}", size(bytes));
            output.line(&format!(
                "{}: {what}, all verified; {} received in {seconds:.1} s",
                done.dir.display(),
                size(received)
            ))?;
        }
        Ok(true)
    }

    /// Takes the directory, at once or when its holder ends.
    fn hold(&self, dir: &Path, interrupted: &AtomicBool, output: &Output) -> anyhow::Result<hub::Held> {
        let mut told = false;
        loop {
            let error = match hub::Pull::hold(dir) {
                Ok(held) => return Ok(held),
                Err(error) => error,
            };
            let HubError::InUse { holder, .. } = &error else { return Err(error.into()) };
            if !self.wait {
                return Err(error.into());
            }
            if !std::mem::replace(&mut told, true) {
                output.event(&Waiting { dir, holder })?;
                output.log(&format!("waiting for process {holder}, which pulls into {}", dir.display()));
            }
            std::thread::sleep(Duration::from_millis(200));
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted.into());
            }
        }
    }

    /// Shows the pull until it ends.
    fn watch(
        &self,
        pull: &hub::Pull,
        interrupted: &AtomicBool,
        start: Instant,
        output: &Output,
    ) -> anyhow::Result<()> {
        let mut bars = Bars::new(output, self.convert);
        // where nobody sees the bars
        let log = bars.all.is_hidden().then(|| output.bytes("downloading", get(&pull.progress.total)));
        let mut next_line = Instant::now();
        loop {
            let event = pull.events.recv_timeout(Duration::from_millis(100));
            if interrupted.load(Ordering::Relaxed) {
                return Err(HubError::Interrupted.into());
            }
            match event {
                Ok(Event::Failed(error)) => return Err(error.into()),
                Ok(Event::Finished) => {
                    output.event(&line(pull, start))?;
                    return Ok(());
                }
                Ok(event) => {
                    output.event(&event)?;
                    if let Some(text) = told(&event) {
                        bars.all.suspend(|| output.log(&text));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the download ended without a word"),
            }
            if output.json() && Instant::now() >= next_line {
                output.event(&line(pull, start))?;
                next_line = Instant::now() + Duration::from_secs(1);
            }
            bars.show(pull);
            log.iter().for_each(|log| log.set_position(get(&pull.progress.downloaded)));
        }
    }

    fn show(&self, plan: &Plan, output: &Output) -> anyhow::Result<()> {
        if output.json() {
            return output.event(&PlanLine { plan, dry_run: self.dry_run });
        }
        let state = |state: &State| match state {
            State::Converted => "converted",
            State::Verified => "verified",
            State::Present => "here, to verify",
            State::Cached(_) => "in the cache, to verify",
            State::Changed => "changed here: kept",
            State::Partial => "begun",
            State::Missing => "to fetch",
        };
        let rows = plan
            .files
            .iter()
            .map(|f| vec![f.name.clone(), size(f.bytes), size(f.bytes - f.have), state(&f.state).into()]);
        let mut text = format!("{}@{} → {}\n\n", plan.repository, plan.commit, plan.dir.display());
        text += &table(&["file", "size", "to fetch", "state"], rows, true);
        text += &format!(
            "\n{} files, {}; to fetch {}: {} at 100 MB/s, {} at 1 GB/s\ndisk: {} more needed at most, {} free\n",
            plan.files.len(),
            size(plan.bytes),
            size(plan.bytes_to_fetch),
            duration(plan.bytes_to_fetch / 100_000_000),
            duration(plan.bytes_to_fetch / 1_000_000_000),
            size(plan.disk_needed),
            size(plan.disk_free),
        );
        if !plan.absent.is_empty() {
            text += &format!("not in the repository: {}\n", plan.absent.join(", "));
        }
        for file in &plan.left_out {
            let bytes = file.bytes.map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
            text += &format!("left out: {}{bytes}; --files takes it\n", file.name);
        }
        if !plan.in_the_way.is_empty() {
            text += &format!("in the way of --convert, and not flm's: {}\n", plan.in_the_way.join(", "));
        }
        if self.dry_run {
            return output.line(&text);
        }
        output.note(&text);
        Ok(())
    }
}

fn line(pull: &hub::Pull, start: Instant) -> ProgressLine {
    let p = &pull.progress;
    ProgressLine {
        seconds: start.elapsed().as_secs_f64(),
        total: get(&p.total),
        downloaded: get(&p.downloaded),
        received: get(&p.received),
        hashed: get(&p.hashed),
        verified: get(&p.verified),
        converted: get(&p.converted),
        files: pull.files(),
    }
}

/// Shows the waits of a plan, before there are bars.
fn tell(output: Output) -> impl Fn(&Event) {
    move |event| {
        if let Err(error) = output.event(event) {
            output.log(&format!("{error:#}"));
        }
        if let Some(text) = told(event) {
            output.log(&text);
        }
    }
}

/// What is worth a line beside the bars.
pub(crate) fn told(event: &Event) -> Option<String> {
    match event {
        Event::Retry { file, reason, wait_seconds } => {
            Some(format!("{file}: {reason}; again in {wait_seconds:.1} s"))
        }
        Event::Mismatch { file, expected, got } => {
            Some(format!("{file}: digest is {got}, expected {expected}: fetched again"))
        }
        Event::Replaced { file, reason } => Some(format!("{file}: {reason}: fetched again")),
        Event::Damaged { file, bytes } => {
            Some(format!("{file}: {} on disk are damaged: fetched again", size(*bytes)))
        }
        _ => None,
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A bar for what is downloaded, one for what is verified, one for what is converted, and one a file.
struct Bars<'a> {
    output: &'a Output,
    all: MultiProgress,
    downloaded: ProgressBar,
    hashed: ProgressBar,
    converted: Option<ProgressBar>,
    files: Vec<(String, ProgressBar)>,
}

impl<'a> Bars<'a> {
    fn new(output: &'a Output, convert: bool) -> Self {
        let all = output.bars();
        let bar = |what| all.add(output.bytes(what, 0));
        Self {
            downloaded: bar("downloaded"),
            hashed: bar("verified"),
            converted: convert.then(|| bar("converted")),
            files: Vec::new(),
            output,
            all,
        }
    }

    fn show(&mut self, pull: &hub::Pull) {
        let p = &pull.progress;
        let total = get(&p.total);
        for (bar, position) in [(&self.downloaded, get(&p.downloaded)), (&self.hashed, get(&p.hashed))] {
            bar.set_length(total);
            bar.set_position(position);
        }
        if let Some(bar) = &self.converted {
            bar.set_length(total);
            bar.set_position(get(&p.converted));
        }
        let files = pull.files();
        self.files.retain(|(name, bar)| {
            let there = files.iter().any(|f| f.file == *name);
            if !there {
                bar.finish_and_clear();
            }
            there
        });
        for file in files {
            let at = self.files.iter().position(|(name, _)| *name == file.file);
            let at = at.unwrap_or_else(|| {
                let short =
                    file.file.trim_start_matches("pytorch_model-").chars().take(12).collect::<String>();
                let bar = self.all.add(self.output.bytes(&short, file.total));
                self.files.push((file.file.clone(), bar));
                self.files.len() - 1
            });
            let bar = &self.files[at].1;
            bar.set_length(file.total);
            bar.set_position(file.downloaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up() {
        assert_eq!(
            [duration(0), duration(59), duration(61), duration(21_676)],
            ["0 s", "59 s", "2 min", "6 h 01 min"]
        );
    }
}
