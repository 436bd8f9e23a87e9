//! The machine that the program runs on: network namespaces, taps, files, sockets.

pub mod char_device;
pub mod container;
pub mod control_socket;
pub mod devnode;
pub mod file_id;
pub mod files;
pub mod logging;
pub mod netns;
pub mod nri_query;
pub mod packet;
pub mod signals;
pub mod stdout;
pub mod tap;
pub mod userns;
