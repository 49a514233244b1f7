//! What each subscriber leaves out, and domains that are not relayed, at the wire: by the operator's orders and by the page
//! on which an instance says it itself.

use serde_json::{Value, json};

use crate::moderation::{House, arrives, has, host};
use crate::support::fediverse::Instance;
use crate::support::figures::all_activities_are_delivered;
use crate::support::{eventually, http};

/// The relay's page, as a browser with its cookie and fields sees it.
struct Page<'a> {
    house: &'a House,
    cookie: String,
    text: String,
}

impl<'a> Page<'a> {
    fn of(house: &'a House) -> Self {
        Self {
            house,
            cookie: String::new(),
            text: String::new(),
        }
    }

    #[track_caller]
    fn submit(&mut self, path: &str, fields: &[(&str, &str)], status: u16) {
        let body: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", value.replace(':', "%3A").replace('/', "%2F")))
            .collect();
        let headers = format!(
            "Content-Type: application/x-www-form-urlencoded\r\nCookie: {}\r\n",
            self.cookie
        );
        let address = self.house.door.address("front.http");
        let front = self.house.door.front_host();
        let answer = http::post(address, &front, path, &headers, body.join("&").as_bytes());
        self.text = answer.text();
        assert_eq!(answer.status, status, "{path}: {}", self.text);
        if let Some(cookie) = answer.header("set-cookie") {
            self.cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        }
    }

    /// A hidden field.
    #[track_caller]
    fn field(&self, name: &str) -> String {
        let mark = format!("name=\"{name}\" value=\"");
        let (_, rest) = self
            .text
            .split_once(&mark)
            .unwrap_or_else(|| panic!("{name}: {}", self.text));
        rest.split('"').next().unwrap().to_owned()
    }

    /// Proves the instance by a post of its contact account.
    #[track_caller]
    fn prove(&mut self, instance: &Instance) {
        let host = host(instance);
        self.submit("/filter", &[("host", host)], 200);
        let (expires, nonce) = (self.field("expires"), self.field("nonce"));
        let token = self.text[self.text.find("tasuki-").unwrap()..]
            .split('<')
            .next()
            .unwrap()
            .to_owned();
        let early = instance.publish(&json!({"text": "not the token"})).remove(0);
        let proof = instance.publish(&json!({"text": token})).remove(0);
        for (post, status) in [(early, 403), (proof, 200)] {
            let post = post["object"].as_str().unwrap();
            let fields = [
                ("host", host),
                ("expires", &expires),
                ("nonce", &nonce),
                ("post", post),
            ];
            self.submit("/filter/prove", &fields, status);
        }
    }

    /// Says something with what was proved.
    #[track_caller]
    fn say(&mut self, path: &str, instance: &Instance, (name, value): (&str, &str)) {
        let (expires, grant) = (self.field("expires"), self.field("grant"));
        let fields = [
            ("host", host(instance)),
            ("expires", &expires),
            ("grant", &grant),
            (name, value),
        ];
        self.submit(path, &fields, 200);
    }
}

/// Waits until nothing is on its way to anybody: deliveries to one host overlap. The last post has arrived already, so what
/// came before it is known where it is delivered.
fn settled(house: &House) {
    for gateway in [&house.door, house.desk()] {
        all_activities_are_delivered(gateway);
    }
}

fn tagged(author: &Instance, tag: &str) -> Value {
    author
        .publish(&json!({"text": format!("of {tag}"), "tags": [tag]}))
        .remove(0)
}

#[test]
fn each_subscriber_gets_what_its_filter_leaves_and_a_domain_is_left_alone_that_wishes_so() {
    filters(&House::on_sqlite());
}

#[test]
fn filters_and_wishes_hold_on_postgresql_and_at_the_other_gateway() {
    filters(&House::on_postgresql());
}

fn filters(house: &House) {
    let [author, reader, own] =
        [1, 2, 3].map(|number| house.instance("mastodon", &format!("127.0.0.{number}")));
    for instance in [&author, &reader, &own] {
        instance.subscribe(&house.door.relay_inbox());
    }
    house.order(&["fedi", "filter", host(&reader), "--no-tag", "ads"]);
    let mut page = Page::of(house);
    page.prove(&own);
    page.say("/filter/set", &own, ("tags_in", "cats"));
    let listed = house.order(&["fedi", "filter"]);
    assert!(
        listed.contains(host(&reader)) && listed.contains(host(&own)),
        "{listed}"
    );
    // An order reaches another gateway within seconds.
    eventually("the filters are known", || {
        let (ads, cats) = (tagged(&author, "ads"), tagged(&author, "cats"));
        arrives(&reader, &cats);
        arrives(&own, &cats);
        settled(house);
        (!has(&reader, &ads) && !has(&own, &ads)).then_some(())
    });
    let [ads, plain, cats] = ["ads", "dogs", "cats"].map(|tag| tagged(&author, tag));
    for instance in [&reader, &own] {
        arrives(instance, &cats);
    }
    settled(house);
    assert!(has(&reader, &plain) && !has(&reader, &ads));
    assert!(!has(&own, &plain) && !has(&own, &ads));
    // A Delete passes every filter.
    let delete = json!({"kind": "delete", "target": cats["object"]});
    let delete = author.publish(&delete).remove(0);
    arrives(&own, &delete);

    let wishes = |what: &str, of: &Instance, to: &Instance, is_relayed: bool| {
        eventually(what, || {
            let (post, after) = (tagged(of, "cats"), tagged(&reader, "cats"));
            arrives(to, &after);
            settled(house);
            (has(to, &post) == is_relayed).then_some(())
        });
    };
    house.order(&["fedi", "opt-out", host(&author), "--reason", "asked by mail"]);
    wishes("the author's domain is left alone", &author, &own, false);
    house.order(&["fedi", "opt-out", host(&author), "--clear"]);
    wishes("the author's domain is relayed again", &author, &own, true);
    page.say("/filter/opt-out", &own, ("wish", "out"));
    wishes("an instance leaves by itself", &own, &author, false);
    page.say("/filter/opt-out", &own, ("wish", "in"));
    wishes("and comes back", &own, &author, true);

    let audit = house.order(&["audit"]);
    for action in ["fedi.filter", "fedi.opt_out", "fedi.lift"] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    house.assert_healthy();
}
