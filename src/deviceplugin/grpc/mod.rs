//! gRPC: the service of a resource, the server it is reached by, the kubelet's own service.

pub mod api;
pub mod kubelet;
pub mod server;
pub mod service;
