//! The life of one sandbox on its host: admitted, brought up, owned, perhaps started again, and forgotten.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bouvet_net::Network;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::image::Ground;
use super::registry::Registry;
use super::rest;
use super::{CreateError, Host, Place};
use crate::attest::{Measured, Technology};
use crate::blueprint::Blueprint;
use crate::boxconfig::restart::{Backoff, Restart};
use crate::boxconfig::{BoxConfig, LogLevel, TeeConfig};
use crate::boxes::{KeepError, Kept};
use crate::engine::{Frozen, Rootfs};
use crate::event::Happening;
use crate::journal::{Journal, Journals};
use crate::network::{self, NetworkControl};
use crate::pool::Entry;
use crate::ports::Claim;
use crate::resting::RestingDisk;
use crate::sandbox::create::{self, Live, Origin, Site, Wanted};
use crate::sandbox::life::{Life, Runs};
use crate::sandbox::order::{ControlError, OrderError};
use crate::sandbox::owner::{End, Owner};
use crate::sandbox::state::{Event, State};
use crate::sandbox::{Birth, Ends, Sandbox, SandboxId};
use crate::template::Shape;

/// Orders that wait for an owner who is at work.
const MAX_ORDERS: usize = 16;
/// How long the main program of a persistent sandbox has to end when its host does.
const GRACE: Duration = Duration::from_secs(10);

/// What a sandbox is made from, each time it is started.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) id: SandboxId,
    pub(super) slot: u32,
    /// `None` for one that was kept, until it is started.
    pub(super) ground: Option<Ground>,
    pub(super) blueprint: Blueprint,
    pub(super) journals: Journals,
    /// Its network, through all of its starts.
    pub(super) network: Option<Network>,
    /// Where it is kept, if it is persistent.
    pub(super) kept: Option<Kept>,
    /// The place of its disk while it is stopped, if it is not persistent.
    pub(super) resting: RestingDisk,
}

impl Host {
    /// Makes a sandbox, and with `start` brings it up, unless `doom` is cancelled.
    pub(super) async fn make(
        &self,
        config: BoxConfig,
        start: bool,
        doom: CancellationToken,
    ) -> Result<Sandbox, CreateError> {
        // First, so that nothing else is begun in vain.
        let ports = Claim::stake_all(&config.plan()?.ports);
        let ports = ports.map_err(|error| error.held(|port| self.registry().holder(port)))?;
        let ground = self.unless_doomed(&doom, self.ground(&config)).await?;
        let mut blueprint = ground.record.blueprint(config)?;
        let network = self.network(&mut blueprint)?;
        if start {
            self.pool_for(&ground, &blueprint).await?;
        }
        // Before a clone is taken from the pool: refills would start at once.
        let _refills_wait = self.0.pools.hold_back();
        let (sandbox, mut owner, mut home, pooled) =
            self.admit((blueprint, doom), network, ground, ports, start)?;
        let (id, slot, started, warm) = (home.id, home.slot, Instant::now(), pooled.is_some());
        self.0.events.happened(id, Happening::Create);
        let made = match self.keep(&mut home) {
            Ok(()) if start => self.bring_up(pooled, &home, &owner.doom).await.map(Some),
            Ok(()) => Ok(None),
            Err(error) => Err(error),
        };
        let live = match made {
            Ok(live) => live,
            Err(error) => {
                let error = self.explained(error, &owner.doom);
                warn!(sandbox = %id, error = error.logged(), "sandbox not created");
                owner.happen(Event::Destroy);
                sandbox.close_ports().await;
                home.forget();
                drop(home);
                self.forget(id, slot);
                owner.happen(Event::Released);
                return Err(error);
            }
        };
        home.save(&sandbox);
        if home.blueprint.config.log_level <= LogLevel::Info {
            info!(sandbox = %id, warm, took_ms = started.elapsed().as_millis(), "sandbox created");
        }
        if let Some(live) = &live {
            up(&sandbox, &mut owner, live);
        }
        let known = sandbox.clone();
        self.0.tasks.spawn(self.clone().live(known, owner, home, live));
        Ok(sandbox)
    }

