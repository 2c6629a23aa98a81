pub mod journal;
pub mod pytorch_shard;
pub mod shard_plan;
pub mod sidecar;
pub mod writer;
