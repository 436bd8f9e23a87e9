//! The kubelet's device plugin API, generated from `proto/deviceplugin.proto`.

#![expect(
    missing_docs,
    clippy::pedantic,
    reason = "generated code, described in the proto file"
)]

include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
