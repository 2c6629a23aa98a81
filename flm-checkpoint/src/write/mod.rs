//! Writing checkpoints: `shard_plan` (which tensor goes where), `writer` (the files), `journal` (what is
//! finished), `sidecar` (tokenizer and licence), `pytorch_shard` (one shard at a time).

pub(crate) mod journal;
pub(crate) mod pytorch_shard;
pub(crate) mod shard_plan;
pub(crate) mod sidecar;
pub(crate) mod writer;
