//! Digests of a checkpoint's files and tensors, and the check of a directory against them.
