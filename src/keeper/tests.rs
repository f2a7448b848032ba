//! The keeper as a whole, in a network namespace.
