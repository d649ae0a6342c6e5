//! the command for developers
