//! What results were made with, and whether two results may stand beside each other.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::score::rows::JudgedRow;
use flm_checkpoint::hex;

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(Sha256::digest(bytes))
}

/// The version of flm that writes results.
pub(crate) fn version() -> String {
    format!("flm {}", env!("CARGO_PKG_VERSION"))
}

/// What all rows of a result have in common; `None` is what its rows do not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// Name of the judge, as the rows give it.
    pub judge: Option<String>,
    /// The snapshot that the judge's endpoint says it ran.
    pub judge_reported: Option<String>,
    /// Address of the endpoint that judged, without keys and queries.
    pub judge_url: Option<String>,
    /// How the endpoint was asked: temperature and further fields, as JSON.
    pub judge_settings: Option<String>,
    /// SHA-256 of the judge's prompt template and rubric.
    pub prompt_sha256: Option<String>,
    /// SHA-256 of the question file.
    pub data_sha256: Option<String>,
    /// Name of the model that answered.
    pub model: Option<String>,
    /// Digest of its weights and configuration.
    pub model_digest: Option<String>,
    /// Digest of how it answered.
    pub settings_digest: Option<String>,
    /// Version of flm that made the judgments.
    pub flm: Option<String>,
}

impl Identity {
    /// The identity of a result.
    ///
    /// # Errors
    /// When its rows come from different judges, prompts, data, models or settings and `mixed` is
    /// not set; a field that differs between rows is then `None`.
    pub fn of(rows: &[JudgedRow], mixed: bool) -> anyhow::Result<Self> {
        let common = |name: &'static str| -> anyhow::Result<Option<String>> {
            let values: BTreeSet<&str> = rows.iter().map(|row| row.text(name)).collect();
            if values.len() > 1 && !mixed {
                let shown: Vec<_> = values.iter().map(|value| shown(Some(value))).collect();
                bail!(
                    "the rows differ in {name} ({}): score them apart, or give --allow-different",
                    shown.join(" and ")
                );
            }
            let only = if values.len() == 1 { values.first() } else { None };
            Ok(only.filter(|value| !value.is_empty()).map(|value| (*value).to_owned()))
        };
        // rows that do not say where they come from may stand with those that do: a refusal names no snapshot
        let known = |name: &'static str| -> anyhow::Result<Option<String>> {
            let values: BTreeSet<&str> =
                rows.iter().map(|row| row.text(name)).filter(|v| !v.is_empty()).collect();
            let listed = || values.iter().copied().collect::<Vec<_>>().join(" and ");
            ensure!(
                values.len() < 2 || mixed,
                "the rows differ in {name} ({}): score them apart, or give --allow-different",
                listed()
            );
            Ok((!values.is_empty()).then(listed))
        };
        // the released files call the model's name model_id
        let model = common("model")?.or(common("model_id")?);
        // rows of different versions of flm may stand together
        let flm: BTreeSet<&str> = rows.iter().map(|row| row.text("flm")).filter(|v| !v.is_empty()).collect();
        Ok(Self {
            judge: common("judge")?,
            judge_reported: known("judge_reported")?,
            judge_url: known("judge_url")?,
            judge_settings: settings(rows, mixed)?,
            prompt_sha256: common("prompt_sha256")?,
            data_sha256: common("data_sha256")?,
            model,
            model_digest: common("model_digest")?,
            settings_digest: common("settings_digest")?,
            flm: (!flm.is_empty()).then(|| flm.into_iter().collect::<Vec<_>>().join(", ")),
        })
    }

    /// Whether scores of this result and of another can be compared: same judge, prompt and data.
    ///
    /// # Errors
    /// They say what differs.
    pub fn check_comparable(&self, other: &Self) -> anyhow::Result<()> {
        let fields = [
            ("judge", &self.judge, &other.judge),
            ("judge's prompt (SHA-256)", &self.prompt_sha256, &other.prompt_sha256),
            ("questions (SHA-256)", &self.data_sha256, &other.data_sha256),
        ];
        for (what, a, b) in fields {
            ensure!(
                a == b,
                "not comparable: the {what} differs ({} and {}); --allow-different compares all the same",
                shown(a.as_deref()),
                shown(b.as_deref())
            );
        }
        // one name may stand for different models: ask what the endpoints say of themselves
        let reported = [
            ("judge's endpoint", &self.judge_url, &other.judge_url),
            ("judge's snapshot", &self.judge_reported, &other.judge_reported),
            ("way in which the judge is asked", &self.judge_settings, &other.judge_settings),
        ];
        for (what, a, b) in reported {
            if let (Some(a), Some(b)) = (a, b) {
                ensure!(
                    a == b,
                    "not comparable: the {what} differs ({a} and {b}); --allow-different compares all the same"
                );
            }
        }
        Ok(())
    }

    /// The judge as it is to be named wherever one of its scores is shown.
    pub fn judge_label(&self) -> &str {
        self.judge.as_deref().unwrap_or("not stated in the file")
    }
}

