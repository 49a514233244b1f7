//! `tasuki mail dns`: the DNS records that our mail needs.

use serde_json::Value;
use tasuki_proto::smtp::zone;

use super::{Gateway, output, segment};
use crate::exit::{self, Fail, Outcome};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Domains to look at; all that have DKIM keys or that somebody may send as, if none is given
    #[arg(value_name = "DOMAIN")]
    domains: Vec<String>,
    /// The address that receivers see, where this machine does not know it (may be repeated)
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<std::net::IpAddr>,
    /// Print the records to paste in place of what is published
    #[arg(long, value_name = "FORM")]
    zone: Option<Form>,
    /// Exit with 65 if a record that is needed is not published as it must be
    #[arg(long)]
    check: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "zone")]
    json: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Form {
    /// Lines of a zone file; long texts are cut into strings of 255 octets
    Bind,
    /// The fields of a provider's web page, the text in one piece
    Text,
}

pub(super) fn run(gateway: &Gateway, args: &Args) -> Outcome {
    let addresses: Vec<String> = args.addresses.iter().map(ToString::to_string).collect();
    let report = gateway.read(&format!(
        "/v1/mail/dns?domains={}&addresses={}",
        segment(&args.domains.join(",")),
        segment(&addresses.join(","))
    ))?;
    let records = report["records"].as_array().map_or(&[][..], Vec::as_slice);
    match args.zone {
        _ if args.json => output::json(&report)?,
        Some(Form::Bind) => in_groups(records, "; ", bind),
        Some(Form::Text) => {
            in_groups(records, "", fields);
            if records.iter().any(|record| record["value"].is_string()) {
                output::line("");
                RELATIVE.iter().for_each(output::line);
            }
        }
        None => {
            in_groups(records, "", published);
            notes(&report);
        }
    }
    if args.check && report["complete"] != true {
        let unfit = |record: &&Value| {
            record["needed"] == true && !["ok", "warning"].iter().any(|fine| record["state"] == *fine)
        };
        let count = records.iter().filter(unfit).count();
        return Err(Fail::new(
            exit::DATA,
            format!("{count} records that are needed are not published as they must be"),
        ));
    }
    Ok(())
}

/// Prints what `show` makes of each record, under the name of the host or domain that needs it.
fn in_groups(records: &[Value], mark: &str, show: fn(&Value) -> Vec<String>) {
    let mut last = String::new();
    for record in records {
        let lines = show(record);
        if lines.is_empty() {
            continue;
        }
        let of = output::cell(record, "of");
        if of != last {
            if !last.is_empty() {
                output::line("");
            }
            output::line(format!("{mark}{of}"));
            last = of;
        }
        lines.iter().for_each(output::line);
    }
}

fn notes(report: &Value) {
    for note in report["notes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        output::line("");
        output::line(format!("note: {note}"));
    }
}

/// How a record is published, and what to do.
fn published(record: &Value) -> Vec<String> {
    let state = output::cell(record, "state");
    let optional = if record["needed"] == true {
        ""
    } else {
        " (optional)"
    };
    let (what, name) = (output::cell(record, "what"), output::cell(record, "name"));
    let mut lines = vec![format!(
        "{state:<8} {what:<8} {name} {}{optional}",
        output::cell(record, "type")
    )];
    let says = output::cell(record, "says");
    if !says.is_empty() {
        lines.push(format!("         {says}"));
    }
    if state == "ok" {
        return lines;
    }
    for found in record["found"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let plain: String = found
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        lines.push(format!("         found:   {plain}"));
    }
    if let Some(value) = record["value"].as_str() {
        lines.push(format!("         publish: {value}"));
    }
    lines
}

/// A line for a zone file.
fn bind(record: &Value) -> Vec<String> {
    let Some(value) = record["value"].as_str() else {
        return Vec::new();
    };
    let kind = output::cell(record, "type");
    vec![zone::line(&output::cell(record, "name"), &kind, value)]
}

/// Which zone a record goes into only its owner knows: a host's or a sending domain's name may lie below it.
const RELATIVE: [&str; 2] = [
    "ホスト名はゾーン名まで含めて表示しています。設定画面には、そこで編集するゾーン (ドメイン) の名前を除いた部分 (ゾーン自身なら @ か空欄) を入力してください。",
    "Hosts are full names: into a provider's page enter them without the name of the zone that you edit there (@ or nothing for the zone itself).",
];

/// Name, type and value, as さくら, お名前.com, Xserver and their kin ask for them.
fn fields(record: &Value) -> Vec<String> {
    let Some(value) = record["value"].as_str() else {
        return Vec::new();
    };
    let kind = output::cell(record, "type");
    // The pages want host names without the dot that zone files need.
    let value = if kind == "TXT" {
        value
    } else {
        value.trim_end_matches('.')
    };
    vec![
        format!("ホスト名 host:  {}", output::cell(record, "name")),
        format!("種別 type:      {kind}"),
        format!("内容 value:     {value}"),
    ]
}
