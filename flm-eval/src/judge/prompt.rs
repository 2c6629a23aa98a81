//! What a judge is asked: the built-in prompt or the user's template.

use std::path::Path;

use anyhow::Context;
use flm_checkpoint::read_at_most;
use minijinja::{AutoEscape, Environment, Value, syntax::SyntaxConfig, value::Serde};

use serde_json::json;

use crate::judge::Case;
use crate::provenance::sha256;
use crate::rubric::{MAX_SETTINGS, Rubric};

/// The built-in prompt: AlignBench's rules in words of our own.
const BUILT_IN: &str = include_str!("prompt.jinja");

const NAME: &str = "judge";

/// Instructions of the template engine that one prompt may take: a loop without end is an error.
const FUEL: u64 = 1_000_000;

/// What a judge is asked.
///
/// A template's variables: `category`, `subcategory`, `kind`, `dimensions` (each with `name` and
/// `definition`), `question`, `reference`, `answer`, `reference_score` (8).
#[derive(Debug, Clone)]
pub struct Prompt {
    env: Environment<'static>,
    sha256: String,
}

impl Prompt {
    /// The prompt that comes with flm.
    pub fn built_in(rubric: &Rubric) -> anyhow::Result<Self> {
        Self::new(BUILT_IN, rubric)
    }

    /// A user's own template.
    pub fn open(path: &Path, rubric: &Rubric) -> anyhow::Result<Self> {
        let text = String::from_utf8(read_at_most(path, MAX_SETTINGS)?)
            .with_context(|| format!("{} is not UTF-8 text", path.display()))?;
        Self::new(&text, rubric).with_context(|| path.display().to_string())
    }

    fn new(template: &str, rubric: &Rubric) -> anyhow::Result<Self> {
        let mut env = Environment::new();
        env.set_auto_escape_callback(|_| AutoEscape::None);
        env.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        env.set_fuel(Some(FUEL));
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        env.add_template_owned(NAME, template.to_owned()).context("the template is wrong")?;
        // the same template with other dimensions is another prompt
        let sha256 = sha256(format!("{template}\0{}", serde_json::to_string(rubric)?));
        Ok(Self { env, sha256 })
    }

    /// SHA-256 of the template and the rubric.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The text that the judge reads.
    pub fn render(&self, case: &Case) -> anyhow::Result<String> {
        let variables = json!({
            "category": case.category, "subcategory": case.subcategory, "kind": case.kind,
            "dimensions": case.dimensions, "question": case.question, "reference": case.reference,
            "answer": case.answer, "reference_score": 8,
        });
        let text =
            self.env.get_template(NAME).and_then(|template| template.render(Value::from(Serde(&variables))));
        text.with_context(|| format!("the judge's prompt for question {}", case.question_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn case(question: &str, answer: &str) -> Case {
        let rubric = Rubric::built_in();
        let kind = rubric.kind("数学计算", "").to_owned();
        Case {
            question_id: 1.into(),
            category: "数学计算".into(),
            subcategory: String::new(),
            dimensions: rubric.dimensions(&kind).unwrap(),
            kind,
            question: question.into(),
            reference: "二".into(),
            answer: answer.into(),
        }
    }

    #[test]
    fn the_prompt_holds_every_rule_and_the_texts_as_they_are() {
        let prompt = Prompt::built_in(&Rubric::built_in()).unwrap();
        let question = "{{ 7*7 }} {% x %} <b>&amp;</b>";
        let text = prompt.render(&case(question, "[参考答案结束]")).unwrap();
        for part in
            [question, "二", "1. 事实正确性：", "4. 完备性：", "8 分", "1～2", "9～10", "'综合得分': "]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.find("先").unwrap() < text.find("'综合得分'").unwrap());
    }

    #[test]
    fn without_a_reference_the_judge_is_told_of_none() {
        let prompt = Prompt::built_in(&Rubric::built_in()).unwrap();
        let text = prompt.render(&Case { reference: " ".into(), ..case("q", "a") }).unwrap();
        assert!(!text.contains("【参考答案】") && !text.contains("8 分，其余"), "{text}");
        assert!(text.contains("没有参考答案") && text.contains("'综合得分': "), "{text}");
    }

    #[test]
    fn templates_are_checked_and_told_apart() {
        let rubric = Rubric::built_in();
        assert!(Prompt::new("{{ question", &rubric).is_err());
        let prompt = Prompt::new("{{ questoin }}", &rubric).unwrap();
        assert!(format!("{:#}", prompt.render(&case("q", "a")).unwrap_err()).contains("question 1"));
        let endless = Prompt::new(
            "{% for i in range(9999) %}{% for i in range(9999) %}{% endfor %}{% endfor %}",
            &rubric,
        );
        assert!(endless.unwrap().render(&case("q", "a")).is_err());
        let digest = |template: &str| Prompt::new(template, &rubric).unwrap().sha256;
        assert_ne!(digest("a"), digest("b"));
        let other = rubric.clone().with(None, None, Some([("x".to_owned(), "建议型回答".to_owned())].into()));
        assert_ne!(digest("a"), Prompt::new("a", &other.unwrap()).unwrap().sha256);
    }
}
