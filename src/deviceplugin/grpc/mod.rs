//! gRPC: the service of a resource, its server, and the kubelet's registration service.

pub mod api;
pub mod channel;
mod connection;
pub(crate) mod kubelet;
pub mod pod_resources;
pub(crate) mod server;
pub mod service;