/// What rows say of temperature and fields of the judge's requests; those of earlier versions say nothing.
fn settings(rows: &[JudgedRow], mixed: bool) -> anyhow::Result<Option<String>> {
    let of = |row: &JudgedRow| {
        let temperature = row.fields.get("judge_temperature")?;
        let mut said = serde_json::json!({ "temperature": temperature });
        for (name, value) in row.fields.get("judge_fields").and_then(Value::as_object).into_iter().flatten() {
            said[name.as_str()] = value.clone();
        }
        Some(said.to_string())
    };
    let values: BTreeSet<String> = rows.iter().filter_map(of).collect();
    let listed = values.iter().map(String::as_str).collect::<Vec<_>>().join(" and ");
    ensure!(
        values.len() < 2 || mixed,
        "the rows differ in how the judge was asked ({listed}): score them apart, or give --allow-different"
    );
    Ok((!values.is_empty()).then_some(listed))
}

fn shown(value: Option<&str>) -> String {
    match value {
        None | Some("") => "not stated".to_owned(),
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("{}…", &hex[..12])
        }
        Some(text) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[(&str, &str)]) -> JudgedRow {
        let mut row = JudgedRow::plain(1.into(), "x", "y");
        row.fields.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())));
        row
    }

    #[test]
    fn rows_and_results_of_different_judges_are_kept_apart() {
        let a = [row(&[("judge", "a"), ("data_sha256", "1")])];
        let b = [row(&[("judge", "b"), ("data_sha256", "1")])];
        let none = [row(&[("data_sha256", "1")])];
        let of = |rows: &[JudgedRow]| Identity::of(rows, false).unwrap();
        assert!(of(&a).check_comparable(&of(&a)).is_ok());
        for other in [&b, &none] {
            let error = of(&a).check_comparable(&of(other)).unwrap_err().to_string();
            assert!(error.contains("the judge differs (a and"), "{error}");
            let rows = [a[0].clone(), other[0].clone()];
            let error = Identity::of(&rows, false).unwrap_err().to_string();
            assert!(error.contains("differ in judge"), "{error}");
            assert_eq!(Identity::of(&rows, true).unwrap().judge, None);
        }
        let data = [row(&[("judge", "a"), ("data_sha256", "2")])];
        let error = of(&a).check_comparable(&of(&data)).unwrap_err().to_string();
        assert!(error.contains("the questions (SHA-256) differs (1 and 2)"), "{error}");
    }

    #[test]
    fn judges_that_are_asked_otherwise_are_kept_apart() {
        let with = |temperature: Value, fields: Value| {
            let mut row = row(&[("judge", "a")]);
            row.fields.insert("judge_temperature".into(), temperature);
            row.fields.insert("judge_fields".into(), fields);
            [row]
        };
        let (cold, warm) = (with(0.into(), Value::Null), with(1.into(), Value::Null));
        let thinking = with(0.into(), serde_json::json!({"enable_thinking": true}));
        let of = |rows: &[JudgedRow]| Identity::of(rows, false).unwrap();
        for other in [&warm, &thinking] {
            let error = of(&cold).check_comparable(&of(other)).unwrap_err().to_string();
            assert!(error.contains("way in which the judge is asked"), "{error}");
            assert!(Identity::of(&[cold[0].clone(), other[0].clone()], false).is_err());
            assert!(Identity::of(&[cold[0].clone(), other[0].clone()], true).is_ok());
        }
        // an earlier version's rows say nothing
        assert!(of(&cold).check_comparable(&of(&[row(&[("judge", "a")])])).is_ok());
    }

    #[test]
    fn digests_are_sha256() {
        // FIPS 180-2, "abc"
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
