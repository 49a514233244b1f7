//! TXT records, for proofs in DNS.

use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use tasuki_core::failure::BoxError;

use crate::config::FediConfig;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks DNS for TXT records.
pub(crate) struct Txt {
    resolver: Option<TokioResolver>,
}

impl Txt {
    pub(crate) fn new(config: &FediConfig) -> Self {
        let build = || -> Result<TokioResolver, BoxError> {
            let mut builder = tasuki_core::resolver::builder(config.dns_server)?;
            // A record that was made a moment ago must be seen.
            builder.options_mut().cache_size = 0;
            builder.options_mut().timeout = Duration::from_secs(3);
            Ok(builder.build()?)
        };
        let resolver = build().inspect_err(|error| {
            tracing::warn!(error = %error, "instances cannot prove themselves in DNS: there is no resolver");
        });
        Self {
            resolver: resolver.ok(),
        }
    }

    /// Whether a name has a record with this text in it.
    pub(super) async fn has(&self, name: &str, text: &str) -> Result<bool, String> {
        let resolver = self.resolver.as_ref().ok_or("there is no resolver here")?;
        let lookup = resolver.txt_lookup(format!("{name}."));
        let found = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Err(_) => return Err("DNS did not answer in time".to_owned()),
            Ok(Err(error)) if error.is_no_records_found() || error.is_nx_domain() => return Ok(false),
            Ok(Err(error)) => return Err(format!("DNS did not answer: {error}")),
            Ok(Ok(found)) => found,
        };
        Ok(found.answers().iter().any(|record| match &record.data {
            RData::TXT(txt) => String::from_utf8_lossy(&txt.txt_data.concat()).contains(text),
            _ => false,
        }))
    }
}
