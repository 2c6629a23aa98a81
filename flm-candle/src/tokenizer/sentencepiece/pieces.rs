//! The vocabulary of a SentencePiece model: what each id is, and which id a piece has.
//!
//! The checks are those of SentencePiece's `ModelInterface::InitializePieces`, and scores must be
//! finite and names unique over all kinds.

use std::collections::HashMap;

use crate::tokenizer::added::Matcher;
use crate::tokenizer::error::TokenizerError;
use crate::tokenizer::sentencepiece::proto::PieceProto;

/// What a piece is for. Values: `ModelProto.SentencePiece.Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text.
    Normal,
    /// Stands for every character that has no piece.
    Unknown,
    /// `<s>`, `</s>`: never found in text, invisible in decoded text.
    Control,
    /// Always one piece where it stands in the text, never changed by normalisation.
    UserDefined,
    /// One byte, `<0x0A>`.
    Byte,
    /// A step of merging that is taken apart again.
    Unused,
}

/// One entry of the vocabulary.
#[derive(Debug)]
pub(crate) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
    /// The value of a byte piece.
    pub byte: Option<u8>,
}

/// All pieces, by id and by text.
#[derive(Debug)]
pub(crate) struct Pieces {
    list: Vec<Piece>,
    ids: HashMap<String, u32>,
    unknown: u32,
    bytes: Option<Box<[u32; 256]>>,
    user_defined: Matcher,
}

impl Pieces {
    /// Checks the list and indexes it.
    pub(crate) fn new(protos: Vec<PieceProto>, byte_fallback: bool) -> Result<Self, TokenizerError> {
        let bad = |message: String| Err(TokenizerError::Pieces(message));
        if protos.is_empty() {
            return bad("it has no pieces".into());
        }
        if u32::try_from(protos.len()).is_err() {
            return bad(format!("{} pieces do not fit 32-bit ids", protos.len()));
        }
        let mut list: Vec<Piece> = Vec::with_capacity(protos.len());
        let mut ids = HashMap::with_capacity(protos.len());
        let mut unknown = None;
        let mut bytes: [Option<u32>; 256] = [None; 256];
        for (id, proto) in (0u32..).zip(protos) {
            let kind = match proto.kind() {
                1 => Kind::Normal,
                2 => Kind::Unknown,
                3 => Kind::Control,
                4 => Kind::UserDefined,
                5 => Kind::Unused,
                6 => Kind::Byte,
                other => return bad(format!("piece {id} has the unknown type {other}")),
            };
            // -0.0 becomes 0.0, so that the total order on scores is the usual one.
            let score = proto.score() + 0.0;
            let text = proto.piece.unwrap_or_default();
            if text.is_empty() {
                return bad(format!("piece {id} is empty"));
            }
            if text.contains('\0') {
                return bad(format!("piece {id} contains a null character"));
            }
            if !score.is_finite() {
                return bad(format!("piece {id} ({text:?}) has the score {score}"));
            }
            let mut byte = None;
            match kind {
                Kind::Unknown => {
                    if let Some(first) = unknown.replace(id) {
                        return bad(format!("pieces {first} and {id} are both the unknown piece"));
                    }
                }
                Kind::Byte if !byte_fallback => {
                    return bad(format!("piece {id} is a byte piece although byte_fallback is false"));
                }
                Kind::Byte => {
                    let Some(value) = byte_value(&text) else {
                        return bad(format!("piece {id} ({text:?}) is not the name of a byte"));
                    };
                    byte = Some(value);
                    bytes[usize::from(value)] = Some(id);
                }
                _ => {}
            }
            if let Some(first) = ids.insert(text.clone(), id) {
                return bad(format!("pieces {first} and {id} are both {text:?}"));
            }
            list.push(Piece { text, score, kind, byte });
        }
        let Some(unknown) = unknown else {
            return bad("it has no unknown piece".into());
        };
        let bytes = if byte_fallback { Some(all_bytes(&bytes)?) } else { None };
        let user_defined =
            Matcher::new(list.iter().filter(|p| p.kind == Kind::UserDefined).map(|p| p.text.as_str()));
        Ok(Self { list, ids, unknown, bytes, user_defined })
    }

    /// The number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The piece of an id.
    pub(crate) fn get(&self, id: u32) -> Option<&Piece> {
        self.list.get(usize::try_from(id).ok()?)
    }

    /// All pieces in the order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Piece)> {
        (0u32..).zip(&self.list)
    }

    /// The id of a piece of any kind.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The id and entry of a piece that text can become: normal, user-defined or unused.
    pub(crate) fn textual(&self, text: &str) -> Option<(u32, &Piece)> {
        let id = self.id(text)?;
        let piece = self.get(id)?;
        matches!(piece.kind, Kind::Normal | Kind::UserDefined | Kind::Unused).then_some((id, piece))
    }

    /// The id of the unknown piece.
    pub(crate) fn unknown(&self) -> u32 {
        self.unknown
    }

    /// The ids of the 256 byte pieces, if characters without a piece become bytes.
    pub(crate) fn bytes(&self) -> Option<&[u32; 256]> {
        self.bytes.as_deref()
    }

    /// Finds user-defined pieces in text.
    pub(crate) fn user_defined(&self) -> &Matcher {
        &self.user_defined
    }
}

fn all_bytes(found: &[Option<u32>; 256]) -> Result<Box<[u32; 256]>, TokenizerError> {
    let mut ids = Box::new([0; 256]);
    for (value, (id, found)) in ids.iter_mut().zip(found).enumerate() {
        *id = found.ok_or_else(|| {
            TokenizerError::Pieces(format!("byte_fallback is true but <0x{value:02X}> is not a piece"))
        })?;
    }
    Ok(ids)
}

/// The byte that a piece of the form `<0xHH>` (upper case) stands for.
fn byte_value(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let canonical = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    if canonical { u8::from_str_radix(hex, 16).ok() } else { None }
}
