//! Owns one round of calls: which payments go into which call, within what the breaker allows, all calls at once.
//!
//! Comes after [`super::work`] has gathered what is to be asked, and gives back what came of it.

use std::time::{Duration, Instant};

use super::breaker::{Allowance, Breaker};
use super::machine::{Operation, Standing, Trouble};
use super::rail::{Order, Rail};
use crate::metrics::Metrics;

/// Most payments of one call.
pub(crate) const CALL_PAYMENTS: usize = 200;
/// Most calls at once.
pub(crate) const CALLS: usize = 4;
/// Most that is asked in one round.
pub(crate) const MOST: Allowance = Allowance {
    calls: CALLS,
    payments: CALLS * CALL_PAYMENTS,
};

/// What is to be asked about one payment.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) order: Order,
    /// The rail rejects whatever it is asked together with this.
    pub(crate) alone: bool,
}

/// What came of a job; `None` where it was not asked.
pub(crate) type Answered = Option<Result<Standing, Trouble>>;

/// Asks as much as may be asked now, in the order of the jobs, about so many payments in a call at most. Gives an answer for
/// each job, in their order. `since` is when the breaker's time began.
pub(crate) fn ask(
    rail: &dyn Rail,
    breaker: &mut Breaker,
    since: Instant,
    metrics: &Metrics,
    call_payments: usize,
    jobs: &[Job],
) -> Vec<Answered> {
    let mut answers: Vec<Answered> = vec![None; jobs.len()];
    let allowed = breaker.allow(since.elapsed(), MOST);
    let calls = plan(jobs, allowed, call_payments);
    for call in &calls {
        breaker.took(call.len());
    }
    let ended = std::thread::scope(|scope| {
        let threads: Vec<_> = calls
            .iter()
            .map(|call| {
                let operation = jobs[call[0]].operation;
                let orders: Vec<Order> = call.iter().map(|job| jobs[*job].order.clone()).collect();
                scope.spawn(move || {
                    let began = Instant::now();
                    (operation, rail.call(operation, &orders), began.elapsed())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    for (call, ended) in calls.iter().zip(ended) {
        let (operation, done, took): (_, _, Duration) = match ended {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A rail that does not take a call is there, and may take others.
        breaker.ended(since.elapsed(), matches!(done, Ok(_) | Err(Trouble::Rejected)));
        metrics.rail_called(operation, done.as_ref().err().copied(), took);
        for (place, job) in call.iter().enumerate() {
            answers[*job] = Some(match &done {
                Ok(standings) => Ok(standings[place]),
                Err(trouble) => Err(*trouble),
            });
        }
    }
    metrics.rail_breaker(breaker.mode());
    answers
}

/// Which jobs go into each call: of one operation each, as evenly as the allowance says. One call is left for what has to be
/// asked alone, or the only one where nothing else is to be asked.
fn plan(jobs: &[Job], allowed: Allowance, call_payments: usize) -> Vec<Vec<usize>> {
    if allowed.calls == 0 || allowed.payments == 0 {
        return Vec::new();
    }
    let size = (allowed.payments / allowed.calls).clamp(1, call_payments);
    let (mut calls, mut left): (Vec<Vec<usize>>, usize) = (Vec::new(), allowed.payments);
    if let Some(alone) = jobs.iter().position(|job| job.alone)
        && (allowed.calls > 1 || jobs.iter().all(|job| job.alone))
    {
        calls.push(vec![alone]);
        left -= 1;
    }
    for (number, job) in jobs.iter().enumerate().filter(|(_, job)| !job.alone) {
        if left == 0 {
            break;
        }
        let fits = |call: &Vec<usize>| {
            let first = &jobs[call[0]];
            !first.alone && first.operation == job.operation && call.len() < size
        };
        match calls.iter().position(fits) {
            Some(call) => calls[call].push(number),
            None if calls.len() < allowed.calls => calls.push(vec![number]),
            None => continue,
        }
        left -= 1;
    }
    calls
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::super::breaker::Mode;
    use super::*;

    /// A rail that says the same to every call.
    struct Says(Result<Standing, Trouble>);

    impl Rail for Says {
        fn call(&self, _operation: Operation, orders: &[Order]) -> Result<Vec<Standing>, Trouble> {
            self.0.map(|standing| vec![standing; orders.len()])
        }
    }

    #[test]
    fn a_rail_that_rejects_calls_is_there_and_one_that_is_away_is_not() {
        let metrics = Metrics::register(&mut Registry::default());
        for (answer, mode) in [
            (Err(Trouble::Rejected), Mode::Closed),
            (Err(Trouble::Transient), Mode::Open),
            (Ok(Standing::Refunded), Mode::Closed),
        ] {
            let mut breaker = Breaker::new(Duration::from_secs(60));
            let refund = jobs(&[Operation::Refund]);
            for _call in 0..20 {
                ask(
                    &Says(answer),
                    &mut breaker,
                    Instant::now(),
                    &metrics,
                    CALL_PAYMENTS,
                    &refund,
                );
            }
            assert_eq!(breaker.mode(), mode, "{answer:?}");
        }
    }

    fn jobs(operations: &[Operation]) -> Vec<Job> {
        let job = |operation: &Operation| Job {
            operation: *operation,
            order: Order {
                key: "acme/1".to_owned(),
                account: "a".to_owned(),
                amount: "1.00".to_owned(),
                currency: "EUR".to_owned(),
            },
            alone: false,
        };
        operations.iter().map(job).collect()
    }

    #[test]
    fn a_call_is_of_one_operation_and_no_larger_than_allowed() {
        use Operation::{Capture, Query};
        let few = jobs(&[Query, Capture, Query, Capture]);
        assert_eq!(plan(&few, MOST, CALL_PAYMENTS), [vec![0, 2], vec![1, 3]]);
        assert_eq!(plan(&few, MOST, 1), [[0], [1], [2], [3]]);
        let many = jobs(&[Capture; 1_000]);
        let sizes: Vec<usize> = plan(&many, MOST, CALL_PAYMENTS).iter().map(Vec::len).collect();
        assert_eq!(sizes, [CALL_PAYMENTS; CALLS]);
        let probes = Allowance { calls: 3, payments: 3 };
        assert_eq!(plan(&many, probes, CALL_PAYMENTS), [[0], [1], [2]]);
        let ramp = Allowance { calls: 4, payments: 10 };
        let ramp = plan(&many, ramp, CALL_PAYMENTS);
        assert_eq!(ramp.iter().map(Vec::len).sum::<usize>(), 8, "two each");
        assert!(plan(&many, Allowance { calls: 0, payments: 0 }, CALL_PAYMENTS).is_empty());
    }

    #[test]
    fn what_the_rail_rejects_shares_no_call_and_takes_one_at_most() {
        let mut few = jobs(&[Operation::Capture; 4]);
        (few[0].alone, few[2].alone) = (true, true);
        assert_eq!(plan(&few, MOST, CALL_PAYMENTS), [vec![0], vec![1, 3]]);
        let one = Allowance { calls: 1, payments: 9 };
        assert_eq!(plan(&few, one, CALL_PAYMENTS), [[1, 3]]);
        assert_eq!(plan(&few[..1], one, CALL_PAYMENTS), [[0]]);
    }
}