    /// Makes room for a sandbox, and takes a clone from the pool for it if one waits.
    fn admit(
        &self,
        (blueprint, doom): (Blueprint, CancellationToken),
        network: Option<Network>,
        ground: Ground,
        ports: Vec<Claim>,
        start: bool,
    ) -> Result<(Sandbox, Owner, Home, Option<Entry>), CreateError> {
        let config = &blueprint.config;
        let mut registry = self.registry();
        registry.make_room(self.0.max_sandboxes)?;
        registry.check_name(&config.name)?;
        let pool = self.0.pools.find(&ground.rootfs, &blueprint);
        let pooled = pool.filter(|_| start).and_then(|pool| pool.take());
        let (id, slot) = match &pooled {
            Some(entry) => (entry.id, entry.slot),
            None => (SandboxId::random(), registry.take_slot()),
        };
        let journals = Journals::default();
        let resting = self.0.resting.place(id);
        let home = Home { id, slot, ground: Some(ground), blueprint, journals, network, kept: None, resting };
        let state = if start { State::Starting } else { State::Created };
        let (sandbox, owner) =
            self.enrol(&mut registry, &home, (ports, doom), (SystemTime::now(), state, Runs::default()));
        Ok((sandbox, owner, home, pooled))
    }

    fn enrol(
        &self,
        registry: &mut Registry,
        home: &Home,
        (ports, doom): (Vec<Claim>, CancellationToken),
        (created_at, state, runs): (SystemTime, State, Runs),
    ) -> (Sandbox, Owner) {
        let (life, runs) = Life::new(home.blueprint.config.name.clone(), runs);
        let Home { id, journals, .. } = home;
        let (id, journals) = (*id, journals.clone());
        let (sender, state) = watch::channel(state);
        let (orders, receiver) = mpsc::channel(MAX_ORDERS);
        let boxes = self.0.boxes.as_ref().filter(|_| home.blueprint.config.persistent);
        let kept = boxes.map(|boxes| boxes.dir_of(home.id));
        let network = home.network.clone().map(|network| NetworkControl::new(network, kept));
        if let Some(network) = &home.network {
            network.set_names(network::names(&home.blueprint.config, id));
        }
        let config = home.blueprint.shown();
        let led = registry.led.clone();
        let user = home.blueprint.user().to_owned();
        let birth = Birth {
            id,
            config,
            created_at,
            journals: journals.clone(),
            life,
            network,
            doom: doom.clone(),
            ports,
            led,
            user,
        };
        let sandbox = Sandbox::new(birth, state, orders);
        registry.sandboxes.insert(id, sandbox.clone());
        let events = self.0.events.clone();
        let log_level = home.blueprint.config.log_level;
        let config = &home.blueprint.config;
        let resting = (!config.persistent && !config.auto_remove).then(|| home.resting.clone());
        let (state, orders) = (sender, receiver);
        let closing = self.0.closing.clone();
        let owner = Owner {
            id,
            state,
            orders,
            journals,
            runs,
            events,
            log_level,
            doomed: false,
            closing,
            doom,
            resting,
        };
        (sandbox, owner)
    }

    /// The network that is asked for, of which programs get the variables.
    fn network(&self, blueprint: &mut Blueprint) -> Result<Option<Network>, CreateError> {
        let Some(plan) = &blueprint.plan.network else { return Ok(None) };
        let network = network::make(plan, &self.0.authorities, &self.0.networks, &self.0.sockets)?;
        blueprint.put_variables(network::variables(&network));
        Ok(Some(network))
    }

    /// Gives a persistent sandbox its place on disk.
    fn keep(&self, home: &mut Home) -> Result<(), CreateError> {
        let config = &home.blueprint.config;
        if config.persistent {
            let boxes = self.0.boxes.as_ref().ok_or(CreateError::NoStore)?;
            let record = home.ground.as_ref().map(|ground| ground.record.clone()).unwrap_or_default();
            home.kept = Some(boxes.add(home.id, config, record)?);
        }
        Ok(())
    }

