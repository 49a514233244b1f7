//! `tasuki-agent`; what it does is in the library beside it, which `tasuki agent` runs too.

fn main() -> std::process::ExitCode {
    tasuki_agent::run(std::env::args_os().skip(1))
}
