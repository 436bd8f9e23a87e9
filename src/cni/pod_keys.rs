//! The keys of a configuration in which the runtime says what it is for one pod. Pure.

use super::error::Result;
use crate::types::{json::Fields, keys::Keys};

/// What a runtime adds to a network for one pod.
#[derive(Default)]
pub struct PodKeys<'a> {
    /// `runtimeConfig`.
    pub runtime: Option<Fields<'a>>,
    /// `args.cni`.
    pub args: Option<Fields<'a>>,
}

impl<'a> PodKeys<'a> {
    /// Those of a configuration.
    pub fn read(fields: &Fields<'a>, keys: &mut Keys) -> Result<Self> {
        let args = match keys.take(fields.object("args"))? {
            Some(args) => keys.take(args.object("cni"))?,
            None => None,
        };
        Ok(Self {
            runtime: keys.take(fields.object("runtimeConfig"))?,
            args,
        })
    }
}
