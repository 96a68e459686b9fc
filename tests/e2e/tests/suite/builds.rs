//! Templates that a Dockerfile makes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use cowslip_e2e::{ContainerImage, Instance, Kernel, Registry, Setup, box_tar};
use cowslip_model::api::{Checkpoint, Template};
use serde_json::json;

/// A directory with a Dockerfile and files; the words for it.
fn context(host: &Instance, dockerfile: &str) -> String {
    let dir: PathBuf = host.scratch().join("context");
    fs::create_dir_all(dir.join("src")).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("src/kept"), "kept\n").unwrap();
    fs::write(dir.join("src/secret"), "secret\n").unwrap();
    fs::write(dir.join(".dockerignore"), "**/secret\n").unwrap();
    dir.to_str().unwrap().to_owned()
}

const STEPS: &str = "\
ARG BASE=none
FROM $BASE
ENV GREETING=hello
WORKDIR /srv/app
RUN echo $GREETING >greeting; echo $0 $PWD
COPY --chown=12:34 --chmod=640 src ./src/
COPY src/kept /etc
USER 12:34
RUN cat src/kept; id -u
CMD cat greeting src/kept; id -u; ls src
";

fn clear(host: &Instance, names: &[&str]) {
    let points: Vec<Checkpoint> = host.say("checkpoint ls").json();
    for point in points {
        assert!(point.disk_only, "{point:?}");
        let _ = host.call(["checkpoint", "rm", point.name.as_str()]).ok();
    }
    for name in names {
        let _ = host.call(["template", "rm", name]).ok();
    }
}

#[test]
fn a_dockerfile_becomes_a_template() {
    // covers R34
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let dir = context(&host, STEPS);
    let build = |name: &str, more: &[&str]| {
        let words = ["template", "build", name, &dir, "--build-arg", "BASE=box"];
        host.call(words.iter().chain(more)).run().exits(0)
    };
    let first = build("one", &[]);
    for words in [
        "step 1 of 4, line 5: RUN echo",
        "/bin/sh /srv/app",
        "kept\n12\n",
    ] {
        assert!(first.stderr.contains(words), "{words}: {first}");
    }
    assert!(!first.stderr.contains("as before"), "{first}");
    assert_eq!(host.say("run --rm one").ok(), "hello\nkept\n12\nkept");
    assert_eq!(
        host.say("run --rm one stat -c %u:%g:%a src/kept src /srv/app")
            .ok(),
        "12:34:640\n12:34:755\n0:0:755"
    );
    // A directory that is there is not replaced: the file goes into it.
    assert_eq!(host.say("run --rm one cat /etc/kept").ok(), "kept");
    let one: Template = host.say("template inspect one").json::<Vec<_>>().remove(0);
    assert_eq!(one.config.unwrap().workdir.as_deref(), Some("/srv/app"));

    // The same again takes no step; a file that changed takes those from there on.
    let again = build("two", &[]);
    assert_eq!(again.stderr.matches("(as before)").count(), 4, "{again}");
    fs::write(host.scratch().join("context/src/kept"), "changed\n").unwrap();
    let changed = build("three", &[]);
    assert_eq!(
        changed.stderr.matches("(as before)").count(),
        1,
        "{changed}"
    );
    assert_eq!(host.say("run --rm three").ok(), "hello\nchanged\n12\nkept");
    // One that is forgotten is taken again, and so is what stands on it.
    let points: Vec<Checkpoint> = host.say("checkpoint ls").json();
    let oldest = points.iter().min_by_key(|point| point.created_at).unwrap();
    let _ = host.call(["checkpoint", "rm", oldest.name.as_str()]).ok();
    let anew = build("four", &[]);
    assert_eq!(anew.stderr.matches("(as before)").count(), 0, "{anew}");
    // A step is a disk that sandboxes can be made on.
    let points: Vec<Checkpoint> = host.say("checkpoint ls").json();
    assert_eq!(points.len(), 10, "{points:?}");
    let fork = format!("fork {} --name of-step", points[0].name);
    let _ = host.say(&fork).ok();
    assert_eq!(host.sh("of-step", "cat /srv/app/greeting").ok(), "hello");
    let _ = host.say("rm --force of-step").ok();
    clear(&host, &["one", "two", "three", "four"]);
}

