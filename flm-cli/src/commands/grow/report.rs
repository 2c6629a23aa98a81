//! What `flm grow` prints of a plan and of its execution.

use std::path::{Path, PathBuf};

use anyhow::Result;
use flm_checkpoint::{GrowthMasks, JobPart};
use flm_growth::DiskNeed;
use flm_growth::GrowthPlan;
use flm_growth::Shape;
use flm_growth::{Block, TensorPlan};
use flm_growth::{ExecuteOptions, ExecuteReport};
use flm_growth::{PlanSummary, Preservation};
use serde::Serialize;

use crate::arguments::part::state;
use crate::output::{Output, count, size, table};
use flm_growth::disk_need;

/// What one stage comes to.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    dst: Option<PathBuf>,
    operator: &'static str,
    placement: String,
    from: Shape,
    to: Shape,
    new_layers: Vec<usize>,
    rms_norm_eps: f64,
    output_mult: f64,
    mup_scale_factor: f64,
    preservation: Preservation,
    #[serde(skip_serializing_if = "Option::is_none")]
    masks: Option<GrowthMasks>,
    pub(crate) summary: PlanSummary,
    peak_memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<DiskNeed>,
    /// From how fast the disk takes a small file; of a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_seconds: Option<f64>,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_bytes: Option<u64>,
    #[serde(skip)]
    written_bytes: Option<u64>,
    #[serde(skip)]
    part: Option<JobPart>,
    /// Of a part: those that were not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting_for: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<TensorPlan>>,
}

impl Report {
    pub(crate) fn new(
        plan: &GrowthPlan,
        dst: Option<&Path>,
        execution: &ExecuteOptions,
        dry_run: bool,
    ) -> Result<Self> {
        let threads = rayon::current_num_threads() as u64;
        let disk = match dst {
            Some(dst) => Some(disk_need(&plan.tensors, dst)?),
            None => None,
        };
        let estimated_seconds = disk.as_ref().filter(|_| dry_run).and_then(|disk| {
            let rate = write_rate(&disk.path)?;
            Some(disk.needed as f64 / rate)
        });
        Ok(Self {
            dst: dst.map(Path::to_owned),
            operator: plan.operator.name(),
            placement: plan.placement.to_string(),
            from: plan.source,
            to: plan.target,
            new_layers: (0..plan.layers.len()).filter(|&i| plan.layers[i].new).collect(),
            rms_norm_eps: plan.config.rms_norm_eps,
            output_mult: plan.config.output_mult,
            mup_scale_factor: plan.config.mup_scale_factor,
            preservation: plan.preservation(),
            masks: plan.masks.clone(),
            summary: plan.summary(),
            peak_memory_bytes: threads * 3 * execution.chunk_bytes as u64 + (200 << 20),
            disk,
            estimated_seconds,
            dry_run,
            seconds: None,
            resumed_bytes: None,
            written_bytes: None,
            part: None,
            waiting_for: None,
            plan: dry_run.then(|| plan.tensors.clone()),
        })
    }

    pub(crate) fn done(&mut self, done: &ExecuteReport, part: Option<JobPart>) {
        self.part = part;
        self.waiting_for = done.waiting_for.clone();
        self.written_bytes = Some(done.output_bytes);
        self.seconds = Some(done.seconds);
        self.resumed_bytes = Some(done.resumed_bytes);
    }
}

/// Bytes a second that the disk takes, fsync included.
fn write_rate(dir: &Path) -> Option<f64> {
    const BYTES: usize = 64 << 20;
    let mut file = tempfile::tempfile_in(dir).ok()?;
    let block = vec![0x5a; 1 << 20];
    let start = std::time::Instant::now();
    for _ in 0..BYTES / block.len() {
        std::io::Write::write_all(&mut file, &block).ok()?;
    }
    file.sync_all().ok()?;
    Some(BYTES as f64 / start.elapsed().as_secs_f64())
}

/// The last stage's report, with all of them where there are several.
#[derive(Debug, Serialize)]
pub(crate) struct Reports {
    #[serde(flatten)]
    last: Report,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    earlier_stages: Vec<Report>,
    #[serde(skip)]
    plans: Vec<GrowthPlan>,
}

impl Reports {
    pub(crate) fn new(stages: Vec<(Report, GrowthPlan)>) -> Option<Self> {
        let (mut earlier_stages, plans): (Vec<_>, Vec<_>) = stages.into_iter().unzip();
        let last = earlier_stages.pop()?;
        Some(Self { last, earlier_stages, plans })
    }

