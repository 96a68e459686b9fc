//! Simulated networks refuse what real ones do.

use std::net::Ipv4Addr;
use std::time::Duration;

use cowslip_host::{Element, HostError, Netns, NetnsSpec, TableSocket, TapSpec};
use cowslip_ledger::Owner;
use cowslip_ledger::fault::Injector;
use cowslip_ledger::plan::Presence;
use cowslip_model::SandboxId;

use crate::rig::Rig;

const RULES: &str = "table inet t {\n\tcounter denied { }\n\tset name0 {\n\t}\n}\n";
/// An IPv4 packet of TCP to 169.254.169.254:80.
const PACKET: [u8; 24] = [
    0x45, 0, 0, 24, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 169, 254, 169, 254, 1, 1, 0, 80,
];

fn spec(rig: &Rig) -> NetnsSpec {
    let nowhere = Ipv4Addr::UNSPECIFIED;
    NetnsSpec {
        path: rig.layout.networks().join("n"),
        link: "l".to_owned(),
        mark: "m".to_owned(),
        host: nowhere,
        sandbox: nowhere,
        uplink: "uplink".to_owned(),
        tap: TapSpec {
            name: "tap".to_owned(),
            addresses: Vec::new(),
            prefix: 24,
            mac: [0; 6],
            guest: nowhere,
            guest_mac: [0; 6],
            owner: None,
        },
    }
}

#[tokio::test]
async fn a_network_has_what_its_rules_have_and_tells_what_they_deny() {
    let rig = Rig::new().unwrap();
    let site = rig.site(Injector::default()).unwrap();
    let (host, spec) = (&site.host, spec(&rig));
    let element = |set: &str| Element {
        set: set.to_owned(),
        address: Ipv4Addr::LOCALHOST,
        lasts: Duration::from_secs(9),
        fresh: true,
    };
    let absent = |refused: Result<(), HostError>| {
        assert!(
            matches!(refused, Err(HostError::Path { .. })),
            "{refused:?}"
        );
    };
    let open = |elements: &[Element]| {
        host.open_addresses(&spec, "t", elements, &mut TableSocket::default())
    };
    absent(open(&[]));
    absent(host.shape_netns(&spec, None));
    absent(host.reload_netns(&spec, RULES));
    absent(host.denied_log(&spec, 1).map(drop));

    let owner = Owner::Machine(SandboxId::from_bits(1));
    let slot = site.ledger.reserve::<Netns>(owner, spec.clone(), &[]);
    let id = host.make_netns(slot.unwrap(), "").unwrap().settle();
    let row = site.ledger.read(|tx| tx.handle(id)).unwrap().unwrap();
    absent(host.count(&spec, "t", "denied").map(drop));
    host.reload_netns(&spec, RULES).unwrap();
    assert_eq!(host.probe(&row).unwrap(), Presence::Present);
    assert_eq!(host.count(&spec, "t", "denied").unwrap().packets, 0);
    absent(host.count(&spec, "other", "denied").map(drop));
    open(&[element("name0")]).unwrap();
    absent(open(&[element("name0"), element("name1")]));
    host.shape_netns(&spec, Some(1 << 20)).unwrap();

    let mut log = host.denied_log(&spec, 1).unwrap();
    absent(host.denied_log(&spec, 1).map(drop));
    rig.world.deny(&spec.path, &PACKET);
    assert_eq!(log.next().await.unwrap().port, Some(80));
    drop(log);
    let mut log = host.denied_log(&spec, 1).unwrap();
    host.release(&row).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(30), log.next());
    assert!(end.await.unwrap().is_err());
}
