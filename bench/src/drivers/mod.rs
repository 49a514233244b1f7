//! The parts of a run that are processes of their own.

pub(crate) mod dns;
pub(crate) mod fedi_hosts;
pub(crate) mod fedi_load;
pub(crate) mod quic;
pub(crate) mod smtp_load;
pub(crate) mod smtp_sink;
pub(crate) mod tcp;
