use std::process::Stdio;

use axum::Router;
use axum::routing::get;
use cowslip_model::api::ErrorCode;

use crate::fake::{Fake, cowslip, refusal};

#[test]
fn a_refusal_is_one_line_and_a_hint() {
    let missing = async || {
        refusal(
            404,
            ErrorCode::NotFound,
            "there is no sandbox \"wbe\"",
            Some("did you mean \"web\"?"),
        )
    };
    let fake = Fake::new(Router::new().route("/v1/sandboxes/{id}", get(missing)));
    let printed = fake.run(&["inspect", "wbe"]);
    assert_eq!(printed.code, 125);
    assert_eq!(
        printed.err,
        "cowslip: there is no sandbox \"wbe\"\n  hint: did you mean \"web\"?\n"
    );
}

#[test]
fn an_engine_that_breaks_off_is_named() {
    let broken = async || {
        axum::body::Body::from_stream(futures_util::stream::iter([
            Ok("[{\"id\":"),
            Err(std::io::Error::other("killed")),
        ]))
    };
    let fake = Fake::new(Router::new().route("/v1/sandboxes", get(broken)));
    let printed = fake.run(&["ls"]);
    assert_eq!(printed.code, 125);
    assert!(
        printed.err.starts_with("cowslip: the engine went away"),
        "{printed:?}"
    );
    assert!(printed.err.contains("engine.log"), "{printed:?}");

    let fake = Fake::new(Router::new());
    let printed = fake.run(&["ls"]);
    assert!(
        printed.err.contains("404") && printed.err.contains("cowslip version"),
        "{printed:?}"
    );
}

#[test]
fn another_version_is_said_once_and_not_when_quiet() {
    let router = || Router::new().route("/v1/sandboxes", get(async || axum::Json([0_u8; 0])));
    let fake = Fake::of_version(router(), "0.0.9");
    let printed = fake.run(&["ls"]);
    assert_eq!(printed.code, 0);
    assert_eq!(
        printed.err.matches("version 0.0.9").count(),
        1,
        "{printed:?}"
    );
    assert_eq!(fake.run(&["ls", "-q"]).err, "");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let endless = async || {
        axum::body::Body::from_stream(futures_util::stream::repeat_with(|| {
            Ok::<_, std::io::Error>("a line of the log\n".repeat(1000))
        }))
    };
    let fake = Fake::new(Router::new().route("/v1/sandboxes/{id}/logs", get(endless)));
    let mut child = fake
        .command(&["logs", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let printed: crate::fake::Printed = child.wait_with_output().unwrap().into();
    assert_eq!((printed.code, printed.err.as_str()), (141, ""));
}

#[test]
fn what_was_typed_wrong_is_125() {
    let dir = tempfile::tempdir().unwrap();
    for (line, reason) in [
        ("rnu web", "unrecognized subcommand 'rnu'"),
        ("run --entrypoint [x web", "no JSON list of words"),
        ("cp a b", "neither source nor destination"),
        ("cp a:/b c:/d", "between two sandboxes"),
        ("exec -it web sh", "-t needs a terminal"),
        ("--log nonsense=x=y ls", "is no log level"),
        ("template import x /does/not/exist", "no such file"),
    ] {
        let output = cowslip(dir.path()).args(line.split(' ')).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{line}: {error}");
        assert!(
            error.starts_with("cowslip: ") && error.contains(reason),
            "{line}: {error}"
        );
    }
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a wrong line started an engine"
    );
}

#[test]
fn a_state_directory_that_cannot_be_used_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for state in [file.clone(), file.join("below")] {
        let output = cowslip(&state).arg("ls").output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{error}");
        assert!(
            error.starts_with("cowslip: ") && error.contains("directory"),
            "{error}"
        );
    }
}

#[test]
fn a_source_that_cannot_be_read_is_named() {
    use axum::body::Body;
    use axum::routing::post;

    // Takes the upload as an engine does, and answers when it has ended.
    let take = async |body: Body| {
        let _ = axum::body::to_bytes(body, usize::MAX).await;
        ""
    };
    let fake = Fake::new(Router::new().route("/v1/templates", post(take)));
    let printed = fake.run(&["template", "import", "x", "/proc/self/mem"]);
    assert_eq!(printed.code, 125);
    assert!(
        printed
            .err
            .starts_with("cowslip: read \"/proc/self/mem\": "),
        "{printed:?}"
    );
}
