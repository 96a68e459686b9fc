//! Networks as people read them.

use std::fmt::Write as _;

use cowslip_model::NetworkMode;
use cowslip_model::api::NameCounts;
use cowslip_model::network::PublishedPort;

use crate::commands::network::{Connected, Ports};

/// How sandboxes are connected: a block each.
pub(crate) fn networks(all: &[Connected]) -> String {
    let blocks: Vec<String> = all.iter().map(network).collect();
    blocks.join("\n")
}

fn network(one: &Connected) -> String {
    let network = &one.network;
    let mut text = format!("{}: {}\n", one.name, network.mode);
    let mut line = |head: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {head:<9}{value}");
        }
    };
    if network.mode == NetworkMode::None {
        return text;
    }
    line(
        "address",
        network
            .address
            .map(|address| address.to_string())
            .unwrap_or_default(),
    );
    let open = match (network.mode, network.allow.is_empty()) {
        (NetworkMode::User, _) => "what this user's programs reach".to_owned(),
        (_, true) => "the internet".to_owned(),
        (_, false) => words(&network.allow),
    };
    line("open", open);
    line("closed", words(&network.deny));
    line("ports", words(&network.publish));
    let bandwidth = network
        .limits
        .bandwidth
        .map(|bytes| format!("{bytes} a second"));
    let packets = network
        .limits
        .packets
        .map(|packets| format!("{packets} packets a second"));
    line(
        "limits",
        bandwidth
            .into_iter()
            .chain(packets)
            .collect::<Vec<_>>()
            .join(", "),
    );
    line(
        "denied",
        network
            .denied_packets
            .map(|packets| format!("{packets} packets"))
            .unwrap_or_default(),
    );
    line(
        "limited",
        network
            .limited_packets
            .map(|packets| format!("{packets} packets"))
            .unwrap_or_default(),
    );
    line("names", network.names.map(questions).unwrap_or_default());
    text
}

/// What became of questions for names: all of them, and what is not as usual.
fn questions(counts: NameCounts) -> String {
    let unusual = [
        (counts.refused, "refused"),
        (counts.rebinding, "without a closed address"),
        (counts.failed, "without an answer of a server"),
        (counts.unopened, "whose address could not be opened"),
        (counts.dropped, "too many at once"),
    ];
    let unusual = unusual.iter().filter(|(count, _)| *count > 0);
    let unusual = unusual.map(|(count, what)| format!(", {count} {what}"));
    format!("{} asked{}", counts.asked, unusual.collect::<String>())
}

fn words<T: ToString>(all: &[T]) -> String {
    all.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Ports as `80/tcp -> 0.0.0.0:8080`; of several sandboxes each line begins with its name.
pub(crate) fn ports(all: &[Ports]) -> String {
    let several = all.len() > 1;
    let line = |one: &Ports, port: &PublishedPort| {
        let name = if several {
            format!("{}  ", one.name)
        } else {
            String::new()
        };
        let address = port
            .address
            .map_or_else(|| "0.0.0.0".to_owned(), |at| at.to_string());
        format!(
            "{name}{}/{} -> {address}:{}\n",
            port.guest, port.transport, port.host
        )
    };
    all.iter()
        .flat_map(|one| one.publish.iter().map(move |port| line(one, port)))
        .collect()
}
