//! Known providers: where they are, what they allow, and how they say that an account is used up.
//!
//! What a provider documents is named beside it; numbers without a source are careful ones of ours, and each can be set
//! in the smarthost's block. The names for SPF are those in common use for a domain of one's own, not compared with each
//! one's own words; さくら's record names the contract's server, which is not known here.

use super::oauth::OAuthPreset;

/// What a provider's entry need not say itself.
pub(super) struct Preset {
    pub(super) host: Option<&'static str>,
    /// Said when the host is missing.
    pub(super) host_hint: &'static str,
    pub(super) username: Option<&'static str>,
    pub(super) connections: usize,
    pub(super) mails_per_connection: usize,
    pub(super) quota: &'static [&'static str],
    pub(super) oauth: Option<OAuthPreset>,
    pub(super) spf: Option<ProviderSpf>,
}

/// What a provider's customers put into their SPF records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProviderSpf {
    /// For `include:`.
    pub(crate) include: &'static str,
    /// It sends with the customer's own domain in MAIL FROM. Others put in theirs unless they are told otherwise, and then
    /// the customer's record does not matter.
    pub(crate) keeps_sender: bool,
}

const fn keeps(include: &'static str) -> Option<ProviderSpf> {
    Some(ProviderSpf {
        include,
        keeps_sender: true,
    })
}

const fn replaces(include: &'static str) -> Option<ProviderSpf> {
    Some(ProviderSpf {
        include,
        keeps_sender: false,
    })
}

const NO_PRESET: Preset = Preset {
    host: None,
    host_hint: "needs its host name or IP address",
    username: None,
    connections: 20,
    // It is ours to use; it says 421 when it has had enough.
    mails_per_connection: 10_000,
    quota: &[],
    oauth: None,
    spf: None,
};

/// twilio.com/docs/sendgrid, "Integrating with the SMTP API": host, the literal user name, ports, up to 5,000 messages in a
/// row; ours is a careful figure. "SMTP Errors and Troubleshooting": 451 Authentication failed: Maximum credits exceeded.
const SENDGRID: Preset = Preset {
    host: Some("smtp.sendgrid.net"),
    // The literal name; the password is the API key.
    username: Some("apikey"),
    mails_per_connection: 100,
    quota: &["maximum credits exceeded"],
    spf: replaces("sendgrid.net"),
    ..NO_PRESET
};

/// docs.aws.amazon.com, "Errors related to the sending quotas for your Amazon SES account": 454 Throttling failure, with one
/// of the two texts. Ten connections are a careful figure.
const SES: Preset = Preset {
    host_hint: "needs the endpoint of your region, such as email-smtp.ap-northeast-1.amazonaws.com",
    connections: 10,
    quota: &["maximum sending rate exceeded", "daily message quota exceeded"],
    spf: replaces("amazonses.com"),
    ..NO_PRESET
};

/// help.mailgun.com, "Account Sending Limitation": new accounts have an hourly limit, without a text. The text is what users
/// report: 421 Domain NAME is not allowed to send: recipient limit exceeded, try again after TIME; or message limit reached
/// (github.com: coopdevs/timeoverflow#820, swapmyvote/swapmyvote#887). The host is the one of the US; domains of the EU are
/// at smtp.eu.mailgun.org. The figures are careful ones.
const MAILGUN: Preset = Preset {
    host: Some("smtp.mailgun.org"),
    connections: 10,
    mails_per_connection: 100,
    quota: &["is not allowed to send"],
    spf: keeps("mailgun.org"),
    ..NO_PRESET
};

/// さくらのメールボックス, さくらのレンタルサーバ: the host is the contract's initial domain; sakura.ad.jp, announcement of
/// 2006-10-16 about OP25B: port 587. How much they take, and what they say then, was not found in public; these are careful
/// figures. さくらのクラウド has no mail server of its own that we could find: its machines use this, or another provider.
const SAKURA: Preset = Preset {
    host_hint: "needs the initial domain of the contract, such as example.sakura.ne.jp",
    connections: 2,
    mails_per_connection: 100,
    ..NO_PRESET
};

/// learn.microsoft.com, "Message storage and concurrent connection throttling for SMTP Authenticated Submission": three
/// connections at a time for one mailbox (432 4.3.2), 10,000 recipients a day (554 5.2.0), and 30 messages a minute, which
/// it delays itself; the Exchange team's blog of 2018-04-20 has the older text of the first.
const MICROSOFT365: Preset = Preset {
    host: Some("smtp.office365.com"),
    connections: 3,
    quota: &[
        "concurrent connections limit exceeded",
        "concurrent connection limit exceeded",
        "sender thread limit exceeded",
        "submission quota exceeded",
        "submissionquotaexceeded",
        "recipientlimitexceeded",
    ],
    oauth: Some(OAuthPreset {
        token_url: "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
        device_url: Some("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/devicecode"),
        app_scope: "https://outlook.office365.com/.default",
        user_scope: "https://outlook.office.com/SMTP.Send offline_access",
        no_device: "",
    }),
    spf: keeps("spf.protection.outlook.com"),
    ..NO_PRESET
};

/// support.google.com/a/answer/3726730, "Gmail SMTP errors and codes": 550 5.4.5, in its present and older words, and 450
/// 4.2.1 Peak SMTP relay limit exceeded. The figures are careful ones.
const GMAIL: Preset = Preset {
    host: Some("smtp.gmail.com"),
    connections: 5,
    mails_per_connection: 100,
    quota: &[
        "daily user sending limit exceeded",
        "daily sending quota exceeded",
        "daily user sending quota exceeded",
        "daily smtp relay limit exceeded",
        "peak smtp relay limit exceeded",
    ],
    oauth: Some(OAuthPreset {
        token_url: "https://oauth2.googleapis.com/token",
        device_url: None,
        app_scope: "https://mail.google.com/",
        user_scope: "https://mail.google.com/",
        no_device: "Google's device flow does not give tokens for mail: use flow = \"service_account\" (Workspace), \
                    or an app password without oauth",
    }),
    spf: keeps("_spf.google.com"),
    ..NO_PRESET
};

impl Default for Preset {
    fn default() -> Self {
        NO_PRESET
    }
}

impl Preset {
    pub(super) fn named(name: &str) -> Result<Self, String> {
        Ok(match name {
            "sendgrid" => SENDGRID,
            "ses" => SES,
            "mailgun" => MAILGUN,
            "sakura" => SAKURA,
            "microsoft365" => MICROSOFT365,
            "gmail" => GMAIL,
            other => {
                let known = "sendgrid, ses, mailgun, sakura, microsoft365, gmail";
                return Err(format!("{other:?} is no preset; known: {known}"));
            }
        })
    }
}
