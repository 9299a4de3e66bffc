//! Who goes first, and where to.

use super::*;
use domain::deployment::BreakerState;
use domain::suspect::Suspect;

const SECOND: Duration = Duration::from_secs(1);
const SPILL: Duration = Duration::from_secs(5);
const NOTHING: RateHeaders = RateHeaders {
    limit_tokens: None,
    limit_requests: None,
    remaining_tokens: None,
    reset_tokens: None,
    utilisation: None,
};

fn member(models: &[&str], tpm: Option<u64>) -> PoolMember {
    let limits = DeploymentLimits { tpm, concurrency: 2, ..DeploymentLimits::default() };
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    PoolMember { models, limits, ..PoolMember::default() }
}

fn on_tier(tier: u8, service: ServiceKind) -> PoolMember {
    let limits = DeploymentLimits { concurrency: 2, service, ..DeploymentLimits::default() };
    PoolMember { tier, limits, ..PoolMember::default() }
}

fn throttled(asked: Option<Duration>) -> CallFeedback {
    CallFeedback::Throttled { asked, why: "429".into() }
}

fn denied(suspect: Suspect) -> CallFeedback {
    CallFeedback::Denied { suspect, why: "404".into() }
}

struct Pool {
    admission: Admission<&'static str>,
    start: Instant,
}

impl Pool {
    fn new(members: Vec<PoolMember>) -> Self {
        let start = Instant::now();
        Self { admission: Admission::new(members, SPILL, start), start }
    }

    fn ticket(&self, charge: u64) -> AdmissionTicket {
        let lane = self.admission.group_for("m");
        AdmissionTicket {
            group: lane,
            charge,
            priority: 0,
            deadline: None,
            since: self.start,
            avoid: None,
            excluded: DeploymentSet::default(),
            tag: JobTag::default(),
        }
    }

    fn offer(&mut self, charge: u64, item: &'static str) {
        let ticket = self.ticket(charge);
        self.admission.offer(&ticket, item, self.start);
    }

    fn offer_to(&mut self, model: &str, charge: u64, item: &'static str) {
        let ticket =
            AdmissionTicket { group: self.admission.group_for(model), ..self.ticket(charge) };
        self.admission.offer(&ticket, item, self.start);
    }

    /// The job that goes at a time, and where to.
    fn go(&mut self, at: Instant) -> Option<(&'static str, Booking)> {
        match self.admission.next(at) {
            AdmissionDecision::Go(item, booking) => Some((item, booking)),
            _ => None,
        }
    }

    fn went(&mut self, at: Instant) -> Option<(&'static str, usize)> {
        self.go(at).map(|(item, booking)| (item, booking.deployment.0))
    }

    fn end(&mut self, booking: &Booking, feedback: CallFeedback, at: Instant) {
        self.admission.observe(booking, feedback, &NOTHING, at);
    }
}

#[test]
fn priority_then_deadline_then_age() {
    let mut pool = Pool::new(vec![member(&[], None)]);
    let now = pool.start;
    let ticket = pool.ticket(1);
    pool.offer(1, "old");
    pool.offer(1, "young");
    let due = AdmissionTicket { deadline: Some(now + SPILL), ..ticket };
    pool.admission.offer(&due, "due", now);
    pool.admission.offer(&AdmissionTicket { priority: 1, ..ticket }, "urgent", now);
    let mut order = Vec::new();
    while let Some((item, booking)) = pool.go(now) {
        order.push(item);
        pool.end(&booking, CallFeedback::Responded, now);
    }
    assert_eq!(order, ["urgent", "due", "old", "young"]);
}

#[test]
fn a_passed_deadline_ends_without_a_call_even_while_all_is_full() {
    let mut pool = Pool::new(vec![member(&[], Some(60))]);
    let deadline = pool.start + SPILL;
    let ticket = AdmissionTicket { deadline: Some(deadline), ..pool.ticket(60) };
    pool.admission.offer(&ticket, "late", pool.start);
    assert!(
        matches!(pool.admission.next(pool.start), AdmissionDecision::Wait(Some(at)) if at <= deadline)
    );
    assert_eq!(pool.admission.next(deadline), AdmissionDecision::Expired("late"));
}

