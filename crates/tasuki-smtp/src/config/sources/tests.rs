#![allow(clippy::unwrap_used)]

use super::*;

fn address(ip: &str, weight: u32) -> SourceAddressConfig {
    SourceAddressConfig {
        ip: ip.parse().unwrap(),
        helo: None,
        weight: Some(weight),
    }
}

fn pool(addresses: &[SourceAddressConfig]) -> Result<Arc<Pool>, BuildError> {
    let name = "out".to_owned();
    SourceConfig {
        name,
        addresses: addresses.to_vec(),
    }
    .check()
}

#[test]
fn addresses_take_destinations_by_their_weight_and_family() {
    let pool = pool(&[address("127.0.0.2", 1), address("127.0.0.3", 3)]).unwrap();
    let mut third = 0;
    for n in 0..4000 {
        let seed = seed_of(&format!("mx:domain-{n}.example"));
        let picked = pool.pick(false, seed).unwrap().ip;
        assert_eq!(picked, pool.pick(false, seed).unwrap().ip);
        third += u32::from(picked == IpAddr::from([127, 0, 0, 3]));
    }
    assert!((2800..3200).contains(&third), "{third} of 4000");
    assert!(pool.pick(true, 7).is_none());
}

#[test]
fn an_address_that_the_machine_lacks_is_a_mistake_of_the_configuration() {
    // RFC 5737: no machine has this one.
    let error = pool(&[address("192.0.2.77", 1)]).unwrap_err().to_string();
    assert!(
        error.contains("192.0.2.77 is no address of this machine"),
        "{error}"
    );
    for wrong in [
        &[][..],
        &[address("127.0.0.2", 0)],
        &[address("127.0.0.2", 1), address("127.0.0.2", 1)],
    ] {
        assert!(
            matches!(pool(wrong), Err(BuildError::Config { key, .. }) if key == "mail.sources.addresses")
        );
    }
}
