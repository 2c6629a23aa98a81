//! The scores that the model card of FLM-2-52B-Instruct-2407 gives.

use serde::Serialize;

/// A row of the table in the model card of FLM-2-52B-Instruct-2407 (CofeAI, Hugging Face).
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Published {
    /// Name in the model card.
    pub model: &'static str,
    /// The card's overall score, from 1 to 10.
    pub overall: f64,
    /// In the order of [`CATEGORIES`].
    pub categories: [f64; 8],
}

/// Who judged the published rows. The card does not say; its two GPT-4 rows are the ones that were
/// published with this judge.
pub const JUDGE: &str =
    "CritiqueLLM (inferred: the GPT-4 rows are those published with that judge; the card names none)";

/// What does not add up in the published rows.
pub const CAVEAT: &str = "The categories given for gpt-4-0613 make an overall score of 6.50, not 6.83.";

/// The columns of the published rows.
pub const CATEGORIES: [&str; 8] =
    ["数学计算", "逻辑推理", "基本任务", "中文理解", "综合问答", "文本写作", "角色扮演", "专业能力"];

/// The model card's rows.
pub const PUBLISHED: [Published; 5] = [
    row("gpt-4-1106-preview", 7.58, [7.39, 6.83, 7.69, 7.07, 8.66, 8.23, 8.08, 8.55]),
    row("gpt-4-0613", 6.83, [6.33, 5.15, 7.16, 6.76, 7.26, 7.31, 7.48, 7.56]),
    row("chatglm-turbo", 6.36, [4.88, 5.09, 7.50, 7.03, 8.45, 8.05, 7.67, 7.70]),
    row("FLM-2-52B-Instruct-2407", 6.23, [3.79, 5.15, 7.69, 7.86, 8.45, 8.17, 7.88, 7.85]),
    row("gpt-3.5-turbo-0613", 5.68, [4.90, 4.79, 6.01, 5.60, 6.97, 7.27, 6.98, 6.29]),
];

const fn row(model: &'static str, overall: f64, categories: [f64; 8]) -> Published {
    Published { model, overall, categories }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overall_scores_are_the_means_of_the_halves() {
        for row in PUBLISHED {
            let c = row.categories;
            let overall = ((c[0] + c[1]) / 2.0 + c[2..].iter().sum::<f64>() / 6.0) / 2.0;
            // one row does not add up as published: see CAVEAT
            let published = if row.model == "gpt-4-0613" { 6.50 } else { row.overall };
            assert!((overall - published).abs() < 0.0101, "{}: {overall}", row.model);
        }
    }
}
