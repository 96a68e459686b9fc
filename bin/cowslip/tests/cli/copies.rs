use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use cowslip_model::api::ErrorCode;
use serde::Deserialize;

use crate::fake::{Fake, refusal};

#[derive(Deserialize)]
struct Where {
    path: String,
}

type Written = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A guest that has the directory `/srv` with a file in it, and keeps what is written.
fn guest() -> (Fake, Written) {
    let written = Written::default();
    let read = async |Query(place): Query<Where>| match place.path.as_str() {
        "/srv" => {
            let mut archive = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive
                .append_data(&mut header, "srv", std::io::empty())
                .unwrap();
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(4);
            archive
                .append_data(&mut header, "srv/file", &b"text"[..])
                .unwrap();
            archive.into_inner().unwrap().into_response()
        }
        _ => refusal(404, ErrorCode::NotFound, "no such path", None).into_response(),
    };
    let write = async |State(written): State<Written>, Query(place): Query<Where>, body: Bytes| {
        written.lock().unwrap().push((place.path, body.to_vec()));
        StatusCode::NO_CONTENT
    };
    let router = Router::new()
        .route("/v1/sandboxes/web/archive", get(read).put(write))
        .with_state(written.clone());
    (Fake::new(router), written)
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[test]
fn files_go_into_a_guest_and_come_out() {
    let (fake, written) = guest();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    std::fs::write(dir.path().join("tree/a"), "1").unwrap();

    for (from, to, place, entries) in [
        (path("tree"), "web:/srv", "/srv", vec!["tree", "tree/a"]),
        (path("tree/."), "web:/srv", "/srv", vec!["a"]),
        (path("tree/a"), "web:/srv", "/srv", vec!["a"]),
        (path("tree"), "web:/opt/new", "/opt", vec!["new", "new/a"]),
        (path("tree/a"), "web:/opt/b", "/opt", vec!["b"]),
    ] {
        let printed = fake.run(&["cp", &from, to]);
        assert_eq!((printed.code, printed.err.as_str()), (0, ""), "{from} {to}");
        let (found, archive) = written.lock().unwrap().pop().unwrap();
        let found_names: Vec<String> = names(&archive)
            .iter()
            .map(|name| name.trim_end_matches('/').to_owned())
            .collect();
        assert_eq!(
            (found.as_str(), found_names),
            (place, entries.iter().map(ToString::to_string).collect()),
            "{from} {to}"
        );
    }

    assert_eq!(fake.run(&["cp", "web:/srv", &path("out")]).code, 0);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("out/file")).unwrap(),
        "text"
    );
    let printed = fake.run(&["cp", "web:/nothing", &path("out")]);
    assert_eq!(
        (printed.code, printed.err.as_str()),
        (125, "cowslip: no such path\n")
    );
    assert_eq!(
        names(
            fake.command(&["cp", "web:/srv", "-"])
                .output()
                .unwrap()
                .stdout
                .as_slice()
        ),
        ["srv", "srv/file"]
    );
    assert_eq!(fake.run_with(&["cp", "-", "web:/srv"], b"as it is").code, 0);
    assert_eq!(
        written.lock().unwrap().pop().unwrap(),
        ("/srv".to_owned(), b"as it is".to_vec())
    );
}
