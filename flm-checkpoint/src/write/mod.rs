pub(crate) mod journal;
pub(crate) mod pytorch_shard;
pub(crate) mod shard_plan;
pub(crate) mod sidecar;
pub(crate) mod writer;
