//! The gateway's own words to players: Japanese first, English on the second line.

/// Why the gateway answers in the place of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Page {
    /// No agent owns the name that was typed.
    UnknownHost,
    /// The name is known, its agent is not connected.
    AgentAway,
    /// The agent is here, its local server refuses connections.
    ServerRefused,
    /// The agent is here, its local server or the agent itself does not answer in time.
    ServerSilent,
    /// This address asks too often.
    TooMany,
    /// The server has all the players it may have through this gateway.
    Full,
    /// The home host keeps this player or address out.
    Denied,
    /// The gateway is about to stop.
    Closing,
    /// The local server sleeps until somebody joins who may wake it.
    Sleeping,
    /// The local server is being started, and takes longer than a player can be held.
    Starting,
}

impl Page {
    /// One word that the server list shows in the place of the version.
    pub fn state(self) -> &'static str {
        match self {
            Self::Sleeping => "sleeping",
            Self::Starting => "starting",
            _ => "offline",
        }
    }

    /// The text of the status page and of the kick.
    pub fn default_text(self) -> &'static str {
        match self {
            Self::UnknownHost => {
                "この名前のサーバーはありません。アドレスを確認してください。\nNo server has this name. Please check the address."
            }
            Self::AgentAway => "サーバーは現在オフラインです。\nThis server is offline now.",
            Self::ServerRefused => {
                "サーバーが起動していません。しばらくしてからお試しください。\nThe game server is not running. Please try again later."
            }
            Self::ServerSilent => {
                "サーバーが応答しません。しばらくしてからお試しください。\nThe game server does not answer. Please try again later."
            }
            Self::TooMany => {
                "接続が多すぎます。{seconds} 秒待ってからお試しください。\nToo many connections from your network. Please try again in {seconds} s."
            }
            Self::Full => {
                "満員です。しばらくしてからお試しください。\nThis server is full. Please try again later."
            }
            Self::Sleeping => "サーバーは休止中です。\nThis server is sleeping.",
            Self::Starting => {
                "サーバーを起動しています。1 分ほどしてから参加してください。\nThe server is starting. Please join again in a minute."
            }
            Self::Denied => "このサーバーには参加できません。\nYou may not join this server.",
            Self::Closing => {
                "中継を再起動しています。すぐに再接続できます。\nThe relay is restarting. Please rejoin in a moment."
            }
        }
    }
}
