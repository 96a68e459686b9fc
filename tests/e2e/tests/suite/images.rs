//! Templates of container images, and how their sandboxes are run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use cowslip_e2e::{ContainerImage, Instance, Kernel, Registry, Setup, Tar, box_tar, missing};
use cowslip_model::api::Template;
use serde_json::json;

/// A box whose second layer takes a file away and brings another.
fn image() -> ContainerImage {
    let base = Tar::default()
        .directory("srv", 0o755)
        .file("srv/gone", 0o644, b"of the first layer\n")
        .file("srv/kept", 0o644, b"kept\n");
    let top = Tar::default()
        .file("srv/.wh.gone", 0o644, b"")
        .file("srv/new", 0o640, b"new\n");
    ContainerImage::new(box_tar())
        .layer(base)
        .layer(top)
        .config(json!({
            "Env": ["GREETING=hello", "PATH=/opt/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo $GREETING from $PWD as $(id -u):$(id -g), $(ls /srv)"],
            "WorkingDir": "/srv",
            "User": "12:34",
            "Labels": { "maker": "a test" },
            "ExposedPorts": { "80/tcp": {} },
        }))
}

const SAID: &str = "hello from /srv as 12:34, kept new";

fn template(host: &Instance, name: &str) -> Template {
    let found: Vec<Template> = host.say(&format!("template inspect {name}")).json();
    found.into_iter().next().unwrap()
}

fn put(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn each_form_of_an_image_is_the_same_template() {
    // covers R58 R62
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let scratch = host.scratch().to_owned();
    let layout = scratch.join("layout");
    image().write_layout(&layout, "v1");
    let oci = put(
        &scratch.join("oci.tar"),
        &image().oci_archive(&scratch, "v1"),
    );
    let docker = put(
        &scratch.join("docker.tar"),
        &image().docker_archive("made:v1"),
    );
    let layout = layout.to_str().unwrap();
    for (name, source) in [
        ("one", format!("oci:{layout}")),
        ("two", format!("oci:{layout}:v1")),
        ("three", format!("oci-archive:{oci}:v1")),
        ("four", format!("docker-archive:{docker}:made:v1")),
    ] {
        let _ = host.call(["template", "import", name, &source]).ok();
    }
    let done = host
        .say("template import five docker-archive:-")
        .stdin(image().docker_archive("made:v1"));
    let _ = done.ok();
    let one = template(&host, "one");
    let names: Vec<&str> = one.names.iter().map(cowslip_model::Name::as_str).collect();
    assert_eq!(names, ["five", "four", "one", "three", "two"]);
    assert_eq!(one.source, "OCI image layout");
    let config = one.config.unwrap();
    assert_eq!(config.platform.as_deref(), Some("linux/amd64"));
    assert_eq!(config.labels["maker"], "a test");
    assert!(config.exposed_ports.contains("80/tcp"));

    // The same files with other words are another template.
    let other = put(
        &scratch.join("other.tar"),
        &image().config(json!({})).docker_archive("other:v1"),
    );
    let source = format!("docker-archive:{other}");
    let _ = host.call(["template", "import", "other", &source]).ok();
    let other = template(&host, "other");
    assert_eq!((other.digest, other.names.len()), (one.digest, 1));
    assert_ne!(other.id, one.id);
    for name in ["one", "two", "three", "four", "five", "other"] {
        let _ = host.call(["template", "rm", name]).ok();
    }
}

#[test]
fn what_an_image_says_is_the_default_of_run() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let bytes = image().docker_archive("made:v1");
    let _ = host
        .say("template import made docker-archive:-")
        .stdin(bytes)
        .ok();
    let run = |words: &[&str]| {
        let call = ["run", "--rm"].iter().chain(words);
        host.call(call.copied().collect::<Vec<_>>()).ok()
    };
    assert_eq!(run(&["made"]), SAID);
    // Words are arguments of the entrypoint.
    assert_eq!(run(&["made", "echo $GREETING again"]), "hello again");
    assert_eq!(run(&["--entrypoint", "/bin/echo", "made", "a", "b"]), "a b");
    assert_eq!(run(&["--entrypoint", "", "made", "cat", "kept"]), "kept");
    assert_eq!(
        run(&["--entrypoint", "[\"/bin/echo\", \"x  y\"]", "made", "z"]),
        "x  y z"
    );
    let more = ["-e", "GREETING=bye", "-u", "0:0", "-w", "/", "made"];
    assert_eq!(run(&more), "bye from / as 0:0, kept new");
    host.call(["run", "--rm", "--entrypoint", "", "made"])
        .run()
        .refused(&["\"made\"", "no command", "cowslip run -d made"]);

    // Whatever runs in it finds itself where the image says.
    let _ = host
        .call(["run", "-d", "--name", "idle", "--entrypoint", "", "made"])
        .ok();
    let here = host.call(["exec", "idle", "sh", "-c", "echo $GREETING $PWD $(id -u)"]);
    assert_eq!(here.ok(), "hello /srv 12");
    // It goes on with a template of its disk.
    let _ = host.say("template from idle again").ok();
    let _ = host.say("rm --force idle").ok();
    assert_eq!(run(&["again"]), SAID);
    // In the background too.
    let follow = host.follow_events();
    let _ = host.say("run -d --name said made").ok();
    follow.wait_for("\"sandbox.stopped\"");
    drop(follow);
    assert_eq!(host.say("logs said").ok(), SAID);
    let _ = host.say("rm --force said").ok();
    for name in ["again", "made"] {
        let _ = host.call(["template", "rm", name]).ok();
    }
}

