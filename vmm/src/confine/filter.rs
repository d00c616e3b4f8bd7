//! Lists of system calls as programs for the kernel (`seccomp(2)`).
//!
//! Of the filters of a thread the strictest answer counts. So a kind of thread has three: one that lets
//! through what is allowed, and up to two that answer with an error what libraries go on without.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::calls::{Call, If, Lists};
use crate::{Error, Result};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::host(
        "a filter of system calls cannot be made",
        std::io::Error::other(error),
    )
}

fn rule(condition: &If) -> Result<SeccompRule> {
    let width = if condition.mask > u64::from(u32::MAX) {
        SeccompCmpArgLen::Qword
    } else {
        SeccompCmpArgLen::Dword
    };
    let operator = SeccompCmpOp::MaskedEq(condition.mask);
    let condition = SeccompCondition::new(condition.argument, width, operator, condition.value);
    SeccompRule::new(vec![condition.map_err(failed)?]).map_err(failed)
}

/// Calls of several lists together. No rule for a call means that no condition has to hold.
fn rules<'a>(lists: impl IntoIterator<Item = &'a [Call]>) -> Result<Rules> {
    let mut rules = Rules::new();
    for (number, _, conditions) in lists.into_iter().flatten() {
        let more: Vec<_> = conditions.iter().map(rule).collect::<Result<_>>()?;
        match rules.entry(*number) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(more);
            }
            std::collections::btree_map::Entry::Occupied(mut place) => {
                let known = place.get_mut();
                if known.is_empty() || more.is_empty() {
                    known.clear();
                } else {
                    known.extend(more);
                }
            }
        }
    }
    Ok(rules)
}

fn program(rules: Rules, other: SeccompAction, these: SeccompAction) -> Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, other, these, TargetArch::x86_64).map_err(failed)?;
    filter.try_into().map_err(failed)
}

/// The programs of these lists, in the order in which they are to be installed; `refused` is what is done to a
/// call that is in none of them.
pub(super) fn programs(lists: &Lists, refused: SeccompAction) -> Result<Vec<BpfProgram>> {
    let soft = [(lists.tried, libc::EACCES), (lists.unseen, libc::ENOSYS)];
    let mut programs = Vec::new();
    for (calls, error) in soft {
        if !calls.is_empty() {
            let answer = SeccompAction::Errno(error.cast_unsigned());
            programs.push(program(rules([calls])?, SeccompAction::Allow, answer)?);
        }
    }
    let known = lists.allowed.iter().copied();
    let known = rules(known.chain([lists.tried, lists.unseen]))?;
    programs.push(program(known, refused, SeccompAction::Allow)?);
    Ok(programs)
}