    /// Everything from a sandbox's first start, or from the taking in of one that was kept, to its end.
    async fn live(self, sandbox: Sandbox, mut owner: Owner, mut home: Home, mut live: Option<Live>) {
        let lifetime = home.blueprint.config.resources.timeout;
        // It was checked when the sandbox was described.
        let policy = Restart::parse(&home.blueprint.config.restart).unwrap_or_default();
        let mut backoff = Backoff::default();
        let mut ran = Duration::ZERO;
        loop {
            let was_up = live.is_some();
            if let Some(live) = live.take() {
                let began = Instant::now();
                let expires = (!lifetime.is_zero()).then(|| began.checked_add(lifetime)).flatten();
                let end = owner.own(live, expires, lifetime).await;
                ran = began.elapsed();
                sandbox.set_ends(Ends::default());
                home.save(&sandbox);
                if matches!(end, End::Destroyed) {
                    break;
                }
                if home.blueprint.config.auto_remove {
                    owner.happen(Event::Destroy);
                    break;
                }
            }
            let again = rest::wants_restart(&sandbox, policy, was_up).then(|| backoff.next(ran));
            let Some(wanted) = self.rest(&sandbox, &mut owner, &home, again).await else { break };
            let started = match self.start_again(&sandbox, &mut home, &owner.doom).await {
                Ok(started) => {
                    up(&sandbox, &mut owner, &started);
                    // Should this host be killed, the last end is no longer how it ended.
                    home.save(&sandbox);
                    live = Some(started);
                    Ok(())
                }
                Err(error) => {
                    let reason = crate::chain(&error);
                    warn!(sandbox = %home.id, reason = error.logged(), "sandbox not started");
                    owner.happen(Event::Failed(reason.clone()));
                    ran = Duration::ZERO;
                    Err(OrderError::Control(ControlError::Failed(reason)))
                }
            };
            if let Some(answer) = wanted {
                // The caller may have been dropped.
                answer.send(started).ok();
            }
        }
        self.end(&sandbox, &mut owner, home).await;
    }

    /// Releases what a sandbox holds that is destroyed, or whose host ends.
    async fn end(&self, sandbox: &Sandbox, owner: &mut Owner, home: Home) {
        if home.blueprint.config.log_level <= LogLevel::Info {
            info!(sandbox = %home.id, "sandbox destroyed");
        }
        sandbox.close_ports().await;
        let (id, slot) = (home.id, home.slot);
        // What is kept outlives its host, unless somebody destroyed it before.
        if !self.0.closing.is_cancelled() {
            home.forget();
        }
        // With it goes its hold on its image.
        drop(home);
        self.forget(id, slot);
        owner.happen(Event::Released);
    }

    fn forget(&self, id: SandboxId, slot: u32) {
        self.0.networks.let_go();
        self.registry().forget(id, slot);
    }

    async fn start_again(
        &self,
        sandbox: &Sandbox,
        home: &mut Home,
        doom: &CancellationToken,
    ) -> Result<Live, CreateError> {
        sandbox.retry_ports().map_err(|error| error.held(|port| self.registry().holder(port)))?;
        // It is among those already that live.
        self.registry().make_room(self.0.max_sandboxes.saturating_add(1))?;
        self.unless_doomed(doom, self.settle(home)).await?;
        // A sandbox that is not persistent begins with a clean disk.
        home.resting.remove();
        let _refills_wait = self.0.pools.hold_back();
        self.bring_up(None, home, doom).await.map_err(|error| self.explained(error, doom))
    }

    pub(super) async fn release(&self, entry: Entry) {
        entry.vm.release().await;
        self.registry().free_slot(entry.slot);
    }