#[test]
fn an_import_has_the_size_and_the_program_that_were_asked_for() {
    // covers R61
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let words = "template import sized --size 300M --entrypoint /bin/echo -";
    let _ = host.say(words).stdin(box_tar()).ok();
    let sized = template(&host, "sized");
    assert!(sized.size.bytes() >= 300 << 20, "{sized:?}");
    assert_eq!(host.say("run --rm sized it is said").ok(), "it is said");
    let _ = host.say("template rm sized").ok();
    for (words, expected) in [
        ("--platform plan9/amd64", "linux only"),
        ("--platform linux", "OS/ARCHITECTURE"),
        ("--platform linux/arm64", "linux/arm64"),
    ] {
        let bytes = image().docker_archive("made:v1");
        let line = format!("template import bad {words} docker-archive:-");
        host.say(&line).stdin(bytes).run().refused(&[expected]);
    }
    for (source, expected) in [
        ("oci:/no/such/place", "/no/such/place"),
        ("oci-archive:/no/such/file:v1", "/no/such/file"),
        ("docker-archive:-:other:v2", "other:v2"),
    ] {
        let line = format!("template import bad {source}");
        let bytes = image().docker_archive("made:v1");
        host.say(&line).stdin(bytes).run().refused(&[expected]);
    }
    host.assert_agreement();
}

fn blobs(host: &Instance) -> usize {
    let blobs = host.state().join("images/blobs/sha256");
    fs::read_dir(blobs).map_or(0, Iterator::count)
}

#[test]
fn an_image_of_a_registry_is_pulled_once() {
    // covers R62
    let Some(registry) = Registry::open() else {
        return;
    };
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    image().push(&registry, "made:v1");
    let source = format!("docker://{}/made:v1", registry.address());
    let import =
        |name: &str, pull: &str| host.call(["template", "import", name, &source, "--pull", pull]);
    import("one", "never")
        .run()
        .refused(&["not in the cache", "--pull missing"]);
    // At once: one of them does the work.
    let both = ["one", "two"].map(|name| import(name, "missing").start());
    for one in both {
        assert_eq!(one.wait().code, 0);
    }
    let one = template(&host, "one");
    assert_eq!((one.names.len(), one.source), (2, source.clone()));
    // Three layers, a manifest and a config.
    assert_eq!(blobs(&host), 5);
    assert_eq!(host.say("run --rm one").ok(), SAID);

    // The tag moves: what is in the cache is as it was, until the registry is asked.
    let other = image().layer(Tar::default().file("srv/more", 0o644, b"more\n"));
    other.push(&registry, "made:v1");
    let _ = import("three", "missing").ok();
    assert_eq!(template(&host, "three").id, one.id);
    let _ = import("four", "always").ok();
    assert_ne!(template(&host, "four").id, one.id);
    assert_eq!(blobs(&host), 8);
    let said = host.say("run --rm four").ok();
    assert!(said.ends_with("kept more new"), "{said:?}");

    // It is not needed any more.
    drop(registry);
    let _ = import("five", "never").ok();
    let freed = host.say("gc --images").ok();
    assert!(freed.contains("files of images"), "{freed}");
    assert_eq!(blobs(&host), 0);
    import("six", "missing").run().refused(&["cannot reach"]);
    host.assert_agreement();
    for name in ["one", "two", "three", "four", "five"] {
        let _ = host.call(["template", "rm", name]).ok();
    }
}

