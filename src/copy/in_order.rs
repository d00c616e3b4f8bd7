//! Work done by several threads whose results are taken in the order in which it was given.

use std::sync::mpsc::sync_channel;
use std::thread;

use crate::failure::{Exit, Failure, Result};

/// Pieces of work that wait before, and results that wait behind, each thread.
const AHEAD: usize = 2;

/// Gives what `plan` hands out to `workers` in turn, and their results to `take`, in the same order.
///
/// The first failure ends all of it. `plan` is told when nobody wants more, and is to return then.
pub(crate) fn in_order<T: Send, R: Send, W: FnMut(T) -> Result<R> + Send>(
    plan: impl FnOnce(&mut dyn FnMut(T) -> bool) -> Result<()> + Send,
    workers: Vec<W>,
    mut take: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let (mut inputs, mut outputs, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for mut work in workers {
            let (give, given) = sync_channel::<T>(AHEAD);
            let (answer, answers) = sync_channel::<Result<R>>(AHEAD);
            inputs.push(give);
            outputs.push(answers);
            threads.push(scope.spawn(move || {
                for task in given {
                    let result = work(task);
                    let over = result.is_err();
                    if answer.send(result).is_err() || over {
                        break;
                    }
                }
            }));
        }
        let feeder = scope.spawn(move || {
            let mut turns = inputs.iter().cycle();
            plan(&mut |task| turns.next().is_some_and(|input| input.send(task).is_ok()))
        });
        let mut taken = Ok(());
        // A worker whose turn it is and that has ended has nothing more to do, nor have those after it.
        for output in outputs.iter().cycle() {
            let Ok(result) = output.recv() else { break };
            taken = result.and_then(&mut take);
            if taken.is_err() {
                break;
            }
        }
        // Those who wait for room are let go.
        drop(outputs);
        let broken = || Failure::new(Exit::Failed, "a reading thread ended unexpectedly");
        let planned = feeder.join().unwrap_or_else(|_| Err(broken()));
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        // All of them are waited for, whichever failed.
        let ended: Vec<_> = ended.collect();
        let whole = if ended.iter().all(Result::is_ok) {
            Ok(())
        } else {
            Err(broken())
        };
        taken.and(planned).and(whole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(count: u64, jobs: usize, bad: Option<u64>) -> (Vec<u64>, Result<()>) {
        let work = move |n: u64| {
            if n.is_multiple_of(7) {
                thread::yield_now();
            }
            match bad {
                Some(bad) if bad == n => Err(Failure::usage("bad")),
                _ => Ok(n * n),
            }
        };
        let mut taken = Vec::new();
        let plan = |give: &mut dyn FnMut(u64) -> bool| {
            let _ = (0..count).all(give);
            Ok(())
        };
        let done = in_order(plan, vec![work; jobs], |square| {
            taken.push(square);
            Ok(())
        });
        (taken, done)
    }

    #[test]
    fn results_come_in_the_order_of_the_work() {
        for jobs in [1, 2, 5] {
            for count in [0, 1, 4, 1000] {
                let (taken, done) = squares(count, jobs, None);
                done.unwrap();
                assert!(
                    taken.into_iter().eq((0..count).map(|n| n * n)),
                    "{jobs} {count}"
                );
            }
        }
    }

    #[test]
    fn the_first_failure_ends_it_and_what_came_before_is_taken() {
        let (taken, done) = squares(1_000_000, 3, Some(50));
        assert!(done.is_err());
        assert_eq!(taken.len(), 50);
        let planned = in_order(
            |give: &mut dyn FnMut(u64) -> bool| {
                give(1);
                Err(Failure::usage("no more"))
            },
            vec![|n: u64| Ok(n)],
            |_| Ok(()),
        );
        assert!(planned.is_err());
        let refused = in_order(
            |give: &mut dyn FnMut(u64) -> bool| {
                while give(1) {}
                Ok(())
            },
            vec![|n: u64| Ok(n); 2],
            |_| Err(Failure::usage("full")),
        );
        assert!(refused.is_err());
    }
}
