//! `diskferry arbiter`: the third place that decides who goes on with a disk that was offered.

use std::fmt::Write as _;

use mirror::arbiter::Side;
use mirror::net::arbiter::{Arbiter, at};
use serde::Serialize;
use uuid::Uuid;

use crate::args::{ArbiterArgs, ArbiterVerb};
use crate::failure::{Exit, Failure, Result};
use crate::report::Report;

#[derive(Serialize)]
struct Known {
    arbiter: String,
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    decided: Option<Vec<Decided>>,
}

#[derive(Serialize)]
struct Decided {
    disk: Uuid,
    session: Uuid,
    attempt: u64,
    winner: Side,
}

pub(crate) fn run(verb: &ArbiterVerb, report: Report) -> Result<()> {
    match verb {
        ArbiterVerb::New(args) => {
            let id = Uuid::new_v4();
            find(args)?.establish(id).map_err(|e| failed(args, &e))?;
            let known = Known {
                arbiter: args.arbiter.clone(),
                id,
                decided: None,
            };
            report.result("arbiter", &known, people)
        }
        ArbiterVerb::List(args) => {
            let arbiter = find(args)?;
            let id = arbiter.id().map_err(|e| failed(args, &e))?;
            let all = arbiter.decided().map_err(|e| failed(args, &e))?;
            let decided = all.into_iter().map(|(ballot, winner)| Decided {
                disk: ballot.disk,
                session: ballot.session,
                attempt: ballot.attempt,
                winner,
            });
            let known = Known {
                arbiter: args.arbiter.clone(),
                id,
                decided: Some(decided.collect()),
            };
            report.result("arbiter", &known, people)
        }
    }
}

fn find(args: &ArbiterArgs) -> Result<Box<dyn Arbiter>> {
    at(&args.arbiter).map_err(|e| Failure::usage(e.to_string()))
}

fn failed(args: &ArbiterArgs, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", args.arbiter))
}

fn people(known: &Known) -> String {
    let mut text = format!("{} is arbiter {}", known.arbiter, known.id);
    for one in known.decided.iter().flatten() {
        let _ = write!(
            text,
            "\ndisk {}, session {}, attempt {}: the {}'s",
            one.disk, one.session, one.attempt, one.winner
        );
    }
    text
}
