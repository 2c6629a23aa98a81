//! End-to-end tests of the flm binary; see `tests/`.
