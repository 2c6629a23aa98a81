//! SentencePiece's BPE: the best-scored pair of neighbours becomes one symbol until none is left.
//!
//! After `bpe::Model::SampleEncode` without dropout. Why not the `tokenizers` crate's BPE: there a
//! merge is a ranked pair, here every pair that spells a piece has that piece's score and of equal
//! scores the leftmost goes first, so "aba" out of "ab a ba" is decided by position, not by rank;
//! characters without a piece of their own can still be merged; unused pieces are taken apart.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use crate::tokenizer::sentencepiece::pieces::{Kind, Pieces};

/// A stretch of the text that is one symbol now; empty once it was merged into its neighbour.
struct Symbol {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
    /// User-defined pieces take part in no merge.
    frozen: bool,
}

/// A possible merge of two neighbours.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Length in bytes when it was found; another length now says that it is out of date.
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Where a text can be cut so that its parts have the same pieces as the whole: between characters that
/// stand side by side in no piece, which no merge can join.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Boundaries {
    /// No piece has a space after something else.
    space: bool,
    /// No piece but itself has a newline.
    newline: bool,
}

/// SentencePiece's space.
const SPACE: char = '\u{2581}';

impl Boundaries {
    pub(super) fn new<'p>(pieces: impl Iterator<Item = &'p str>) -> Self {
        let mut found = Self { space: true, newline: true };
        for piece in pieces {
            found.space &= !piece.trim_start_matches(SPACE).contains(SPACE);
            found.newline &= !piece.contains('\n') || piece == "\n";
        }
        found
    }

    /// Parts of at least `least` bytes, where there is a boundary after so many.
    pub(super) fn parts(self, text: &str, least: usize) -> impl Iterator<Item = &str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let mut before = None;
            let cut = rest.char_indices().find_map(|(at, c)| {
                let last = before.replace(c)?;
                let space = self.space && c == SPACE && last != SPACE;
                let newline = self.newline && (c == '\n' || last == '\n');
                (at >= least && (space || newline)).then_some(at)
            });
            let (part, left) = rest.split_at(cut.unwrap_or(rest.len()));
            rest = left;
            (!part.is_empty()).then_some(part)
        })
    }
}

/// Cuts a normalised text into the texts of its pieces; what has no piece stays one character.
///
/// O(n log n) in the length of the text.
pub(super) fn segment<'t>(pieces: &Pieces, text: &'t str) -> Vec<&'t str> {
    let mut merger = Merger::new(pieces, text);
    for right in 1..merger.symbols.len() {
        merger.consider(Some(right - 1), Some(right));
    }
    merger.run();
    merger.finish()
}

struct Merger<'p, 't> {
    pieces: &'p Pieces,
    text: &'t str,
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Candidate>,
    /// How an unused piece was last put together.
    unused: HashMap<&'t str, (&'t str, &'t str)>,
}

impl<'p, 't> Merger<'p, 't> {
    fn new(pieces: &'p Pieces, text: &'t str) -> Self {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len() / 2);
        let mut start = 0;
        while let Some(first) = text[start..].chars().next() {
            let word = pieces.user_defined().at_start(&text[start..]);
            let end = start + word.map_or(first.len_utf8(), str::len);
            let index = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                prev: index.checked_sub(1),
                next: (end < text.len()).then_some(index + 1),
                frozen: word.is_some(),
            });
            start = end;
        }
        Self { pieces, text, symbols, agenda: BinaryHeap::new(), unused: HashMap::new() }
    }

    /// Notes the merge of two neighbours if it spells a piece.
    fn consider(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (l, r) = (&self.symbols[left], &self.symbols[right]);
        if l.frozen || r.frozen {
            return;
        }
        let merged = &self.text[l.start..r.end];
        let Some((_, piece)) = self.pieces.textual(merged) else { return };
        if piece.kind == Kind::Unused {
            self.unused.insert(merged, (&self.text[l.start..l.end], &self.text[r.start..r.end]));
        }
        self.agenda.push(Candidate { score: piece.score, left, right, len: merged.len() });
    }

    fn run(&mut self) {
        while let Some(Candidate { left, right, len, .. }) = self.agenda.pop() {
            let (l, r) = (&self.symbols[left], &self.symbols[right]);
            if l.start == l.end || r.start == r.end || (l.end - l.start) + (r.end - r.start) != len {
                continue;
            }
            let (end, next) = (r.end, r.next);
            self.symbols[left].end = end;
            self.symbols[left].next = next;
            if let Some(next) = next {
                self.symbols[next].prev = Some(left);
            }
            self.symbols[right].start = end;
            let prev = self.symbols[left].prev;
            self.consider(prev, Some(left));
            self.consider(Some(left), next);
        }
    }

    /// The symbols in order, unused pieces replaced by what they were merged from.
    fn finish(self) -> Vec<&'t str> {
        let mut out = Vec::new();
        let mut todo = Vec::new();
        let mut at = (!self.symbols.is_empty()).then_some(0);
        while let Some(symbol) = at.map(|index| &self.symbols[index]) {
            todo.push(&self.text[symbol.start..symbol.end]);
            while let Some(word) = todo.pop() {
                let unused = self.pieces.textual(word).is_some_and(|(_, p)| p.kind == Kind::Unused);
                match self.unused.get(word).filter(|_| unused) {
                    Some(&(left, right)) => todo.extend([right, left]),
                    None => out.push(word),
                }
            }
            at = symbol.next;
        }
        out
    }
}
