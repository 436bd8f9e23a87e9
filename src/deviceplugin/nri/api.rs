//! The messages of NRI and ttrpc, generated from `proto/nri.proto`.

#![expect(missing_docs, reason = "generated code, described in the proto file")]

include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));
