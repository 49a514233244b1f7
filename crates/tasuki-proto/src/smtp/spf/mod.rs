//! SPF (RFC 7208): reads a domain's record and says whether it lets an address send, for one who looks after the domain.
//!
//! What has to be asked of the DNS is asked one by one: [`evaluate`] and [`survey`] go through what is [`Known`] and say
//! which [`Query`] is next. **Invariant:** however records point at each other, the questions are bounded
//! (RFC 7208 4.6.4).

mod macros;
mod record;
#[cfg(test)]
mod tests;
mod walk;

pub use record::{Mechanism, Qualifier, Record, SpfError, Term, extended, is_spf};
pub use walk::{Answer, Asker, Known, MAX_LOOKUPS, Query, Survey, Verdict, evaluate, survey};
