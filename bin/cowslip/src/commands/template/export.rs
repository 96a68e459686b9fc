//! `template export`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path as FilePath, PathBuf};

use clap::Args;

use super::{COLLECTION, Context};
use crate::client::{Octets, Path};
use crate::exit::Failure;

/// Write a template to a file: a tar of its root file system, or a container image.
#[derive(Debug, Args)]
#[command(after_help = "\
A file appears whole or not at all. An image has one layer, and says what run's defaults are; podman, skopeo and
docker load it. Sockets are left out.")]
pub(crate) struct Export {
    /// Name or id of the template
    #[arg(value_name = "TEMPLATE")]
    template: String,
    /// FILE.tar, oci-archive:FILE[:TAG] for a container image, or - for a tar on standard output
    #[arg(value_name = "DESTINATION", value_parser = parse)]
    to: Destination,
}

/// Where it goes, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Destination {
    /// None: standard output.
    file: Option<PathBuf>,
    /// Of a container image.
    image: Option<Option<String>>,
}

fn parse(text: &str) -> Result<Destination, String> {
    let file = |path: &str| (path != "-").then(|| PathBuf::from(path));
    let Some(rest) = text.strip_prefix("oci-archive:") else {
        return Ok(Destination {
            file: file(text),
            image: None,
        });
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (rest, None),
    };
    match path {
        "" => Err("a file is to be named behind the colon".to_owned()),
        path => Ok(Destination {
            file: file(path),
            image: Some(tag),
        }),
    }
}

impl Export {
    pub(super) async fn run(self, context: &Context) -> Result<u8, Failure> {
        let mut route = Path::to(COLLECTION)
            .segment(&self.template)
            .segment("export");
        if let Some(tag) = &self.to.image {
            route = route.query("format", "oci-archive");
            if let Some(tag) = tag {
                route = route.query("tag", tag);
            }
        }
        match &self.to.file {
            None if io::stdout().is_terminal() => {
                Err(Failure::usage("an archive is not written to a terminal")
                    .hint("name a file, or pipe it: cowslip template export TEMPLATE - | …"))
            }
            None => {
                let bytes = context.client.octets(route).await?;
                let to = "standard output";
                copy(bytes, io::stdout(), to).await.map(|_| 0)
            }
            Some(path) => {
                let bytes = context.client.octets(route).await?;
                let length = into_file(bytes, path).await?;
                context.output.note(&format!(
                    "template \"{}\" in \"{}\": {}",
                    self.template,
                    path.display(),
                    cowslip_model::ByteSize(length)
                ));
                Ok(0)
            }
        }
    }
}

/// Writes beside the file first: whoever sees it sees all of it.
async fn into_file(bytes: Octets, path: &FilePath) -> Result<u64, Failure> {
    let what = format!("\"{}\"", path.display());
    let failed = |error| Failure::io(format!("write {what}"), &error);
    if path.exists() && !path.is_file() {
        // A pipe or a device takes the bytes as they come.
        let file = File::options().write(true).open(path).map_err(failed)?;
        return copy(bytes, file, &what).await;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = async {
        let file = File::create_new(&beside).map_err(failed)?;
        let length = copy(bytes, &file, &what).await?;
        file.sync_all().map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)?;
        Ok(length)
    };
    let written: Result<u64, Failure> = written.await;
    if written.is_err() {
        // It may not have been made.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

async fn copy(mut bytes: Octets, mut to: impl Write, what: &str) -> Result<u64, Failure> {
    let failed = |error| Failure::io(format!("write {what}"), &error);
    let mut length = 0;
    while let Some(piece) = bytes.next().await? {
        to.write_all(&piece).map_err(failed)?;
        length += piece.len() as u64;
    }
    to.flush().map_err(failed)?;
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_file_or_an_image_in_one() {
        let to = |file: Option<&str>, image: Option<Option<&str>>| {
            Ok(Destination {
                file: file.map(PathBuf::from),
                image: image.map(|tag| tag.map(str::to_owned)),
            })
        };
        assert_eq!(parse("a.tar"), to(Some("a.tar"), None));
        assert_eq!(parse("-"), to(None, None));
        assert_eq!(parse("oci-archive:a.tar"), to(Some("a.tar"), Some(None)));
        assert_eq!(
            parse("oci-archive:a.tar:v1"),
            to(Some("a.tar"), Some(Some("v1")))
        );
        assert_eq!(parse("oci-archive:-"), to(None, Some(None)));
        assert!(parse("oci-archive:").is_err() && parse("oci-archive::v1").is_err());
    }
}
