//! the virtual IPU
