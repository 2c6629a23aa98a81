//! The update of parameters: rate (`schedule`), limits (`clip`), the rule (`adamw`), rounding to bf16.

pub(crate) mod adamw;
pub(crate) mod clip;
pub(crate) mod schedule;
pub(crate) mod stochastic_rounding;
