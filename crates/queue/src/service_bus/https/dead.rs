//! The dead-letter side over REST: what the broker set aside, and what we did.
//!
//! A message can be seen only by locking it, in the entity's order. So every look is a sweep: all up to
//! the last one that is wanted are locked, and the others given back.

use std::collections::HashSet;

use super::entity::{Entity, bear};
use super::lease::{Lease, Verb};
use crate::DeadLetter;
use crate::service_bus::fault::Fault;
use domain::job::{Amendment, Job};

/// Added to the numbers of our own dead-letter queue, so that they differ from the broker's.
const OURS: i64 = 1 << 62;

pub(super) struct DeadSides {
    /// What the broker set aside.
    pub(super) broker: Entity,
    /// Where dead jobs are copied to.
    pub(super) ours: Option<Entity>,
}

impl DeadSides {
    fn sides(&self) -> impl Iterator<Item = (&Entity, i64)> {
        [Some((&self.broker, 0)), self.ours.as_ref().map(|ours| (ours, OURS))].into_iter().flatten()
    }

    /// Up to `max` dead letters from a number on, locked meanwhile.
    pub(super) async fn look(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, Fault> {
        let mut letters: Vec<DeadLetter> = Vec::new();
        for (entity, offset) in self.sides() {
            let wanted = max - letters.len();
            let is_asked_for = |lease: &Lease| lease.number + offset >= from;
            let count = |leases: &[Lease]| leases.iter().filter(|l| is_asked_for(l)).count();
            let leases = entity.sweep(|leases| count(leases) < wanted).await?;
            entity.release(&leases).await;
            let asked_for = leases.iter().filter(|lease| is_asked_for(lease)).take(wanted);
            letters.extend(asked_for.map(|lease| {
                let letter = lease.letter();
                DeadLetter { number: letter.number + offset, ..letter }
            }));
        }
        Ok(letters)
    }

    /// Deletes the dead letters with these numbers, and tells which. With a target, only those that
    /// are jobs, and only when they are sent anew: a crash in between leaves two messages of one job,
    /// never none.
    pub(super) async fn take_out(
        &self,
        numbers: &[i64],
        target: Option<(&Entity, &Amendment)>,
    ) -> Result<Vec<i64>, Fault> {
        let mut done = Vec::new();
        for (entity, offset) in self.sides() {
            let of_side = |number: &&i64| (**number >= OURS) == (offset == OURS);
            let wanted: HashSet<i64> =
                numbers.iter().filter(of_side).map(|number| number - offset).collect();
            let found = |leases: &[Lease]| {
                leases.iter().filter(|lease| wanted.contains(&lease.number)).count()
            };
            let leases = entity.sweep(|leases| found(leases) < wanted.len()).await?;
            let (chosen, mut passed): (Vec<_>, Vec<_>) =
                leases.into_iter().partition(|lease| wanted.contains(&lease.number));
            let mut ended = Ok(());
            for lease in chosen {
                let again = target.map(|(to, amendment)| (to, anew(&lease, amendment)));
                if ended.is_err() || matches!(again, Some((_, None))) {
                    passed.push(lease);
                    continue;
                }
                let number = lease.number + offset;
                let again = again.and_then(|(to, job)| Some((to, job?)));
                match take(entity, &lease, again).await {
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

/// Whether the message was taken out; it stays if its job is too large to be sent.
async fn take(
    entity: &Entity,
    lease: &Lease,
    again: Option<(&Entity, Job)>,
) -> Result<bool, Fault> {
    if let Some((target, job)) = again {
        match target.send_whatever_size(job).await {
            Err(fault) if fault.is_too_large() => return Ok(false),
            sent => sent?,
        }
    }
    bear(entity.patience, || lease.ask(Verb::Complete)).await?;
    Ok(true)
}

/// The dead letter's job as a new one, if it is a job.
fn anew(lease: &Lease, amendment: &Amendment) -> Option<Job> {
    let mut job = lease.job().ok()?;
    job.begin_anew(amendment);
    Some(job)
}
