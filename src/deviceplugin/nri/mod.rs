//! NRI, the Node Resource Interface: the runtime asks about each container that it creates, and
//! the container of a pod that has a macvtap without a device ID gets its tap.

pub mod api;
mod container;
pub mod frame;
mod service;
mod session;
mod taps;
mod thread;

pub use thread::Nri;
