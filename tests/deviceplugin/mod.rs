//! The device plugin, as the kubelet sees it: the built binary against a stand-in for the kubelet.

mod configuration;
mod devices;
mod failures;
mod held;
mod host_access;
mod host_access_claims;
mod kind;
mod metrics;
mod nri;
mod options;
mod probe;
mod registration;
mod selectors;
mod signals;
mod taps;
mod vlans;
