//! Dead letters over REST: those of the broker, and our copies of dead jobs.
//!
//! A message can be seen only by locking it, in the entity's order. So every call is a sweep: all
//! up to the last one that is wanted are locked, and the others given back.

use std::collections::HashSet;

use super::entity::{RestEntity, retry};
use super::peek_lock::{LockAction, PeekLock};
use crate::DeadLetter;
use crate::service_bus::error::BrokerError;
use domain::job::{Amendment, Job};

/// Added to the numbers of our own dead-letter queue, so that they differ from the broker's.
const OUR_NUMBERS: i64 = 1 << 62;

pub(super) struct DeadLetterSources {
    /// The broker's own dead letters.
    pub(super) broker: RestEntity,
    /// Queue that dead jobs are copied to.
    pub(super) ours: Option<RestEntity>,
}

impl DeadLetterSources {
    fn sources(&self) -> impl Iterator<Item = (&RestEntity, i64)> {
        [Some((&self.broker, 0)), self.ours.as_ref().map(|ours| (ours, OUR_NUMBERS))]
            .into_iter()
            .flatten()
    }

    /// Returns up to `max` dead letters from a number on, locked meanwhile.
    pub(super) async fn list(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, BrokerError> {
        let mut letters: Vec<DeadLetter> = Vec::new();
        for (entity, offset) in self.sources() {
            let wanted = max - letters.len();
            let is_asked_for = |lease: &PeekLock| lease.sequence_number + offset >= from;
            let count = |leases: &[PeekLock]| leases.iter().filter(|l| is_asked_for(l)).count();
            let leases = entity.sweep(|leases| count(leases) < wanted).await?;
            entity.release(&leases).await;
            let asked_for = leases.iter().filter(|lease| is_asked_for(lease)).take(wanted);
            letters.extend(asked_for.map(|lease| {
                let letter = lease.dead_letter();
                DeadLetter { number: letter.number + offset, ..letter }
            }));
        }
        Ok(letters)
    }

    /// Deletes the dead letters with these numbers, and returns which. With a target, only those
    /// that are jobs, and only when they are sent anew: a crash in between leaves two messages of
    /// one job, never none.
    pub(super) async fn take_out(
        &self,
        numbers: &[i64],
        target: Option<(&RestEntity, &Amendment)>,
    ) -> Result<Vec<i64>, BrokerError> {
        let mut done = Vec::new();
        for (entity, offset) in self.sources() {
            let of_side = |number: &&i64| (**number >= OUR_NUMBERS) == (offset == OUR_NUMBERS);
            let wanted: HashSet<i64> =
                numbers.iter().filter(of_side).map(|number| number - offset).collect();
            let found = |leases: &[PeekLock]| {
                leases.iter().filter(|lease| wanted.contains(&lease.sequence_number)).count()
            };
            let leases = entity.sweep(|leases| found(leases) < wanted.len()).await?;
            let (chosen, mut passed): (Vec<_>, Vec<_>) =
                leases.into_iter().partition(|lease| wanted.contains(&lease.sequence_number));
            let mut ended = Ok(());
            for lease in chosen {
                let again = target.map(|(to, amendment)| (to, resubmitted_job(&lease, amendment)));
                if ended.is_err() || matches!(again, Some((_, None))) {
                    passed.push(lease);
                    continue;
                }
                let number = lease.sequence_number + offset;
                let again = again.and_then(|(to, job)| Some((to, job?)));
                match take_out_one(entity, &lease, again).await {
                    Ok(true) => done.push(number),
                    Ok(false) => passed.push(lease),
                    Err(fault) => ended = Err(fault),
                }
            }
            entity.release(&passed).await;
            ended?;
        }
        Ok(done)
    }
}

/// Returns whether the message was taken out; it stays if its job is too large to be sent.
async fn take_out_one(
    entity: &RestEntity,
    lease: &PeekLock,
    again: Option<(&RestEntity, Job)>,
) -> Result<bool, BrokerError> {
    if let Some((target, job)) = again {
        match target.send_whatever_size(job).await {
            Err(fault) if fault.is_too_large() => return Ok(false),
            sent => sent?,
        }
    }
    retry(entity.patience, || lease.apply(LockAction::Complete)).await?;
    Ok(true)
}

/// Returns the dead letter's job as a new one, if it is a job.
fn resubmitted_job(lease: &PeekLock, amendment: &Amendment) -> Option<Job> {
    let mut job = lease.job().ok()?;
    job.resubmit(amendment);
    Some(job)
}
