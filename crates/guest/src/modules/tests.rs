//! Trees of small modules, picked from.

use super::*;
use crate::fixture;

const RELEASE: &str = "6.1.0-56-cloud-amd64";

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    /// A tree that can boot a guest, all of it modules.
    fn bootable() -> Self {
        let tree = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        tree.add("virtio", &[], None);
        tree.add("virtio_ring", &["virtio"], None);
        tree.add("virtio_pci", &["virtio", "virtio_ring"], None);
        tree.add("virtio_blk", &["virtio_ring"], None);
        tree.add("virtio_console", &["virtio_ring"], None);
        tree.add("virtio-rng", &["virtio_ring"], None);
        tree.add("crc32c_generic", &[], None);
        tree.add("jbd2", &[], None);
        tree.add("ext4", &["jbd2"], Some("pre: crc32c"));
        tree.add("fuse", &[], None);
        tree.add("virtiofs", &["fuse", "virtio_ring"], None);
        tree.add("snd_hda_intel", &[], None);
        tree.list("modules.builtin", "kernel/net/packet/af_packet.ko\n");
        tree
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("lib/modules").join(RELEASE)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root().join("kernel/drivers").join(name)
    }

    fn add(&self, name: &str, depends: &[&str], softdep: Option<&str>) {
        self.put(
            &format!("{name}.ko"),
            &fixture::module(name, RELEASE, depends, softdep),
        );
    }

    fn put(&self, file: &str, bytes: &[u8]) {
        let path = self.file(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.file(&format!("{name}.ko"))).unwrap();
    }

    fn list(&self, name: &str, text: &str) {
        fs::write(self.root().join(name), text).unwrap();
    }

    fn select(&self) -> Result<Vec<Module>, ModulesError> {
        select(self.dir.path(), RELEASE)
    }

    fn names(&self, stage: Stage) -> Vec<String> {
        let picked = self.select().unwrap();
        picked
            .into_iter()
            .filter(|m| m.stage == stage)
            .map(|m| m.name)
            .collect()
    }
}

#[test]
fn dependencies_come_first_and_only_what_is_needed_comes_at_all() {
    let tree = Tree::bootable();
    let boot = tree.names(Stage::Boot);
    let expected = [
        "virtio",
        "virtio_ring",
        "virtio_pci",
        "virtio_blk",
        "crc32c_generic",
        "jbd2",
        "ext4",
        "virtio_console",
        "virtio_rng",
    ];
    assert_eq!(boot, expected);
    assert_eq!(tree.names(Stage::Later), ["fuse", "virtiofs"]);
}

#[test]
fn the_releases_own_directory_will_do() {
    let tree = Tree::bootable();
    assert_eq!(select(&tree.root(), RELEASE).unwrap().len(), 11);
    assert_eq!(
        select(tree.root().parent().unwrap(), RELEASE)
            .unwrap()
            .len(),
        11
    );
}

#[test]
fn a_modules_dep_is_used_and_cannot_lead_out_of_the_tree() {
    let tree = Tree::bootable();
    tree.put("crc32c-intel.ko", b"");
    let mut list = String::from("/etc/tun.ko: \n../../../tun.ko: \nkernel/fs/../tun.ko:\n");
    for entry in fs::read_dir(tree.root().join("kernel/drivers")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        list.push_str(&format!("kernel/drivers/{name}: wrong.ko\n"));
    }
    tree.list("modules.dep", &list);
    assert_eq!(tree.select().unwrap().len(), 11);
}

#[test]
fn packed_modules_are_unpacked() {
    let tree = Tree::bootable();
    tree.remove("fuse");
    let object = fixture::module("fuse", RELEASE, &[], None);
    tree.put(
        "fuse.ko.zst",
        &zstd::encode_all(object.as_slice(), 3).unwrap(),
    );
    let picked = tree.select().unwrap();
    assert_eq!(
        picked.iter().find(|m| m.name == "fuse").unwrap().object,
        object
    );
}

