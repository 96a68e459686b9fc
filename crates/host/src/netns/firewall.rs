//! Other firewalls of this host: those that drop what is passed on from one interface to another. A packet goes through
//! all of them, whatever ours lets pass. They are looked at, and never changed.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{legacy, rules};
use crate::error::HostError;

/// The chain that Docker asks before its own rules, and leaves to the host's owner.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// A chain of another firewall that drops what none of its rules lets pass from one interface to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppingChain {
    /// Whose.
    pub firewall: Firewall,
    /// Its name.
    pub name: String,
    /// The chain that rules of the host's owner are for: one that is asked first, or the same.
    pub own_rules: String,
}

/// What a chain is of, and so in which words it is given rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firewall {
    /// Tables of iptables-legacy(8).
    IptablesLegacy,
    /// The table "filter" of nftables as iptables-nft(8) has it.
    IptablesNft,
    /// Any other table of nftables.
    Nft {
        /// The table's family.
        family: String,
        /// Its name.
        table: String,
    },
}

/// Whether the pattern of a rule, with a `*` at its end, stands for all links with names that begin like this.
pub(super) fn covers(pattern: &str, links: &str) -> bool {
    let head = pattern.strip_suffix('*');
    head.is_some_and(|head| links.starts_with(head))
}

/// Chains of this thread's namespace that drop what is forwarded and have no rules that let links pass, both ways, whose
/// names begin with `links`.
pub(crate) fn forwarding_is_dropped(links: &str) -> Result<Vec<DroppingChain>, HostError> {
    let mut chains = of_nft(&listed()?, links);
    let legacy = legacy::filter().map_err(|source| HostError::Rules { source })?;
    chains.extend(legacy.and_then(|filter| filter.dropping(links)));
    Ok(chains)
}

