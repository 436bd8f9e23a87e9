//! The macvtap of a pod that uses the tap without the CNI plugin. It is in the host's
//! network namespace, as all of kubevirt/macvtap-cni's do.

use std::time::Instant;

use anyhow::{Result, anyhow};

use super::{
    create::{Spec, create},
    guard::Settings,
    lower::LowerDevice,
};
use crate::{
    host::tap,
    netlink::{Link, Socket},
    types::device_id::{DeviceId, original_link_name},
};

/// Makes the device's macvtap in our own network namespace.
pub fn create_for(device: &DeviceId) -> Result<()> {
    let name = original_link_name(&device.to_string());
    let mut host = Socket::open()?;
    let lower = LowerDevice::eligible(&mut host, &device.lower)?;
    let spec = Spec {
        name: &name,
        index: Some(device.tap),
        lower: &lower,
        mode: device.mode,
        mac: None,
        mtu: None,
        group: 0,
    };
    let settings = Settings {
        host_stack: false,
        promiscuous: false,
        all_multicast: true,
    };
    let ((), macvtap) = create(&mut host, None, &spec)?.attach(|macvtap| {
        macvtap.prepare(settings)?;
        macvtap.set_up(None, None, Instant::now())?;
        // Its node is the kernel's matter: the /dev of this container is not the node's.
        if tap::devices(device.tap)?.len() == 1 {
            return Ok(());
        }
        let path = tap::path(device.tap);
        Err(anyhow!("{} is in use by another macvtap", path.display()).into())
    })?;
    macvtap.keep();
    Ok(())
}

/// Deletes the device's macvtap in our own network namespace, which a former pod had. False if
/// there is none; another link with that index is left alone.
pub fn delete_of(host: &mut Socket, device: &DeviceId) -> Result<bool> {
    let Some(link) = host.link(device.tap)? else {
        return Ok(false);
    };
    if !is_of(host, device, &link)? {
        return Ok(false);
    }
    Ok(host.delete(device.tap)?)
}

/// Whether `link` is what [`create_for`] makes for this very device.
fn is_of(host: &mut Socket, device: &DeviceId, link: &Link) -> Result<bool> {
    let name = original_link_name(&device.to_string());
    if !link.is_macvtap() || link.name != name || link.mode != Some(device.mode) {
        return Ok(false);
    }
    let lower = link.lower.filter(|_| link.lower_nsid.is_none());
    let lower = lower.map(|index| host.link(index)).transpose()?.flatten();
    Ok(lower.is_some_and(|lower| lower.is_called(&device.lower)))
}
