pub mod adamw;
pub mod clip;
pub mod schedule;
pub mod stochastic_rounding;
