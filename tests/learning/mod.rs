//! Learning where VMs live, and migrations by it.

mod ports;
mod sockets;
mod truth;
