//! Writing checkpoints: `engine` (threads that fill, hash and write), `shard_plan` (which tensor goes where), `writer`
//! (the files), `journal` (what is finished), `part` (several
//! processes), `digest_tree` (digests from chunks in any order), `sidecar` (tokenizer and licence), `pytorch_shard` (one shard at a time).

mod digest_tree;
pub(crate) mod engine;
pub(crate) mod journal;
pub(crate) mod part;
pub(crate) mod pytorch_shard;
pub(crate) mod shard_plan;
pub(crate) mod sidecar;
pub(crate) mod writer;
