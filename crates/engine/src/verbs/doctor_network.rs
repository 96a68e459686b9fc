//! `doctor`'s look at networks.

use cowslip_host::{DroppingChain, Firewall};
use cowslip_model::NetworkMode;
use cowslip_model::api::{Check, CheckStatus};
use cowslip_network::{HostRules, LINKS};

use super::doctor::check;
use crate::Engine;
use crate::error::chain;

impl Engine {
    pub(super) fn check_networks(&self) -> Check {
        let usual = self.usual_network();
        let judge =
            |status, detail: String, mend: Option<&str>| check("network", status, detail, mend);
        if let Some(why) = self.site.host.lacks_networks() {
            let detail = format!("sandboxes that ask for nothing have \"{usual}\": {why}");
            let status = match usual {
                NetworkMode::Nat => CheckStatus::Failed,
                NetworkMode::User | NetworkMode::None => CheckStatus::Ok,
            };
            return judge(
                status,
                detail,
                Some("run the engine as root; apt-get install nftables"),
            );
        }
        let detail = format!(
            "\"{usual}\", with addresses of {}",
            self.config.network.range
        );
        if !self.config.network.set_forwarding
            && self.site.host.set_forwarding(false).unwrap_or(true)
        {
            let detail = format!("{detail}; this host passes no packets on");
            return judge(
                CheckStatus::Warning,
                detail,
                Some("sysctl net.ipv4.ip_forward=1"),
            );
        }
        let links = HostRules::link_prefix(self.site.ledger.instance());
        match self.site.host.forwarding_is_dropped(&links) {
            Ok(chains) if chains.is_empty() => judge(CheckStatus::Ok, detail, None),
            Ok(chains) => {
                let names: Vec<String> = chains.iter().map(name).collect();
                let rules: Vec<String> = chains.iter().map(let_pass).collect();
                judge(
                    CheckStatus::Warning,
                    format!(
                        "{detail}; another firewall drops what is forwarded, and has no rule for links named {LINKS}*: {}",
                        names.join(", ")
                    ),
                    Some(&rules.join("; ")),
                )
            }
            Err(error) => judge(CheckStatus::Warning, chain(&error).join(": "), None),
        }
    }
}

/// A chain in the words of its firewall's commands.
fn name(chain: &DroppingChain) -> String {
    match &chain.firewall {
        Firewall::IptablesLegacy => format!("{} of iptables-legacy", chain.name),
        Firewall::IptablesNft => format!("{} of iptables-nft", chain.name),
        Firewall::Nft { family, table } => format!("{family} {table} {} of nftables", chain.name),
    }
}

/// The commands that have a chain let sandboxes' links pass. What may pass on them is for our rules to say.
fn let_pass(chain: &DroppingChain) -> String {
    let DroppingChain { own_rules, .. } = chain;
    let iptables = |program: &str| {
        ["-i", "-o"]
            .map(|way| format!("{program} -I {own_rules} {way} {LINKS}+ -j ACCEPT"))
            .join("; ")
    };
    match &chain.firewall {
        Firewall::IptablesLegacy => iptables("iptables-legacy"),
        Firewall::IptablesNft => iptables("iptables-nft"),
        Firewall::Nft { family, table } => ["iifname", "oifname"]
            .map(|way| {
                format!("nft insert rule {family} {table} {own_rules} {way} '{LINKS}*' accept")
            })
            .join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_firewall_is_given_rules_in_its_own_words() {
        let of = |firewall, own_rules: &str| {
            let_pass(&DroppingChain {
                firewall,
                name: "FORWARD".to_owned(),
                own_rules: own_rules.to_owned(),
            })
        };
        assert_eq!(
            of(Firewall::IptablesLegacy, "DOCKER-USER"),
            "iptables-legacy -I DOCKER-USER -i cow+ -j ACCEPT; iptables-legacy -I DOCKER-USER -o cow+ -j ACCEPT"
        );
        assert!(of(Firewall::IptablesNft, "FORWARD").starts_with("iptables-nft -I FORWARD -i"));
        let nft = Firewall::Nft {
            family: "inet".to_owned(),
            table: "filter".to_owned(),
        };
        assert_eq!(
            of(nft, "forward"),
            "nft insert rule inet filter forward iifname 'cow*' accept; \
             nft insert rule inet filter forward oifname 'cow*' accept"
        );
    }
}
