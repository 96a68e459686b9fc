//! Networks of real guests beside other firewalls of the host, such as Docker's.

use cowslip_e2e::{End, HOST, Instance, Lab, SITE};
use cowslip_model::api::{Check, CheckStatus, DoctorReport};

use super::network::{host, lab, page};

/// A firewall that drops what is forwarded, and leads a port of the host elsewhere.
struct Other {
    /// Fails where the kernel or this machine has none such.
    needs: String,
    /// Makes it.
    rules: String,
    /// All of it, in its own words.
    list: String,
    /// What `doctor` calls it.
    name: &'static str,
}

/// Where its port leads.
const TO: u16 = 443;

/// What Docker 24 makes for a container with a published port, but that the port leads to the internet.
fn docker(program: &'static str, name: &'static str) -> Other {
    let rules = format!(
        "-P FORWARD DROP
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-USER
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
-t nat -N DOCKER
-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination {SITE}:{TO}"
    );
    let rules: Vec<String> = rules
        .lines()
        .map(|line| format!("{program} {line}"))
        .collect();
    Other {
        needs: format!("{program} -S"),
        rules: rules.join(" && "),
        list: format!("{program} -S; {program} -t nat -S"),
        name,
    }
}

fn nftables() -> Other {
    let rules = format!(
        "table inet filter {{
    chain forward {{ type filter hook forward priority filter; policy drop; iifname eth7 accept; }}
    chain input {{ type filter hook input priority filter; policy accept; counter; }}
}}
table ip translate {{
    chain prerouting {{ type nat hook prerouting priority dstnat; tcp dport 9000 dnat to {SITE}:{TO}; }}
    chain output {{ type nat hook output priority -100; ip daddr {HOST} tcp dport 9000 dnat to {SITE}:{TO}; }}
}}"
    );
    Other {
        needs: "nft list tables".to_owned(),
        rules: format!("echo '{rules}' | nft -f -"),
        list: "nft -s list table inet filter; nft -s list table ip translate".to_owned(),
        name: "inet filter forward of nftables",
    }
}

/// What a shell says in the host's place.
fn shell(lab: &Lab, script: &str) -> String {
    lab.command(End::Host, &["sh", "-c", script])
}

fn network_check(host: &Instance) -> Check {
    let report: DoctorReport = host.say("doctor").json();
    let mut checks = report.checks.into_iter();
    checks.find(|check| check.name == "network").unwrap()
}

fn live_together(other: &Other) {
    let Some(lab) = lab() else { return };
    // The test VM has no iptables, and newer kernels have no tables of iptables-legacy.
    if !shell(&lab, &format!("{} && echo there", other.needs)).ends_with("there\n") {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("SKIPPED: there is no {}", other.name);
        }
        return;
    }
    let made = shell(&lab, &format!("{} && echo made", other.rules));
    assert!(made.ends_with("made\n"), "{made}");
    let rules = || shell(&lab, &other.list);
    let everything = || shell(&lab, "nft -s list ruleset");
    let before = rules();
    let host = host(&lab, "");
    let serve = "echo page of one >/tmp/index.html; httpd -f -p 80 -h /tmp";
    let start = || {
        let _ = host
            .say("run -d --name one --publish 8080:80 box -- sh -c")
            .arg(serve)
            .ok();
        let up = "until wget -q -O /dev/null http://127.0.0.1/; do sleep 0.1; done";
        let _ = host.sh("one", up).ok();
    };
    start();
    assert_eq!(rules(), before, "a start changed them");
    // What is forwarded is for the other one to drop; what begins or ends on the host is not.
    assert_eq!(page(&host, "one", SITE), "");
    let published = |from| {
        lab.ask(from, HOST, 8080)
            .is_some_and(|text| text.contains("page of one"))
    };
    assert!(published(End::Host), "the host's own connections");
    let elsewhere = || lab.ask(End::Host, HOST, 9000);
    assert!(elsewhere().is_some_and(|text| text.contains(&format!("you are {HOST}"))));

    let check = network_check(&host);
    assert_eq!(check.status, CheckStatus::Warning);
    assert!(
        check.detail.ends_with(&format!("cow*: {}", other.name)),
        "{}",
        check.detail
    );
    let advice = check.mend.unwrap();
    let taken = shell(&lab, &format!("set -e; {advice}; echo taken"));
    assert!(taken.ends_with("taken\n"), "{advice}");
    assert_eq!(page(&host, "one", SITE), format!("you are {HOST}"));
    assert!(published(End::Host) && published(End::Site));
    assert_eq!(network_check(&host).status, CheckStatus::Ok);
    // A port of the host that another firewall leads elsewhere is as closed to guests as any.
    assert_eq!(page(&host, "one", format!("{HOST}:9000")), "");
    assert!(elsewhere().is_some());

    let (advised, all) = (rules(), everything());
    assert!(all.contains("cowslip-"));
    let _ = host.say("rm --force one").ok();
    let all_without = everything();
    assert!(!all_without.contains("cowslip-"), "{all_without}");
    start();
    assert_eq!(page(&host, "one", SITE), format!("you are {HOST}"));
    let _ = host.say("rm --force one").ok();
    assert_eq!(rules(), advised, "a start and an end changed them");
    assert_eq!(everything(), all_without);
}

#[test]
fn rules_of_iptables_nft_stay_as_they_are() {
    live_together(&docker("iptables-nft", "FORWARD of iptables-nft"));
}

#[test]
fn rules_of_iptables_legacy_stay_as_they_are() {
    live_together(&docker("iptables-legacy", "FORWARD of iptables-legacy"));
}

#[test]
fn rules_of_another_table_of_nftables_stay_as_they_are() {
    live_together(&nftables());
}
