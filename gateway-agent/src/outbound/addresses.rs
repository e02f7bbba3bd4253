//! In which order the addresses of a name are tried.

use std::net::SocketAddr;

use viworks_runtime::random;

/// The addresses in the order of this attempt: those of a family in an order of chance, so that a fleet spreads over
/// the backends behind one name whatever the resolver sorts them by; both families in turn, beginning with the one
/// the resolver prefers, so that a dead one costs one head start. The one that the last attempt ended up with is tried
/// last: a backend that stands still takes connections all the same, and would keep its gateways for ever.
pub(super) fn in_order(
    mut addresses: Vec<SocketAddr>,
    last: Option<SocketAddr>,
) -> Vec<SocketAddr> {
    let prefers_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    shuffle(&mut addresses);
    let mut mixed = alternate(addresses, prefers_ipv6);
    if let Some(place) = mixed.iter().position(|address| Some(*address) == last) {
        let last = mixed.remove(place);
        mixed.push(last);
    }
    mixed
}

fn shuffle(addresses: &mut [SocketAddr]) {
    for place in (1..addresses.len()).rev() {
        let end = u64::try_from(place).unwrap_or(u64::MAX).saturating_add(1);
        let other = usize::try_from(random::uniform(0..end)).unwrap_or(place);
        addresses.swap(place, other);
    }
}

fn alternate(addresses: Vec<SocketAddr>, prefers_ipv6: bool) -> Vec<SocketAddr> {
    let (preferred, others): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == prefers_ipv6);
    let mut others = others.into_iter();
    let mut mixed = Vec::new();
    for address in preferred {
        mixed.push(address);
        mixed.extend(others.next());
    }
    mixed.extend(others);
    mixed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn parse(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_beginning_with_the_preferred_one() {
        let resolved = parse(&["[::1]:1", "[::2]:1", "[::3]:1", "10.0.0.1:1", "10.0.0.2:1"]);
        let tried = parse(&["[::1]:1", "10.0.0.1:1", "[::2]:1", "10.0.0.2:1", "[::3]:1"]);
        assert_eq!(alternate(resolved, true), tried);
        for _ in 0..100 {
            let order = in_order(parse(&["10.0.0.1:1", "[::1]:1", "[::2]:1"]), None);
            assert!(order[0].is_ipv4() && order[1].is_ipv6(), "{order:?}");
        }
        assert_eq!(in_order(Vec::new(), None), Vec::new());
    }

    #[test]
    fn each_address_of_a_name_comes_first_now_and_then() {
        let addresses = parse(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]);
        // One in three: that one of them is left out of two hundred is less likely than one in 10^35.
        let firsts = (0..200).map(|_| in_order(addresses.clone(), None)[0]);
        assert_eq!(firsts.collect::<BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn the_one_that_the_last_attempt_ended_up_with_comes_last() {
        let addresses = parse(&["10.0.0.1:1", "10.0.0.2:1", "[::1]:1"]);
        for last in &addresses {
            for _ in 0..50 {
                let order = in_order(addresses.clone(), Some(*last));
                assert_eq!(order.last(), Some(last));
                let same: BTreeSet<_> = order.into_iter().collect();
                assert_eq!(same, addresses.iter().copied().collect());
            }
        }
        let gone = Some("10.9.9.9:1".parse().unwrap());
        assert_eq!(in_order(addresses, gone).len(), 3);
    }
}
