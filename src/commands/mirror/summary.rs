//! What a move came to, for people, and several moves as one. Pure: both are made of what the server said.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::size;

/// Several moves as one. Bytes, bytes a second, seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Total {
    pub(super) disks: u64,
    /// How many of them have ended, and how many of those badly.
    pub(super) ended: u64,
    pub(super) failed: u64,
    pub(super) found: u64,
    pub(super) copied: u64,
    pub(super) streamed: u64,
    pub(super) same: u64,
    pub(super) remaining: u64,
    pub(super) sent: u64,
    pub(super) rate: u64,
    /// Until the last one is in step, most likely; null if that is not known of one.
    pub(super) seconds_remaining: Option<u64>,
    /// The same, and how sure that is.
    pub(super) estimate: Option<Value>,
}

/// All of `states` together.
pub(super) fn total(states: &[Value]) -> Total {
    let sum = |field: &str| {
        let all = states
            .iter()
            .map(|state| state[field].as_u64().unwrap_or(0));
        all.fold(0, u64::saturating_add)
    };
    let (seconds, estimate) = in_all(states);
    Total {
        disks: states.len() as u64,
        ended: states.iter().filter(|state| state["ended"] == true).count() as u64,
        failed: states
            .iter()
            .filter(|state| !state["error"].is_null())
            .count() as u64,
        found: sum("found"),
        copied: sum("copied"),
        streamed: sum("streamed"),
        same: sum("same"),
        remaining: sum("remaining"),
        sent: sum("sent"),
        rate: sum("rate"),
        seconds_remaining: seconds,
        estimate,
    }
}

/// Each disk is measured beside the others, so all are there when the last one is.
fn in_all(states: &[Value]) -> (Option<u64>, Option<Value>) {
    let open = states.iter().filter(|state| {
        let there = state["stage"] == "synced" || state["ended"] == true;
        !there
    });
    let estimates: Vec<&Value> = open.map(|state| &state["estimate"]).collect();
    let longest = |field: &str| {
        let all = estimates.iter().map(|estimate| estimate[field].as_u64());
        all.collect::<Option<Vec<u64>>>()
            .and_then(|all| all.into_iter().max())
    };
    let (Some(seconds), Some(least)) = (longest("seconds"), longest("least")) else {
        return (None, None);
    };
    let most = longest("most");
    let estimate = serde_json::json!({ "seconds": seconds, "least": least, "most": most });
    (Some(seconds), Some(estimate))
}

impl Total {
    /// For people.
    pub(super) fn people(&self) -> String {
        let mut text = format!(
            "in all: {} of {} ended, copied {} of {}, streamed {}, remaining {}, {}/s",
            self.ended,
            self.disks,
            size::show(self.copied),
            size::show(self.found),
            size::show(self.streamed),
            size::show(self.remaining),
            size::show(self.rate),
        );
        if let Some(estimate) = &self.estimate {
            text += &how_long(estimate);
        }
        if self.failed > 0 {
            let _ = write!(text, ", {} failed", self.failed);
        }
        text
    }
}

/// How long it will take and how sure that is, for people; nothing if that is not known.
pub(super) fn how_long(estimate: &Value) -> String {
    let Some(seconds) = estimate["seconds"].as_u64() else {
        return String::new();
    };
    let least = estimate["least"].as_u64().unwrap_or(seconds);
    match estimate["most"].as_u64() {
        Some(most) if most > least => format!(", {seconds} s to go ({least} to {most})"),
        Some(_) => format!(", {seconds} s to go"),
        None => format!(", {seconds} s to go ({least}, or never)"),
    }
}

/// What a move came to, for people; nothing if its server does not say.
pub(super) fn report(report: &Value) -> String {
    if !report.is_object() {
        return String::new();
    }
    let bytes = |value: &Value| size::show(value.as_u64().unwrap_or(0));
    let phases = report["phases"].as_array().into_iter().flatten();
    let phases: Vec<String> = phases
        .map(|phase| {
            let stage = phase["stage"].as_str().unwrap_or("unknown");
            format!("{stage} {}", seconds(&phase["took"]))
        })
        .collect();
    let saved = &report["saved"];
    let mut text = format!(
        "\n  took {}: {}\n  read {}, sent {} as {} on the wire; saved by holes {}, zeros {}, hashes {}, writes over what waited {}, packing {}",
        seconds(&report["took"]),
        phases.join(", "),
        bytes(&report["read"]),
        bytes(&report["transferred"]),
        bytes(&report["wire"]),
        bytes(&saved["holes"]),
        bytes(&saved["zeros"]),
        bytes(&saved["hashes"]),
        bytes(&saved["overwritten"]),
        bytes(&saved["packing"]),
    );
    let (rate, dirty) = (&report["rate"], &report["dirty_rate"]);
    let _ = write!(
        text,
        "\n  {}/s on average, {}/s at the most; clients wrote {}/s on average, {}/s at the most\n  link lost {} times",
        bytes(&rate["average"]),
        bytes(&rate["peak"]),
        bytes(&dirty["average"]),
        bytes(&dirty["peak"]),
        report["reconnects"].as_u64().unwrap_or(0),
    );
    if let Some(pause) = report["pause"].as_u64() {
        let _ = write!(text, ", pause {}.{} ms", pause / 1000, pause % 1000 / 100);
    }
    let forecast = &report["forecast"];
    if let Some(first) = forecast["seconds"].as_u64() {
        let _ = write!(text, ", first estimate {first} s");
        if let Some(took) = forecast["took"].as_u64() {
            let _ = write!(text, ", it took {took} s");
        }
    }
    text
}

fn seconds(micros: &Value) -> String {
    let millis = micros.as_u64().unwrap_or(0) / 1000;
    format!("{}.{:03} s", millis / 1000, millis % 1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn state() -> impl Strategy<Value = Value> {
        let estimate = prop::option::of((0_u64..1000, 0_u64..1000, prop::option::of(0_u64..1000)));
        (0_u64..1 << 50, any::<bool>(), estimate).prop_map(|(bytes, synced, estimate)| {
            json!({
                "stage": if synced { "synced" } else { "copying" },
                "ended": false,
                "error": null,
                "remaining": bytes,
                "estimate": estimate.map(|(a, b, most)| json!({
                    "seconds": a.max(b), "least": a.min(b), "most": most.map(|more| a.max(b) + more),
                })),
            })
        })
    }

    proptest! {
        #[test]
        fn all_disks_are_there_no_sooner_than_any_of_them_and_never_if_one_is_never(
            states in prop::collection::vec(state(), 1..8),
        ) {
            let all = total(&states);
            let sum: u64 = states.iter().map(|state| state["remaining"].as_u64().unwrap()).sum();
            prop_assert_eq!(all.remaining, sum);
            let open = || states.iter().filter(|state| state["stage"] == "copying");
            let unknown = open().any(|state| state["estimate"].is_null());
            prop_assert_eq!(all.estimate.is_none(), unknown || open().next().is_none());
            if let Some(estimate) = &all.estimate {
                for state in open() {
                    let one = &state["estimate"];
                    prop_assert!(estimate["seconds"].as_u64() >= one["seconds"].as_u64());
                    prop_assert!(!one["most"].is_null() || estimate["most"].is_null());
                }
                prop_assert!(estimate["least"].as_u64() <= estimate["seconds"].as_u64());
            }
        }
    }
}
