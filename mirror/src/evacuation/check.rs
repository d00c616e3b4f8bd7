//! From what a file says to a problem: everything that makes no sense is refused here, by machine and field.
//!
//! Codec: it trusts no number and never panics.

use std::collections::BTreeMap;
use std::fmt;

use super::input::{Clock, Disk, Evacuation, Figure, Link, Machine, Target};
use super::problem::{self, LANES, Line, Problem, Resource, Route, Site};
use super::steps::Steps;
use super::units;

/// The most of each that one plan is made for.
const MOST: [(&str, usize); 4] = [
    ("machines", 20_000),
    ("links", 1_000),
    ("targets", 1_000),
    ("hosts", 20_000),
];
/// Disks of one machine.
const MOST_DISKS: usize = 256;
/// Bytes of a disk.
const MOST_DISK: f64 = 70_368_744_177_664.0;
/// A year, in seconds.
const MOST_TIME: f64 = 366.0 * 86400.0;
/// Seconds of a day.
const DAY: f64 = 86400.0;

/// What makes no sense, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

pub(super) type Checked<T> = Result<T, Wrong>;

pub(super) fn wrong<T>(what: impl Into<String>) -> Checked<T> {
    Err(Wrong(what.into()))
}

/// What `input` means, if it is carried out from `now` on, in seconds since 1970.
pub fn check(input: &Evacuation, now: u64) -> Checked<Problem> {
    let counts = [
        input.machines.len(),
        input.links.len(),
        input.targets.len(),
        input.hosts.len(),
    ];
    for ((what, most), count) in MOST.into_iter().zip(counts) {
        if count > most {
            return wrong(format!("{count} {what}; at most {most}"));
        }
    }
    if input.machines.is_empty() {
        return wrong("there are no machines");
    }
    let deadline = deadline(&input.deadline, now)?;
    let places = Places::new(input, now, deadline)?;
    let names = named("machine", input.machines.iter().map(|m| &m.name))?;
    let machines: Checked<Vec<_>> = input.machines.iter().map(|m| places.machine(m)).collect();
    let mut machines = machines?;
    let units = units::find(&input.machines, &names, &mut machines)?;
    let volume = above("drive", "volume", input.drive.volume.bytes(), 1e18)?;
    let write = above("drive", "write", input.drive.write.rate(), 1e15)?;
    Ok(Problem {
        deadline,
        machines,
        resources: places.resources,
        lines: places.lines,
        targets: places.targets,
        units,
        drive: (volume, write),
    })
}

/// Seconds from `now`.
fn deadline(written: &Figure, now: u64) -> Checked<f64> {
    let absolute = match written {
        Figure::Text(text) => super::moment::parse(text),
        Figure::Number(_) => None,
    };
    let Some(absolute) = absolute else {
        let seconds = written.seconds();
        return above("the evacuation", "deadline", seconds, MOST_TIME).map_err(|Wrong(what)| {
            Wrong(format!(
                "{what}; it is a time from now, as in \"4h\", or a moment, as in \"2026-11-27T18:00:00Z\""
            ))
        });
    };
    let Some(left) = absolute.checked_sub(now).filter(|left| *left > 0) else {
        return wrong(format!("the evacuation: deadline {written} is past"));
    };
    in_range(
        "the evacuation",
        "deadline",
        Some(whole(left)),
        (0.0, MOST_TIME),
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "seconds are far below what would lose one"
)]
fn whole(seconds: u64) -> f64 {
    seconds as f64
}

/// Numbers of names that have to differ.
fn named<'a>(
    what: &str,
    names: impl Iterator<Item = &'a String>,
) -> Checked<BTreeMap<&'a str, usize>> {
    let mut found = BTreeMap::new();
    for (number, name) in names.enumerate() {
        if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
            return wrong(format!(
                "{what} {}: `{}` is no name; it has 1 to 255 bytes and no control characters",
                number + 1,
                name.escape_default()
            ));
        }
        if found.insert(name.as_str(), number).is_some() {
            return wrong(format!("two {what}s are called `{name}`"));
        }
    }
    Ok(found)
}

fn in_range(of: &str, field: &str, value: Option<f64>, (least, most): (f64, f64)) -> Checked<f64> {
    match value {
        Some(value) if value.is_finite() && (least..=most).contains(&value) => Ok(value),
        Some(value) => wrong(format!(
            "{of}: {field} is {value}; it is between {least} and {most}"
        )),
        None => wrong(format!("{of}: {field} makes no number")),
    }
}

/// More than nothing, and at most that.
fn above(of: &str, field: &str, value: Option<f64>, most: f64) -> Checked<f64> {
    match in_range(of, field, value, (0.0, most))? {
        value if value > 0.0 => Ok(value),
        _ => wrong(format!("{of}: {field} is 0; it is more than that")),
    }
}

