use super::{Count, Level};

#[test]
fn four_fifths_of_a_cap_are_near_it() {
    let level = |stored, pending, cap| {
        Count {
            stored,
            pending,
            ..Count::default()
        }
        .level(cap)
    };
    assert_eq!(level(0, 0, 10), Level::Below);
    assert_eq!(level(7, 0, 10), Level::Below);
    assert_eq!(level(7, 1, 10), Level::Near);
    assert_eq!(level(4, 5, 10), Level::Near);
    assert_eq!(level(4, 6, 10), Level::Full);
    assert_eq!(level(0, 1, 1), Level::Full);
}
