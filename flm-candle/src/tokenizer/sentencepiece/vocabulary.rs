//! A SentencePiece model taken apart.

use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::sentencepiece::pieces::{Kind, Piece};
use crate::tokenizer::vocabulary::{TokenKind, VocabularyModel, VocabularyToken};

/// The score of an added token, which is never merged: what llama.cpp's converter gives it.
const ADDED_SCORE: f32 = -1000.0;

impl SentencePiece {
    /// Rules, pieces and the id of the unknown piece.
    pub(crate) fn vocabulary(&self) -> (VocabularyModel, Vec<VocabularyToken>, u32) {
        let rules = &self.normalizer;
        let model = VocabularyModel::SentencePiece {
            add_dummy_prefix: rules.add_dummy_prefix,
            normalizes: !self.charsmap.is_empty() || rules.remove_extra_whitespaces,
            escape_whitespaces: rules.escape_whitespaces,
            byte_fallback: self.pieces.bytes().is_some(),
        };
        let token = |(id, piece): (u32, &Piece)| VocabularyToken {
            text: piece.text.clone(),
            score: piece.score,
            kind: match (piece.kind, self.added.get(id)) {
                // what the folder adds is found in texts, whatever the model makes of it
                (Kind::Normal | Kind::Unused, Some(token)) if token.special => TokenKind::Control,
                (Kind::UserDefined, Some(token)) if token.special => TokenKind::Control,
                (Kind::Normal | Kind::Unused, Some(_)) => TokenKind::UserDefined,
                (Kind::Normal, _) => TokenKind::Normal,
                (Kind::Unknown, _) => TokenKind::Unknown,
                (Kind::Control, _) => TokenKind::Control,
                (Kind::UserDefined, _) => TokenKind::UserDefined,
                (Kind::Byte, _) => TokenKind::Byte,
                (Kind::Unused, _) => TokenKind::Unused,
            },
        };
        let mut tokens: Vec<_> = self.pieces.iter().map(token).collect();
        let unused = VocabularyToken { text: String::new(), score: 0.0, kind: TokenKind::Unused };
        tokens.resize(self.len(), unused);
        for added in self.added.iter().filter(|added| added.id as usize >= self.pieces.len()) {
            let kind = if added.special { TokenKind::Control } else { TokenKind::UserDefined };
            tokens[added.id as usize] =
                VocabularyToken { text: added.text.clone(), score: ADDED_SCORE, kind };
        }
        (model, tokens, self.pieces.unknown())
    }
}
