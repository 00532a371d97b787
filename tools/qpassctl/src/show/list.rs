//! Which devices there are.

use super::all_nodes;
use crate::{
    disk::kind,
    fail::Fail,
    output::{self, human, table},
};
use qpass_client::{Device, Features, Kernel, users};
use serde::Serialize;
use std::sync::Arc;

#[derive(Serialize)]
struct Listed {
    device: String,
    bus: u32,
    target: u32,
    lun: u64,
    kind: &'static str,
    vendor: String,
    product: String,
    revision: String,
    serial: String,
    peripherals: Vec<String>,
    controller: String,
    maxio: u32,
    interface: u32,
    features: Vec<String>,
    used: Vec<String>,
}

/// The names of features, in small letters.
fn features(of: Features) -> Vec<String> {
    of.iter_names()
        .map(|(name, _)| name.to_lowercase().replace('_', "-"))
        .collect()
}

fn used(device: &Device) -> Vec<String> {
    let found = users(device).unwrap_or_default();
    let words = |u: &qpass_client::Use| match u.mounted.is_empty() {
        false => u.mounted.clone(),
        true if u.by.is_empty() => vec![format!("open {}", u.mode)],
        true => u.by.clone(),
    };
    found.iter().flat_map(words).collect()
}

fn listed(kernel: &Arc<dyn Kernel>, node: &str) -> Result<Listed, Fail> {
    let device = Device::open(kernel, node)?;
    let identity = device.identity()?;
    let info = device.info()?;
    Ok(Listed {
        device: node.into(),
        bus: identity.bus,
        target: identity.target,
        lun: identity.lun,
        kind: kind(&identity),
        vendor: identity.vendor,
        product: identity.product,
        revision: identity.revision,
        serial: identity.serial,
        peripherals: identity.peripherals,
        controller: identity.controller,
        maxio: info.maxio,
        interface: info.version,
        features: features(info.features),
        used: used(&device),
    })
}

pub fn list(kernel: &Arc<dyn Kernel>, devices: &[String], json: bool) -> Result<(), Fail> {
    let nodes = match devices.is_empty() {
        true => all_nodes(kernel)?,
        false => {
            let node = |name: &String| crate::open(kernel, name).map(|d| d.name().to_owned());
            devices.iter().map(node).collect::<Result<_, _>>()?
        }
    };
    let mut all = Vec::new();
    let mut failed = None;
    for node in nodes {
        match listed(kernel, &node) {
            Ok(entry) => all.push(entry),
            // One that has gone, or may not be opened, hides no other.
            Err(fail) => failed = Some(fail),
        }
    }
    if json {
        output::json(&all)?;
    } else if !all.is_empty() {
        let rows: Vec<Vec<String>> = all
            .iter()
            .map(|d| {
                let others = d.peripherals.iter().filter(|p| **p != d.device);
                vec![
                    d.device.clone(),
                    format!("{}:{}:{}", d.bus, d.target, d.lun),
                    d.kind.into(),
                    format!("{} {}", d.vendor, d.product).trim().into(),
                    d.revision.clone(),
                    d.serial.clone(),
                    human(d.maxio.into()),
                    others.cloned().collect::<Vec<_>>().join(","),
                    if d.features.iter().any(|f| f == "unmapped") {
                        "zero-copy".into()
                    } else {
                        "copies".into()
                    },
                    d.used.join(","),
                ]
            })
            .collect();
        let columns = [
            "DEVICE", "B:T:L", "KIND", "PRODUCT", "REV", "SERIAL", ">MAXIO", "ALSO", "DATA", "USED",
        ];
        let mut text = table(&columns, &rows);
        // The driver's are the same for all; what differs is in the column.
        if let Some(any) = all.first() {
            let driver = any.features.iter().filter(|f| *f != "unmapped");
            let names: Vec<_> = driver.map(String::as_str).collect();
            let (version, names) = (any.interface, names.join(", "));
            text.push_str(&format!("\nqpass(4), interface {version}: {names}"));
        }
        output::text(&text)?;
    }
    failed.map_or(Ok(()), Err)
}