/// Where machines are and may go.
struct Places<'a> {
    input: &'a Evacuation,
    links: Vec<(&'a Link, usize)>,
    hosts: BTreeMap<&'a str, usize>,
    sites: BTreeMap<&'a str, usize>,
    resources: Vec<Resource>,
    lines: Vec<Line>,
    targets: Vec<Site>,
    /// The resource of each target that is limited.
    written: Vec<Option<usize>>,
}

impl<'a> Places<'a> {
    fn new(input: &'a Evacuation, now: u64, deadline: f64) -> Checked<Self> {
        let mut places = Self {
            input,
            links: Vec::new(),
            hosts: BTreeMap::new(),
            sites: named("target", input.targets.iter().map(|t| &t.site))?,
            resources: Vec::new(),
            lines: Vec::new(),
            targets: Vec::new(),
            written: Vec::new(),
        };
        named("link", input.links.iter().map(|l| &l.name))?;
        for link in &input.links {
            let Some(target) = places.sites.get(link.to.as_str()) else {
                return wrong(format!(
                    "link {}: leads to `{}`, which is no target",
                    link.name, link.to
                ));
            };
            places.links.push((link, *target));
            let (line, resource) = line(link, now, deadline * 4.0)?;
            places.lines.push(line);
            places.resources.push(resource);
        }
        for (name, number) in named("host", input.hosts.iter().map(|h| &h.name))? {
            let read = input.hosts[number].read.rate();
            let read = above(&format!("host {name}"), "read", read, 1e15)?;
            let resource = places.limited(name, read);
            places.hosts.insert(name, resource);
        }
        for target in &input.targets {
            places.target(target)?;
        }
        Ok(places)
    }

    fn limited(&mut self, name: &str, rate: f64) -> usize {
        self.resources.push(Resource {
            name: name.to_owned(),
            capacity: Steps::constant(0.0, rate),
            varies: 0.0,
        });
        self.resources.len() - 1
    }

    fn target(&mut self, target: &Target) -> Checked<()> {
        let of = format!("target {}", target.site);
        let free = in_range(&of, "free", target.free.bytes(), (0.0, 1e21))?;
        let write = target.write.as_ref();
        let write = write
            .map(|write| above(&of, "write", write.rate(), 1e15))
            .transpose()?;
        let resource = write.map(|write| self.limited(&target.site, write));
        self.written.push(resource);
        let name = target.site.clone();
        self.targets.push(Site { name, free });
        Ok(())
    }

    fn machine(&self, told: &Machine) -> Checked<problem::Machine> {
        let of = format!("machine {}", told.name);
        let amplification = in_range(&of, "amplification", Some(told.amplification), (0.0, 16.0))?;
        let writes = in_range(&of, "writes", told.writes.rate(), (0.0, 1e15))?;
        let gain = in_range(&of, "gain", Some(told.gain), (0.1, 1000.0))?;
        let mut all = problem::Machine {
            name: told.name.clone(),
            weight: above(&of, "weight", Some(told.weight), 1e9)?,
            left: 0.0,
            load: writes * amplification,
            amplification: amplification.max(0.01),
            gain,
            room: 0.0,
            allocated: 0.0,
            after: Vec::new(),
            unit: 0,
            routes: self.routes(told, &of, gain)?,
            varies: in_range(&of, "varies", Some(told.varies), (0.0, 0.9))?,
        };
        if told.disks.is_empty() || told.disks.len() > MOST_DISKS {
            let count = told.disks.len();
            return wrong(format!(
                "{of}: has {count} disks; it is between 1 and {MOST_DISKS}"
            ));
        }
        for (number, disk) in told.disks.iter().enumerate() {
            add_disk(&mut all, disk, &format!("{of}: disk {}", number + 1))?;
        }
        Ok(all)
    }

    fn routes(&self, told: &Machine, of: &str, gain: f64) -> Checked<Vec<Route>> {
        for to in &told.to {
            if !self.sites.contains_key(to.as_str()) {
                return wrong(format!("{of}: to names `{to}`, which is no target"));
            }
        }
        let mut disks = Vec::new();
        if let Some(host) = &told.host {
            match self.hosts.get(host.as_str()) {
                Some(resource) => disks.push(*resource),
                None => return wrong(format!("{of}: host `{host}` is not among the hosts")),
            }
        }
        let read = told.read.as_ref();
        let read = read
            .map(|read| above(of, "read", read.rate(), 1e15))
            .transpose()?;
        let there = |link: &Link| {
            link.from == told.site && (told.to.is_empty() || told.to.contains(&link.to))
        };
        let links = self.links.iter().enumerate();
        let routes: Vec<_> = links
            .filter(|(_, (link, _))| there(link))
            .map(|(line, (_, target))| {
                let mut disks = disks.clone();
                disks.extend(self.written[*target]);
                let stream = self.lines[line].stream;
                let lanes = stream.map(|stream| stream * f64::from(LANES.0));
                let most = read.map_or(f64::INFINITY, |read| read / gain);
                Route {
                    line,
                    target: *target,
                    disks,
                    most: most.min(lanes.unwrap_or(f64::INFINITY)),
                }
            })
            .collect();
        if routes.is_empty() {
            let sites: Vec<_> = self.input.links.iter().map(|l| l.from.as_str()).collect();
            return wrong(format!(
                "{of}: no link leads from site `{}` to where it may go; links lead from {}",
                told.site,
                sites.join(", ")
            ));
        }
        Ok(routes)
    }
}

