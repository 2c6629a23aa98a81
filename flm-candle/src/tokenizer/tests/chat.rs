//! Chat templates. Expected texts are those of jinja2 with transformers' settings.

use super::*;
use crate::ChatMessage;

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const LLAMA2: &str = "{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = '<<SYS>>\n' + messages[0]['content'].strip() + '\n<</SYS>>\n\n' %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}";

fn messages(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    turns.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

fn render(source: &str, turns: &[(&str, &str)]) -> Result<String, TokenizerError> {
    ChatTemplate::new(source, Some("<s>"), Some("</s>"))?.render(&messages(turns), true)
}

fn error(source: &str) -> String {
    render(source, &[("user", "hi")]).unwrap_err().to_string()
}

#[test]
fn chatml() {
    let text = render(CHATML, &[("user", "What is 2+2?")]).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
             <|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    );
    let template = ChatTemplate::new(CHATML, None, None).unwrap();
    let turns = messages(&[("system", "Be brief."), ("user", "hi"), ("assistant", "hello")]);
    assert_eq!(
        template.render(&turns, false).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    );
    assert_eq!(template.source(), CHATML);
}

#[test]
fn llama_2_strips_and_raises() {
    let turns = [("system", " Be brief. "), ("user", " hi\n"), ("assistant", " hello "), ("user", "bye")];
    assert_eq!(
        render(LLAMA2, &turns).unwrap(),
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n hi [/INST] hello </s><s>[INST] bye [/INST]"
    );
    let message = render(LLAMA2, &[("user", "a"), ("user", "b")]).unwrap_err().to_string();
    assert!(message.contains("Conversation roles must alternate"), "{message}");
}

#[test]
fn tele_flm_renders_system_to_nothing_and_adds_no_generation_prompt() {
    let turns =
        messages(&[("system", "Be brief."), ("user", " 你好 \n"), ("assistant", " Hi! "), ("user", "再见")]);
    let template = ChatTemplate::tele_flm();
    for add_generation_prompt in [true, false] {
        let text = template.render(&turns, add_generation_prompt).unwrap();
        assert_eq!(text, "<_user>你好<_bot> Hi! <_user>再见<_bot>");
    }
    let tokenizer = open("tokenizer");
    let ids = tokenizer.encode_special(&template.render(&turns[1..2], true).unwrap()).unwrap();
    let pieces: Vec<_> = ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect();
    assert_eq!((pieces[1].as_str(), pieces[pieces.len() - 1].as_str()), ("<_user>", "<_bot>"));
}

#[test]
fn json_is_pythons() {
    let text = render("{{ messages | tojson }}", &[("user", "<a> & 'é'")]).unwrap();
    assert_eq!(text, r#"[{"role": "user", "content": "<a> & 'é'"}]"#);
    let text = render("{{ messages[0] | tojson(indent=2, ensure_ascii=False) }}", &[("user", "hi")]).unwrap();
    assert_eq!(text, "{\n  \"role\": \"user\",\n  \"content\": \"hi\"\n}");
    assert!(error("{{ messages | tojson(indent=1000000) }}").contains("a number up to 16"));
}

#[test]
fn what_templates_of_the_hub_use() {
    let source = "{% if not tools is defined or tools is none %}{% set ns = namespace(n=0) %}{% endif %}
{% for m in messages %}
  {% if m.get('role') == 'tool' %}{% continue %}{% endif %}
  {% set ns.n = ns.n + 1 %}
{{ m['content'].upper().split(' ')[0] ~ ns.n }}
{% endfor %}
{{ 'x'.startswith('x') and bos_token is defined and pad_token is not defined }}";
    let text = render(source, &[("user", "a b"), ("tool", "x"), ("user", "c")]).unwrap();
    assert_eq!(text, "A1\nC2\nTrue");
}

#[test]
fn hostile_templates_end_in_an_error() {
    let fuel = "chat template: ran out of fuel";
    let endless = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(error(endless).starts_with(fuel), "{}", error(endless));
    let doubling = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}";
    assert!(error(doubling).starts_with(fuel), "{}", error(doubling));
    assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    assert!(error("{{ 'x' * 100000000000 }}").starts_with(fuel));
    assert!(error("{{ messages | no_such_filter }}").contains("no_such_filter"));
    assert!(error("{{ no_such_function() }}").contains("no_such_function"));
    assert!(error("{{ messages[0].content.no_such_method() }}").contains("no_such_method"));
    assert!(error("{% if %}").contains("syntax error"));
    assert!(error("{% for m in messages %}").contains("syntax error"));
    assert!(error("{% include '/etc/passwd' %}").contains("/etc/passwd"));
    assert!(error("{{ raise_exception('no') }}").contains("no"));
}

/// `tests/fixtures/jinja/make.py` has transformers render them.
#[test]
fn expressions_render_as_transformers_renders_them() {
    #[derive(serde::Deserialize)]
    struct Golden {
        source: String,
        text: String,
    }
    let golden = std::fs::read_to_string(fixture("jinja/golden.json")).unwrap();
    let golden: Vec<Golden> = serde_json::from_str(&golden).unwrap();
    assert!(golden.len() == 192);
    let mut wrong = Vec::new();
    for Golden { source, text } in &golden {
        let got = ChatTemplate::new(source, None, None).and_then(|t| t.render(&[], true));
        if got.as_ref().ok() != Some(text) {
            wrong.push(format!("{source}: {got:?}, transformers: {text:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), golden.len(), wrong.join("\n"));
}

#[test]
fn what_a_template_leaves_out_is_found() {
    let turns = "{% for m in messages if m.role != 'system' %}{{ m.role }}{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(turns, None, None).unwrap();
    let mut messages = messages(&[("system", "s"), ("user", "a"), ("assistant", "b"), ("tool", "c")]);
    messages[1].rest.insert("name".into(), "n".into());
    messages[2].rest.insert("tool_calls".into(), serde_json::json!([{"name": "f"}]));
    let found = template.unrendered(&messages, Some(&serde_json::json!([{"name": "f"}]))).unwrap();
    assert_eq!(found.matters, ["tools", "messages[0].system", "messages[2].tool_calls"]);
    assert_eq!(found.others, ["name"]);
    let all = ChatTemplate::new("{{ tools|tojson }}{{ messages|tojson }}{# name #}", None, None).unwrap();
    assert_eq!(all.unrendered(&messages, None).unwrap(), Default::default());
}