#[test]
fn what_is_built_in_is_not_missed() {
    let tree = Tree::bootable();
    tree.remove("ext4");
    let error = tree.select().unwrap_err();
    assert!(matches!(&error, ModulesError::Required { missing, .. } if missing == "\"ext4\""));
    assert!(
        error.to_string().contains("cannot boot a sandbox"),
        "{error}"
    );
    tree.list(
        "modules.builtin",
        "kernel/fs/ext4/ext4.ko\nkernel/fs/jbd2/jbd2.ko\n",
    );
    assert!(!tree.names(Stage::Boot).iter().any(|name| name == "jbd2"));
}

#[test]
fn one_bus_is_enough_but_none_is_not() {
    let tree = Tree::bootable();
    tree.remove("virtio_pci");
    let error = tree.select().unwrap_err().to_string();
    assert!(
        error.contains("\"virtio_pci\" or \"virtio_mmio\""),
        "{error}"
    );
    tree.add("virtio_mmio", &["virtio"], None);
    tree.select().unwrap();
}

#[test]
fn modules_of_another_kernel_are_refused_by_name() {
    let tree = Tree::bootable();
    let error = select(tree.dir.path(), "6.1.0-57-cloud-amd64")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(RELEASE) && error.contains("6.1.0-57"),
        "{error}"
    );
    // A directory that was renamed to the right release does not hide what its modules are for.
    let error = select(&tree.root(), "6.1.0-57-cloud-amd64")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(RELEASE) && error.contains("6.1.0-57"),
        "{error}"
    );
}

#[test]
fn a_missing_dependency_and_a_circle_are_named() {
    let tree = Tree::bootable();
    tree.remove("jbd2");
    let error = tree.select().unwrap_err();
    assert!(matches!(error, ModulesError::Dependency { missing, .. } if missing == "jbd2"));
    tree.add("jbd2", &["ext4"], None);
    assert!(matches!(
        tree.select().unwrap_err(),
        ModulesError::Circle(_)
    ));
}

#[test]
fn a_chain_without_end_stops_at_the_bound() {
    let tree = Tree::bootable();
    tree.add("fuse", &["m0"], None);
    for link in 0..100 {
        tree.add(&format!("m{link}"), &[&format!("m{}", link + 1)], None);
    }
    tree.add("m100", &[], None);
    let error = tree.select().unwrap_err();
    assert!(error.to_string().contains("too long a chain"), "{error}");
}

#[test]
fn a_soft_dependency_that_points_back_is_no_circle() {
    let tree = Tree::bootable();
    tree.add("jbd2", &[], Some("pre: ext4"));
    assert_eq!(tree.names(Stage::Boot).len(), 9);
}

#[test]
fn damaged_modules_and_empty_places_are_refused() {
    let tree = Tree::bootable();
    tree.put("ext4.ko", b"not a module");
    assert!(matches!(
        tree.select().unwrap_err(),
        ModulesError::Damaged { .. }
    ));
    let empty = tempfile::tempdir().unwrap();
    let error = select(empty.path(), RELEASE).unwrap_err();
    assert!(matches!(error, ModulesError::NoModules { .. }));
    let error = select(&empty.path().join("none"), RELEASE).unwrap_err();
    assert!(matches!(error, ModulesError::Io { .. }));
    let error = select(&tree.file("fuse.ko"), RELEASE).unwrap_err();
    assert!(matches!(error, ModulesError::NoModules { .. }));
}

#[test]
fn an_update_replaces_the_module_it_updates() {
    let tree = Tree::bootable();
    let object = fixture::module("fuse", RELEASE, &[], Some("pre: nothing"));
    fs::create_dir_all(tree.root().join("updates/dkms")).unwrap();
    fs::write(tree.root().join("updates/dkms/fuse.ko"), &object).unwrap();
    let picked = tree.select().unwrap();
    assert_eq!(
        picked.iter().find(|m| m.name == "fuse").unwrap().object,
        object
    );
}
