//! The thresholds, side by side: how often, within how long, how long the first ban lasts, and why so.

use std::time::Duration;

use super::Offence;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// What makes offences a ban.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    /// Offences of one kind in one engine by one address (/32, /64)
    pub(super) tries: u32,
    /// within this time
    pub(super) within: Duration,
    /// ban it for this long at first.
    pub(super) first: Duration,
    /// An attack counts in all engines; a mistake only in the one that saw it.
    pub(super) attack: bool,
    /// What they did, for the ban's reason.
    pub(super) name: &'static str,
}

/// Offences that are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Login,
    RelayProbe,
    Scan,
    ProtocolAbuse,
    WrongCode,
    BadSignature,
}

impl Kind {
    pub(super) fn of(what: Offence) -> Self {
        match what {
            Offence::WrongSecret { .. } | Offence::UnknownName { .. } => Self::Login,
            Offence::RelayProbe => Self::RelayProbe,
            Offence::Scan => Self::Scan,
            Offence::ProtocolAbuse => Self::ProtocolAbuse,
            Offence::WrongCode => Self::WrongCode,
            Offence::BadSignature => Self::BadSignature,
        }
    }

    #[rustfmt::skip]
    pub(super) const fn rule(self) -> Rule {
        match self {
            // Different wrong secrets only: a program with an old password repeats one and counts once. Ten different
            // ones in an hour is more than a person mistypes and less than guessing needs. See SPRAY_NAMES.
            Self::Login => rule(10, HOUR, 10 * MINUTE, false, "different wrong logins"),
            // Relaying is refused anyway; a copier that was set up wrongly tries a few times, a probe tries on.
            Self::RelayProbe => rule(5, HOUR, HOUR, true, "attempts to relay without permission"),
            // A mistyped host name is asked for again and again, but not twenty different ways in ten minutes.
            Self::Scan => rule(20, 10 * MINUTE, HOUR, true, "scans for names or ports"),
            // Each is a connection that was already broken off for it; a broken program reconnects.
            Self::ProtocolAbuse => rule(20, 10 * MINUTE, 10 * MINUTE, false, "connections that broke the protocol"),
            // A code is pasted, seldom typed, and has 130 bits: the ban only saves work.
            Self::WrongCode => rule(10, HOUR, 10 * MINUTE, false, "wrong enrolment codes"),
            // A host that changed its key fails until the new one is fetched; a busy one sends many in that time.
            Self::BadSignature => rule(60, 10 * MINUTE, 10 * MINUTE, false, "signatures that did not verify"),
        }
    }
}

const fn rule(tries: u32, within_s: u64, first_s: u64, attack: bool, name: &'static str) -> Rule {
    Rule {
        tries,
        within: Duration::from_secs(within_s),
        first: Duration::from_secs(first_s),
        attack,
        name,
    }
}

/// Wrong logins are a password spray, an attack, when so many of them were for different names that do not exist:
/// people and programs with an old password use names that do.
pub(super) const SPRAY_NAMES: u32 = 5;

/// A prefix (/24, /48) is banned when this many of its addresses were banned
pub(super) const PREFIX_ADDRESSES: usize = 3;
/// within this time: one infected machine in a network is not its neighbours' fault.
pub(super) const PREFIX_WITHIN: Duration = Duration::from_secs(DAY);

/// Each repetition within 30 days lasts this many times as long: 10 min, 40 min, 2.7 h, 11 h, 43 h, 7 d, 28 d.
const GROWTH: u32 = 4;
/// No ban made by the gateway lasts longer: addresses change hands.
const LONGEST: Duration = Duration::from_secs(30 * DAY);

/// An address where somebody proved who they are is slowed, not banned, for this long.
pub(super) const PROOF_HOLDS: Duration = Duration::from_secs(30 * DAY);
/// The first slowing; doubled by each repetition
const FIRST_DELAY: Duration = Duration::from_secs(2);
/// up to this, which every client's patience survives.
const LONGEST_DELAY: Duration = Duration::from_secs(8);

/// How long a ban lasts that had `repeats` before it.
pub(super) fn length(first: Duration, repeats: u32) -> Duration {
    first.saturating_mul(GROWTH.saturating_pow(repeats)).min(LONGEST)
}

/// How much a proven address is slowed.
pub(super) fn delay(repeats: u32) -> Duration {
    FIRST_DELAY
        .saturating_mul(2_u32.saturating_pow(repeats))
        .min(LONGEST_DELAY)
}
