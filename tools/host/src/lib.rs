//! the host side in user space
