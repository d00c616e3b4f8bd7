//! What a file may say, and what an answer says of machines that do not move in time.

use super::super::answer::{Answer, Moving};
use super::super::needs::Reason;
use super::super::state::State;
use super::*;

fn answer(all: &Evacuation) -> Answer {
    let problem = problem(all);
    Answer::of(&problem, &State::told(&problem), &[])
}

fn of<'a>(answer: &'a Answer, name: &str) -> &'a Moving {
    let found = answer.machines.iter().find(|m| m.machine == name);
    found.expect("it is in the answer")
}

const GOOD: &str = r#"{
    "deadline": "4h",
    "links": [{"name": "wan", "from": "here", "to": "there", "bandwidth": "1Gbit", "rtt_ms": 20, "share": 0.5,
               "hours": [{"from": "22:00", "to": "06:00", "share": 1}]}],
    "targets": [{"site": "there", "free": "10T"}],
    "hosts": [{"name": "h1", "read": "400M"}],
    "machines": [{"name": "db", "site": "here", "host": "h1", "priority": 5, "writes": "2M",
                  "disks": [{"image": "db.vhdx", "allocated": "100G"}]},
                 {"name": "app", "site": "here", "after": ["db"], "disks": [{"allocated": "20G"}]}]
}"#;

fn refusal(text: &str) -> String {
    match Evacuation::parse(text.as_bytes()) {
        Err(error) => error.to_string(),
        Ok(input) => match check(&input, 0) {
            Ok(_) => "nothing".to_owned(),
            Err(wrong) => wrong.to_string(),
        },
    }
}

#[test]
fn figures_are_read_with_their_units() {
    let input = Evacuation::parse(GOOD.as_bytes()).expect("it is good");
    let problem = problem(&input);
    assert!((problem.deadline - 14_400.0).abs() < 1e-9);
    // It is midnight: all of the link may be used, half of it from six on, and so on every day.
    let wan = &problem.resources[0].capacity;
    assert!((wan.at(0.0).0 - 125e6).abs() < 1.0);
    assert!((wan.at(6.0 * 3600.0).0 - 62.5e6).abs() < 1.0);
    assert!((wan.at(6.0 * 3600.0 - 1.0).0 - 125e6).abs() < 1.0);
    assert!((problem.machines[0].left - 100.0 * 1_073_741_824.0).abs() < 1.0);
    assert_eq!(problem.units[0].priority, 5);
    let at_noon = check(&input, 12 * 3600).expect("it is good");
    assert!((at_noon.resources[0].capacity.at(0.0).0 - 62.5e6).abs() < 1.0);
    assert!((at_noon.resources[0].capacity.at(36_000.0).0 - 125e6).abs() < 1.0);
}

/// What is put in whose place, and what is said of it.
const BAD: &[(&str, &str, &str)] = &[
    (
        "\"4h\"",
        "\"soon\"",
        "the evacuation: deadline makes no number",
    ),
    ("\"4h\"", "0", "deadline is 0"),
    ("\"4h\"", "-3", "less than nothing"),
    ("\"4h\"", "1e999", "number out of range"),
    ("\"4h\"", "\"1969-01-01T00:00:00Z\"", "deadline"),
    ("\"4h\"", "\"1970-01-01T00:00:00Z\"", "is past"),
    (
        "\"1Gbit\"",
        "\"-1Gbit\"",
        "link wan: bandwidth makes no number",
    ),
    ("\"1Gbit\"", "0", "link wan: bandwidth is 0"),
    ("\"share\": 0.5", "\"share\": 1.5", "link wan: share is 1.5"),
    ("\"22:00\"", "\"25:00\"", "no time of day"),
    (
        "\"to\": \"there\"",
        "\"to\": \"mars\"",
        "link wan: leads to `mars`",
    ),
    (
        "\"site\": \"here\", \"host\"",
        "\"site\": \"mars\", \"host\"",
        "machine db: no link leads from site `mars`",
    ),
    (
        "\"host\": \"h1\"",
        "\"host\": \"h2\"",
        "machine db: host `h2`",
    ),
    (
        "\"2M\"",
        "\"2 apples\"",
        "machine db: writes makes no number",
    ),
    (
        "\"100G\"",
        "\"100000T\"",
        "machine db: disk 1: allocated is",
    ),
    ("\"100G\"", "-1.5", "machine db: disk 1: allocated is -1.5"),
    (
        "\"100G\"",
        "\"1G\", \"at_target\": \"2G\"",
        "machine db: disk 1: at_target",
    ),
    (
        "\"100G\"",
        "\"1G\", \"control\": \"tcp:a:1\"",
        "machine db: disk 1: control",
    ),
    ("[\"db\"]", "[\"dp\"]", "machine app: after names `dp`"),
    (
        "[\"db\"]",
        "[\"app\"]",
        "machine app: cannot switch over after `app`",
    ),
    (
        "\"name\": \"app\"",
        "\"name\": \"db\"",
        "two machines are called `db`",
    ),
    ("\"name\": \"app\"", "\"name\": \"\"", "is no name"),
    (
        "\"priority\": 5",
        "\"priority\": 5, \"gain\": 0",
        "machine db: gain is 0",
    ),
    (
        "\"priority\": 5",
        "\"priority\": 5, \"weight\": 0",
        "machine db: weight is 0",
    ),
    (
        "\"priority\": 5",
        "\"priority\": 5, \"amplification\": 99",
        "machine db: amplification is 99",
    ),
    (
        "\"priority\": 5",
        "\"priority\": 5, \"color\": 1",
        "unknown field `color`",
    ),
    (
        "\"priority\": 5",
        "\"priority\": 5, \"after\": [\"app\"]",
        "machine db: after leads in a circle: db after app after db",
    ),
    (
        "[{\"image\": \"db.vhdx\", \"allocated\": \"100G\"}]",
        "[]",
        "machine db: has 0 disks",
    ),
    ("\"2M\"", "true", "a number, or a text such as"),
];

