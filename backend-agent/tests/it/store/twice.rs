//! A record that is stored twice, which positions rule out and the key on a server does not: it is found.

use super::bed::at;
use super::days::{DAY, commit, with_an_old_day, write};

/// As no backend leaves it: the position goes back, and the same numbers come again with other times.
#[tokio::test]
async fn a_record_that_is_there_twice_is_found_on_whatever_days_it_is() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    let roll_up = async || loop {
        let rolled = bed.store.roll_up_telemetry(&bed.tenant, at(0)).await;
        let rolled = rolled.unwrap();
        if !rolled.more {
            break rolled.twice;
        }
    };
    assert_eq!(
        commit(&bed, vec![write(1, 1, 4, &[-3 * DAY, -2 * DAY])]).await,
        2
    );
    assert_eq!(roll_up().await, 0);
    let again = async |seconds: &[i64]| {
        let back = "UPDATE telemetry_positions SET seq = 3";
        server.psql(&name, back).unwrap();
        assert_eq!(commit(&bed, vec![write(1, 1, 4, seconds)]).await, 2);
        let found = roll_up().await;
        server.psql(&name, "DELETE FROM telemetry_twice").unwrap();
        found
    };
    // On the same day at another time, and on another day.
    assert_eq!(again(&[-3 * DAY + 60, -2 * DAY]).await, 1);
    let same =
        "DELETE FROM telemetry WHERE observed_at = to_timestamp(1800000060) - interval '3 days'";
    server.psql(&name, same).unwrap();
    assert_eq!(again(&[-3 * DAY, -5 * DAY]).await, 1);
    let others =
        "DELETE FROM telemetry WHERE observed_at = to_timestamp(1800000000) - interval '5 days'";
    server.psql(&name, others).unwrap();
    assert_eq!(again(&[-3 * DAY, -2 * DAY + 1]).await, 1);
    bed.store.close().await;
    let last =
        "DELETE FROM telemetry WHERE observed_at = to_timestamp(1800000001) - interval '2 days'";
    server.psql(&name, last).unwrap();
    super::postgres_counts_are_right(&folder);
}
