//! A SentencePiece BPE model: text to ids and back exactly as the `sentencepiece` library does.
//!
//! Source of the rules: `src/` of google/sentencepiece (normalizer.cc, bpe_model.cc,
//! model_interface.cc, sentencepiece_processor.cc). Goldens from the library are in
//! `tests/fixtures/spm`.

mod bpe;
mod charsmap;
pub(crate) mod decoder;
mod export;
mod normalizer;
mod pieces;
mod proto;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use prost::Message;

use crate::tokenizer::added::{AddedToken, AddedTokens, Part};
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::sentencepiece::bpe::Boundaries;
use crate::tokenizer::sentencepiece::decoder::DecodeState;
use crate::tokenizer::sentencepiece::decoder::Rules;
use crate::tokenizer::sentencepiece::normalizer::Normalizer;
use crate::tokenizer::sentencepiece::pieces::{Kind, Pieces};
use crate::tokenizer::sentencepiece::proto::ModelProto;

/// Bytes of a text that are merged at a time, where it can be cut.
const PART: usize = 64 << 10;

/// SentencePiece's escaped space.
const SPACE_CHAR: char = '\u{2581}';

/// `TrainerSpec.ModelType.BPE`.
pub(crate) const BPE: i32 = 2;

/// A loaded `tokenizer.model`.
#[derive(Debug)]
pub(crate) struct SentencePiece {
    pieces: Pieces,
    boundaries: Boundaries,
    normalizer: Normalizer,
    /// As it stands in the file, for the export.
    charsmap: Vec<u8>,
    /// Control pieces and the unknown piece, which a rendered chat template may name, and what the folder
    /// adds to the model.
    added: AddedTokens,
    /// Each part of a text between added tokens begins with the dummy prefix, as a text of its own.
    legacy: bool,
    unknown_surface: String,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl SentencePiece {
    /// Reads and checks the protobuf.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let model = ModelProto::decode(bytes).map_err(|e| TokenizerError::Protobuf(e.to_string()))?;
        let trainer = model.trainer_spec.unwrap_or_default();
        let mut spec = model.normalizer_spec.unwrap_or_default();
        let unsupported = |what: &str| Err(TokenizerError::Unsupported(what.to_owned()));
        if model.pieces.is_empty() {
            return Err(TokenizerError::Pieces("it has no pieces".into()));
        }
        match trainer.model_type() {
            BPE => {}
            1 => return unsupported("model_type UNIGRAM (only BPE is)"),
            3 => return unsupported("model_type WORD (only BPE is)"),
            4 => return unsupported("model_type CHAR (only BPE is)"),
            other => return unsupported(&format!("model_type {other} (only BPE is)")),
        }
        if trainer.treat_whitespace_as_suffix() {
            return unsupported("treat_whitespace_as_suffix");
        }
        if model.denormalizer_spec.is_some_and(|spec| !spec.precompiled_charsmap().is_empty()) {
            return unsupported("a denormalizer");
        }
        let pieces = Pieces::new(model.pieces, trainer.byte_fallback())?;
        let normalizer = Normalizer::new(&spec)?;
        let special = pieces.iter().filter(|(_, p)| matches!(p.kind, Kind::Control | Kind::Unknown));
        let mut added = AddedTokens::default();
        added.add(special.map(|(id, p)| AddedToken::new(id, p.text.as_str(), true)), pieces.len())?;
        let control = |name: &str| {
            let id = pieces.id(name)?;
            pieces.get(id).filter(|p| p.kind == Kind::Control).map(|_| id)
        };
        let (bos, eos) = (control(trainer.bos_piece()), control(trainer.eos_piece()));
        let boundaries = Boundaries::new(pieces.iter().map(|(_, piece)| piece.text.as_str()));
        Ok(Self {
            boundaries,
            normalizer,
            charsmap: spec.precompiled_charsmap.take().unwrap_or_default(),
            added,
            legacy: true,
            unknown_surface: trainer.unk_surface().to_owned(),
            bos,
            eos,
            pieces,
        })
    }

    /// Takes over what the folder says beside the model: tokens of its own, and `legacy` and `add_prefix_space`
    /// of tokenizer_config.json.
    ///
    /// # Errors
    /// Where a token contradicts the model's pieces or another one.
    pub(crate) fn configure(
        &mut self,
        tokens: Vec<AddedToken>,
        legacy: bool,
        prefix: bool,
    ) -> Result<(), TokenizerError> {
        self.legacy = legacy;
        self.normalizer.add_dummy_prefix &= prefix;
        for token in &tokens {
            let why = match (self.pieces.get(token.id), self.pieces.id(&token.text)) {
                (Some(piece), _) if piece.text != token.text => {
                    format!("the model's piece is {:?}", piece.text)
                }
                (None, Some(id)) => format!("the model has it as {id}"),
                _ => continue,
            };
            return Err(TokenizerError::AddedToken { token: token.text.clone(), id: token.id, why });
        }
        // what the model itself keeps out of texts stays special
        let tokens = tokens.into_iter().map(|token| {
            let kind = self.pieces.get(token.id).map(|piece| piece.kind);
            let special = token.special || matches!(kind, Some(Kind::Control | Kind::Unknown));
            AddedToken { special, ..token }
        });
        self.added.add(tokens, self.pieces.len())
    }

