//! The macvtap of a pod that wants a tap alone, without the CNI plugin: it stands in the host's
//! network namespace, where kubevirt/macvtap-cni has all of them.

use anyhow::{Context, Result, ensure};
use log::{info, warn};

use crate::{
    host::tap,
    netlink::{Change, Create, Link, Socket},
    types::device_id::{DeviceId, original_link_name},
};

/// Sees to it that the device's tap exists. The kubelet asks for it after CNI ADD, which made it
/// unless the pod has no such network.
pub fn ensure(device: &DeviceId) -> Result<()> {
    if !tap::devices(device.tap)?.is_empty() {
        return Ok(());
    }
    let name = original_link_name(&device.to_string());
    let mut host = Socket::open()?;
    create(&mut host, device, &name)
        .with_context(|| format!("making macvtap {name:?} on {:?}", device.lower))?;
    let alone = set_up(&mut host, device.tap).and_then(|()| {
        let count = tap::devices(device.tap)?.len();
        let path = tap::path(device.tap);
        ensure!(count == 1, "{} is in use elsewhere by now", path.display());
        Ok(())
    });
    if let Err(error) = alone {
        host.delete(device.tap)?;
        return Err(error);
    }
    info!("device={device} made {name:?} for a pod that wants the tap alone");
    Ok(())
}

fn create(host: &mut Socket, device: &DeviceId, name: &str) -> Result<()> {
    let lower = host.link_by_name(&device.lower)?;
    let lower = lower.context("the lower device does not exist")?;
    host.create(&Create {
        name,
        index: Some(device.tap),
        lower: lower.index,
        mode: device.mode,
        mac: None,
        mtu: None,
        queue_length: tap::queue_length(&lower),
        group: 0,
        netns: None,
    })
}

fn set_up(host: &mut Socket, index: u32) -> Result<()> {
    let quiet = Change {
        no_ipv6_addresses: true,
        ..Change::default()
    };
    // Without IPv6 in the kernel there is nothing to be quiet about.
    if let Err(error) = host.change(index, &quiet) {
        warn!("tap={index} keeping IPv6 off: {error:#}");
    }
    let up = Change {
        up: Some(true),
        all_multicast: Some(true),
        ..Change::default()
    };
    host.change(index, &up).context("setting it up")
}

/// Deletes what [`ensure`] made for the device's former owner. The kubelet has given the
/// device to another pod, so that one is gone. Allocate must not fail for it: an error there
/// is the end of the pod, while CNI ADD clears up as well.
pub fn clear(device: &DeviceId) {
    let cleared = Socket::open().and_then(|mut host| {
        let link = host.link(device.tap)?;
        match link.filter(Link::is_macvtap) {
            Some(_) => host.delete(device.tap),
            None => Ok(false),
        }
    });
    match cleared {
        Ok(true) => info!("device={device} deleted the former owner's macvtap"),
        Ok(false) => {}
        Err(error) => warn!("device={device} clearing up after its former owner: {error:#}"),
    }
}
