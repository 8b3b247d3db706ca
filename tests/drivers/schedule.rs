//! One run: hosts, faults at their times, and the end.

use std::net::IpAddr;
use std::time::Duration;

use natsmux::daemon::simulated::Simulated;
use tokio::time::{sleep_until, timeout};
use turmoil::{Builder, Sim};

use super::broker::Cluster;
use super::component::Component;
use super::plan::{Fault, Incident, Manner, Plan};
use super::rng::Rng;
use super::verdict::{Outcome, Verdict};

/// Simulated time between two steps.
const TICK: Duration = Duration::from_millis(2);
/// From the end of faults up to the judgement.
const HEALING: Duration = Duration::from_secs(7);
/// How long a drain may take.
const DRAIN: Duration = Duration::from_secs(5);
/// Simulated time of a run at most.
const LONGEST: Duration = Duration::from_secs(40);

const BROKERS: [&str; 2] = ["a", "b"];

/// Runs one schedule.
pub fn run(seed: u64, verbose: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let plan = Plan::new(&mut rng);
    let verdict = Verdict::new(verbose);
    if verbose {
        println!("{plan:#?}");
    }
    let mut sim = Builder::new()
        .rng_seed(rng.next())
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .max_message_latency(plan.latency)
        .tcp_capacity(plan.capacity)
        .build();
    let cluster = Cluster::new(verdict.clone(), &plan);
    let addrs = BROKERS.map(|name| sim.lookup(name));
    for (broker, addr) in addrs.into_iter().enumerate() {
        let cluster = cluster.clone();
        sim.host(addr, move || cluster.clone().serve(broker));
    }
    start_natsmux(&mut sim, &plan, &addrs, rng.next(), &verdict);
    for (no, manner) in plan.manners.iter().enumerate() {
        let component = Component {
            no,
            manner: *manner,
            plan: plan.clone(),
            rng: Rng::new(rng.next()),
            verdict: verdict.clone(),
        };
        sim.client(format!("c{no}"), component.live());
    }
    let run = Run {
        cluster,
        verdict: verdict.clone(),
        addrs,
    };
    run.step(&mut sim, &plan);
    verdict.outcome()
}

fn start_natsmux(sim: &mut Sim<'_>, plan: &Plan, brokers: &[IpAddr], seed: u64, verdict: &Verdict) {
    let config = plan.config(brokers);
    let (plan, verdict) = (plan.clone(), verdict.clone());
    let steady = plan.manners.iter();
    let steady = steady.filter(|manner| **manner == Manner::Steady).count() as u64;
    sim.host("natsmux", move || {
        let (config, plan, verdict) = (config.clone(), plan.clone(), verdict.clone());
        async move {
            let begin = tokio::time::Instant::now();
            let natsmux = Simulated::start(config, seed)?;
            sleep_until(begin + plan.calm_at + HEALING).await;
            match natsmux.snapshot().await {
                Some(snapshot) => verdict.judge(&snapshot, plan.at_least_once, steady),
                None => verdict.fail("harness", "the worker is gone"),
            }
            match timeout(DRAIN, natsmux.drain()).await {
                Ok(()) => verdict.mark("drained"),
                Err(_) => verdict.fail("drain", "sessions are left"),
            }
            Ok(())
        }
    });
}

struct Run {
    cluster: Cluster,
    verdict: Verdict,
    addrs: [IpAddr; 2],
}

impl Run {
    fn step(&self, sim: &mut Sim<'_>, plan: &Plan) {
        let mut begun = 0;
        let mut ended = 0;
        loop {
            let now = sim.elapsed();
            if let Some(incident) = plan.incidents.get(begun)
                && now >= incident.from
            {
                self.begin(sim, incident);
                begun += 1;
            }
            if let Some(incident) = plan.incidents.get(ended)
                && now >= incident.until
                && ended < begun
            {
                self.end(sim, incident);
                ended += 1;
            }
            match sim.step() {
                Ok(false) if !self.verdict.has_failed() => {}
                Ok(_) => return,
                Err(error) => return self.verdict.fail("harness", error),
            }
        }
    }

    fn begin(&self, sim: &mut Sim<'_>, incident: &Incident) {
        let broker = self.addrs[incident.broker];
        let natsmux = sim.lookup("natsmux");
        self.verdict.note(&format!("{incident:?} begins"));
        let used = self.cluster.is_used(incident.broker);
        match incident.fault {
            Fault::Kill => {
                sim.crash(broker);
                self.verdict.mark("broker killed");
            }
            Fault::Hold => {
                self.cluster.expect_late();
                sim.hold(natsmux, broker);
                if used {
                    self.verdict.mark("a link is held");
                }
            }
            Fault::LoseUp | Fault::LoseDown | Fault::Partition => {
                match incident.fault {
                    Fault::LoseUp => sim.partition_oneway(natsmux, broker),
                    Fault::LoseDown => sim.partition_oneway(broker, natsmux),
                    _ => sim.partition(natsmux, broker),
                }
                if used && incident.fault == Fault::Partition {
                    self.verdict.mark("a link hears nothing");
                } else if used {
                    self.verdict.mark("one direction lost");
                }
            }
            Fault::LameDuck => {
                self.cluster.make_lame(incident.broker);
                self.verdict.mark("lame duck");
            }
        }
    }

    fn end(&self, sim: &mut Sim<'_>, incident: &Incident) {
        let broker = self.addrs[incident.broker];
        let natsmux = sim.lookup("natsmux");
        self.verdict.note(&format!("{incident:?} ends"));
        match incident.fault {
            Fault::Kill | Fault::LameDuck => sim.bounce(broker),
            Fault::Hold => sim.release(natsmux, broker),
            Fault::LoseUp => sim.repair_oneway(natsmux, broker),
            Fault::LoseDown => sim.repair_oneway(broker, natsmux),
            Fault::Partition => sim.repair(natsmux, broker),
        }
    }
}
