//! The report for people.

use flm_checkpoint::{GrowthMasks, NormPlacement, QkNorm, RopeScaling, ScheduleKind};

use crate::commands::inspect::report::{Report, Statistics, Values};
use crate::output::{count, size, table};

pub(crate) fn text(r: &Report) -> String {
    let c = &r.config;
    let mut rows = vec![(
        "checkpoint",
        format!("{} ({}, {} files, {} tensors)", r.dir.display(), r.format, r.files, r.tensors),
    )];
    if !r.unread.is_empty() {
        rows.push((
            "not read",
            format!("{}: as in transformers, {} comes first", r.unread.join(", "), r.first()),
        ));
    }
    if let Some(prefix) = &r.prefix {
        let by = match r.wrappers.as_slice() {
            [] => String::new(),
            wrappers => format!(" (so {} saves them)", wrappers.join(" in ")),
        };
        rows.push(("names", format!("all begin with {prefix}, which is left out{by}")));
    }
    if let [first, rest @ ..] = r.ignored.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        rows.push(("ignored", format!("{first}{more}: buffers that follow from the config")));
    }
    if let Some(t) = &r.transferred {
        rows.push(("commit", format!("{} ({})", t.commit, t.revision)));
        rows.push(("transferred", format!("{} in {} requests", size(t.bytes), t.requests)));
    }
    rows.extend([
        ("model", format!("{}, {} parameters, {}", r.model_type, count(r.parameters), size(r.bytes))),
        ("layers", c.layers.to_string()),
        ("hidden", c.hidden.to_string()),
        ("heads", format!("{} query, {} key/value, of {}", c.heads, c.kv_heads, c.head_dim)),
        ("ffn", c.ffn.to_string()),
    ]);
    let vocabulary = match (r.tokenizer_size, r.padding_rows) {
        (Some(tokens), Some(padding)) => format!("{} rows: {tokens} tokens, {padding} padding", c.vocab),
        _ if r.transferred.is_some() => format!("{} rows (the tokenizer was not fetched)", c.vocab),
        _ => format!("{} rows (no tokenizer here)", c.vocab),
    };
    let dtypes: Vec<String> =
        r.dtypes.iter().map(|(dtype, bytes)| format!("{dtype} {}", size(*bytes))).collect();
    rows.extend([
        ("vocabulary", vocabulary),
        ("context", c.context.to_string()),
        (
            "norm eps, rope",
            format!("{:e}, theta {}{}", c.rms_norm_eps as f32, c.rope_theta, scaled(c.rope_scaling.as_ref())),
        ),
        ("scales", format!("embedding × {}, logits × {}", c.input_scale, c.logit_scale)),
        ("head", if c.tied { "tied to the embedding".into() } else { "its own".into() }),
        ("dtypes", dtypes.join(", ")),
    ]);
    if !c.biases.is_empty() {
        rows.push(("biases", c.biases.join("; ")));
    }
    match c.norms {
        NormPlacement::Before => {}
        NormPlacement::After => rows.push(("norms", "of what sub-layers write".into())),
        NormPlacement::Around => rows.push(("norms", "of what sub-layers read and write".into())),
    }
    rows.extend(c.attention.iter().map(|line| ("attends with", line.clone())));
    match c.qk_norm {
        QkNorm::None => {}
        QkNorm::Heads => rows.push(("norms of heads", "of each query and key".into())),
        QkNorm::Whole => rows.push(("norms of heads", "of all queries and of all keys".into())),
    }
    for part in &r.parts {
        let share = 100.0 * part.parameters as f64 / r.parameters as f64;
        let mut line = format!("{} parameters, {share:.1} %", count(part.parameters));
        let stored: Vec<String> = part.dtypes.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
        if !stored.is_empty() {
            line += &format!("; tensors: {}", stored.join(", "));
        }
        if let Some(values) = &part.values {
            line += &format!("; {}", spread(values));
        }
        rows.push((part.name, line));
    }
    if !r.unknown_keys.is_empty() {
        rows.push((
            "unknown keys",
            format!("{} (of config.json; carried along, not computed)", r.unknown_keys.join(", ")),
        ));
    }
    if let Some(growth) = &r.growth {
        rows.push(("growing", masks(growth)));
    }
    if let Some(values) = &r.values {
        rows.extend(values_lines(values));
    }
    let mut text = table(&[], rows.into_iter().map(|(k, v)| vec![k.into(), v]), false);
    text += &tensors(r);
    match r.problems.as_slice() {
        [] => text += "no problems found",
        problems => text += &format!("\n{} problems:\n  {}", problems.len(), problems.join("\n  ")),
    }
    text
}