#[test]
fn models_find_their_deployments_by_any_of_their_names() {
    let mut pool = Pool::new(vec![member(&["x", "fast"], None), member(&["y"], None)]);
    let now = pool.start;
    for model in ["fast", "y", "z"] {
        let ticket = AdmissionTicket { group: pool.admission.group_for(model), ..pool.ticket(1) };
        pool.admission.offer(&ticket, model, now);
    }
    assert_eq!(pool.admission.next(now), AdmissionDecision::NotServed("z"));
    assert_eq!(pool.went(now), Some(("fast", 0)));
    assert_eq!(pool.went(now), Some(("y", 1)));
    assert_eq!(pool.admission.next(now), AdmissionDecision::Wait(None));
    assert_eq!(pool.admission.group_for("x"), pool.admission.group_for("fast"), "one line");
}

#[test]
fn a_job_larger_than_every_quota_is_turned_away() {
    let mut pool = Pool::new(vec![member(&[], Some(10)), member(&[], Some(20))]);
    pool.offer(21, "huge");
    assert_eq!(pool.admission.next(pool.start), AdmissionDecision::NeverFits("huge"));
}

#[test]
fn a_head_that_fits_one_deployment_alone_keeps_no_other_idle() {
    let mut pool = Pool::new(vec![member(&[], Some(60_000)), member(&[], Some(6_000))]);
    pool.offer(30_000, "large");
    pool.offer(20, "small");
    let soon = pool.start + SECOND;
    assert_eq!(pool.went(soon), Some(("small", 1)));
    // Its tokens are kept for it: nobody takes them away.
    pool.offer(20, "later");
    let start = pool.start;
    let mut first =
        || (0..400).map(|n| start + SECOND / 10 * n).find_map(|at| Some((at, pool.went(at)?)));
    assert_eq!(first().map(|(_, went)| went), Some(("later", 1)));
    let when = first();
    let (at, went) = when.unwrap();
    assert_eq!(went, ("large", 0));
    assert!(at - start <= 32 * SECOND, "{:?}", at - start);
}

#[test]
fn while_all_have_room_the_work_is_split_by_weight() {
    let weighing = |weight| PoolMember {
        weight: Some(weight),
        limits: DeploymentLimits {
            tpm: Some(60_000_000),
            concurrency: 1_000,
            ..DeploymentLimits::default()
        },
        ..PoolMember::default()
    };
    let mut pool = Pool::new(vec![weighing(3.0), weighing(1.0)]);
    let mut split = [0, 0];
    for step in 1..=400_u32 {
        pool.offer(100, "job");
        if let Some((_, n)) = pool.went(pool.start + Duration::from_millis(10) * step) {
            split[n] += 1;
        }
    }
    assert!((295..=305).contains(&split[0]), "{split:?}");
}

#[test]
fn the_tier_below_takes_what_has_waited_long_enough() {
    let tiers = vec![on_tier(0, ServiceKind::Provisioned), on_tier(1, ServiceKind::Standard)];
    let mut pool = Pool::new(tiers);
    let now = pool.start;
    ["a", "b", "c"].into_iter().for_each(|job| pool.offer(1, job));
    let first = [pool.went(now), pool.went(now)];
    assert_eq!(first, [Some(("a", 0)), Some(("b", 0))]);
    let AdmissionDecision::Wait(Some(at)) = pool.admission.next(now + SECOND) else {
        panic!("it waits")
    };
    assert_eq!(at, now + SPILL);
    assert_eq!(pool.went(now + SPILL + SECOND / 10), Some(("c", 1)));
}

#[test]
fn a_retired_tier_is_not_waited_for() {
    let tiers = vec![on_tier(0, ServiceKind::Provisioned), on_tier(1, ServiceKind::Standard)];
    let mut pool = Pool::new(tiers);
    pool.offer(1, "a");
    pool.offer(1, "b");
    let (_, booking) = pool.go(pool.start).unwrap();
    let why = || "401".to_owned();
    pool.end(&booking, CallFeedback::Misconfigured { why: why() }, pool.start);
    assert_eq!(pool.went(pool.start), Some(("b", 1)));
    assert_eq!(pool.admission.all_retired(), None);
    assert_eq!(pool.admission.snapshot(pool.start)[0].retired, Some(why()));
}

#[test]
fn flex_is_tried_first_by_those_who_have_time_and_nobody_waits_for_its_room() {
    let lanes = vec![on_tier(0, ServiceKind::Flex), on_tier(1, ServiceKind::Standard)];
    let mut pool = Pool::new(lanes);
    let now = pool.start;
    let near = AdmissionTicket { deadline: Some(now + 60 * SECOND), ..pool.ticket(1) };
    let far = AdmissionTicket { deadline: Some(now + 7_200 * SECOND), ..pool.ticket(1) };
    pool.admission.offer(&near, "near", now);
    pool.admission.offer(&far, "far", now);
    pool.offer(1, "free");
    let (item, booking) = pool.go(now).unwrap();
    assert_ne!((item, booking.deployment.0), ("near", 0));
    assert_eq!(booking.deployment.0, 0);
    pool.end(&booking, throttled(None), now);
    assert_eq!(pool.went(now), Some(("near", 1)), "flex has no room: at once to the next tier");
    assert!(pool.went(now).is_some_and(|(_, n)| n == 1));
    let later = now + 6 * SECOND;
    pool.offer(1, "later");
    assert_eq!(pool.went(later), Some(("later", 0)), "flex is tried again");
}

