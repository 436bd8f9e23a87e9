//! Learning where VMs are, and migrations by it.

mod guarded;
mod ports;
mod sockets;
mod truth;
