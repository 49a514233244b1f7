//! The mail engine: takes mail by SMTP, keeps it safe, delivers it by MX or through a smarthost.
//!
//! A session (`session`, `receive`) speaks through the machine of `tasuki_proto::smtp::server`, asks `policy` who may
//! relay, and commits the mail before it answers `250`. The fresh mail goes straight into its lane in memory (`lanes`),
//! where a worker (`deliver`, `connect`, `route`, `dns`) delivers it; `settle` gives the outcome, with the notices it
//! causes (`notice`), to the store; `schedule` brings deferred mail back when it is due.
//!
//! **Invariants:** nobody relays without a decision made in `policy`, closed by default. `250` goes out after the commit.
//! Only replies to MAIL, RCPT and DATA judge a mail. In recipients, accepted = delivered + bounced + dropped + waiting.

mod announce;
mod callout;
mod config;
mod connect;
mod context;
mod convert;
mod counts;
mod daily;
mod deliver;
mod dkim;
mod dns;
mod engine;
mod explain;
mod fair;
mod guard;
mod headers;
mod https;
mod lanes;
mod members;
mod metrics;
mod nat;
mod notice;
mod oauth;
mod orders;
mod policy;
mod port25;
mod receive;
mod recipients;
mod records;
mod release;
mod route;
mod schedule;
mod session;
mod settle;
mod suppress;
mod tls_policy;
mod tls_report;
mod trail;
mod trust;

pub use config::{
    AliasConfig, Automatic, DeliveryConfig, DeviceConfig, DevicesConfig, DnsConfig, HeaderConfig,
    LimitsConfig, ListenerConfig, MailConfig, NetworkConfig, OAuthConfig, OAuthFlow, Pattern, ProviderConfig,
    RecipientsConfig, RelayConfig, RetryDelay, RewriteConfig, RouteConfig, SenderConfig, SmarthostConfig,
    SmarthostGroupConfig, SmarthostProtocol, SmarthostTls, SourceAddressConfig, SourceConfig,
    SuppressionConfig, Target, TlsLevel, TlsPolicyConfig, TlsReportsConfig, TraceConfig,
};
pub use dkim::{DkimError, DkimKey, KeyState};
pub use dns::{Hickory, LookupError, MxAnswer, Resolver, ResolverError, Tlsa, TlsaRecord};
pub use engine::{Addrs, Engine, Handle, Status};
pub use explain::{Explanation, RouteExplained, Whom};
pub use lanes::LaneStatus;
pub use oauth::{LoginAnswer, LoginError};
pub use records::{DnsRecord, DnsReport, RecordState};
pub use tls_report::{TlsDay, TlsDayError, TlsFailing, TlsReportFile};