    /// Wakes the clone that was taken from the pool, or makes another.
    async fn bring_up(
        &self,
        pooled: Option<Entry>,
        home: &Home,
        doom: &CancellationToken,
    ) -> Result<Live, CreateError> {
        let Home { id, slot, ground, blueprint, journals, network, kept, .. } = home;
        let wanted = Wanted { id: *id, blueprint, journals: journals.clone(), network: network.as_ref() };
        let rootfs = ground.as_ref().map_or(&self.0.base, |ground| &ground.rootfs);
        if let Some(entry) = pooled {
            match entry.vm.claim(wanted.clone()).await {
                Ok(live) => return Ok(live),
                // Another clone would not do better.
                Err(error) if error.is_of_the_description() => return Err(error.into()),
                Err(error) => {
                    warn!(sandbox = %id, error = %crate::chain(&error), "a waiting clone did not wake")
                }
            }
        }
        let _place = Place::in_line(&self.0.waiting)?;
        let measured = self.measure(home, rootfs).await?;
        let shape = Shape::from(&blueprint.config.resources);
        let template = match (kept, &measured) {
            // A frozen VM knows its disk as it was then, and was launched for nobody.
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => self.template(rootfs, shape).await?,
        };
        let turn = async { self.0.starts.acquire().await.map_err(|_closed| CreateError::ShuttingDown) };
        let _turn = self.unless_doomed(doom, turn).await?;
        let origin = match (kept, &template) {
            (Some(kept), _) => Origin::Kept(kept.scratch()),
            (None, Some(template)) => Origin::Clone(template),
            (None, None) => Origin::Boot,
        };
        let aloud = blueprint.config.log_level <= LogLevel::Debug;
        let site = Site { limits: &blueprint.plan.limits, aloud, closing: doom, ..self.site(*slot, rootfs) };
        let mut live = create::bring_up(site, wanted, origin).await?;
        live.measured = measured;
        Ok(live)
    }

    /// The error of a bring-up that `doom` may have ended.
    fn explained(&self, error: CreateError, doom: &CancellationToken) -> CreateError {
        match error {
            CreateError::ShuttingDown if doom.is_cancelled() && !self.0.closing.is_cancelled() => {
                CreateError::Destroyed
            }
            error => error,
        }
    }

