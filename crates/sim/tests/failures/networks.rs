//! Networks: what holds for them after everything, and the verbs that change them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use cowslip_engine::EngineError;
use cowslip_host::{Netns, NetnsSpec};
use cowslip_ledger::{HandleRow, HandleState, Owner, Resource};
use cowslip_model::api::{CreateRequest, ErrorCode, ForkRequest, NetworkRules, StopRequest};
use cowslip_model::network::{Destination, NetworkSpec};
use cowslip_model::{SandboxId, SandboxState};
use cowslip_store::Backend;

use crate::armed::Armed;
use crate::bench::{Bench, Life, checkpoint_request, create_request};
use crate::matrix::{Verb, forks_or_none, one_is};

/// An IPv4 packet of TCP to 169.254.169.254:80.
const PACKET: [u8; 24] = [
    0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 169, 254, 169, 254, 1, 1, 0, 80,
];

/// A request for a sandbox with this network.
pub(crate) fn connected_request(name: &str, network: serde_json::Value) -> CreateRequest {
    CreateRequest {
        network: serde_json::from_value(network).unwrap(),
        ..create_request(name)
    }
}

/// A running sandbox with this network that has written a line and counted to one.
pub(crate) fn connected(
    bench: &Bench,
    life: &Life,
    name: &str,
    network: serde_json::Value,
) -> SandboxId {
    let request = connected_request(name, network);
    life.run(life.engine.create(request)).unwrap();
    let sandbox = life.run(life.engine.start(name)).unwrap();
    bench.setup.world.guest_write(sandbox.id, name).unwrap();
    bench.setup.world.guest_count(sandbox.id).unwrap();
    sandbox.id
}

/// The handles of networks.
pub(crate) fn rows(life: &Life) -> Vec<HandleRow> {
    let ledger = &life.engine.site().ledger;
    ledger.read(|tx| tx.handles_of_kind(Netns::KIND)).unwrap()
}

/// The network of a sandbox as it is recorded.
fn recorded(life: &Life, name: &str) -> NetworkSpec {
    let sandbox = life.engine.sandbox(name).unwrap();
    let ledger = &life.engine.site().ledger;
    let record = ledger.read(|tx| tx.sandbox(sandbox.id)).unwrap().unwrap();
    record.spec.network
}

/// What rules have of a sandbox's words, in their own words.
fn words_of(rules: &str) -> BTreeSet<String> {
    let word = |line: &str| {
        let mut words = line.split_whitespace();
        match (words.next()?, words.next()?, words.next()?) {
            ("ip", "daddr", net) if net.contains('/') => Some(net.to_owned()),
            ("set", name, _) if name.starts_with("name") => Some(name.to_owned()),
            ("iifname", "uplink", "ip") => Some(line.trim().to_owned()),
            ("iifname", "tap", "oifname") if line.contains("snat") => Some(line.trim().to_owned()),
            _ => None,
        }
    };
    rules.lines().filter_map(word).collect()
}

/// What they are to have for this network.
fn words_for(network: &NetworkSpec, address: &str) -> BTreeSet<String> {
    let nets = network.allow.iter().chain(&network.deny);
    let nets = nets.filter_map(|rule| match rule.to {
        Destination::Net(net) => Some(net.to_string()),
        Destination::Host(_) => None,
    });
    let named = |(index, rule): (usize, &cowslip_model::network::NetworkRule)| match rule.to {
        Destination::Net(_) => None,
        Destination::Host(_) => Some(format!("name{index}")),
    };
    let ports = network.publish.iter().map(|port| {
        let (transport, port) = (port.transport, port.guest);
        format!("iifname uplink ip daddr {address} {transport} dport {port} dnat ip to 10.0.2.15")
    });
    let source = format!("iifname tap oifname uplink snat ip to {address}");
    nets.chain(network.allow.iter().enumerate().filter_map(named))
        .chain(ports)
        .chain([source])
        .collect()
}