fn tensors(r: &Report) -> String {
    let Some(tensors) = &r.tensor_list else { return String::new() };
    let mut header = vec!["tensor", "dtype", "shape", "file"];
    if r.values.is_some() {
        header.push("values");
    }
    let cells = tensors.iter().map(|t| {
        let mut row = vec![t.name.clone(), t.dtype.clone(), format!("{:?}", t.shape), t.file.clone()];
        row.extend(t.values.as_ref().map(spread));
        row
    });
    format!("\n{}", table(&header, cells, false))
}

/// Extremes, mean and deviation.
fn spread(s: &Statistics) -> String {
    match (s.min, s.max, s.mean, s.std) {
        (Some(min), Some(max), Some(mean), Some(std)) => {
            format!("{min:.4} to {max:.4}, mean {mean:.2e}, std {std:.2e}")
        }
        _ => "no finite value".into(),
    }
}

fn values_lines(v: &Values) -> Vec<(&'static str, String)> {
    let (all, how) = (&v.all, if v.sample { "a sample of " } else { "" });
    let mut rows = vec![(
        "values",
        format!(
            "{how}{}: {} NaN, {} infinite, {} zero",
            count(all.count),
            count(all.nan),
            count(all.infinite),
            count(all.zero)
        ),
    )];
    for p in &v.padding {
        let what = match (p.zero, p.equal) {
            (zero, _) if zero == p.rows => "all zero".into(),
            (_, true) => "all the same, not zero".into(),
            (zero, false) => format!("of different values, {zero} zero"),
        };
        rows.push(("padding rows", format!("{} of {}: {what}", p.rows, p.tensor)));
    }
    if let Some(zero) = &v.zero_tokens {
        let ids: Vec<String> = zero.first.iter().map(u64::to_string).collect();
        let more = if zero.count > ids.len() { ", …" } else { "" };
        rows.push((
            "zero tokens",
            format!(
                "{} tokens have rows of zeros in the embedding, ids {}{more}: training on them may end in \
                 NaN",
                count(zero.count as u64),
                ids.join(", ")
            ),
        ));
    }
    rows
}

/// Masks and where their schedule stands.
fn masks(growth: &GrowthMasks) -> String {
    let mut parts = vec![growth.operator.clone()];
    for (what, mask) in [
        ("hidden", growth.hidden.map(|m| (m.from, m.mask))),
        ("heads", growth.heads.map(|m| (m.from, m.mask))),
        ("ffn", growth.ffn.map(|m| (m.from, m.mask))),
    ] {
        parts.extend(mask.map(|(from, mask)| format!("{what} from {from} × {mask}")));
    }
    parts.extend(growth.layers.as_ref().map(|l| format!("{} new layers × {}", l.new.len(), l.mask)));
    parts.push(match &growth.schedule {
        Some(s) => {
            let ScheduleKind::Linear = s.kind;
            format!("linear schedule, step {} of {}", s.step, s.steps)
        }
        None => "no schedule".into(),
    });
    parts.join(", ")
}

/// How rotary frequencies are stretched.
fn scaled(scaling: Option<&RopeScaling>) -> String {
    match scaling {
        None | Some(RopeScaling::Default) => String::new(),
        Some(RopeScaling::Linear { factor }) => format!(", linear × {factor}"),
        Some(RopeScaling::Dynamic { factor, original }) => {
            format!(", dynamic × {factor}, from {original} tokens")
        }
        Some(RopeScaling::Ntk { base_seqlen, .. }) => format!(", ntk, from {base_seqlen} tokens"),
        Some(RopeScaling::LongRope { original, .. }) => format!(", longrope, from {original} tokens"),
        Some(RopeScaling::Llama3 { factor, original, .. }) => {
            format!(", llama3 × {factor}, from {original} tokens")
        }
        Some(RopeScaling::Yarn { factor, original, .. }) => {
            format!(", yarn × {factor}, from {original} tokens")
        }
    }
}