    /// Waits for `work`, which may be dropped, unless nobody wants the sandbox any more.
    async fn unless_doomed<T, E: Into<CreateError>>(
        &self,
        doom: &CancellationToken,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, CreateError> {
        match doom.run_until_cancelled(work).await {
            Some(done) => done.map_err(Into::into),
            None => Err(self.explained(CreateError::ShuttingDown, doom)),
        }
    }

    /// What a sandbox that is to be attested begins with.
    async fn measure(&self, home: &Home, rootfs: &Rootfs) -> Result<Option<Measured>, CreateError> {
        let tee = &home.blueprint.config.tee;
        if *tee == TeeConfig::None {
            return Ok(None);
        }
        let launch = self.0.engine.launch(home.kept.is_some());
        let launch = launch.ok_or_else(|| CreateError::NoTee {
            technology: tee.technology().map_or("none", Technology::name),
            why: format!("its engine `{}` boots no VM that could be measured", self.engine()),
        })?;
        Ok(Some(self.0.measurer.measure(launch, rootfs.clone()).await?))
    }

    /// Finds again what a sandbox that was kept stands on.
    pub(super) async fn settle(&self, home: &mut Home) -> Result<(), CreateError> {
        if home.ground.is_some() {
            return Ok(());
        }
        let record = home.kept.as_ref().map(|kept| kept.record().ground.clone()).unwrap_or_default();
        home.ground = Some(self.same_ground(&record, &home.blueprint.config).await?);
        Ok(())
    }

    /// The template of `rootfs` and `shape`, built if need be; `None` where sandboxes are booted.
    pub(super) async fn template(
        &self,
        rootfs: &Rootfs,
        shape: Shape,
    ) -> Result<Option<Arc<Frozen>>, CreateError> {
        let Some(templates) = &self.0.templates else { return Ok(None) };
        let build = || async {
            let _turn = self.0.starts.acquire().await.map_err(|_closed| CreateError::ShuttingDown)?;
            let slot = self.registry().take_slot();
            let built = create::template(self.site(slot, rootfs), shape).await;
            self.registry().free_slot(slot);
            Ok::<_, CreateError>(built?)
        };
        templates.get(rootfs, shape, build).await.map(Some)
    }

    /// Where a VM without limits of its own is made.
    pub(super) fn site<'a>(&'a self, slot: u32, rootfs: &'a Rootfs) -> Site<'a> {
        Site {
            engine: &*self.0.engine,
            blanks: &self.0.blanks,
            rootfs,
            limits: &self.0.no_limits,
            aloud: false,
            dir: &self.0.dir,
            slot,
            closing: &self.0.closing,
        }
    }

    /// Knows the persistent sandboxes that are kept here and that no other host has.
    pub(super) fn take_in_kept(&self) -> Result<(), KeepError> {
        let Some(boxes) = &self.0.boxes else { return Ok(()) };
        for kept in boxes.take_in()? {
            let record = kept.record();
            let (id, mut config) = (record.id, record.config.clone());
            let name = kept.name();
            let made = name.map_err(CreateError::from).and_then(|name| {
                config.name = name.unwrap_or(config.name);
                let mut blueprint = record.ground.kept_blueprint(config)?;
                let network = self.network(&mut blueprint)?;
                if let (Some(network), Some(policy)) = (&network, kept.policy()?) {
                    network.set_policy(policy);
                }
                Ok((blueprint, network))
            });
            let (blueprint, network) = match made {
                Ok(made) => made,
                Err(error) => {
                    warn!(sandbox = %id, error = error.logged(), "a persistent sandbox cannot be had any more");
                    continue;
                }
            };
            let main = Arc::new(Journal::with(kept.journal()));
            let journals = Journals { main, ..Journals::default() };
            let (created_at, state, runs) = (record.created_at, record.state(), record.runs.clone());
            let ports: Vec<_> = blueprint.plan.ports.iter().copied().map(Claim::stake).collect();
            for error in ports.iter().filter_map(Claim::error) {
                warn!(sandbox = %id, error = %crate::chain(error), "a persistent sandbox is without a port");
            }
            let doom = self.0.closing.child_token();
            let mut registry = self.registry();
            let slot = registry.take_slot();
            let (ground, kept, resting) = (None, Some(kept), self.0.resting.place(id));
            let home = Home { id, slot, ground, blueprint, journals, network, kept, resting };
            let (sandbox, owner) = self.enrol(&mut registry, &home, (ports, doom), (created_at, state, runs));
            drop(registry);
            self.0.tasks.spawn(self.clone().live(sandbox, owner, home, None));
        }
        Ok(())
    }

    /// Stops the persistent sandboxes, so that what they wrote is on disk.
    pub(super) async fn rest_kept(&self) {
        let sandboxes: Vec<_> = self.registry().sandboxes.values().cloned().collect();
        let persistent = sandboxes.iter().filter(|sandbox| sandbox.info().config.persistent);
        // What cannot be stopped is not up.
        futures_util::future::join_all(persistent.map(|sandbox| sandbox.close(GRACE))).await;
    }
}

/// Says that a sandbox is up, and what leads into it.
fn up(sandbox: &Sandbox, owner: &mut Owner, live: &Live) {
    let main = live.main.as_ref().map(|main| main.control());
    sandbox.set_ends(Ends { client: Some(live.link.client()), main, measured: live.measured.clone() });
    owner.happen(Event::Ready);
}

impl Drop for Home {
    /// Whoever still knows the sandbox keeps its network, but not its place among others.
    fn drop(&mut self) {
        if let Some(network) = &self.network {
            network.leave();
        }
    }
}

impl Home {
    /// Writes its state, its runs and its log, if it is persistent.
    pub(super) fn save(&self, sandbox: &Sandbox) {
        let Some(kept) = &self.kept else { return };
        if let Err(error) = kept.save(sandbox.state(), sandbox.life().runs(), &self.journals.main.records()) {
            warn!(sandbox = %self.id, error = %crate::chain(&error), "could not write what became of a sandbox");
        }
    }

    /// Removes what is kept of it.
    fn forget(&self) {
        self.resting.remove();
        let removed = self.kept.as_ref().map(Kept::remove);
        if let Some(Err(error)) = removed {
            warn!(sandbox = %self.id, error = %crate::chain(&error), "could not remove a persistent sandbox");
        }
    }
}
