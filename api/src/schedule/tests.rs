use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// The times that follow another, as the clocks of a zone show them.
#[track_caller]
fn check(schedule: &str, zone: &str, after: &str, wanted: &[&str]) {
    let (schedule, zone) = (Schedule::parse(schedule).unwrap(), time_zone(zone).unwrap());
    let mut now = at(after);
    for wanted in wanted {
        now = schedule.next(now, &zone).unwrap();
        assert_eq!(now.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(), *wanted);
    }
}

#[track_caller]
fn utc(schedule: &str, after: &str, wanted: &[&str]) {
    let wanted: Vec<String> = wanted.iter().map(|at| format!("{at}:00+00:00")).collect();
    check(schedule, "UTC", after, &wanted.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn fields_take_numbers_names_ranges_lists_and_steps() {
    const FRIDAY: &str = "2026-01-02T03:04:05Z";
    utc("* * * * *", FRIDAY, &["2026-01-02T03:05", "2026-01-02T03:06"]);
    utc(
        "*/15 * * * ?",
        FRIDAY,
        &["2026-01-02T03:15", "2026-01-02T03:30", "2026-01-02T03:45", "2026-01-02T04:00"],
    );
    utc("50/5 * * * *", FRIDAY, &["2026-01-02T03:50", "2026-01-02T03:55", "2026-01-02T04:50"]);
    utc(
        "0 1-10/4,23 * * *",
        FRIDAY,
        &["2026-01-02T05:00", "2026-01-02T09:00", "2026-01-02T23:00", "2026-01-03T01:00"],
    );
    utc(
        "30 6 * Feb,MAR Mon-Wed",
        FRIDAY,
        &["2026-02-02T06:30", "2026-02-03T06:30", "2026-02-04T06:30", "2026-02-09T06:30"],
    );
    utc("0 0 29 2 *", FRIDAY, &["2028-02-29T00:00"]);
    utc("0 0 31 * *", "2026-01-31T00:00:00Z", &["2026-03-31T00:00", "2026-05-31T00:00"]);
}

#[test]
fn either_day_will_do_where_both_are_given() {
    utc(
        "0 0 10 * Fri",
        "2026-01-01T00:00:00Z",
        &["2026-01-02T00:00", "2026-01-09T00:00", "2026-01-10T00:00"],
    );
    utc("0 0 10 * *", "2026-01-01T00:00:00Z", &["2026-01-10T00:00", "2026-02-10T00:00"]);
    utc("0 0 */2 * Fri", "2026-01-01T00:00:00Z", &["2026-01-02T00:00", "2026-01-03T00:00"]);
}

#[test]
fn words_stand_for_fields() {
    const NOW: &str = "2026-01-02T03:04:05Z";
    for (word, next) in [
        ("@yearly", "2027-01-01T00:00"),
        ("@annually", "2027-01-01T00:00"),
        ("@monthly", "2026-02-01T00:00"),
        ("@weekly", "2026-01-04T00:00"),
        ("@daily", "2026-01-03T00:00"),
        ("@midnight", "2026-01-03T00:00"),
        ("@hourly", "2026-01-02T04:00"),
    ] {
        utc(word, NOW, &[next]);
    }
    check("@every 1h30m10s", "UTC", "2026-01-02T03:04:05.5Z", &["2026-01-02T04:34:15+00:00"]);
    check("@every 10ms", "UTC", NOW, &["2026-01-02T03:04:06+00:00"]);
}

#[test]
fn times_are_those_of_the_zone() {
    check("30 8 * * *", "America/New_York", "2026-01-02T14:00:00Z", &["2026-01-03T08:30:00-05:00"]);
    check("TZ=Asia/Tokyo 30 8 * * *", "UTC", "2026-01-02T14:00:00Z", &["2026-01-02T23:30:00+00:00"]);
    check("CRON_TZ=Asia/Tokyo @daily", "UTC", "2026-01-02T14:00:00Z", &["2026-01-02T15:00:00+00:00"]);
}

#[test]
fn an_hour_that_is_left_out_has_no_times_and_one_that_is_repeated_has_them_twice() {
    let forward = ["2026-03-07T02:30:00-05:00", "2026-03-09T02:30:00-04:00"];
    check("30 2 * * *", "America/New_York", "2026-03-07T00:00:00Z", &forward);
    let back = ["2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00", "2026-11-02T01:30:00-05:00"];
    check("30 1 * * *", "America/New_York", "2026-11-01T00:00:00Z", &back);
    // Where midnight itself is left out.
    let midnight = ["2018-11-03T00:00:00-03:00", "2018-11-05T00:00:00-02:00"];
    check("0 0 * * *", "America/Sao_Paulo", "2018-11-03T02:00:00Z", &midnight);
    check("0 1 * * *", "America/Sao_Paulo", "2018-11-04T02:00:00Z", &["2018-11-04T01:00:00-02:00"]);
}

#[test]
fn what_never_happens_has_no_next_time() {
    for never in ["59 23 31 2 *", "0 0 30 feb ?", ", * * * *"] {
        let schedule = Schedule::parse(never).unwrap();
        assert_eq!(schedule.next(at("2026-01-01T00:00:00Z"), &TimeZone::UTC), None, "{never}");
    }
}

#[test]
fn what_is_no_schedule_is_refused_in_upstreams_words() {
    for (text, words) in [
        ("", "empty spec string"),
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("0 0 * * * *", "expected exactly 5 fields, found 6: [0 0 * * * *]"),
        ("x * * * *", r#"failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax"#),
        ("* * * * 1-", r#"failed to parse int from : strconv.Atoi: parsing "": invalid syntax"#),
        ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
        ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ("*/2/3 * * * *", "too many slashes: */2/3"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("@often", "unrecognized descriptor: @often"),
        ("@every x", r#"failed to parse duration @every x: time: invalid duration "x""#),
        ("@every 5", r#"failed to parse duration @every 5: time: missing unit in duration "5""#),
        ("TZ=No/Where * * * * *", "provided bad location No/Where: unknown time zone No/Where"),
    ] {
        assert_eq!(Schedule::parse(text).unwrap_err().to_string(), words, "{text}");
    }
    assert!(Schedule::parse("TZ=0").is_err());
}

#[test]
fn a_zone_is_known_by_its_exact_name() {
    for known in ["", "UTC", "Europe/Zurich", "Etc/UTC", "America/Argentina/Buenos_Aires"] {
        assert!(time_zone(known).is_some(), "{known}");
    }
    for unknown in ["Local", "europe/zurich", "Mars/Phobos", "../etc/passwd", "/etc/localtime"] {
        assert!(time_zone(unknown).is_none(), "{unknown}");
    }
}

proptest! {
    #[test]
    fn no_text_is_too_strange_to_be_read_or_refused(text in "[-*/,?0-9a-zA-Z@= .]{0,24}") {
        let _ = Schedule::parse(&text);
    }

    #[test]
    fn the_next_time_is_later_and_is_one_of_the_schedule(
        minute in 0u8..60, hour in 0u8..24, step in 1u8..30, seconds in 0i64..4_000_000_000, nanos in 0i32..1_000_000_000,
    ) {
        let after = Timestamp::new(seconds, nanos).unwrap();
        let schedule = Schedule::parse(&format!("{minute} {hour} */{step} * *")).unwrap();
        let next = schedule.next(after, &TimeZone::UTC).unwrap();
        prop_assert!(next > after);
        let next = next.to_zoned(TimeZone::UTC);
        prop_assert_eq!((next.minute(), next.hour(), next.second()), (minute as i8, hour as i8, 0));
        prop_assert_eq!((next.day() - 1) % step as i8, 0);
    }
}
