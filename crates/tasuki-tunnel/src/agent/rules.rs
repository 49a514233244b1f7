//! The home host's own rules: whom their endpoints are open to, whatever the gateway allows.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tasuki_core::net::{single, unmapped};

/// The longest name of a player, in characters.
const MAX_NAME: usize = 16;

/// An address, a network, or a player by the name that the client claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Who {
    /// All visitors from there.
    Net(IpNet),
    /// Whoever joins a Minecraft server under this name, in any case of letters.
    Player(String),
}

/// The text names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address, no network and no player's name (1 to 16 characters without spaces)")]
pub struct NotAnybody(String);

impl FromStr for Who {
    type Err = NotAnybody;

    fn from_str(text: &str) -> Result<Self, NotAnybody> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Net(single(ip)));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net.trunc()));
        }
        let is_name = (1..=MAX_NAME).contains(&text.chars().count())
            && !text
                .chars()
                .any(|c| c.is_whitespace() || c.is_control() || "/:".contains(c));
        if is_name {
            Ok(Self::Player(text.to_owned()))
        } else {
            Err(NotAnybody(text.to_owned()))
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Player(name) => name.fmt(f),
        }
    }
}

impl From<Who> for String {
    fn from(who: Who) -> Self {
        who.to_string()
    }
}

impl TryFrom<String> for Who {
    type Error = NotAnybody;

    fn try_from(text: String) -> Result<Self, NotAnybody> {
        text.parse()
    }
}

impl Who {
    /// Whether this visitor is meant.
    #[must_use]
    pub fn is(&self, from: IpAddr, player: Option<&str>) -> bool {
        match self {
            Self::Net(net) => net.contains(&unmapped(from)),
            Self::Player(name) => player.is_some_and(|player| player.to_lowercase() == name.to_lowercase()),
        }
    }
}

/// Who is kept out, and who alone may come if there is such a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Kept out, whatever else is said.
    pub banned: Vec<Who>,
    /// With addresses in it, only they may visit; with names in it, only they may join a Minecraft server. One of both is
    /// enough.
    pub allowed: Vec<Who>,
}

impl Rules {
    /// The one decision about visitors at home. `player` is set only for somebody who joins a Minecraft server; a look at
    /// the server list has no name.
    #[must_use]
    pub fn allow(&self, from: IpAddr, player: Option<&str>) -> bool {
        if self.banned.iter().any(|who| who.is(from, player)) {
            return false;
        }
        let concerns = |who: &Who| match who {
            Who::Net(_) => true,
            Who::Player(_) => player.is_some(),
        };
        let mut list = self.allowed.iter().filter(|who| concerns(who)).peekable();
        list.peek().is_none() || list.any(|who| who.is(from, player))
    }
}

#[cfg(test)]
mod tests {
    use super::{Rules, Who};

    fn who(text: &str) -> Who {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_networks_and_names_are_told_apart() {
        assert_eq!(who("192.0.2.7").to_string(), "192.0.2.7/32");
        assert_eq!(who("2001:db8::7").to_string(), "2001:db8::/64");
        assert_eq!(who("192.0.2.7/24").to_string(), "192.0.2.0/24");
        assert_eq!(who("Hanako_1"), Who::Player("Hanako_1".into()));
        for nobody in ["", "two words", "192.0.2.0/33", "seventeen_letters", "a\nb"] {
            assert!(nobody.parse::<Who>().is_err(), "{nobody:?}");
        }
    }

    #[test]
    fn bans_come_first_and_an_allow_list_keeps_all_others_out() {
        let (home, away) = ("192.0.2.7".parse().unwrap(), "198.51.100.1".parse().unwrap());
        let mut rules = Rules::default();
        assert!(rules.allow(away, Some("Taro")) && rules.allow(away, None));
        rules.banned = vec![who("taro"), who("198.51.100.0/24")];
        assert!(!rules.allow(home, Some("Taro")), "in any case of letters");
        assert!(!rules.allow(away, Some("Hanako")) && rules.allow(home, None));
        rules.banned.clear();
        rules.allowed = vec![who("Hanako")];
        assert!(rules.allow(away, Some("hanako")) && !rules.allow(away, Some("Taro")));
        assert!(rules.allow(away, None), "names say nothing about who has none");
        rules.allowed.push(who("192.0.2.0/24"));
        assert!(rules.allow(home, Some("Taro")) && rules.allow(away, Some("Hanako")));
        assert!(!rules.allow(away, None) && rules.allow(home, None));
        rules.banned = vec![who("192.0.2.7")];
        assert!(!rules.allow(home, Some("Hanako")), "a ban wins");
    }

    #[test]
    fn ipv4_in_ipv6_clothes_is_ipv4() {
        let rules = Rules {
            banned: vec![who("192.0.2.7")],
            allowed: vec![],
        };
        assert!(!rules.allow("::ffff:192.0.2.7".parse().unwrap(), None));
    }
}