/// Everything in nftables but the elements of sets.
fn listed() -> Result<Value, HostError> {
    let path = rules::nft().ok_or(HostError::NoNft)?;
    let failed = |source| HostError::Rules { source };
    let output = Command::new(path)
        .args(["-j", "-t", "list", "ruleset"])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().next().unwrap_or("nft said nothing").to_owned();
        return Err(failed(std::io::Error::other(line)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.into()))
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// The chains of a listing in JSON. Guests speak IPv4, and no packet of theirs crosses a bridge of the host.
fn of_nft(listed: &Value, links: &str) -> Vec<DroppingChain> {
    let objects = listed["nftables"].as_array().map(Vec::as_slice);
    let objects = objects.unwrap_or_default();
    let drops = |chain: &&Value| {
        matches!(word(chain, "family"), "ip" | "inet")
            && word(chain, "hook") == "forward"
            && word(chain, "policy") == "drop"
    };
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    chains
        .filter(drops)
        .filter_map(|chain| {
            let [family, table, name] = ["family", "table", "name"].map(|key| word(chain, key));
            let rules = |chain: &str| {
                let rules = objects.iter().filter_map(|object| object.get("rule"));
                rules
                    .filter(|rule| {
                        [word(rule, "family"), word(rule, "table")] == [family, table]
                            && word(rule, "chain") == chain
                    })
                    .filter_map(|rule| rule["expr"].as_array())
                    .collect::<Vec<_>>()
            };
            let own = rules(name);
            let own_rules = match own.iter().any(|rule| jumps(rule, DOCKER_USER)) {
                true => DOCKER_USER,
                false => name,
            };
            let asked = [own, rules(own_rules)].concat();
            let passes = |way| asked.iter().any(|rule| lets_pass(rule, way, links));
            (!passes("iifname") || !passes("oifname")).then(|| DroppingChain {
                firewall: match (family, table, name) {
                    ("ip", "filter", "FORWARD") => Firewall::IptablesNft,
                    _ => Firewall::Nft {
                        family: family.to_owned(),
                        table: table.to_owned(),
                    },
                },
                name: name.to_owned(),
                own_rules: own_rules.to_owned(),
            })
        })
        .collect()
}

/// Whether a rule sends whatever comes to a chain.
fn jumps(rule: &[Value], to: &str) -> bool {
    let mut rest = rule.iter().filter(|part| part.get("counter").is_none());
    let first = rest.next();
    first.is_some_and(|part| part["jump"]["target"].as_str() == Some(to))
}

/// Whether a rule lets all links pass whose names begin like this, and asks nothing more, or nothing at all.
fn lets_pass(rule: &[Value], way: &str, links: &str) -> bool {
    let is_way = |part: &Value| {
        let found = &part["match"];
        word(found, "op") == "=="
            && word(&found["left"]["meta"], "key") == way
            && covers(word(found, "right"), links)
    };
    let rest: Vec<&Value> = rule
        .iter()
        .filter(|part| part.get("counter").is_none())
        .collect();
    let accepts = |verdict: &Value| verdict.get("accept").is_some();
    match rest[..] {
        [verdict] => accepts(verdict),
        [asked, verdict] => is_way(asked) && accepts(verdict),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LINKS: &str = "cow012345.";

    fn chain(family: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": "filter", "name": name, "hook": hook, "policy": policy}})
    }

    fn rule(chain: &str, expressions: Value) -> Value {
        json!({"rule": {"family": "ip", "table": "filter", "chain": chain, "expr": expressions}})
    }

    fn accepts(chain: &str, way: &str, pattern: &str) -> Value {
        let asked =
            json!({"match": {"op": "==", "left": {"meta": {"key": way}}, "right": pattern}});
        let counter = json!({"counter": {"packets": 1, "bytes": 2}});
        rule(chain, json!([asked, counter, {"accept": null}]))
    }

    fn found(objects: &[Value]) -> Vec<DroppingChain> {
        of_nft(&json!({ "nftables": objects }), LINKS)
    }

    #[test]
    fn a_firewall_that_drops_what_is_forwarded_is_found() {
        let all = [
            json!({"metainfo": {"version": "1.0.6"}}),
            chain("ip", "FORWARD", "forward", "drop"),
            chain("ip", "INPUT", "input", "drop"),
            chain("ip6", "FORWARD", "forward", "drop"),
            chain("bridge", "FORWARD", "forward", "drop"),
            chain("inet", "other", "forward", "drop"),
            chain("inet", "forward", "forward", "accept"),
            json!({"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}}),
        ];
        let found = found(&all);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["FORWARD", "other"]);
        assert_eq!(found[0].firewall, Firewall::IptablesNft);
        let other = Firewall::Nft {
            family: "inet".to_owned(),
            table: "filter".to_owned(),
        };
        assert_eq!(found[1].firewall, other);
        assert_eq!(of_nft(&Value::Null, LINKS), []);
    }

    #[test]
    fn one_that_lets_our_links_pass_both_ways_is_not() {
        let forward = chain("ip", "FORWARD", "forward", "drop");
        let jump = rule(
            "FORWARD",
            json!([{"counter": {}}, {"jump": {"target": "DOCKER-USER"}}]),
        );
        let with = |rules: &[Value]| found(&[std::slice::from_ref(&forward), rules].concat());
        let both = |chain, pattern| ["iifname", "oifname"].map(|way| accepts(chain, way, pattern));
        assert_eq!(with(&both("FORWARD", "cow*")), []);
        assert_eq!(with(&both("FORWARD", "cow012345.*")), []);
        let whatever = rule("FORWARD", json!([{"counter": {}}, {"accept": null}]));
        assert_eq!(with(&[whatever]), []);
        assert_eq!(with(&both("FORWARD", "cow1*"))[0].own_rules, "FORWARD");
        assert_eq!(with(&both("FORWARD", "cow")).len(), 1);
        assert_eq!(with(&both("FORWARD", "cow*")[..1]).len(), 1, "one way");
        // Rules that nobody is sent to let nothing pass.
        let own = both(DOCKER_USER, "cow*");
        assert_eq!(with(&own).len(), 1);
        assert_eq!(with(std::slice::from_ref(&jump))[0].own_rules, DOCKER_USER);
        assert_eq!(with(&[&[jump], &own[..]].concat()), []);
        let asks_more = both("FORWARD", "cow*").map(|mut rule| {
            let asked = json!({"match": {"op": "==", "left": {"payload": {}}, "right": 1}});
            let expressions = rule["rule"]["expr"].as_array_mut().unwrap();
            expressions.insert(0, asked);
            rule
        });
        assert_eq!(with(&asks_more).len(), 1);
    }
}
