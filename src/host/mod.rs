//! The machine that the program runs on: network namespaces, taps, files, sockets.

pub(crate) mod accept_pause;
pub(crate) mod char_device;
pub mod container;
pub mod control_socket;
pub(crate) mod descriptors;
pub mod devnode;
pub(crate) mod file_id;
pub(crate) mod files;
pub mod hardware;
pub(crate) mod listener;
pub(crate) mod logging;
pub mod netns;
pub mod nri_query;
pub mod packet;
pub(crate) mod process_lock;
pub(crate) mod processor_time;
pub(crate) mod program;
pub mod signals;
pub mod stdout;
pub mod tap;
pub(crate) mod userns;
pub(crate) mod worker;