fn add_disk(machine: &mut problem::Machine, disk: &Disk, of: &str) -> Checked<()> {
    let size = (0.0, MOST_DISK);
    let allocated = in_range(of, "allocated", disk.allocated.bytes(), size)?;
    let there = in_range(of, "at_target", disk.at_target.bytes(), (0.0, allocated))?;
    let room = match &disk.room {
        Some(room) => in_range(of, "room", room.bytes(), size)?,
        None => allocated,
    };
    let control = disk.control.as_ref();
    if control.is_some_and(|control| !control.starts_with("unix:")) {
        return wrong(format!(
            "{of}: control is no `unix:PATH`; servers are reached on this host only"
        ));
    }
    machine.allocated += allocated;
    machine.left += allocated - there;
    machine.room += room;
    Ok(())
}

fn line(link: &Link, now: u64, horizon: f64) -> Checked<(Line, Resource)> {
    let of = format!("link {}", link.name);
    let bandwidth = above(&of, "bandwidth", link.bandwidth.rate(), 1e15)?;
    let rtt = in_range(&of, "rtt_ms", Some(link.rtt_ms), (0.0, 60_000.0))? / 1000.0;
    let loss = in_range(&of, "loss", Some(link.loss), (0.0, 0.99))?;
    let share = above(&of, "share", Some(link.share), 1.0)?;
    let varies = in_range(&of, "varies", Some(link.varies), (0.0, 0.9))?;
    let breaks = in_range(
        &of,
        "breaks_per_day",
        Some(link.breaks_per_day),
        (0.0, 1000.0),
    )?;
    let lasts = in_range(&of, "break_s", Some(link.break_s), (0.0, DAY))?;
    if link.hours.len() > 100 {
        return wrong(format!(
            "{of}: {} spans of hours; at most 100",
            link.hours.len()
        ));
    }
    for hours in &link.hours {
        in_range(&of, "share of hours", Some(hours.share), (0.0, 1.0))?;
    }
    let partly = share < 1.0 || link.hours.iter().any(|hours| hours.share < 1.0);
    let way = Line {
        stream: problem::stream(rtt, loss, link.bbr),
        rtt,
        shared: partly,
        breaks: (breaks, lasts),
    };
    let resource = Resource {
        name: link.name.clone(),
        capacity: over_the_day(link, bandwidth, now, horizon),
        varies,
    };
    Ok((way, resource))
}

/// What may be used of a link from now on; of hours that overlap the first that are named count.
fn over_the_day(link: &Link, bandwidth: f64, now: u64, horizon: f64) -> Steps {
    let minute_now = now % 86400 / 60;
    let share = |minute: u64| {
        let covers = |from: Clock, to: Clock| {
            let (from, to) = (u64::from(from.minutes), u64::from(to.minutes));
            if from < to {
                (from..to).contains(&minute)
            } else {
                minute >= from || minute < to
            }
        };
        let hours = link.hours.iter().find(|h| covers(h.from, h.to));
        bandwidth * hours.map_or(link.share, |hours| hours.share)
    };
    let mut steps = Steps::constant(0.0, share(minute_now));
    if link.hours.is_empty() {
        return steps;
    }
    let into_minute = whole(now % 60);
    let marks = link.hours.iter().flat_map(|h| [h.from, h.to]);
    let mut marks: Vec<u64> = marks.map(|clock| u64::from(clock.minutes) % 1440).collect();
    marks.sort_unstable();
    marks.dedup();
    // A year and more of one plan is not worth more steps than that.
    for day in 0..400_u64 {
        for mark in &marks {
            let minute = day * 1440 + mark;
            let moment = whole(minute.saturating_sub(minute_now)) * 60.0 - into_minute;
            if minute > minute_now && moment < horizon {
                steps.then(moment, share(*mark));
            }
        }
        if whole(day) * DAY > horizon {
            break;
        }
    }
    steps
}