    pub(crate) fn print(&self, output: &Output) -> Result<()> {
        output.result(self, |all| {
            let reports = all.earlier_stages.iter().chain([&all.last]);
            let texts: Vec<String> =
                reports.zip(&all.plans).map(|(report, plan)| human(report, plan)).collect();
            texts.join("\n")
        })
    }
}

fn human(report: &Report, plan: &GrowthPlan) -> String {
    let (from, to, s) = (&report.from, &report.to, &report.summary);
    let mut rows: Vec<Vec<String>> =
        from.beside(to).map(|(name, a, b)| vec![name.into(), count(a as u64), count(b as u64)]).into();
    rows.push(vec!["parameters".into(), count(s.source_parameters), count(s.target_parameters)]);
    let mut text = table(&["", "from", "to"], rows, true);
    let preservation = match report.preservation {
        Preservation::Exact => "exact in exact arithmetic, no weight rounded".to_owned(),
        Preservation::Rounded { tensors, relative } => {
            format!("{tensors} tensors rescaled and rounded, by at most {relative:.1e} of a weight")
        }
        Preservation::No => "NOT kept: this operator is a baseline".into(),
    };
    let preservation = match plan.new_rows() {
        Some(rows) if report.preservation != Preservation::No => {
            format!("{preservation}; the same among the old vocabulary rows: {rows}")
        }
        _ => preservation,
    };
    let masks = report
        .masks
        .as_ref()
        .and_then(|m| m.schedule)
        .map(|s| format!("0, to be raised in {} steps of training", s.steps));
    let mut facts = vec![
        ("operator", report.operator.to_owned()),
        ("new layers", format!("{:?} ({})", report.new_layers, report.placement)),
        ("norm eps", format!("{:e}", report.rms_norm_eps as f32)),
        ("logit scale", format!("{} / {}", report.output_mult, report.mup_scale_factor)),
        ("function", preservation),
        ("masks", masks.unwrap_or_else(|| "none: a plain checkpoint".into())),
        ("output", format!("{} in {} tensors", size(s.output_bytes), s.tensors)),
        ("copied", size(s.copied_bytes)),
        ("scaled", size(s.scaled_bytes)),
        ("repeated", size(s.repeated_bytes)),
        ("zero", format!("{} (holes)", size(s.zero_bytes))),
        ("drawn", size(s.drawn_bytes)),
        ("memory", format!("at most {}", size(report.peak_memory_bytes))),
    ];
    if let Some(disk) = &report.disk {
        facts.push(("disk", format!("{} needed, {} free", size(disk.needed), size(disk.free))));
    }
    if let Some(seconds) = report.estimated_seconds {
        facts.push(("estimate", format!("{seconds:.0} s at the disk's speed")));
    }
    if let Some(bytes) = report.resumed_bytes.filter(|&b| b > 0) {
        facts.push(("resumed", format!("{} were finished before", size(bytes))));
    }
    if let Some(seconds) = report.seconds {
        let rate = size((report.written_bytes.unwrap_or(s.output_bytes) as f64 / seconds) as u64);
        facts.push(("written", format!("{:.1} s ({rate}/s)", seconds)));
    }
    if let (Some(waiting_for), Some(dst)) = (&report.waiting_for, &report.dst) {
        facts.push(("state", state(report.part, waiting_for, dst)));
    }
    text += "\n";
    text += &table(&[], facts.into_iter().map(|(k, v)| vec![k.into(), v]), false);
    if report.dry_run {
        text += "\n";
        text += &table(
            &["tensor", "shape", "dtype", "source", "scale", "new columns", "new rows", "corner"],
            plan.tensors.iter().map(row),
            false,
        );
    }
    text
}

fn row(t: &TensorPlan) -> Vec<String> {
    let fill = |block| t.fill(block).map_or_else(|| "–".into(), |fill| format!("{fill:?}").to_lowercase());
    vec![
        t.name.clone(),
        format!("{:?}", t.shape),
        format!("{:?}", t.dtype).to_lowercase(),
        t.source.as_ref().map_or_else(|| "–".into(), |s| s.name.clone()),
        t.scale.to_string(),
        fill(Block::NewCols),
        fill(Block::NewRows),
        fill(Block::NewCorner),
    ]
}
