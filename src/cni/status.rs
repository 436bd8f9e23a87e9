//! STATUS: whether ADD could work here.

use serde_json::Value;

use super::{
    config,
    environment::Environment,
    error::{CniError, Result, code},
    input::Input,
    policy,
};
use crate::{
    macvtap::{
        lower::{LowerDevice, LowerError, Reason},
        port_security,
        security::Security,
        shaping,
        sub_interface::Maker,
    },
    netlink::Socket,
};

/// Fails with code 50 if ADD cannot work, with 51 if what it makes would have no connection; with
/// the IPAM plugin's code if that cannot.
pub fn status(environment: &Environment, input: &Input) -> Result<()> {
    check_node(&input.json)?;
    input.forward(environment).map_err(|error| CniError {
        // It is missing, for one.
        code: match error.code {
            code::INTERNAL => code::NOT_AVAILABLE,
            code => code,
        },
        ..error
    })
}

fn check_node(json: &Value) -> Result<()> {
    let mut host = Socket::open()?;
    host.probe_macvtap().map_err(|error| {
        let text = format!(
            "this node cannot make a macvtap; the kernel needs it (modprobe macvtap), the plugin \
             needs CAP_NET_ADMIN: {error}"
        );
        CniError::new(code::NOT_AVAILABLE, text)
    })?;
    let security = policy::check(json)?;
    check_limits(security.as_ref(), json)
        .map_err(|error| CniError::coded(code::NOT_AVAILABLE, &error))?;
    // With a device plugin the configuration does not say which lower device a pod gets.
    let lower = config::lower_device(json).filter(|_| !config::is_in_pod(json));
    let Some(name) = lower else {
        return Ok(());
    };
    let name = match config::vlan(json) {
        None => name.to_string(),
        Some(vlan) => {
            let probed = vlan.probe(&mut host);
            probed.map_err(|error| CniError::coded(code::NOT_AVAILABLE, &error))?;
            // The lower device matters where ADD makes the VLAN, or sets it up.
            let links = host.links()?;
            let existing = vlan.among(&links);
            let existing = existing.filter(|link| link.up || !Maker::Cni.made(link));
            existing.map_or_else(|| name.to_string(), |link| link.name.clone())
        }
    };
    let Err(error) = LowerDevice::eligible(&mut host, &name) else {
        return Ok(());
    };
    let down = |ineligible: &LowerError| matches!(ineligible, LowerError::Ineligible(found) if found.reason == Reason::Down);
    let code = if down(&error) {
        code::LIMITED_CONNECTIVITY
    } else {
        code::NOT_AVAILABLE
    };
    Err(CniError::new(code, error.to_string()))
}

/// Fails if the configuration has limits that this kernel cannot enforce.
fn check_limits(security: Option<&Security>, json: &Value) -> anyhow::Result<()> {
    if let Some(security) = security {
        port_security::probe(security)?;
    }
    if policy::has_bandwidth(json) {
        shaping::probe()?;
    }
    Ok(())
}
