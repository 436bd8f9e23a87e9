//! What sees or loads the whole machine: `link` and `doctor`, which look into all network
//! namespaces, and the injection of faults.

mod faults;
mod link;
