//! Goes on in its own stack.
#![cfg_attr(target_os = "none", no_std, no_main)]

neap_attacks::attack!(|_, _| neap_hal::cpu::forbidden::jump(
    neap_abi::grant::space::STACK_END - neap_attacks::STACK_BYTES
));