/// What must hold of networks whenever no verb is under way, spares being made or not.
///
/// covers R64 R65
pub(crate) fn check_networks(bench: &Bench, life: &Life, context: &str) {
    let world = &bench.setup.world;
    let rows = rows(life);
    let mut seen = BTreeSet::new();
    for row in &rows {
        let spec: NetnsSpec = row.spec::<Netns>().unwrap();
        let own = [
            spec.path.display().to_string(),
            format!("link {}", spec.link),
            spec.host.to_string(),
            spec.sandbox.to_string(),
        ];
        for what in own {
            assert!(
                seen.insert(what.clone()),
                "{context}: {what} is of two networks: {rows:#?}"
            );
        }
    }
    let ledger = &life.engine.site().ledger;
    let host_rules = world.host_rules().unwrap_or_default();
    for record in ledger.read(|tx| tx.sandboxes()).unwrap() {
        let owner = Owner::Machine(record.id);
        let network = &record.spec.network;
        let address = life.engine.sandbox(record.name.as_str()).unwrap();
        let Some(address) = address.network.address else {
            continue;
        };
        let row = rows.iter().find(|row| row.owner == owner);
        if let Some(row) = row {
            let spec = row.spec::<Netns>().unwrap();
            assert_eq!(spec.sandbox, address, "{context}: {}", record.name);
        }
        if record.state != SandboxState::Running {
            continue;
        }
        let row = row.unwrap_or_else(|| panic!("{context}: {} has no network", record.name));
        assert_eq!(row.state, HandleState::Held, "{context}");
        assert!(!record.network_pending, "{context}: {}", record.name);
        let path = row.spec::<Netns>().unwrap().path;
        let rules = world.network_rules(&path).unwrap_or_default();
        let expected = words_for(network, &address.to_string());
        assert_eq!(words_of(&rules), expected, "{context}: {}", record.name);
        assert!(!host_rules.is_empty(), "{context}: no rules of the host");
        for port in &network.publish {
            let mut leads = String::new();
            write!(leads, "{} : {address} . {}", port.host, port.guest).unwrap();
            assert!(
                host_rules.contains(&leads),
                "{context}: {port} leads elsewhere: {host_rules}"
            );
        }
    }
}

fn old_rules() -> serde_json::Value {
    serde_json::json!({ "allow": ["198.51.100.0/24"], "publish": ["8080:80"] })
}

fn new_rules() -> serde_json::Value {
    serde_json::json!({
        "allow": ["203.0.113.1", "example.org"], "deny": ["198.51.100.7"], "publish": ["9090:90"],
    })
}

fn rules(value: serde_json::Value) -> NetworkRules {
    serde_json::from_value(value).unwrap()
}

/// All of the old rules or all of the new ones, and of the ports those that go with them.
fn one_set_of_rules(bench: &Bench, life: &Life, done: bool, context: &str) {
    let one = life.engine.sandbox("one").unwrap();
    let guest = bench.setup.world.guest(one.id);
    assert!(
        guest.is_some_and(|guest| guest.counter == 1),
        "{context}: it was started anew"
    );
    one_is(bench, life, &[SandboxState::Running], context);
    let network = recorded(life, "one");
    let (old, new) = (
        rules(old_rules()).over(&network),
        rules(new_rules()).over(&network),
    );
    assert!(
        network == new || network == old && !done,
        "{context}: {network:?}"
    );
    let (kept, free) = match network == new {
        true => ("9090:1", "8080:1"),
        false => ("8080:1", "9090:1"),
    };
    let request = |port| connected_request("other", serde_json::json!({ "publish": [port] }));
    let taken = life.run(life.engine.create(request(kept))).unwrap_err();
    assert!(is_taken(&taken, "one"), "{context}: {taken}");
    life.run(life.engine.create(request(free))).unwrap();
    life.run(life.engine.start("other")).unwrap();
}

/// Whether a port was refused because this sandbox has it.
pub(crate) fn is_taken(error: &EngineError, by: &str) -> bool {
    let names = error.to_string().contains(&format!("sandbox \"{by}\""));
    matches!(error, EngineError::PortTaken { .. }) && error.code() == ErrorCode::Conflict && names
}

