//! What a sandbox's rules say of names, and of the addresses that names lead to.

use std::net::Ipv4Addr;

use cowslip_model::NetworkSpec;
use cowslip_model::network::{CLOSED, Destination, HostPattern, NetworkRule};
use hickory_proto::rr::Name;
use ipnet::{IpNet, Ipv4Net};

/// Which names a sandbox may ask for, and which addresses they may lead to.
#[derive(Debug)]
pub struct Policy {
    /// Names that are allowed, each with the index of its rule.
    allow: Vec<(usize, HostPattern)>,
    /// Whether there are allowing rules and none of them opens the whole internet, so that no other name is allowed.
    listed: bool,
    deny: Vec<HostPattern>,
    closed: Vec<Ipv4Net>,
    /// Parts of `closed` that a rule of their own opens.
    opened: Vec<Ipv4Net>,
}

/// What becomes of an address in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is given, and opened by the rules that allow the name.
    Opened,
    /// It is given; a rule of its own opens it, at that rule's port, and the name opens nothing more of it.
    Given,
    /// It is taken out.
    Taken,
}

impl Policy {
    /// The policy of a sandbox. `closed`: more networks that only a rule of their own opens, beside
    /// [`CLOSED`], as the sandboxes' own range.
    #[must_use]
    pub fn new(spec: &NetworkSpec, closed: &[Ipv4Net]) -> Self {
        let pattern = |rule: &NetworkRule| match &rule.to {
            Destination::Host(pattern) => Some(pattern.clone()),
            Destination::Net(_) => None,
        };
        // One who may reach every address learns nothing from a name, and tells nobody more than he could anyway.
        let opens_internet =
            |rule: &NetworkRule| matches!(rule.to, Destination::Net(net) if net.prefix_len() == 0);
        let closed: Vec<Ipv4Net> = CLOSED.iter().chain(closed).copied().collect();
        let names_closed = |rule: &NetworkRule| match rule.to {
            Destination::Net(net) if closed.iter().any(|closed| closed.contains(&net)) => Some(net),
            _ => None,
        };
        Self {
            allow: (0..)
                .zip(&spec.allow)
                .filter_map(|(index, rule)| Some((index, pattern(rule)?)))
                .collect(),
            listed: !spec.allow.is_empty() && !spec.allow.iter().any(opens_internet),
            deny: spec.deny.iter().filter_map(pattern).collect(),
            opened: spec.allow.iter().filter_map(names_closed).collect(),
            closed,
        }
    }

    /// The rules that allow a name, by their index; none: it may not be asked for. Without an allow-list every name
    /// that is not denied is allowed by no rule in particular.
    pub(crate) fn rules(&self, name: &str) -> Option<Vec<usize>> {
        if self.denies(name) {
            return None;
        }
        let matching = self.allow.iter();
        let rules: Vec<usize> = matching
            .filter(|(_, pattern)| pattern.matches(name))
            .map(|(index, _)| *index)
            .collect();
        (!self.listed || !rules.is_empty()).then_some(rules)
    }

    /// Whether a name is denied, whatever is allowed.
    pub(crate) fn denies(&self, name: &str) -> bool {
        self.deny.iter().any(|pattern| pattern.matches(name))
    }

    pub(crate) fn fate(&self, address: Ipv4Addr) -> Fate {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        match () {
            () if !within(&self.closed) => Fate::Opened,
            () if within(&self.opened) => Fate::Given,
            () => Fate::Taken,
        }
    }

    /// Whether a name stands for addresses (`4.3.2.1.in-addr.arpa`) that the host's name server may know and the guest
    /// shall not: closed ones, and those of IPv6.
    pub(crate) fn hides(&self, address: &Name) -> bool {
        let zone = address.trim_to(2).to_ascii().to_ascii_lowercase();
        if !matches!(zone.as_str(), "in-addr.arpa." | "ip6.arpa.") {
            return false;
        }
        let Ok(IpNet::V4(net)) = address.parse_arpa_name() else {
            return true;
        };
        let Self { closed, opened, .. } = self;
        let overlaps = |closed: &Ipv4Net| closed.contains(&net) || net.contains(closed);
        closed.iter().any(overlaps) && !opened.iter().any(|opened| opened.contains(&net))
    }
}

