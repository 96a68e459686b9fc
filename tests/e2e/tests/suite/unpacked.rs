//! Images that Debian's programs make, push and unpack: what is imported of each is, path by path, what
//! `umoci unpack` makes of it.
//!
//! ```text
//!  umoci, buildah ─ layout ─┬─ umoci unpack ──────────────────────────────────────── directory ─┐
//!                           └─ skopeo ─ docker-registry ─ template import ─ ext4 ─ the kernel ──┴─ the same?
//! ```

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cowslip_e2e::{
    Instance, Listing, Mounted, Registry, Tar, box_tar, list, many_files_tar, missing, rootfs_tar,
    run, special_files,
};
use cowslip_model::api::Template;
use rustix::fs::{XattrFlags, lsetxattr};

const TAG: &str = "made";

/// An image in the making.
struct Image {
    host: Instance,
    registry: Registry,
}

impl Image {
    /// With no layer; none where programs are missing.
    fn new() -> Option<Self> {
        if missing("umoci", true) || missing("buildah", true) {
            return None;
        }
        let (registry, host) = (Registry::open()?, Instance::new());
        let image = Self { host, registry };
        run("umoci", &["init", "--layout", &image.layout()]);
        run("umoci", &["new", "--image", &image.tagged()]);
        Some(image)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.host.scratch().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn layout(&self) -> String {
        self.text("layout")
    }

    fn tagged(&self) -> String {
        format!("{}:{TAG}", self.layout())
    }

    /// Adds a layer as it is in an archive.
    fn layer(&self, tar: &[u8]) {
        let path = self.at("layer.tar");
        fs::write(&path, tar).unwrap();
        let path = path.to_str().unwrap();
        run(
            "umoci",
            &["raw", "add-layer", "--image", &self.tagged(), path],
        );
    }

    /// Adds a layer with the content of a directory, as GNU tar packs it.
    fn packed_layer(&self, directory: &Path) {
        let words = [
            "--sparse",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
        ];
        let directory = directory.to_str().unwrap();
        let more = [
            "--format=posix",
            "--sort=name",
            "-cf",
            "-",
            "-C",
            directory,
            ".",
        ];
        self.layer(&run("tar", &[&words[..], &more].concat()));
    }

    /// Adds a layer with what `change` does to the unpacked image.
    fn changed_layer(&self, change: impl FnOnce(&Path)) {
        let root = self.unpack("to-change");
        change(&root);
        let bundle = self.text("to-change");
        run("umoci", &["repack", "--image", &self.tagged(), &bundle]);
        fs::remove_dir_all(bundle).unwrap();
    }

    fn unpack(&self, bundle: &str) -> PathBuf {
        let bundle = self.text(bundle);
        run("umoci", &["unpack", "--image", &self.tagged(), &bundle]);
        Path::new(&bundle).join("rootfs")
    }

    /// Pushes the image, imports it, and compares it with what umoci unpacks. Gives the names, and the image's file.
    fn assert_same(&self) -> (Listing, PathBuf) {
        self.registry.push(&self.at("layout"), TAG, "made:v1");
        let source = format!("docker://{}/made:v1", self.registry.address());
        let _ = self.host.call(["template", "import", "made", &source]).ok();
        let found: Vec<Template> = self.host.say("template inspect made").json();
        let directory = self.host.state().join("templates");
        let image = directory.join(found[0].id.to_string()).join("image.ext4");
        run("e2fsck", &["-fn", image.to_str().unwrap()]);

        let expected = without_the_writers(list(&self.unpack("unpacked")));
        let imported = without_the_writers(self.read_back(&image));
        let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
        assert!(
            names(&imported) == names(&expected),
            "{} names instead of {}",
            imported.len(),
            expected.len()
        );
        // The root is no entry.
        assert_eq!(found[0].entries + 1, expected.len() as u64);
        for (name, facts) in &expected {
            assert_eq!(&imported[name], facts, "{name:?}");
        }
        self.host.assert_agreement();
        (imported, image)
    }

    /// What is in an image's file, as the kernel reads it; else, which is said, as GNU tar unpacks an export.
    fn read_back(&self, image: &Path) -> Listing {
        let at = self.at("mounted");
        fs::create_dir(&at).unwrap();
        if let Some(mounted) = Mounted::image(image, &at) {
            let mut listing = list(&at);
            drop(mounted);
            let own = listing.remove("lost+found").expect("mke2fs made it");
            assert_eq!(own[..2], ["type directory", "mode 0700"]);
            return listing;
        }
        let tar = self.text("exported.tar");
        let _ = self.host.call(["template", "export", "made", &tar]).ok();
        let words = [
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "-xpf",
            &tar,
            "-C",
        ];
        run("tar", &[&words[..], &[at.to_str().unwrap()]].concat());
        list(&at)
    }
}

/// Without the root's links, to which `lost+found` adds one, and its time, which is the unpacker's where no layer names
/// the root.
fn without_the_writers(mut listing: Listing) -> Listing {
    let root = listing.get_mut("").unwrap();
    root.retain(|fact| !fact.starts_with("links ") && !fact.starts_with("mtime "));
    listing
}

fn has(listing: &Listing, name: &str, fact: &str) -> bool {
    listing[name].iter().any(|one| one.starts_with(fact))
}

// covers R58 R60
#[test]
fn debian() {
    let Some(image) = Image::new() else { return };
    image.layer(&fs::read(rootfs_tar()).unwrap());
    let (listing, _) = image.assert_same();
    assert!(has(&listing, "usr/bin/passwd", "mode 4755"));
}

#[test]
fn busybox_from_scratch() {
    let Some(image) = Image::new() else { return };
    let tar = image.at("box.tar");
    fs::write(&tar, box_tar()).unwrap();
    let [store, state] = ["containers", "containers-run"].map(|name| image.text(name));
    let buildah = |words: &[&str]| {
        let common = [
            "--storage-driver",
            "vfs",
            "--root",
            &store,
            "--runroot",
            &state,
        ];
        let said = run("buildah", &[&common[..], words].concat());
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    let container = buildah(&["from", "scratch"]);
    buildah(&["add", &container, tar.to_str().unwrap(), "/"]);
    buildah(&["config", "--cmd", r#"["/bin/sh"]"#, &container]);
    buildah(&["commit", "-q", &container, "box"]);
    let to = format!("oci:{}", image.tagged());
    buildah(&["push", "-q", "localhost/box", &to]);
    let (listing, _) = image.assert_same();
    assert!(has(&listing, "bin/sh", "target busybox"));
}

// covers R58
#[test]
fn three_layers_with_deletions_and_additions_again() {
    let Some(image) = Image::new() else { return };
    let base = [
        "kept",
        "replaced",
        "back",
        "gone",
        "deep/er/file",
        "whole/old",
    ];
    let tar = ["./", "deep", "deep/er", "whole"];
    let tar = tar
        .into_iter()
        .fold(Tar::default(), |tar, name| tar.directory(name, 0o755));
    let file = |tar: Tar, name: &&str| tar.file(name, 0o644, name.as_bytes());
    image.layer(&base.iter().fold(tar, file).bytes());
    image.changed_layer(|root| {
        for gone in ["back", "gone", "deep/er/file"] {
            fs::remove_file(root.join(gone)).unwrap();
        }
        fs::remove_dir_all(root.join("whole")).unwrap();
        fs::remove_file(root.join("replaced")).unwrap();
        fs::create_dir(root.join("replaced")).unwrap();
        fs::write(root.join("replaced/inner"), "inner").unwrap();
    });
    image.changed_layer(|root| {
        fs::write(root.join("back"), "back again").unwrap();
        fs::create_dir(root.join("whole")).unwrap();
        fs::write(root.join("whole/new"), "new").unwrap();
        fs::remove_dir_all(root.join("replaced")).unwrap();
        symlink("kept", root.join("replaced")).unwrap();
    });
    let (listing, _) = image.assert_same();
    let names: Vec<&str> = listing.keys().map(String::as_str).collect();
    let expected = [
        "",
        "back",
        "deep",
        "deep/er",
        "kept",
        "replaced",
        "whole",
        "whole/new",
    ];
    assert_eq!(names, expected);
    assert!(has(&listing, "back", "size 10"));
}

// covers R61
#[test]
fn fifty_thousand_files() {
    let Some(image) = Image::new() else { return };
    image.layer(&many_files_tar(50_000));
    let (listing, _) = image.assert_same();
    assert_eq!(listing.len(), 50_051);
}

#[test]
fn a_sparse_file_of_four_gibibytes() {
    let Some(image) = Image::new() else { return };
    let source = image.at("source");
    fs::create_dir(&source).unwrap();
    let file = File::create(source.join("sparse")).unwrap();
    file.set_len(4 << 30).unwrap();
    for at in [0, 1 << 30, (4 << 30) - 5] {
        file.write_all_at(b"some", at).unwrap();
    }
    image.packed_layer(&source);
    let (listing, file) = image.assert_same();
    assert!(has(&listing, "sparse", "size 4294967296"));
    let taken = file.metadata().unwrap().blocks() * 512;
    assert!(taken < 64 << 20, "{taken} bytes");
}

#[test]
fn every_type_of_file() {
    let Some(image) = Image::new() else { return };
    let source = image.at("source");
    let at = |name: &str| source.join(name);
    fs::create_dir_all(at("dir/inner")).unwrap();
    fs::set_permissions(at("dir"), PermissionsExt::from_mode(0o3751)).unwrap();
    special_files(&source);
    fs::write(at("dir/su"), "setuid").unwrap();
    let ids = [70_000, 80_000].map(Some);
    std::os::unix::fs::chown(at("dir/su"), ids[0], ids[1]).unwrap();
    fs::set_permissions(at("dir/su"), PermissionsExt::from_mode(0o6711)).unwrap();
    fs::hard_link(at("dir/su"), at("sudo")).unwrap();
    fs::write(at("ping"), "ping").unwrap();
    // cap_net_raw=ep, as of vfs_cap_data's second version.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    for (name, value) in [
        ("security.capability", &capability[..]),
        ("user.note", b"value"),
        ("user.large", &[7; 500]),
    ] {
        lsetxattr(at("ping"), name, value, XattrFlags::empty()).unwrap();
    }
    lsetxattr(at("dir"), "user.of-a-directory", b"d", XattrFlags::empty()).unwrap();
    symlink("/etc/absolute", at("fast")).unwrap();
    symlink("x/".repeat(200), at("slow")).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at(&"n".repeat(255)), "a long name").unwrap();
    fs::write(at("-rf \"quoted\" \u{1f980}"), "an odd name").unwrap();
    fs::write(
        source.join(std::ffi::OsStr::from_bytes(b"latin-\xe9")),
        "no UTF-8",
    )
    .unwrap();
    let times = File::options().write(true).open(at("empty")).unwrap();
    let time = std::time::Duration::new(1_234_567_890, 123_456_789);
    times.set_modified(std::time::UNIX_EPOCH + time).unwrap();
    image.packed_layer(&source);
    let (listing, _) = image.assert_same();
    for (name, fact) in [
        ("dir", "mode 3751"),
        ("disk", "device 259:70000"),
        ("sudo", "links 2"),
        ("sudo", "owner 70000:80000"),
        ("sudo", "mode 6711"),
        ("pipe", "type FIFO"),
        ("ping", "value security.capability 0100000200200000"),
        ("ping", "value user.note 76616c7565"),
        ("empty", "mtime 0x499602d2:1d6f3454"),
        ("latin-\\xe9", "size 8"),
    ] {
        assert!(has(&listing, name, fact), "{name}: {:?}", listing[name]);
    }
}

// covers R58
#[test]
fn hard_links_across_layers() {
    let Some(image) = Image::new() else { return };
    let base = Tar::default().directory("./", 0o755).directory("d", 0o755);
    let base = base
        .file("d/one", 0o755, b"one")
        .hard_link("d/two", "d/one");
    image.layer(&base.file("alone", 0o644, b"alone").bytes());
    let second = Tar::default()
        .directory("./", 0o755)
        .hard_link("three", "d/two");
    let second = second
        .hard_link("pair", "alone")
        .file("d/.wh.one", 0o644, b"");
    image.layer(&second.directory("d", 0o755).bytes());
    let third = Tar::default().hard_link("d/four", "three");
    let third = third.file("alone", 0o600, b"another").directory("d", 0o755);
    image.layer(&third.directory("./", 0o755).bytes());
    let (listing, _) = image.assert_same();
    for (name, links) in [
        ("d/two", 3),
        ("three", 3),
        ("d/four", 3),
        ("pair", 1),
        ("alone", 1),
    ] {
        assert!(has(&listing, name, &format!("links {links}")), "{name}");
    }
}