#[test]
fn a_job_that_was_failed_prefers_another_deployment() {
    let mut pool = Pool::new(vec![member(&[], None), member(&[], None)]);
    let now = pool.start;
    let again = AdmissionTicket { avoid: Some(DeploymentIndex(0)), ..pool.ticket(1) };
    pool.admission.offer(&again, "again", now);
    pool.offer(1, "fresh");
    assert_eq!(pool.went(now), Some(("again", 1)));
    // The other is full: it waits a little, and keeps nobody back.
    pool.offer(1, "x");
    pool.offer(1, "y");
    while pool.went(now).is_some() {}
    let mut alone = Pool::new(vec![member(&[], None)]);
    alone.admission.offer(&again, "again", now);
    assert_eq!(alone.went(now), Some(("again", 0)), "better there than nowhere");
}

#[test]
fn a_run_of_faults_keeps_calls_off_and_one_call_finds_out() {
    let mut pool = Pool::new(vec![member(&[], None)]);
    let now = pool.start;
    for _ in 0..6 {
        pool.offer(1, "job");
        let (_, booking) = pool.go(now).unwrap();
        pool.end(&booking, CallFeedback::Transient { why: "503".into() }, now);
    }
    pool.offer(1, "probe");
    pool.offer(1, "next");
    assert_eq!(pool.went(now), None);
    assert_eq!(pool.admission.snapshot(now)[0].breaker, BreakerState::Open);
    let later = now + SECOND;
    let (item, booking) = pool.go(later).unwrap();
    assert_eq!((item, pool.went(later)), ("probe", None));
    pool.end(&booking, CallFeedback::Responded, later);
    assert_eq!(pool.went(later), Some(("next", 0)));
}

#[test]
fn an_unreachable_deployment_is_tried_by_one_call_after_growing_pauses() {
    let mut pool = Pool::new(vec![member(&[], None)]);
    let mut now = pool.start;
    for pause_ms in [250, 500, 1_000] {
        pool.offer(1, "job");
        let (_, booking) = pool.go(now).unwrap();
        pool.end(&booking, CallFeedback::Unreachable { why: "refused".into() }, now);
        let until = now + Duration::from_millis(pause_ms);
        pool.offer(1, "job");
        assert_eq!(pool.admission.next(now), AdmissionDecision::Wait(Some(until)));
        now = until;
    }
    let (outage, why) = pool.admission.all_unreachable(now).unwrap();
    assert_eq!((outage, why), (now - pool.start, "refused"));
}

#[test]
fn a_deployment_that_was_just_created_is_waited_for_where_others_work_on() {
    let mut pool = Pool::new(vec![member(&[], None), member(&[], None)]);
    let mut now = pool.start;
    while now < pool.start + 290 * SECOND {
        pool.offer(1, "job");
        pool.offer(1, "job");
        while let Some((_, booking)) = pool.go(now) {
            let n = booking.deployment.0;
            let feedback =
                if n == 0 { denied(Suspect::Deployment) } else { CallFeedback::Responded };
            pool.end(&booking, feedback, now);
        }
        assert_eq!(pool.admission.snapshot(now)[0].retired, None);
        now += 15 * SECOND;
    }
    let mut alone = Pool::new(vec![member(&[], None)]);
    let mut calls = 0;
    while alone.admission.all_retired().is_none() {
        alone.offer(1, "job");
        let later = alone.start + SECOND / 4 * calls;
        if let Some((_, booking)) = alone.go(later) {
            alone.end(&booking, denied(Suspect::Deployment), later);
        }
        calls += 1;
        assert!(calls < 60, "given up on within seconds");
    }
    assert!(calls > 8, "and not at once");
}

