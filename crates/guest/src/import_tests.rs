//! Whole imports, of small kernels always and of a real one where the tests' assets name it.

use std::collections::BTreeSet;

use super::*;
use crate::fixture;
use crate::modules::Stage;

const RELEASE: &str = "6.1.0-56-cloud-amd64";

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::write(scene.path("vmlinuz"), fixture::bzimage(RELEASE)).unwrap();
        fs::write(scene.path("agent"), fixture::program(62, false)).unwrap();
        let tree = scene.path("tree/kernel");
        fs::create_dir_all(&tree).unwrap();
        for (name, depends) in [
            ("virtio", [].as_slice()),
            ("virtio_pci", &["virtio"]),
            ("virtio_blk", &["virtio"]),
            ("virtio_console", &["virtio"]),
            ("ext4", &[]),
            ("overlay", &[]),
        ] {
            let object = fixture::module(name, RELEASE, depends, None);
            fs::write(tree.join(format!("{name}.ko")), object).unwrap();
        }
        fs::create_dir(scene.path("out")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn import(&self, modules: bool) -> Result<KernelManifest, ImportError> {
        let tree = self.path("tree");
        let modules = modules.then_some(tree.as_path());
        import_kernel(
            &self.path("vmlinuz"),
            modules,
            &self.path("agent"),
            &self.path("out"),
        )
    }

    fn refresh(&self) -> Result<bool, RefreshError> {
        refresh_initramfs(&self.path("out"), &self.path("agent"))
    }

    fn out(&self, name: &str) -> Vec<u8> {
        fs::read(self.path("out").join(name)).unwrap()
    }

    fn out_names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.path("out")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_import_is_four_files_and_the_manifest_is_true_of_them() {
    let scene = Scene::new();
    let manifest = scene.import(true).unwrap();
    let names = [INITRAMFS, MANIFEST, MODULES_CPIO, VMLINUZ].map(str::to_owned);
    assert_eq!(scene.out_names(), BTreeSet::from(names));
    assert_eq!(KernelManifest::load(&scene.path("out")).unwrap(), manifest);
    assert_eq!(manifest.release, RELEASE);
    assert_eq!(record_of(&scene.out(VMLINUZ)), manifest.kernel);
    assert_eq!(
        record_of(&scene.out(MODULES_CPIO)),
        manifest.modules_archive
    );
    assert_eq!(record_of(&scene.out(INITRAMFS)), manifest.initramfs);
    assert_eq!(scene.out(VMLINUZ), fs::read(scene.path("vmlinuz")).unwrap());
    let initramfs = scene.out(INITRAMFS);
    assert!(initramfs.starts_with(&scene.out(MODULES_CPIO)));
    assert!(contains(&initramfs, &fixture::program(62, false)));
    let order = b"/modules/virtio.ko\n/modules/virtio_pci.ko\n/modules/virtio_blk.ko\n\
        /modules/ext4.ko\n/modules/virtio_console.ko\n";
    assert!(contains(&initramfs, order));
    let later: Vec<_> = manifest
        .modules
        .iter()
        .filter(|m| m.stage == Stage::Later)
        .collect();
    assert_eq!(later.len(), 1);
    assert_eq!(later[0].name, "overlay");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (first, second) = (Scene::new(), Scene::new());
    assert_eq!(first.import(true).unwrap(), second.import(true).unwrap());
}

#[test]
fn a_kernel_without_modules_gets_empty_lists() {
    let scene = Scene::new();
    let manifest = scene.import(false).unwrap();
    assert!(manifest.modules.is_empty());
    assert!(contains(&scene.out(MODULES_CPIO), b"modules/load-order"));
}

#[test]
fn a_failed_import_leaves_nothing() {
    let scene = Scene::new();
    fs::write(scene.path("agent"), b"#!/bin/sh").unwrap();
    assert!(matches!(scene.import(true), Err(ImportError::Agent(_))));
    assert!(scene.out_names().is_empty());
    fs::write(scene.path("tree/kernel/ext4.ko"), b"").unwrap();
    fs::write(scene.path("agent"), fixture::program(62, false)).unwrap();
    assert!(matches!(scene.import(true), Err(ImportError::Modules(_))));
    assert!(scene.out_names().is_empty());
}

#[test]
fn discarding_removes_all_four_files() {
    let scene = Scene::new();
    scene.import(true).unwrap();
    discard(&scene.path("out"));
    assert!(scene.out_names().is_empty());
}

#[test]
fn a_directory_in_use_is_not_touched() {
    let scene = Scene::new();
    fs::write(scene.path("out/vmlinuz"), b"mine").unwrap();
    assert!(matches!(scene.import(true), Err(ImportError::NotEmpty(_))));
    assert_eq!(scene.out(VMLINUZ), b"mine");
}

#[test]
fn an_initramfs_is_renewed_only_for_another_agent() {
    let scene = Scene::new();
    let before = scene.import(true).unwrap();
    assert!(!scene.refresh().unwrap());
    let mut newer = fixture::program(62, false);
    newer.extend_from_slice(b"a newer agent");
    fs::write(scene.path("agent"), &newer).unwrap();
    // The module tree may be gone by the time that a new agent comes.
    fs::remove_dir_all(scene.path("tree")).unwrap();
    assert!(scene.refresh().unwrap());
    assert!(!scene.refresh().unwrap());
    let after = KernelManifest::load(&scene.path("out")).unwrap();
    assert_eq!(after.agent, record_of(&newer));
    assert_eq!(after.initramfs, record_of(&scene.out(INITRAMFS)));
    assert_eq!(
        (after.kernel, after.modules),
        (before.kernel, before.modules)
    );
    assert!(contains(&scene.out(INITRAMFS), &newer));
}

#[test]
fn a_crash_between_initramfs_and_manifest_is_mended_by_the_next_refresh() {
    let scene = Scene::new();
    scene.import(true).unwrap();
    let old_manifest = scene.out(MANIFEST);
    let mut newer = fixture::program(62, false);
    newer.push(0);
    fs::write(scene.path("agent"), &newer).unwrap();
    scene.refresh().unwrap();
    fs::write(scene.path("out").join(MANIFEST), old_manifest).unwrap();
    assert!(scene.refresh().unwrap());
    let manifest = KernelManifest::load(&scene.path("out")).unwrap();
    assert_eq!(manifest.initramfs, record_of(&scene.out(INITRAMFS)));
}

#[test]
fn a_refresh_that_fails_keeps_the_old_initramfs() {
    let scene = Scene::new();
    scene.import(true).unwrap();
    let old = scene.out(INITRAMFS);
    let mut newer = fixture::program(62, false);
    newer.push(0);
    fs::write(scene.path("agent"), &newer).unwrap();
    fs::write(scene.path("out").join(MODULES_CPIO), b"altered").unwrap();
    assert!(matches!(scene.refresh(), Err(RefreshError::Changed(_))));
    fs::write(scene.path("agent"), b"not a program").unwrap();
    assert!(matches!(scene.refresh(), Err(RefreshError::Agent(_))));
    assert_eq!(scene.out(INITRAMFS), old);
    assert_eq!(scene.out_names().len(), 4);
}

#[test]
fn manifests_of_other_versions_and_shapes_are_refused() {
    let scene = Scene::new();
    scene.import(false).unwrap();
    let path = scene.path("out").join(MANIFEST);
    let text = String::from_utf8(scene.out(MANIFEST)).unwrap();
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        KernelManifest::load(&scene.path("out")).unwrap_err()
    };
    let newer = text.replace("\"version\": 1", "\"version\": 2");
    assert!(matches!(
        load(&newer),
        ManifestError::Version { found: 2, .. }
    ));
    let extra = text.replacen('{', "{\"extra\": 1,", 1);
    assert!(matches!(load(&extra), ManifestError::Invalid { .. }));
    assert!(matches!(
        load(&text[..text.len() / 2]),
        ManifestError::Invalid { .. }
    ));
    fs::remove_file(&path).unwrap();
    let missing = KernelManifest::load(&scene.path("out")).unwrap_err();
    assert!(matches!(missing, ManifestError::Io { .. }));
}

/// The distribution's own kernel and modules; `scripts/test-assets` unpacks them.
#[test]
fn debians_kernel_imports_with_what_a_guest_needs() {
    let (Some(vmlinuz), Some(modules)) = (
        std::env::var_os("COWSLIP_TEST_DEBIAN_VMLINUZ"),
        std::env::var_os("COWSLIP_TEST_DEBIAN_MODULES"),
    ) else {
        eprintln!("SKIPPED: COWSLIP_TEST_DEBIAN_VMLINUZ and _MODULES are not set (make test)");
        return;
    };
    let scene = Scene::new();
    let (agent, out) = (scene.path("agent"), scene.path("out"));
    let manifest =
        import_kernel(Path::new(&vmlinuz), Some(Path::new(&modules)), &agent, &out).unwrap();
    let at = |name: &str| {
        manifest
            .modules
            .iter()
            .position(|module| module.name == name)
    };
    assert!(
        at("virtio_ring") < at("virtio_pci"),
        "dependencies come first"
    );
    for name in [
        "virtio_pci",
        "virtio_blk",
        "virtio_console",
        "virtio_net",
        "overlay",
    ] {
        assert!(at(name).is_some(), "{name} is missing");
    }
}
