//! `doctor`'s look at networks.

use cowslip_model::NetworkMode;
use cowslip_model::api::{Check, CheckStatus};

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
        match self.site.host.forwarding_is_dropped() {
            Ok(chains) if chains.is_empty() => judge(CheckStatus::Ok, detail, None),
            Ok(chains) => judge(
                CheckStatus::Warning,
                format!(
                    "{detail}; another firewall drops what is forwarded, unless it lets links named cow* pass: {}",
                    chains.join(", ")
                ),
                Some(
                    "iptables -I DOCKER-USER -i cow+ -j ACCEPT; iptables -I DOCKER-USER -o cow+ -j ACCEPT",
                ),
            ),
            Err(error) => judge(CheckStatus::Warning, chain(&error).join(": "), None),
        }
    }
}
