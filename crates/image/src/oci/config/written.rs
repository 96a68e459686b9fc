//! The config as a document, for images that are made here.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ImageConfig;
use crate::oci::BlobDigest;

/// The document, as it is written: fields in this order, so that the same config gives the same bytes.
#[derive(Serialize)]
struct Written<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    config: WrittenExecution<'a>,
    rootfs: WrittenRootFs<'a>,
}

#[derive(Serialize)]
struct WrittenRootFs<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    diff_ids: &'a [BlobDigest],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WrittenExecution<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    exposed_ports: BTreeMap<&'a str, Nothing>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    env: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    entrypoint: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    cmd: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<&'a str>,
}

/// `{}`, which is all that images say of a port.
#[derive(Serialize)]
struct Nothing {}

impl ImageConfig {
    /// The document of an image with these layers, the lowest first, as
    /// `application/vnd.oci.image.config.v1+json`. It has no time, and the same config gives the same
    /// bytes. Reading it gives the same config again, if that is one which can be used.
    #[must_use]
    pub fn to_document(&self, diff_ids: &[BlobDigest]) -> Vec<u8> {
        fn given(text: &Option<String>) -> Option<&str> {
            text.as_deref().filter(|text| !text.is_empty())
        }
        let ports = self.exposed_ports.iter();
        let document = Written {
            architecture: self.platform.architecture(),
            os: self.platform.os(),
            variant: self.platform.variant(),
            config: WrittenExecution {
                user: given(&self.user),
                exposed_ports: ports.map(|port| (port.as_str(), Nothing {})).collect(),
                env: &self.env,
                entrypoint: &self.entrypoint,
                cmd: &self.cmd,
                working_dir: given(&self.working_dir),
                labels: &self.labels,
                stop_signal: given(&self.stop_signal),
            },
            rootfs: WrittenRootFs {
                kind: "layers",
                diff_ids,
            },
        };
        // Texts and maps of texts: there is nothing in it that JSON cannot have.
        serde_json::to_vec(&document).unwrap_or_default()
    }
}