#[test]
fn what_a_template_has_is_not_downloaded_again() {
    let Some(registry) = Registry::open() else {
        return;
    };
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let source = format!("docker://{}/made:v1", registry.address());
    let import = |name: &str| host.call(["template", "import", name, &source]);
    image().push(&registry, "made:v1");
    let _ = import("lower").ok();
    let _ = host.say("gc --images").ok();
    let more = |text: &[u8]| image().layer(Tar::default().file("srv/more", 0o644, text));
    more(b"more\n").push(&registry, "made:v1");
    let _ = import("upper").ok();
    // One layer, a manifest and a config.
    assert_eq!(blobs(&host), 3);
    let said = host.say("run --rm upper").ok();
    assert!(said.ends_with("kept more new"), "{said:?}");
    assert_eq!(host.say("run --rm lower").ok(), SAID);

    // The template that the layers came from is none of its parents.
    let _ = host.say("template rm lower").ok();
    let _ = host.say("gc --images").ok();
    let said = host.say("run --rm upper").ok();
    assert!(said.ends_with("kept more new"), "{said:?}");
    more(b"other\n").push(&registry, "made:v1");
    let _ = import("other").ok();
    assert_eq!(blobs(&host), 6);
    host.assert_agreement();
}

#[test]
fn a_layer_more_needs_no_more_than_that_layer() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let layout = host.scratch().join("layout");
    let source = format!("oci:{}", layout.display());
    let import = |name: &str| host.call(["template", "import", name, &source]);
    let layers = |image: &ContainerImage| {
        let _ = fs::remove_dir_all(&layout);
        image.write_layout(&layout, "v1");
        let blobs = layout.join("blobs/sha256");
        let names = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap());
        names.map(|entry| entry.path()).collect::<BTreeSet<_>>()
    };
    let more = image().layer(Tar::default().file("srv/more", 0o644, b"more\n"));
    layers(&more);
    let _ = import("whole").ok();
    let whole = template(&host, "whole");
    let _ = host.say("template rm whole").ok();

    let lower = layers(&image());
    let _ = import("lower").ok();
    let all = layers(&more);
    for layer in all.intersection(&lower) {
        fs::remove_file(layer).unwrap();
    }
    assert_eq!(all.intersection(&lower).count(), 3);
    let _ = import("upper").ok();
    let upper = template(&host, "upper");
    assert_eq!((upper.digest, upper.entries), (whole.digest, whole.entries));
    let _ = host.say("template rm lower").ok();
    let _ = host.say("template rm upper").ok();
    import("again").run().refused(&["layer 1 of 4", "missing"]);
    host.assert_agreement();
}

#[test]
fn a_registry_is_told_who_is_logged_in() {
    let Some(registry) = Registry::with_users() else {
        return;
    };
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    image().push(&registry, "made:v1");
    let source = format!("docker://{}/made:v1", registry.address());
    let login = host.scratch().join("config.json");
    let import = |name: &str| {
        let call = host.call(["template", "import", name, &source]);
        call.env("REGISTRY_AUTH_FILE", login.to_str().unwrap())
    };
    import("made").run().refused(&["docker login"]);
    // user:wrong, user:right.
    registry.write_login(&login, "dXNlcjp3cm9uZw==");
    let refused = import("made").run().refused(&["\"user\""]);
    assert!(!refused.stderr.contains("wrong"), "{refused}");
    registry.write_login(&login, "dXNlcjpyaWdodA==");
    let _ = import("made").ok();
    fs::write(&login, "{").unwrap();
    import("more").run().refused(&["config.json"]);
    let _ = host.say("template rm made").ok();
}

