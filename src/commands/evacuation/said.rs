//! Plans and chances in words and tables, for people.

use std::fmt::Write as _;

use mirror::evacuation::answer::{Answer, Expected, Moving};
use mirror::evacuation::needs::{Needs, Reason};
use mirror::evacuation::odds::Odds;

use crate::size;

/// A time, as in 4:05:09.
pub(super) fn time(seconds: u64) -> String {
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// A plan.
pub(super) fn plan(answer: &Answer) -> String {
    let all = answer.machines.len();
    let mut text = format!(
        "{} of {all} machines move within {}",
        answer.in_time,
        time(answer.deadline_s)
    );
    if answer.in_time > 0 {
        let _ = write!(text, ", the last in {}", time(answer.all_moved_s));
    }
    text.push_str("\n\n");
    let head = [
        "machine", "priority", "start", "moved", "least", "most", "to", "link", "wire", "rate",
        "streams", "pause",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let planned = answer.machines.iter().filter(|m| m.in_time);
    rows.extend(planned.map(row));
    if rows.len() > 1 {
        text.push_str(&table(&rows));
    }
    for link in answer.links.iter().filter(|link| link.bytes > 0) {
        let _ = writeln!(
            text,
            "\n{}: {} in all, {} % of what is counted on, at most {} at once",
            link.link,
            size::show(link.bytes),
            link.percent,
            link.at_once
        );
    }
    let late: Vec<_> = answer.machines.iter().filter(|m| !m.in_time).collect();
    if !late.is_empty() {
        text.push_str("\nNot in time:\n");
    }
    for machine in late {
        text.push_str(&left_out(machine));
    }
    text
}

fn row(machine: &Moving) -> [String; 12] {
    let name = machine.machine.clone();
    let priority = machine.priority.to_string();
    let Some(plan) = &machine.plan else {
        let said = if machine.moved { "has moved" } else { "" };
        let mut row: [String; 12] = Default::default();
        (row[0], row[1], row[2]) = (name, priority, said.to_owned());
        return row;
    };
    let Expected { to, link, .. } = plan;
    [
        name,
        priority,
        time(plan.start_s),
        time(plan.moved_s),
        plan.least_s.map_or_else(String::new, time),
        plan.most_s.map_or_else(|| "never".to_owned(), time),
        to.clone(),
        link.clone(),
        size::show(plan.wire),
        format!("{}/s", size::show(plan.rate)),
        plan.streams.to_string(),
        format!("{} ms", plan.pause_ms),
    ]
}

/// Columns as wide as what is in them.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn left_out(machine: &Moving) -> String {
    let mut text = format!("  {} (priority {})", machine.machine, machine.priority);
    if let Some(reason) = &machine.reason {
        let _ = write!(text, ": {}", why(reason));
    }
    text.push('\n');
    if let Some(needs) = &machine.needs {
        let _ = writeln!(text, "    would do: {}", help(needs).join("; "));
    }
    text
}

/// Why a machine is not in time.
pub(super) fn why(reason: &Reason) -> String {
    match reason {
        Reason::NeverInStep { written, carried } => format!(
            "{}/s have to travel because they are written, and the way brings {}/s at best",
            size::show(*written),
            size::show(*carried)
        ),
        Reason::TooLong { seconds } => format!("even alone it takes {}", time(*seconds)),
        Reason::NoTimeLeft { seconds } => format!(
            "alone it takes {}, and what comes before it leaves too little",
            time(*seconds)
        ),
        Reason::NoRoom { missing } => format!(
            "no target has room: {} are missing where there is most",
            size::show(*missing)
        ),
        Reason::Waits { of } => {
            format!("it switches over after or together with {of}, which does not move")
        }
        Reason::GivenUp => "it could not be moved; see its server's log".to_owned(),
    }
}

fn help(needs: &Needs) -> Vec<String> {
    let mut ways = vec![format!(
        "a seed of {} on {} drives, {} to write one after the other",
        size::show(needs.seed_bytes),
        needs.seed_volumes,
        time(needs.seed_write_s)
    )];
    if let (Some(rate), Some(percent)) = (needs.slow_writes_to, needs.slow_to_percent) {
        ways.push(format!(
            "writers slowed down to {percent} % ({}/s)",
            size::show(rate)
        ));
    }
    if let Some(cold) = needs.cold_s {
        ways.push(format!(
            "shut down and copied cold, {} of pause",
            time(cold)
        ));
    }
    if let Some(more) = needs.more_bandwidth {
        ways.push(format!("{}/s more bandwidth", size::show(more)));
    }
    ways
}

/// How likely it is.
pub(super) fn odds(odds: &Odds) -> String {
    let mut text = format!(
        "\nOf {} simulations from seed {}: all machines were in time in {:.0} %; in time were {} in the middle, {} to {} in \
         eight of ten\n\n",
        odds.runs,
        odds.seed,
        odds.all_in_time_percent,
        odds.in_time_p50,
        odds.in_time_p10,
        odds.in_time_p90
    );
    let head = ["machine", "in time", "p10", "p50", "p90"];
    let mut rows = vec![head.map(str::to_owned)];
    let end = |end: Option<u64>| end.map_or_else(|| "-".to_owned(), time);
    rows.extend(odds.machines.iter().map(|one| {
        [
            one.machine.clone(),
            format!("{:.0} %", one.in_time_percent),
            end(one.p10_s),
            end(one.p50_s),
            end(one.p90_s),
        ]
    }));
    text.push_str(&table(&rows));
    text
}
