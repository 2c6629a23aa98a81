//! Pages and pictures of an evaluation.

pub(crate) mod chart;
pub(crate) mod markdown;
pub(crate) mod page;