#[test]
fn what_makes_no_sense_is_refused_by_machine_and_field() {
    for (from, to, says) in BAD {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let refused = refusal(&text);
        assert!(
            refused.contains(says),
            "{to}: expected `{says}`, got `{refused}`"
        );
    }
    assert_eq!(refusal(GOOD), "nothing");
}

#[test]
fn no_bytes_make_it_panic() {
    let rng = &mut Rng::new(seeds(6).last().unwrap_or(5));
    for _ in 0..5_000 {
        let mut bytes = GOOD.as_bytes().to_vec();
        for _ in 0..rng.between(1, 4) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = b"0123456789-.e\"{}[],:TGh"[rng.below(23) as usize];
        }
        if let Ok(input) = Evacuation::parse(&bytes)
            && let Ok(problem) = check(&input, 1_795_802_400)
        {
            let answer = Answer::of(&problem, &State::told(&problem), &[]);
            assert_eq!(answer.machines.len(), input.machines.len());
        }
    }
}

#[test]
fn a_machine_that_is_written_to_faster_than_the_link_carries_is_told_what_would_do() {
    let all = evacuation(
        10_000.0,
        10.0 * MB,
        vec![machine("db", 10.0 * GB, 20.0 * MB)],
    );
    let answer = answer(&all);
    let db = of(&answer, "db");
    assert!(!db.in_time);
    assert!(
        matches!(db.reason, Some(Reason::NeverInStep { .. })),
        "{db:?}"
    );
    let needs = db.needs.as_ref().expect("it needs something");
    // (0.9 B - R/T) / a = 9 - 1 MB/s, of 20.
    let percent = needs.slow_to_percent.expect("slower writers would do");
    assert!((38..=40).contains(&percent), "{needs:?}");
    assert_eq!(needs.cold_s, Some(1113));
    assert_eq!((needs.seed_bytes, needs.seed_volumes), (10_000_000_000, 1));
    assert_eq!(needs.seed_write_s, 67);
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "rates to plan with")]
fn what_is_said_to_be_enough_is_enough() {
    let mut tried = [0; 3];
    for seed in seeds(2_000) {
        let rng = &mut Rng::new(seed);
        let all = simple(rng, 1);
        let before = answer(&all);
        let Some(needs) = &before.machines[0].needs else {
            continue;
        };
        let enough = |what: &str, changed: &Evacuation| {
            let after = answer(changed);
            assert!(
                after.machines[0].in_time,
                "{what}: {needs:?}, {after:?}: seed {seed} (run it alone with DISKFERRY_SEED={seed})"
            );
        };
        if let Some(bytes) = needs.slow_writes_to {
            let mut slowed = all.clone();
            slowed.machines[0].writes = figure(bytes as f64);
            enough("slower writers", &slowed);
            tried[0] += 1;
        }
        if needs.cold_s.is_some() {
            let mut cold = all.clone();
            cold.machines[0].writes = figure(0.0);
            enough("a pause", &cold);
            tried[1] += 1;
        }
        if let Some(more) = needs.more_bandwidth {
            let mut faster = all.clone();
            let bandwidth = all.links[0].bandwidth.rate().expect("a rate");
            faster.links[0].bandwidth = figure(bandwidth + more as f64);
            enough("more bandwidth", &faster);
            tried[2] += 1;
        }
    }
    println!("slower writers, a pause and more bandwidth: {tried:?} times");
    if are_the_usual() {
        assert!(tried.iter().all(|tried| *tried > 20), "{tried:?}");
    }
}

#[test]
fn a_target_without_room_and_a_machine_that_waits_for_one_are_named() {
    let mut app = machine("app", GB, 0.0);
    app.after = vec!["db".to_owned()];
    let mut all = evacuation(
        10_000.0,
        100.0 * MB,
        vec![machine("db", 50.0 * GB, 0.0), app],
    );
    all.targets[0].free = figure(20.0 * GB);
    let answer = answer(&all);
    let db = of(&answer, "db").reason.as_ref();
    let missing = 30_000_000_000;
    assert_eq!(db, Some(&Reason::NoRoom { missing }));
    let app = of(&answer, "app").reason.as_ref();
    let of = "db".to_owned();
    assert_eq!(app, Some(&Reason::Waits { of }));
}

#[test]
fn a_lossy_way_without_bbr_takes_many_connections() {
    let mut all = evacuation(100_000.0, 25.0 * MB, vec![machine("a", 10.0 * GB, 0.0)]);
    let two = answer(&all).machines[0].plan.as_ref().map(|p| p.streams);
    assert_eq!(two, Some(2));
    // 80 ms and a packet in a thousand: 700 KB/s for each of them, and a move opens at most 32.
    (all.links[0].bbr, all.links[0].rtt_ms, all.links[0].loss) = (false, 80.0, 0.001);
    let answer = answer(&all);
    let plan = answer.machines[0].plan.as_ref().expect("it is planned");
    assert_eq!((plan.streams, plan.rate / 100_000), (32, 223));
    assert_eq!(plan.pause_ms, 180);
}
