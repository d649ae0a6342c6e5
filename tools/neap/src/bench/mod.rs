//! `neap bench`: what this machine's own IPU is measured with.

mod link;
mod place;
mod rows;
mod switch;

pub use link::link;
pub use place::Place;
pub use switch::stay_on;
