//! A SentencePiece model taken apart.

use crate::tokenizer::sentencepiece::SentencePiece;
use crate::tokenizer::sentencepiece::pieces::Kind;
use crate::tokenizer::vocabulary::{TokenKind, VocabularyModel, VocabularyToken};

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
        let token = |piece: &crate::tokenizer::sentencepiece::pieces::Piece| VocabularyToken {
            text: piece.text.clone(),
            score: piece.score,
            kind: match piece.kind {
                Kind::Normal => TokenKind::Normal,
                Kind::Unknown => TokenKind::Unknown,
                Kind::Control => TokenKind::Control,
                Kind::UserDefined => TokenKind::UserDefined,
                Kind::Byte => TokenKind::Byte,
                Kind::Unused => TokenKind::Unused,
            },
        };
        (model, self.pieces.iter().map(|(_, piece)| token(piece)).collect(), self.pieces.unknown())
    }
}
