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

use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::sentencepiece::bpe::Boundaries;
use crate::tokenizer::sentencepiece::decoder::DecodeState;
use crate::tokenizer::sentencepiece::decoder::Rules;
use crate::tokenizer::sentencepiece::normalizer::Normalizer;
use crate::tokenizer::sentencepiece::pieces::{Kind, Matcher, Pieces};
use crate::tokenizer::sentencepiece::proto::ModelProto;

/// Bytes of a text that are merged at a time, where it can be cut.
const PART: usize = 64 << 10;

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
    /// Control pieces and the unknown piece: what a rendered chat template may name.
    special: Matcher,
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
        let special = Matcher::new(special.map(|(_, p)| p.text.as_str()));
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
            special,
            unknown_surface: trainer.unk_surface().to_owned(),
            bos,
            eos,
            pieces,
        })
    }

    /// The ids of a text, as `SentencePieceProcessor::Encode` gives them.
    pub(crate) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        self.encode_into(text, &mut ids);
        ids
    }

    /// The ids of a text in which control pieces and the unknown piece are meant by their names.
    ///
    /// What stands between them is encoded as texts of their own, each with its dummy prefix: the
    /// behaviour of transformers' slow (SentencePiece-backed, legacy) tokenizers.
    pub(crate) fn encode_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 2);
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            match self.special.at_start(&text[at..]).and_then(|name| Some((name, self.pieces.id(name)?))) {
                Some((name, id)) => {
                    self.encode_into(&text[start..at], &mut ids);
                    ids.push(id);
                    at += name.len();
                    start = at;
                }
                None => at += c.len_utf8(),
            }
        }
        self.encode_into(&text[start..], &mut ids);
        ids
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.encode_parts(text, PART, ids);
    }

    /// Merging takes some 70 bytes a byte of a part.
    fn encode_parts(&self, text: &str, part: usize, ids: &mut Vec<u32>) {
        let normalized = self.normalize(text);
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
    pub(crate) fn normalize(&self, text: &str) -> String {
        self.normalizer.normalize(self.pieces.user_defined(), text)
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

    /// The number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a piece of any kind.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pieces.id(token)
    }

    /// The piece of an id.
    pub(crate) fn id_to_token(&self, id: u32) -> Option<String> {
        self.pieces.get(id).map(|piece| piece.text.clone())
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