/// A name as rules have it: in lower case, without a dot at its end. None for one with bytes that no rule can have: a
/// label with a dot in it, written out, would look like two.
pub(crate) fn plain(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return None;
            }
            text.push(byte.to_ascii_lowercase().into());
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let words = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let spec = NetworkSpec {
            allow: words(allow),
            deny: words(deny),
            ..NetworkSpec::default()
        };
        Policy::new(&spec, &["44.0.0.0/8".parse().unwrap()])
    }

    #[test]
    fn a_name_is_allowed_by_all_rules_that_match_it() {
        let policy = policy(
            &["1.2.3.4", "*.example.org:80", "a.example.org", "b.example"],
            &["c.example.org", "*.b.example:443"],
        );
        for (name, rules) in [
            ("a.example.org", Some(vec![1, 2])),
            ("b.a.example.org", Some(vec![1])),
            ("b.example", Some(vec![3])),
            ("example.org", None),
            ("c.example.org", None),
            ("x.b.example", None),
            ("other.example", None),
            ("", None),
        ] {
            assert_eq!(policy.rules(name), rules, "{name}");
        }
    }

    #[test]
    fn without_an_allow_list_all_but_denied_names_are_allowed() {
        let policy = policy(&[], &["*.evil.example", "1.1.1.1"]);
        for name in ["evil.example", "example.org", ""] {
            assert_eq!(policy.rules(name), Some(Vec::new()), "{name}");
        }
        assert_eq!(policy.rules("www.evil.example"), None);
    }

    #[test]
    fn addresses_alone_in_an_allow_list_allow_no_name() {
        assert_eq!(policy(&["1.2.3.4"], &[]).rules("example.org"), None);
    }

    #[test]
    fn a_closed_address_is_given_only_by_a_rule_of_its_own() {
        let policy = policy(
            &["a.example", "10.1.0.0/16:80", "8.0.0.0/5", "44.1.1.1"],
            &[],
        );
        for (address, fate) in [
            ("1.1.1.1", Fate::Opened),
            ("8.8.8.8", Fate::Opened),
            ("10.1.2.3", Fate::Given),
            ("44.1.1.1", Fate::Given),
            ("10.2.0.1", Fate::Taken), // of 8.0.0.0/5, which is wider than what is closed
            ("44.1.1.2", Fate::Taken),
            ("127.0.0.1", Fate::Taken),
            ("169.254.169.254", Fate::Taken),
            ("0.0.0.0", Fate::Taken),
        ] {
            assert_eq!(policy.fate(address.parse().unwrap()), fate, "{address}");
        }
    }

    #[test]
    fn names_of_closed_addresses_are_hidden() {
        let policy = policy(&["10.1.0.0/16"], &[]);
        for (name, hidden) in [
            ("3.2.0.10.in-addr.arpa.", true),
            ("3.2.0.10.IN-ADDR.Arpa.", true),
            ("15.2.0.10.in-addr.arpa.", true),
            ("10.in-addr.arpa.", true),
            ("in-addr.arpa.", true),
            ("x.10.in-addr.arpa.", true),
            ("1.0.0.0.0.0.0.0.ip6.arpa.", true),
            ("3.2.1.10.in-addr.arpa.", false),
            ("1.10.in-addr.arpa.", false),
            ("8.8.8.8.in-addr.arpa.", false),
            ("10.in-addr.arpa.example.", false),
            ("arpa.", false),
            (".", false),
        ] {
            assert_eq!(policy.hides(&name.parse().unwrap()), hidden, "{name}");
        }
    }

    #[test]
    fn a_name_with_a_dot_in_a_label_is_not_what_it_looks_like() {
        let labels = |labels: &[&[u8]]| plain(&Name::from_labels(labels.to_vec()).unwrap());
        assert_eq!(
            labels(&[b"A", b"eXample", b"org"]),
            Some("a.example.org".into())
        );
        assert_eq!(labels(&[b"a.example", b"org"]), None);
        assert_eq!(labels(&[b"a\\.example", b"org"]), None);
        assert_eq!(labels(&[b"a\0", b"org"]), None);
        assert_eq!(labels(&[b"*", b"org"]), None);
        assert_eq!(plain(&Name::root()), Some(String::new()));
    }
}