    /// The ids of a text, as `SentencePieceProcessor::Encode` gives them; added tokens that are not special
    /// are one id each.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_split(text, false)
    }

    /// The ids of a text in which control pieces, the unknown piece and added tokens are meant by their names.
    ///
    /// What stands between them is encoded as texts of their own, each with its dummy prefix: the behaviour
    /// of transformers' slow (SentencePiece-backed, legacy) tokenizers. With `legacy: false` only the start
    /// of the text has one, unless an added token or a space stands there, as in transformers 5.
    pub(crate) fn encode_special(&self, text: &str) -> Vec<u32> {
        self.encode_split(text, true)
    }

    fn encode_split(&self, text: &str, special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        for (i, part) in self.added.split(text, special).into_iter().enumerate() {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(part) => {
                    let continued = !self.legacy && (i > 0 || part.starts_with([' ', SPACE_CHAR]));
                    self.encode_parts(part, continued, PART, &mut ids);
                }
            }
        }
        ids
    }

    /// Merging takes some 70 bytes a byte of a part.
    fn encode_parts(&self, text: &str, continued: bool, part: usize, ids: &mut Vec<u32>) {
        let normalized = self.normalize(text, continued);
        let mut after_unknown = false;
        let parts = self.boundaries.parts(&normalized, part);
        for word in parts.flat_map(|part| bpe::segment(&self.pieces, part)) {
            let known = self.pieces.textual(word).map(|(id, _)| id);
            match (known, self.pieces.bytes()) {
                (Some(id), _) => ids.push(id),
                (None, Some(bytes)) => ids.extend(word.bytes().map(|b| bytes[usize::from(b)])),
                // A run of unknown characters is one unknown piece.
                (None, None) if after_unknown => {}
                (None, None) => ids.push(self.pieces.unknown()),
            }
            after_unknown = known.is_none();
        }
    }

    /// The text as the merges see it.
    pub(crate) fn normalize(&self, text: &str, continued: bool) -> String {
        self.normalizer.normalize(self.pieces.user_defined(), text, continued)
    }

    /// The text of ids, as `SentencePieceProcessor::Decode` gives it, or with control pieces named.
    pub(crate) fn decode(&self, ids: &[u32], with_special: bool) -> Result<String, TokenizerError> {
        let mut state = DecodeState::default();
        let mut out = String::new();
        for &id in ids {
            self.decode_step(&mut state, id, with_special, &mut out)?;
        }
        self.decode_rest(&mut state, &mut out);
        Ok(out)
    }

    /// Decodes one more id; new text goes to `out`.
    pub(crate) fn decode_step(
        &self,
        state: &mut DecodeState,
        id: u32,
        with_special: bool,
        out: &mut String,
    ) -> Result<(), TokenizerError> {
        let rules = Rules {
            pieces: &self.pieces,
            normalizer: &self.normalizer,
            unknown_surface: &self.unknown_surface,
            added: &self.added,
            legacy: self.legacy,
            with_special,
        };
        if state.push(&rules, id, out) {
            Ok(())
        } else {
            Err(TokenizerError::UnknownId { id, len: self.len() })
        }
    }

    /// Gives out what decoding held back.
    pub(crate) fn decode_rest(&self, state: &mut DecodeState, out: &mut String) {
        state.finish(out);
    }

    /// The first id after the last piece or added token.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len().max(self.added.end())
    }

    /// The id of a piece of any kind, or of an added token.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pieces.id(token).or_else(|| self.added.id(token))
    }

    /// The piece or added token of an id.
    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        let piece = self.pieces.get(id).map(|piece| &piece.text);
        piece.or_else(|| self.added.get(id).map(|token| &token.text)).cloned()
    }

    pub(crate) fn tokens_with_flags(&self) -> Vec<String> {
        let flagged = self.added.iter().filter(|t| t.lstrip || t.rstrip || t.single_word);
        flagged.map(|t| t.text.clone()).collect()
    }

    /// Whether an id gives no text: a control piece or a special added token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        match self.pieces.get(id).map(|piece| piece.kind) {
            Some(Kind::Control) => true,
            Some(Kind::Unknown) => false,
            _ => self.added.get(id).is_some_and(|token| token.special),
        }
    }

    /// The control piece that begins a text.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The control piece that ends a text.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.eos
    }
}
