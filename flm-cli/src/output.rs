//! The only module that prints: results to stdout, progress and messages to stderr.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use plain::LogLines;

mod plain;

/// How results and progress are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    /// Whether stderr is one, where bars can be drawn.
    terminal: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: std::io::stderr().is_terminal() }
    }

    /// Whether the result is to be JSON.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `human` makes of it.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        match self.json {
            true => self.text(&format!("{}\n", harmless_json(&serde_json::to_string_pretty(value)?))),
            false => self.line(&human(value)),
        }
    }

    /// Prints `value` as one line of JSON, where JSON is asked for.
    pub(crate) fn event<T: Serialize>(&self, value: &T) -> anyhow::Result<()> {
        match self.json {
            true => self.text(&format!("{}\n", harmless_json(&serde_json::to_string(value)?))),
            false => Ok(()),
        }
    }

    /// Bars that are drawn together.
    pub(crate) fn bars(&self) -> MultiProgress {
        MultiProgress::with_draw_target(match self.draws() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        })
    }

    /// Writes text and a newline to stdout; a reader that went away is not an error.
    pub(crate) fn line(&self, text: &str) -> anyhow::Result<()> {
        self.text(&format!("{}\n", harmless(text.trim_end_matches('\n'))))
    }

    /// Writes text to stdout as it is, at once.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            done => Ok(done?),
        }
    }

    /// Tells a person at the terminal something that is no result.
    pub(crate) fn note(&self, text: &str) {
        if self.terminal {
            self.log(text);
        }
    }

    /// Tells how the work goes on, at a terminal and in a log alike, unless --quiet was given.
    pub(crate) fn log(&self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// Tells something that was asked for and is no result, terminal or not.
    pub(crate) fn say(&self, text: &str) {
        // nobody listens any more: no reason to fail
        let _ = std::io::stderr().write_all(format!("{}\n", harmless(text)).as_bytes());
    }

    /// Where a narrower dtype was asked for.
    pub(crate) fn warn_of_overflow(&self, values: u64) {
        if values > 0 {
            self.warn(&format!("{values} finite values became infinite: the dtype is too narrow"));
        }
    }

    pub(crate) fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.say(&format!("error: {}", causes(error)));
    }

    /// A bar over `total` bytes.
    pub(crate) fn bytes(&self, what: &str, total: u64) -> ProgressBar {
        let bar = "{msg:12} {wide_bar} {bytes:>10} / {total_bytes:10} {bytes_per_sec:>12} {eta:>5}";
        self.bar(what, total, bar, "{msg}: {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
    }

    /// Whether bars are drawn.
    pub(crate) fn draws(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// A bar over `total` steps, for work that writes its own log where none is drawn.
    pub(crate) fn drawn_steps(&self, what: &str, total: u64) -> ProgressBar {
        let bar = self.steps(what, total);
        if !self.draws() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar
    }

    /// A bar over `total` steps.
    pub(crate) fn steps(&self, what: &str, total: u64) -> ProgressBar {
        let bar = "{msg:12} {wide_bar} {pos:>7} / {len:7} {per_sec:>12} {eta:>5}";
        self.bar(what, total, bar, "{msg}: {pos} of {len}, {per_sec}, {eta} left")
    }

    /// A count of requests whose number is not known beforehand.
    pub(crate) fn requests(&self, what: &str) -> ProgressBar {
        self.bar(what, 0, "{msg:12} {pos} requests", "{msg}: {pos} requests")
    }

    /// A bar at a terminal, a line now and then elsewhere.
    fn bar(&self, what: &str, total: u64, bar: &str, line: &str) -> ProgressBar {
        let (target, style) = match (self.quiet, self.terminal) {
            (true, _) => (ProgressDrawTarget::hidden(), bar),
            (false, true) => (ProgressDrawTarget::stderr(), bar),
            (false, false) => (ProgressDrawTarget::term_like_with_hz(Box::new(LogLines::new()), 1), line),
        };
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(what.to_owned())
    }
}

/// The text with control characters written out, line ends and tabs excepted: names in files and answers of
/// servers must not steer a terminal.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// JSON with the control characters that it allows in strings (U+007F to U+009F) in its own notation.
fn harmless_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}') {
            out += &format!("\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// An error and its causes, each that the message before it does not hold already.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += &cause;
        }
    }
    text
}

/// A table without frames; the columns after the first are aligned to the right where `numbers` is set.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>, numbers: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(header.to_vec());
    }
    for row in rows {
        // a cell is one line
        let cell = |cell: String| harmless(&cell).replace('\n', "\\n");
        table.add_row(row.into_iter().map(cell).collect::<Vec<_>>());
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding(if index == 0 { (0, 1) } else { (1, 1) });
        if numbers && index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// 1234567 as "1,234,567".
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A size in decimal units, as the Hub shows them.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_steers_a_terminal() {
        let value = "层 \u{7f}\u{9b}2J\u{1b}\n";
        let json = harmless_json(&serde_json::to_string(value).unwrap());
        assert_eq!(json, r#""层 \u007f\u009b2J\u001b\n""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), value);
        assert_eq!(harmless("层 0\n\tπ"), "层 0\n\tπ");
        assert_eq!(harmless("\u{1b}]0;x\u{7}\r\u{9b}2J\u{7f}"), "\\u{1b}]0;x\\u{7}\\r\\u{9b}2J\\u{7f}");
        let table = table(&["name"], [vec!["a\nerror: b\u{1b}[2J".to_owned()]], false);
        assert_eq!(table.lines().count(), 2);
        assert!(!table.contains('\u{1b}'), "{table}");
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("the header is malformed").context("m: the header is malformed");
        assert_eq!(causes(&error.context("cannot open m")), "cannot open m: m: the header is malformed");
    }

    #[test]
    fn numbers_are_grouped_and_sized() {
        assert_eq!(
            [count(0), count(999), count(1000), count(52_824_121_344)],
            ["0", "999", "1,000", "52,824,121,344"]
        );
        assert_eq!([size(999), size(1500), size(2_167_627_816_960)], ["999 B", "1.50 kB", "2.17 TB"]);
    }
}
