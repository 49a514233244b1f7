//! One line for each case and peer: medians, as a table for people or JSON for programs.

use serde::Serialize;

/// What one peer did in one case. Absent fields do not apply to it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Line {
    pub(crate) engine: &'static str,
    pub(crate) case: String,
    pub(crate) peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) units_per_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_s_per_1000: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gbit_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_s_per_gib: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kib_per_conn: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_rss_mib: Option<f64>,
    /// From the start of the program until the first unit is through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_s: Option<f64>,
    /// CPU as a share of one core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_percent: Option<f64>,
    /// Size of the program without symbols.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) binary_mib: Option<f64>,
    /// Units that the sink never saw, summed over the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<u64>,
    /// The same as a share of what was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost_percent: Option<f64>,
    /// Whether it syncs to stable storage before its reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) durable: Option<bool>,
}

/// The medians of `rounds`, field by field; losses are summed.
pub(crate) fn median(rounds: &[Line]) -> Line {
    let mut line = rounds.first().cloned().unwrap_or_default();
    let middle = |of: fn(&Line) -> Option<f64>| {
        let mut values: Vec<f64> = rounds.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    line.units_per_s = middle(|l| l.units_per_s);
    line.cpu_s_per_1000 = middle(|l| l.cpu_s_per_1000);
    line.gbit_s = middle(|l| l.gbit_s);
    line.cpu_s_per_gib = middle(|l| l.cpu_s_per_gib);
    line.p50_us = middle(|l| l.p50_us);
    line.p99_us = middle(|l| l.p99_us);
    line.max_us = middle(|l| l.max_us);
    line.lost_percent = middle(|l| l.lost_percent);
    line.kib_per_conn = middle(|l| l.kib_per_conn);
    line.peak_rss_mib = middle(|l| l.peak_rss_mib);
    line.first_s = middle(|l| l.first_s);
    line.cpu_percent = middle(|l| l.cpu_percent);
    line.binary_mib = middle(|l| l.binary_mib);
    line.lost = rounds.iter().filter_map(|l| l.lost).reduce(|a, b| a + b);
    line
}

/// Prints the table for people.
pub(crate) fn print_table(lines: &[Line]) {
    println!(
        "{:<16} {:<15} {:>9} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>6} {:>7} {:>6} {:>6} durable",
        "case",
        "peer",
        "units/s",
        "cpu s/1000",
        "Gbit/s",
        "cpu s/GiB",
        "p50 us",
        "p99 us",
        "max us",
        "KiB/conn",
        "MiB peak",
        "first s",
        "cpu %",
        "MiB bin",
        "lost",
        "lost %"
    );
    for l in lines {
        let f = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
        println!(
            "{:<16} {:<15} {:>9} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7} {:>6} {:>7} {:>6} {:>6} {}",
            l.case,
            l.peer,
            f(l.units_per_s, 0),
            f(l.cpu_s_per_1000, 3),
            f(l.gbit_s, 2),
            f(l.cpu_s_per_gib, 2),
            f(l.p50_us, 0),
            f(l.p99_us, 0),
            f(l.max_us, 0),
            f(l.kib_per_conn, 1),
            f(l.peak_rss_mib, 1),
            f(l.first_s, 2),
            f(l.cpu_percent, 3),
            f(l.binary_mib, 2),
            l.lost.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            f(l.lost_percent, 3),
            l.durable.map_or("-", |d| if d { "yes" } else { "no" }),
        );
    }
}
