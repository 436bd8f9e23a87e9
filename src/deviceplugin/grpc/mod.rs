//! gRPC: the service of a resource, its server, and the kubelet's registration service.

pub mod api;
pub mod channel;
pub mod kubelet;
pub mod server;
pub mod service;
