pub(crate) mod adamw;
pub(crate) mod clip;
pub(crate) mod schedule;
pub(crate) mod stochastic_rounding;
