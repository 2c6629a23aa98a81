//! Recipes: TOML files whose settings can be overridden on the command line.
//!
//! `keys` is the mechanism: known keys and their other names, sizes and rates as words or numbers, overrides,
//! paths. `train` and `grow` list their keys and make typed options of them.

pub(crate) mod grow;
mod keys;
pub(crate) mod train;
