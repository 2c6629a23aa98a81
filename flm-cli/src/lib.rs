//! The flm command.
