//! Learning where VMs live, and migrations by it.

mod ports;
mod truth;