/// The verbs of networks.
pub(crate) fn verbs() -> Vec<Verb> {
    use SandboxState::{Failed, Running, Stopped};
    vec![
        Verb {
            name: "network set",
            prepare: |bench, life| {
                connected(bench, life, "one", old_rules());
            },
            act: |life| {
                let rules = rules(new_rules());
                life.run(life.engine.set_network("one", rules)).map(drop)
            },
            expect: one_set_of_rules,
        },
        Verb {
            name: "start with a published port and a name",
            prepare: |bench, life| {
                connected(bench, life, "one", new_rules());
                let stop = life.engine.stop("one", StopRequest::default());
                life.run(stop).unwrap();
            },
            act: |life| life.run(life.engine.start("one")).map(drop),
            expect: |bench, life, _, context| {
                one_is(bench, life, &[Running, Stopped, Failed], context);
            },
        },
        Verb {
            name: "fork under other rules",
            prepare: |bench, life| {
                let one = connected(bench, life, "one", old_rules());
                let request = checkpoint_request("one", "point");
                life.run(life.engine.create_checkpoint(request)).unwrap();
                bench.setup.world.guest_write(one, "after").unwrap();
            },
            act: |life| {
                let request: ForkRequest = serde_json::from_value(serde_json::json!({
                    "count": 2, "name": "fork", "network": { "allow": ["example.org"] },
                }))
                .unwrap();
                life.run(life.engine.fork("point", request)).map(drop)
            },
            expect: |bench, life, done, context| {
                for name in ["fork-1", "fork-2"] {
                    if life.engine.sandbox(name).is_ok() {
                        let network = recorded(life, name);
                        let expected = serde_json::json!({ "allow": ["example.org"] });
                        assert_eq!(network, rules(expected).over(&network), "{context}");
                    }
                }
                forks_or_none(bench, life, done, context);
            },
        },
    ]
}

/// What `network set` could neither end nor take back is ended by `gc`, or by the next start.
#[test]
fn a_change_of_rules_that_was_left_is_ended() {
    for by_gc in [true, false] {
        let bench = Bench::new(Backend::Qcow2);
        let armed = Arc::new(Armed::default());
        let life = bench.engine(Some(armed.clone()));
        let one = connected(&bench, &life, "one", old_rules());
        // The new rules, and the old ones again.
        armed.at_steps("host: reload rules", 2);
        let set = life.engine.set_network("one", rules(new_rules()));
        life.run(set).unwrap_err();
        let ledger = &life.engine.site().ledger;
        let left = ledger.read(|tx| tx.sandbox(one)).unwrap().unwrap();
        assert!(left.network_pending, "the faults missed");
        if by_gc {
            let report = life.run(life.engine.gc(false)).unwrap();
            assert_eq!((report.released.len(), report.left), (1, Vec::new()));
        } else {
            let stop = life.engine.stop("one", StopRequest::default());
            life.run(stop).unwrap();
            life.run(life.engine.start("one")).unwrap();
        }
        check_networks(&bench, &life, "ended");
        bench.clean_up(&life, "ended");
    }
}

/// A packet that is denied to a machine is told.
pub(crate) fn is_told(bench: &Bench, life: &Life, id: SandboxId) {
    let owner = Owner::Machine(id);
    let row = rows(life).into_iter().find(|row| row.owner == owner);
    let path = row.unwrap().spec::<Netns>().unwrap().path;
    let mut events = life.engine.subscribe();
    bench.setup.world.deny(&path, &PACKET);
    let next = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.kind == "sandbox.denied" {
                return event;
            }
        }
    };
    let bounded = async { tokio::time::timeout(Duration::from_secs(30), next).await };
    let event = life.run(bounded).unwrap();
    assert_eq!(event.detail["port"], 80);
}

/// The first packet that is denied is told under the old rules and under the new ones.
#[test]
fn what_other_rules_deny_is_told_too() {
    let bench = Bench::new(Backend::Qcow2);
    let life = bench.engine(None);
    let one = connected(&bench, &life, "one", old_rules());
    for told in [false, true, true] {
        if told {
            is_told(&bench, &life, one);
        }
        let set = life.engine.set_network("one", rules(new_rules()));
        life.run(set).unwrap();
    }
    bench.clean_up(&life, "told");
}
