//! What sees or loads the whole machine: `link` and `doctor`, which look into all network
//! namespaces, and the injection of faults.

#[macro_use]
extern crate pretty_assertions;

mod faults;
mod link;