#[test]
fn a_job_that_a_deployment_refused_for_good_goes_to_another_one_or_nowhere() {
    let mut pool = Pool::new(vec![member(&[], None), member(&[], None)]);
    let now = pool.start;
    let mut ticket = pool.ticket(1);
    assert!(ticket.excluded.insert(DeploymentIndex(0)));
    assert!(pool.admission.may_serve(ticket.group, ticket.excluded));
    pool.admission.offer(&ticket, "a", now);
    let (item, booking) = pool.go(now).unwrap();
    assert_eq!((item, booking.deployment.0), ("a", 1));
    pool.end(&booking, CallFeedback::Misconfigured { why: "402".into() }, now);
    pool.admission.offer(&ticket, "b", now);
    pool.offer(1, "c");
    assert_eq!(pool.admission.next(now), AdmissionDecision::Excluded("b"));
    assert_eq!(pool.went(now), Some(("c", 0)));
    assert!(!pool.admission.may_serve(ticket.group, ticket.excluded));
}

#[test]
fn a_day_is_believed_of_a_request_as_large_as_the_quota_alone() {
    let day = || throttled(Some(86_400 * SECOND));
    let mut pool = Pool::new(vec![member(&[], Some(60_000))]);
    let mut now = pool.start;
    for (charge, ruling) in [(100, None), (50_000, Some(RefusalRuling::JobAtFault))] {
        pool.offer(charge, "job");
        let booking = loop {
            if let Some((_, booking)) = pool.go(now) {
                break booking;
            }
            now += SECOND;
        };
        assert_eq!(pool.admission.observe(&booking, day(), &NOTHING, now), ruling);
    }
}

#[test]
fn everything_refused_is_asked_less_and_less_and_its_words_are_kept() {
    let mut pool = Pool::new(vec![member(&[], None)]);
    let (mut calls, start) = (0, pool.start);
    for tick in 0..10_000 {
        let now = start + SECOND / 100 * tick;
        if calls == 0 || pool.admission.snapshot(now)[0].waiting < 5 {
            pool.offer(1, "job");
        }
        while let Some((_, booking)) = pool.go(now) {
            calls += 1;
            pool.end(&booking, throttled(Some(Duration::ZERO)), now);
        }
    }
    assert!((5..30).contains(&calls), "{calls} calls in 100 s");
    let state = &pool.admission.snapshot(start)[0];
    assert_eq!(state.last_refusal.as_deref(), Some("429"));
}

#[test]
fn jobs_whose_deployments_are_all_gone_are_not_failed() {
    let mut pool = Pool::new(vec![member(&["m"], None), member(&["other"], None)]);
    pool.offer(1, "a");
    pool.offer(1, "b");
    let (_, booking) = pool.go(pool.start).unwrap();
    pool.end(&booking, CallFeedback::Misconfigured { why: "401".into() }, pool.start);
    assert_eq!(pool.admission.next(pool.start), AdmissionDecision::Wait(None));
    assert_eq!(pool.admission.stranded(), Some("401"));
    assert_eq!(pool.admission.drain(), ["b"]);
    assert_eq!(pool.admission.stranded(), None);
}

#[test]
fn a_429_pauses_the_deployment_until_the_time_it_named() {
    let mut pool = Pool::new(vec![member(&[], None)]);
    pool.offer(1, "a");
    pool.offer(1, "b");
    let (_, booking) = pool.go(pool.start).unwrap();
    let until = pool.start + 7 * SECOND;
    pool.end(&booking, throttled(Some(7 * SECOND)), pool.start);
    assert_eq!(pool.admission.next(pool.start), AdmissionDecision::Wait(Some(until)));
    assert_eq!(pool.went(until), Some(("b", 0)));
}

#[test]
fn each_deployment_has_its_part_of_what_waits_by_its_size() {
    let mut pool = Pool::new(vec![member(&[], Some(600_000)), member(&[], Some(200_000))]);
    for _ in 0..10 {
        pool.offer(800, "job");
    }
    let states = pool.admission.snapshot(pool.start).into_iter();
    assert_eq!(states.map(|state| state.waiting).collect::<Vec<_>>(), [6_000, 2_000]);
}

#[test]
fn what_waits_for_quota_wants_all_of_it_and_what_is_idle_nothing() {
    let mut pool = Pool::new(vec![member(&["a"], Some(6_000)), member(&["b"], Some(6_000))]);
    pool.offer_to("a", 6_000, "large");
    assert!(matches!(pool.admission.next(pool.start), AdmissionDecision::Wait(Some(_))));
    for beat in 1..20 {
        let now = pool.start + SECOND / 10 * beat;
        assert!(matches!(pool.admission.next(now), AdmissionDecision::Wait(Some(_))));
    }
    let demands = pool.admission.demand_snapshots(pool.start + 2 * SECOND).into_iter();
    assert_eq!(demands.map(|standing| standing.demand).collect::<Vec<_>>(), [1.0, 0.0]);
}
