//! A checkpoint as the judge.

use crate::judge::prompt::Prompt;
use crate::judge::{Case, Judge, Sink, Verdict};
use crate::model::{Decoding, Job, LocalModel};

/// A checkpoint that judges, greedily.
#[derive(Debug)]
pub struct LocalJudge {
    /// The model that judges.
    pub model: LocalModel,
    /// What it is asked.
    pub prompt: Prompt,
    /// Maximum number of tokens of a judgment.
    pub max_new_tokens: usize,
    /// Judgments that are generated together.
    pub batch: usize,
}

impl Judge for LocalJudge {
    fn id(&self) -> String {
        format!("{} ({})", self.model.name, &self.model.digest[..12])
    }

    fn prompt(&self) -> Option<&Prompt> {
        Some(&self.prompt)
    }

    fn details(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::from_iter([("judge_digest".to_owned(), self.model.digest.clone().into())])
    }

    fn judge(&self, cases: &[Case], _proved: bool, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        let job = |case: &Case| -> anyhow::Result<Job> {
            Ok(Job { prompt: self.model.prompt(&self.prompt.render(case)?)?, temperature: 0.0, seed: 0 })
        };
        let jobs: Vec<Job> = cases.iter().map(job).collect::<Result<_, _>>()?;
        let decoding = Decoding {
            max_new_tokens: self.max_new_tokens,
            top_p: None,
            repetition_penalty: 1.0,
            batch: self.batch,
        };
        let passes = self.model.complete(&jobs, &decoding, &mut |index, completion| {
            let verdict = if completion.finish == "prompt-too-long" {
                Err("question, reference and answer are longer than the judge's context".to_owned())
            } else if completion.finish == "length" {
                Err("the judgment was cut by the token limit: raise --judge-max-new-tokens".to_owned())
            } else {
                // an empty judgment of a greedy model stays empty: it counts as unreadable
                Ok(Verdict::plain(completion.text))
            };
            sink(index, verdict)
        });
        passes.map(drop)
    }
}