#[test]
fn a_step_that_fails_leaves_nothing_or_what_was_asked_for() {
    // covers R34
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let before = host.files();
    let dir = context(&host, "FROM box\nRUN echo half >/half; exit 3\n");
    let words = ["--quiet", "template", "build", "bad", &dir];
    host.call(words)
        .run()
        .refused(&["line 2", "ended with 3", "--debug"]);
    assert_eq!(host.sandboxes(), Vec::<String>::new());
    host.assert_only(&before);
    host.call(words.iter().chain(&["--debug"]))
        .run()
        .refused(&["cowslip shell"]);
    let kept = host.sandboxes();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(host.sh(&kept[0], "cat /half").ok(), "half");
    let _ = host.call(["rm", "--force", &kept[0]]).ok();
    host.assert_only(&before);

    // Nor does one whose client dies.
    let _ = context(&host, "FROM box\nRUN echo up; sleep 1000\n");
    let follow = host.follow_events();
    let build = host.call(words).start();
    build.wait_for_error("up\n");
    build.signal(rustix::process::Signal::KILL);
    follow.wait_for("\"sandbox.removed\"");
    drop(follow);
    assert!(build.wait().code != 0);
    host.assert_only(&before);
    let pipe = host.scratch().join("context/pipe");
    let made = Command::new("mkfifo").arg(pipe).status().unwrap();
    assert!(made.success());
    // Nor one that somebody removes: a command may never end.
    let build = host.call(words).start();
    build.wait_for_error("up\n");
    let steps = host.sandboxes();
    assert_eq!(steps.len(), 1, "{steps:?}");
    let _ = host.call(["rm", "--force", &steps[0]]).ok();
    assert_eq!(build.wait().code, 125);
    host.assert_only(&before);
    for (file, expected) in [
        ("FROM 127.0.0.1:1/none:v1\nRUN true\n", "no such template"),
        ("FROM box\nADD x /\n", "line 2"),
        ("FROM box\nCOPY none /\n", "none"),
        ("FROM box\nCOPY pipe /\n", "pipe"),
        ("FROM box\nCOPY src/secret /\n", "dockerignore"),
        ("FROM box\nRUN [\"/no/such/program\"]\n", "/no/such/program"),
    ] {
        let _ = context(&host, file);
        host.call(words).run().refused(&[expected]);
    }
    host.assert_only(&before);
}

#[test]
fn an_engine_that_dies_in_a_step_leaves_nothing() {
    // covers R34 R46
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let dir = context(&host, "FROM box\nRUN echo up; sleep 1000\n");
    let before = host.files();
    let build = host.call(["template", "build", "bad", &dir]).start();
    build.wait_for_error("up\n");
    host.kill_engine();
    assert_ne!(build.wait().code, 0);
    assert_eq!(host.sandboxes(), Vec::<String>::new());
    host.assert_only(&before);
}

#[test]
fn a_build_may_begin_with_an_image_of_a_registry() {
    let Some(registry) = Registry::open() else {
        return;
    };
    let host = Instance::ready(Setup::default(), Kernel::Guest);
    let image = ContainerImage::new(box_tar()).config(json!({ "Env": ["OF=the-image"] }));
    image.push(&registry, "tools/base:v1");
    let from = format!(
        "FROM {}/tools/base:v1\nRUN echo $OF >/of\n",
        registry.address()
    );
    let dir = context(&host, &from);
    let _ = host.call(["template", "build", "one", &dir]).ok();
    drop(registry);
    // It is a template now.
    let _ = host.call(["template", "build", "two", &dir]).ok();
    assert_eq!(host.say("run --rm two cat /of").ok(), "the-image");
    let all: Vec<Template> = host.say("template ls").json();
    let names: Vec<&str> = all
        .iter()
        .flat_map(|one| &one.names)
        .map(cowslip_model::Name::as_str)
        .collect();
    let base = names.iter().find(|name| name.contains("tools-base-v1-"));
    clear(
        &host,
        &["one", "two", base.expect("no template of the image")],
    );
}
