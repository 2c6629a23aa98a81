//! Recipes: TOML files whose settings can be overridden on the command line.

pub(crate) mod grow;
