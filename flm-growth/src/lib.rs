//! Function-preserving growth of Tele-FLM checkpoints.
