//! Which refusals say that there is no such mailbox, and nothing else.
//!
//! Only RFC 3463's own words for it count, in a final reply to RCPT: 5.1.1 (no such mailbox), 5.1.6 (it has moved and left
//! no address), and RFC 7505's 5.1.10 (the domain takes no mail). Not 5.1.2, which a broken DNS says; not 5.1.3, which may
//! be about how we wrote the address; nothing of 5.2 (the mailbox is there) and 5.7 (somebody did not want the mail); and
//! nothing after DATA, where it is the mail that is judged. A code without an enhanced one, or with any other, means too many
//! things, so it counts only with words that a receiver's rule names.

use tasuki_proto::smtp::{
    EnhancedCode,
    client::{ClientFailure, Problem, Stage},
};

use crate::config::ProviderConfig;

#[cfg(test)]
mod tests;

/// Whether a failure says so, under the rules of the site and of the recipient's domain.
pub(crate) fn says_gone(failure: &ClientFailure, rules: &[Option<&ProviderConfig>]) -> bool {
    let (Stage::Recipient, Problem::Refused(reply)) = (failure.stage, &failure.problem) else {
        return false;
    };
    let rules = || rules.iter().flatten();
    if !reply.is_permanent() || !failure.is_permanent() || rules().any(|rule| rule.unknown_may_be_filter) {
        return false;
    }
    match reply.enhanced {
        Some(EnhancedCode(5, 1, 1 | 6 | 10)) => true,
        Some(EnhancedCode(_, 1, 2 | 3) | EnhancedCode(_, 2 | 7, _)) => false,
        _ => {
            let text = reply.to_string().to_lowercase();
            rules().any(|rule| rule.unknown_user.iter().any(|part| text.contains(part)))
        }
    }
}
