//! Text inside HTML and SVG.

/// `text` so that a browser shows it as it is, between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_markup_becomes_text() {
        let text = "<a href=\"x\" title='y'>R&D &amp; 甲</a>";
        let escaped = "&lt;a href=&quot;x&quot; title=&#39;y&#39;&gt;R&amp;D &amp;amp; 甲&lt;/a&gt;";
        assert_eq!(escape(text), escaped);
    }
}
