//! Who uses a disk: GEOM's word, and what is mounted.

use crate::{device::Device, error::Error, kernel::Mount};
use roxmltree::{Document, Node};
use std::collections::{BTreeMap, BTreeSet};

/// Why a disk should not be written to behind its users' backs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The disk, such as `da0`.
    pub disk: String,
    /// How often it is open, as GEOM counts: `r1w1e1`.
    pub mode: String,
    /// Where it, or a part of it, is mounted.
    pub mounted: Vec<String>,
    /// The kinds of GEOM classes that have it open: `VFS`, `SWAP`, `ZFS::VDEV`.
    pub by: Vec<String>,
}

/// Who uses a device, by whatever peripheral.
///
/// # Errors
/// sysctl(3)'s, getfsstat(2)'s, or the device's; EINVAL: GEOM's configuration
/// cannot be read.
pub fn users(device: &Device) -> Result<Vec<Use>, Error> {
    let error = |errno| device.open.error("see who uses it", errno);
    let kernel = device.kernel();
    let disks = device.peripherals()?;
    let xml = kernel.geom().map_err(error)?;
    let mounts = kernel.mounts().map_err(error)?;
    in_config(&xml, &disks, &mounts).ok_or_else(|| error(crate::errno::Errno::EINVAL))
}

struct Provider<'a> {
    name: &'a str,
    mode: &'a str,
}

/// The text of a node's child.
fn text<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.children().find(|n| n.has_tag_name(name))?.text()
}

/// What `kern.geom.confxml` says of disks. `None`: it is not that.
pub(crate) fn in_config(xml: &str, disks: &[String], mounts: &[Mount]) -> Option<Vec<Use>> {
    let document = Document::parse(xml).ok()?;
    let mesh = document.root_element();
    if mesh.tag_name().name() != "mesh" {
        return None;
    }
    let mut providers = BTreeMap::new();
    // Provider, by the geoms that consume it: their class and their providers.
    let mut above: BTreeMap<&str, Vec<(&str, Vec<&str>)>> = BTreeMap::new();
    for class in mesh.children().filter(|n| n.has_tag_name("class")) {
        let class_name = text(class, "name").unwrap_or("?");
        for geom in class.children().filter(|n| n.has_tag_name("geom")) {
            let mut own = Vec::new();
            for provider in geom.children().filter(|n| n.has_tag_name("provider")) {
                let id = provider.attribute("id")?;
                let name = text(provider, "name").unwrap_or("?");
                let mode = text(provider, "mode").unwrap_or("");
                providers.insert(id, Provider { name, mode });
                own.push(id);
            }
            for consumer in geom.children().filter(|n| n.has_tag_name("consumer")) {
                let of = consumer.children().find(|n| n.has_tag_name("provider"));
                let is_open = !is_closed(text(consumer, "mode").unwrap_or(""));
                if let Some(of) = of.and_then(|n| n.attribute("ref")).filter(|_| is_open) {
                    above.entry(of).or_default().push((class_name, own.clone()));
                }
            }
        }
    }
    let mut found = Vec::new();
    for (id, disk) in &providers {
        if !disks.iter().any(|name| name == disk.name) || is_closed(disk.mode) {
            continue;
        }
        let (mut names, mut by) = (BTreeSet::new(), BTreeSet::new());
        let mut todo = vec![*id];
        while let Some(id) = todo.pop() {
            let Some(provider) = providers.get(id) else {
                continue;
            };
            if names.insert(provider.name) {
                for (class, own) in above.get(id).into_iter().flatten() {
                    // Partitions are no users: who has these open is one.
                    if own.is_empty() {
                        by.insert((*class).to_owned());
                    }
                    todo.extend(own);
                }
            }
        }
        let is_on = |mount: &&Mount| {
            let device = mount.from.strip_prefix("/dev/").unwrap_or(&mount.from);
            names.contains(device)
        };
        let mut mounted: Vec<_> = mounts.iter().filter(is_on).map(|m| m.on.clone()).collect();
        mounted.sort();
        found.push(Use {
            disk: disk.name.to_owned(),
            mode: disk.mode.to_owned(),
            mounted,
            by: by.into_iter().collect(),
        });
    }
    Some(found)
}

fn is_closed(mode: &str) -> bool {
    mode.is_empty() || mode == "r0w0e0"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two disks: one with a partition that is mounted and one that is swap.
    const CONFIG: &str = r#"<mesh>
      <class id="0x1"><name>DISK</name>
        <geom id="0x2"><class ref="0x1"/><name>da0</name><rank>1</rank>
          <provider id="0x3"><geom ref="0x2"/><mode>r2w2e3</mode><name>da0</name></provider></geom>
        <geom id="0x4"><class ref="0x1"/><name>da1</name><rank>1</rank>
          <provider id="0x5"><geom ref="0x4"/><mode>r0w0e0</mode><name>da1</name></provider></geom>
      </class>
      <class id="0x6"><name>PART</name>
        <geom id="0x7"><class ref="0x6"/><name>da0</name><rank>2</rank>
          <consumer id="0x8"><geom ref="0x7"/><provider ref="0x3"/><mode>r2w2e3</mode></consumer>
          <provider id="0x9"><geom ref="0x7"/><mode>r1w1e1</mode><name>da0p2</name></provider>
          <provider id="0xa"><geom ref="0x7"/><mode>r1w1e0</mode><name>da0p3</name></provider></geom>
      </class>
      <class id="0xb"><name>VFS</name>
        <geom id="0xc"><class ref="0xb"/><name>ffs.da0p2</name>
          <consumer id="0xd"><geom ref="0xc"/><provider ref="0x9"/><mode>r1w1e1</mode></consumer></geom>
      </class>
      <class id="0xe"><name>SWAP</name>
        <geom id="0xf"><class ref="0xe"/><name>swap</name>
          <consumer id="0x10"><geom ref="0xf"/><provider ref="0xa"/><mode>r1w1e0</mode></consumer></geom>
      </class>
    </mesh>"#;

    fn mounts() -> Vec<Mount> {
        let mount = |from: &str, on: &str| Mount {
            from: from.into(),
            on: on.into(),
        };
        vec![mount("/dev/da0p2", "/"), mount("devfs", "/dev")]
    }

    #[test]
    fn a_mounted_partition_makes_its_disk_used() {
        let disks = ["pass0".to_owned(), "da0".to_owned()];
        let found = in_config(CONFIG, &disks, &mounts()).expect("a configuration");
        assert_eq!(
            found,
            [Use {
                disk: "da0".into(),
                mode: "r2w2e3".into(),
                mounted: vec!["/".into()],
                by: vec!["SWAP".into(), "VFS".into()],
            }]
        );
    }

    #[test]
    fn a_disk_that_nobody_has_open_is_free() {
        let found = in_config(CONFIG, &["da1".to_owned()], &mounts());
        assert_eq!(found, Some(vec![]));
    }

    #[test]
    fn what_is_no_configuration_is_none() {
        for bad in ["", "<mesh>", "<other/>"] {
            assert_eq!(in_config(bad, &[], &[]), None, "{bad}");
        }
    }
}
