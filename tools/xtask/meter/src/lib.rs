//! a QEMU plugin that counts instructions
