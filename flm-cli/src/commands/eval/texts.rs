//! Texts to measure a model on: files, directories of files, names for both.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use flm_train::{Content, read_samples};

use crate::arguments::read_start;

/// The most bytes of a text that is measured whole: it is in memory, with its tokens.
const MAX_TEXT: u64 = 1 << 30;

/// A file with the name under which it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl TextFile {
    /// The files that `PATH` and `NAME=PATH` mean. A directory stands for the .txt and .jsonl files in it.
    ///
    /// # Errors
    /// When there is no such file, none in a directory, or two would have the same name.
    pub(crate) fn find(arguments: &[String]) -> anyhow::Result<Vec<Self>> {
        let mut files = Vec::new();
        for argument in arguments {
            let (name, path) = match argument.split_once('=') {
                // a file whose name has an equals sign is still a file
                Some((name, path)) if !Path::new(argument).exists() => (Some(name), Path::new(path)),
                _ => (None, Path::new(argument)),
            };
            ensure!(name != Some(""), "--text {argument}: there is no name before the equals sign");
            if path.is_dir() {
                let inside = Self::of_directory(path)?;
                files.extend(inside.into_iter().map(|file| Self {
                    name: name.map_or_else(|| file.name.clone(), |name| format!("{name}/{}", file.name)),
                    ..file
                }));
            } else {
                let name = name.map_or_else(|| stem(path), ToOwned::to_owned);
                files.push(Self { name, path: path.to_owned() });
            }
        }
        let mut names = HashSet::new();
        for file in &files {
            ensure!(
                names.insert(&file.name),
                "two files would be called {:?}: give them names, --text NAME={}",
                file.name,
                file.path.display()
            );
        }
        Ok(files)
    }

    fn of_directory(dir: &Path) -> anyhow::Result<Vec<Self>> {
        let read = || -> std::io::Result<Vec<PathBuf>> {
            std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
        };
        let mut paths = read().with_context(|| format!("cannot read {}", dir.display()))?;
        paths.retain(|path| {
            let known = |extension: &std::ffi::OsStr| extension == "txt" || extension == "jsonl";
            path.is_file() && path.extension().is_some_and(known)
        });
        ensure!(!paths.is_empty(), "{} holds no .txt or .jsonl files", dir.display());
        paths.sort();
        Ok(paths.into_iter().map(|path| Self { name: stem(&path), path }).collect())
    }

    /// The whole of a file that is one text. A regular file that is too long is told before it is read.
    fn whole(&self) -> anyhow::Result<String> {
        let long = self.path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > MAX_TEXT);
        let text = if long { None } else { Some(read_start(&self.path, MAX_TEXT)?) };
        let text = text.filter(|(_, whole)| *whole).map(|(text, _)| text);
        text.with_context(|| {
            format!(
                "{} has more than {MAX_TEXT} bytes: give --max-bytes N, or split it into several files",
                self.path.display()
            )
        })
    }

    /// Its texts: of a .jsonl file the `text` of every line, of any other file the whole. With
    /// `max_bytes`, only the first that many bytes, cut between characters.
    ///
    /// # Errors
    /// Those of reading; a line without `text` is named.
    pub(crate) fn texts(&self, max_bytes: Option<usize>) -> anyhow::Result<Vec<String>> {
        let mut texts = if self.path.extension().is_some_and(|extension| extension == "jsonl") {
            let mut texts = Vec::new();
            for sample in read_samples(&self.path)? {
                match sample.content {
                    Content::Text(text) => texts.push(text),
                    Content::Chat(_) => bail!(
                        "{}:{}: a conversation, not a {{\"text\": …}}",
                        self.path.display(),
                        sample.line
                    ),
                }
            }
            texts
        } else {
            match max_bytes {
                Some(bytes) => vec![read_start(&self.path, bytes as u64)?.0],
                None => vec![self.whole()?],
            }
        };
        let mut left = max_bytes.unwrap_or(usize::MAX);
        for text in &mut texts {
            if text.len() <= left {
                left -= text.len();
            } else {
                let end = (0..=left).rev().find(|&i| text.is_char_boundary(i));
                text.truncate(end.unwrap_or(0));
                left = 0;
            }
        }
        Ok(texts)
    }
}

fn stem(path: &Path) -> String {
    let name = if path.as_os_str() == "-" { None } else { path.file_stem() };
    name.map_or_else(|| "standard input".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["news.txt", "code.jsonl", "notes.md", "a=b.txt"] {
            std::fs::write(at(name), "").unwrap();
        }
        let find = |arguments: &[String]| -> Result<Vec<String>, String> {
            let files = TextFile::find(arguments).map_err(|error| error.to_string())?;
            Ok(files.into_iter().map(|file| file.name).collect())
        };
        let path = |name: &str| at(name).to_str().unwrap().to_owned();
        assert_eq!(find(&[path("news.txt"), path("a=b.txt")]).unwrap(), ["news", "a=b"]);
        assert_eq!(find(&[format!("新闻={}", path("news.txt"))]).unwrap(), ["新闻"]);
        assert_eq!(find(&[path("")]).unwrap(), ["a=b", "code", "news"]);
        assert_eq!(find(&[format!("all={}", path(""))]).unwrap(), ["all/a=b", "all/code", "all/news"]);
        assert!(
            find(&[path("news.txt"), path("")]).unwrap_err().contains("two files would be called \"news\"")
        );
        assert!(find(&[format!("={}", path("news.txt"))]).unwrap_err().contains("no name"));
        let empty = tempfile::tempdir().unwrap();
        let error = find(&[empty.path().to_str().unwrap().to_owned()]).unwrap_err();
        assert!(error.contains("holds no .txt or .jsonl"), "{error}");
    }

    #[test]
    fn texts_of_lines_and_of_files_are_cut_between_characters() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            TextFile { name: "x".into(), path }
        };
        let lines = file("a.jsonl", "{\"text\": \"天地\"}\n\n{\"text\": \"abc\", \"meta\": 1}\n");
        assert_eq!(lines.texts(None).unwrap(), ["天地", "abc"]);
        // 6 bytes and 1; in the second character
        assert_eq!(lines.texts(Some(7)).unwrap(), ["天地", "a"]);
        assert_eq!(lines.texts(Some(5)).unwrap(), ["天", ""]);
        // an endless file ends where it is told to, and one that is too long is not read
        let zero = TextFile { name: "x".into(), path: "/dev/zero".into() };
        assert_eq!(zero.texts(Some(7)).unwrap(), ["\0".repeat(7)]);
        let long = file("long.txt", "");
        std::fs::File::options().write(true).open(&long.path).unwrap().set_len(MAX_TEXT + 1).unwrap();
        let said = long.texts(None).unwrap_err().to_string();
        assert!(said.contains("more than 1073741824 bytes: give --max-bytes"), "{said}");
        let whole = file("a.md", "{\"text\": 1}\n");
        assert_eq!(whole.texts(None).unwrap(), ["{\"text\": 1}\n"]);
        let chat = file("b.jsonl", "{\"text\": \"a\"}\n{\"instruction\": \"a\", \"output\": \"b\"}");
        assert!(chat.texts(None).unwrap_err().to_string().contains("b.jsonl:2: a conversation"));
    }
}
