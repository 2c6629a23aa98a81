//! Pages and pictures: what the libraries measured, drawn for people.
//!
//! `evaluation` (with `radar`), `verification` and `training` are a page each, `layers` has charts over layers,
//! `markdown` the scores as a text, `tensorboard` the curves of a run for that program.

pub(crate) mod evaluation;
mod html;
pub(crate) mod layers;
pub(crate) mod markdown;
mod radar;
mod tensorboard;
pub(crate) mod training;
pub(crate) mod verification;
