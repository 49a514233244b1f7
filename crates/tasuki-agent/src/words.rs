//! What the agent says, in English or Japanese.

use std::time::Duration;

use tasuki_proto::tunnel::EndpointState;
use tasuki_tunnel::agent::{AgentConfig, Final, Notice};

/// The language of all messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    English,
    Japanese,
}

impl Words {
    /// By the locale, as other programs choose it.
    pub(crate) fn of_the_environment() -> Self {
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        Self::of_locale(locale.as_deref().unwrap_or_default())
    }

    fn of_locale(locale: &str) -> Self {
        if locale.starts_with("ja") {
            Self::Japanese
        } else {
            Self::English
        }
    }

    /// One of two texts.
    pub(crate) fn pick(self, english: String, japanese: String) -> String {
        match self {
            Self::English => english,
            Self::Japanese => japanese,
        }
    }

    /// What is said first, line by line.
    pub(crate) fn start(self, config: &AgentConfig, fingerprint: &str) -> Vec<String> {
        let served = config.endpoints.iter().map(|endpoint| {
            let (door, target) = (endpoint.door_in_words(), &endpoint.target);
            self.pick(
                format!("serves {target} as {door}"),
                format!("{target} を公開します: {door}"),
            )
        });
        let key = self.pick(
            format!("this agent's key: {fingerprint}"),
            format!("このエージェントの鍵: {fingerprint}"),
        );
        served.chain([key]).collect()
    }

    /// The environment names a proxy that cannot be used.
    pub(crate) fn useless_proxy(self, problem: &str) -> String {
        self.pick(
            format!("goes on without the proxy of the environment: {problem}"),
            format!("環境変数のプロキシは使いません: {problem}"),
        )
    }

    /// A notice, if it is worth words.
    pub(crate) fn notice(self, notice: &Notice) -> Option<String> {
        Some(match (self, notice) {
            (_, Notice::Connecting) => return None,
            (
                Self::English,
                Notice::Connected {
                    agent,
                    software,
                    enrolled,
                    transport,
                },
            ) => {
                let how = if *enrolled {
                    "enrolled and connected"
                } else {
                    "connected"
                };
                format!("{how} as {agent} over {transport} ({software})")
            }
            (
                Self::Japanese,
                Notice::Connected {
                    agent,
                    software,
                    enrolled,
                    transport,
                },
            ) => {
                let how = if *enrolled {
                    "登録して接続しました"
                } else {
                    "接続しました"
                };
                format!("{agent} として{how} ({transport}、{software})")
            }
            (_, Notice::Endpoint { label, state }) => self.endpoint(label, state)?,
            (Self::English, Notice::Lost { reason, retry_in }) => {
                format!("not connected: {reason}; trying again in {}", short(*retry_in))
            }
            (Self::Japanese, Notice::Lost { reason, retry_in }) => {
                format!("接続が切れました: {reason}。{}後に再接続します", short(*retry_in))
            }
            (
                Self::English,
                Notice::LocalDown {
                    label,
                    target,
                    reason,
                },
            ) => {
                format!("{label}: visitors cannot reach {target}: {reason}")
            }
            (
                Self::Japanese,
                Notice::LocalDown {
                    label,
                    target,
                    reason,
                },
            ) => {
                format!("{label}: {target} に接続できません: {reason}")
            }
            (Self::English, Notice::LocalUp { label, target }) => {
                format!("{label}: {target} takes visitors again")
            }
            (Self::Japanese, Notice::LocalUp { label, target }) => {
                format!("{label}: {target} に再び接続できるようになりました")
            }
            (Self::English, Notice::PathSilent) => {
                "the gateway does not answer; going on by a new way to it".to_owned()
            }
            (Self::Japanese, Notice::PathSilent) => {
                "ゲートウェイから応答がありません。新しい経路で続けます".to_owned()
            }
            (Self::English, Notice::GoingAway { grace_s }) => {
                format!("the gateway stops; connections may go on for {grace_s} s")
            }
            (Self::Japanese, Notice::GoingAway { grace_s }) => {
                format!("ゲートウェイが停止します。接続中の通信は最長 {grace_s} 秒続きます")
            }
        })
    }

    fn endpoint(self, label: &str, state: &EndpointState) -> Option<String> {
        Some(match (self, state) {
            (Self::English, EndpointState::Open { address, .. }) => format!("{label}: open at {address}"),
            (Self::Japanese, EndpointState::Open { address, .. }) => format!("{label}: {address} で公開中"),
            (Self::English, EndpointState::Refused { text, .. }) => {
                format!("{label}: refused by the gateway: {text}")
            }
            (Self::Japanese, EndpointState::Refused { text, .. }) => {
                format!("{label}: ゲートウェイに拒否されました: {text}")
            }
            (_, EndpointState::Unknown) => return None,
        })
    }

    pub(crate) fn stopped(self) {
        match self {
            Self::English => eprintln!("stopped"),
            Self::Japanese => eprintln!("停止しました"),
        }
    }

    pub(crate) fn refused(self, error: &Final) -> String {
        match (self, error) {
            (Self::Japanese, Final::WrongKey) => {
                "ゲートウェイの鍵が登録時の指紋と一致しません。ゲートウェイを作り直した場合は、新しいコマンドを管理者に依頼してください"
                    .into()
            }
            (Self::Japanese, Final::Refused { text, .. }) => format!("ゲートウェイがこのエージェントを拒否しました: {text}"),
            (_, error) => error.to_string(),
        }
    }

    pub(crate) fn fail(self, text: &str) {
        eprintln!("tasuki-agent: {text}");
    }
}

fn short(wait: Duration) -> String {
    if wait < Duration::from_secs(1) {
        format!("{} ms", wait.as_millis())
    } else {
        format!("{:.0} s", wait.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_chooses_the_language() {
        assert_eq!(Words::of_locale("ja_JP.UTF-8"), Words::Japanese);
        assert_eq!(Words::of_locale("C.UTF-8"), Words::English);
    }

    #[test]
    fn a_lost_session_says_why_and_when_it_is_tried_again() {
        let lost = Notice::Lost {
            reason: "x".into(),
            retry_in: Duration::from_millis(250),
        };
        assert_eq!(
            Words::English.notice(&lost).as_deref(),
            Some("not connected: x; trying again in 250 ms")
        );
        assert!(
            Words::Japanese
                .notice(&lost)
                .is_some_and(|text| text.contains("250 ms"))
        );
    }
}
