//! Learning where VMs are, and migrations by it.

mod ports;
mod sockets;
mod truth;