#[test]
fn what_is_exported_is_the_same_template_again() {
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let bytes = image().docker_archive("made:v1");
    let _ = host
        .say("template import made docker-archive:-")
        .stdin(bytes)
        .ok();
    let made = template(&host, "made");
    let path = |name: &str| host.scratch().join(name).to_str().unwrap().to_owned();
    let (tar, archive) = (path("made.tar"), path("made.oci.tar"));
    let archive = format!("oci-archive:{archive}");
    let _ = host.call(["template", "export", "made", &tar]).ok();
    let _ = host
        .call(["template", "export", "made", &format!("{archive}:v2")])
        .ok();
    let piped = host.say("template export made -").run().exits(0);
    assert_eq!(piped.stdout, fs::read(&tar).unwrap());
    // Whoever removes the template meanwhile changes nothing in the files.
    let _ = host.say("template rm made").ok();
    let _ = host.call(["template", "import", "from-tar", &tar]).ok();
    assert_eq!(template(&host, "from-tar").digest, made.digest);
    let _ = host
        .call(["template", "import", "from-image", &format!("{archive}:v2")])
        .ok();
    let again = template(&host, "from-image");
    assert_eq!((again.digest, again.config), (made.digest, made.config));
    assert_eq!(host.say("run --rm from-image").ok(), SAID);

    // A disk that a guest has written.
    let _ = host
        .say("run -d --name one --entrypoint /bin/sleep from-image 1000")
        .ok();
    let write = "echo by-guest >/tmp/written; ln /tmp/written /tmp/linked; chmod 4755 /tmp/linked";
    let _ = host
        .call(["exec", "-u", "0", "one", "sh", "-c", write])
        .ok();
    let _ = host.say("template from one written").ok();
    let _ = host.say("rm --force one").ok();
    let written = path("written.tar");
    let _ = host.call(["template", "export", "written", &written]).ok();
    let _ = host.call(["template", "import", "read", &written]).ok();
    let look = "cat /tmp/linked; stat -c %a:%h /tmp/written";
    let read = host.call(["run", "--rm", "--entrypoint", "", "read", "sh", "-c", look]);
    assert_eq!(read.ok(), "by-guest\n4755:2");
    host.say("template export none /tmp/x")
        .run()
        .refused(&["\"none\""]);
    host.call(["template", "export", "read", "/no/such/place/x.tar"])
        .run()
        .refused(&["/no/such/place"]);
    host.assert_agreement();
    for name in ["from-tar", "from-image", "written", "read"] {
        let _ = host.call(["template", "rm", name]).ok();
    }
}

#[test]
fn what_buildah_makes_and_pushes_runs() {
    // covers R58
    if missing("buildah", true) {
        return;
    }
    let Some(registry) = Registry::open() else {
        return;
    };
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let scratch = host.scratch().to_owned();
    let tar = put(&scratch.join("box.tar"), &box_tar());
    fs::create_dir(scratch.join("files")).unwrap();
    fs::write(scratch.join("files/one"), "one\n").unwrap();
    fs::hard_link(scratch.join("files/one"), scratch.join("files/two")).unwrap();
    let files = scratch.join("files");
    let buildah = |words: &[&str]| {
        let output = Command::new("buildah")
            .args(["--storage-driver", "vfs", "--root"])
            .arg(scratch.join("containers"))
            .arg("--runroot")
            .arg(scratch.join("containers-run"))
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "buildah {words:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    // Two layers: an image, and one made of it.
    let first = buildah(&["from", "scratch"]);
    buildah(&["add", &first, &tar, "/"]);
    buildah(&["commit", "-q", &first, "first"]);
    let second = buildah(&["from", "--pull-never", "localhost/first"]);
    buildah(&["copy", &second, files.to_str().unwrap(), "/srv"]);
    let cmd = r#"["/bin/sh", "-c", "cat /srv/one; stat -c %h /srv/two"]"#;
    buildah(&["config", "--cmd", cmd, "--entrypoint", "[]", &second]);
    buildah(&["commit", "-q", &second, "second"]);
    let to = format!("docker://{}/second:v1", registry.address());
    buildah(&["push", "-q", "--tls-verify=false", "localhost/second", &to]);
    let _ = host.call(["template", "import", "pushed", &to]).ok();
    let archive = format!("oci-archive:{}", scratch.join("second.tar").display());
    buildah(&["push", "-q", "localhost/second", &format!("{archive}:v1")]);
    let _ = host
        .call(["template", "import", "archived", &format!("{archive}:v1")])
        .ok();
    assert_eq!(
        template(&host, "pushed").digest,
        template(&host, "archived").digest
    );
    assert_eq!(host.say("run --rm pushed").ok(), "one\n2");
    for name in ["pushed", "archived"] {
        let _ = host.call(["template", "rm", name]).ok();
    }
}
