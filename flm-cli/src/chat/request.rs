//! What a line of a chat asks for: a message, or one of the commands that begin with a slash.

use std::path::PathBuf;

/// What `/help` says.
pub(crate) const HELP: &str = "\
/system TEXT  give the model a system message; /system alone takes it away
/reset        forget the conversation; the system message stays
/save FILE    add the conversation to FILE, as a line of JSON that `flm sft` reads
/help         this list
/quit         leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one. A message that begins with a
slash is written with two.";

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// An empty line.
    Nothing,
    /// A message for the model.
    Say(String),
    Reset,
    System(Option<String>),
    Save(PathBuf),
    Help,
    Quit,
    /// No command, or one without what it needs; says what to do.
    Wrong(String),
}

impl Request {
    pub(crate) fn parse(line: &str) -> Self {
        let line = line.trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        if let Some(rest) = line.strip_prefix("//") {
            return Self::Say(format!("/{rest}"));
        }
        if !line.starts_with('/') {
            return Self::Say(line.to_owned());
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("/system", text) => Self::System((!text.is_empty()).then(|| text.to_owned())),
            ("/save", "") => Self::Wrong("/save needs a file name, for example /save talk.jsonl".into()),
            ("/save", path) => Self::Save(path.into()),
            ("/reset" | "/help" | "/quit" | "/exit", more) if !more.is_empty() => {
                Self::Wrong(format!("{name} takes nothing after it"))
            }
            ("/reset", _) => Self::Reset,
            ("/help", _) => Self::Help,
            ("/quit" | "/exit", _) => Self::Quit,
            _ => Self::Wrong(format!(
                "there is no command {name}; /help lists them, and a message that begins with a slash is \
                 written with two"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_commands_or_mistakes() {
        let say = |text: &str| Request::Say(text.into());
        for (line, expected) in [
            (" 你好 \r", say("你好")),
            ("a\nb", say("a\nb")),
            ("//usr/bin 是什么", say("/usr/bin 是什么")),
            ("", Request::Nothing),
            (" \t", Request::Nothing),
            ("/reset", Request::Reset),
            ("/quit ", Request::Quit),
            ("/help", Request::Help),
            ("/system 你是 诗人", Request::System(Some("你是 诗人".into()))),
            ("/system", Request::System(None)),
            ("/save  my talk.jsonl ", Request::Save("my talk.jsonl".into())),
        ] {
            assert_eq!(Request::parse(line), expected, "{line:?}");
        }
        for (line, says) in
            [("/save", "file name"), ("/rest", "/rest"), ("/", "/help"), ("/reset all", "nothing")]
        {
            assert!(matches!(Request::parse(line), Request::Wrong(why) if why.contains(says)), "{line}");
        }
    }
}
