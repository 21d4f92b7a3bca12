//! A sandbox: the handle that clients hold. What it does is asked of its owner; see [`owner`].

pub(crate) mod archive;
mod contexts;
pub(crate) mod create;
mod files;
mod info;
pub(crate) mod life;
pub(crate) mod order;
pub(crate) mod owner;
mod ports;
pub(crate) mod post_mortem;
#[cfg(test)]
pub(crate) mod scripted;
mod signals;
pub(crate) mod state;
mod stop;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bouvet_wire::limits::{MAX_CONNECTIONS, MAX_OPEN_EXECS, MAX_TRANSFERS};
use bouvet_wire::v1;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use self::archive::Files;
pub use self::info::{Attachment, SandboxId, SandboxInfo, Stats};
use self::life::Life;
use self::order::{Answer, ControlError, Order, OrderError, StopOrder};
use self::state::{Refusal, Request, State, Stop};
use crate::attest::{self, AttestError, MAX_REPORT_DATA_BYTES, Measured, Report};
use crate::boxconfig::{BoxConfig, TeeConfig};
use crate::exec::{self, Exec, ExecControl, ExecError, ExecRequest, ExecStream, Place, Role};
use crate::journal::{Journals, LogOptions, LogReader};
use crate::link::Client;
use crate::network::NetworkControl;
use crate::ports::{Claim, Entrance, Led, Ports};
use crate::tunnel::{ConnectError, Tunnel};
use crate::volume::{VolumeError, VolumeSpec, Volumes};

/// How long what programs use may take to be read.
const STATS_DEADLINE: Duration = Duration::from_secs(30);

/// Default grace period for a main program that is asked to end: Docker's ten seconds.
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

/// A handle to one sandbox. Dropping it changes nothing: a sandbox lives until it is destroyed, its time is
/// over, or its host ends.
///
/// ```no_run
/// use bouvet_host::{BoxConfig, ExecRequest, Program};
///
/// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
/// let sandbox = host.create(BoxConfig::default()).await?;
/// sandbox.write("main.py", "print(6 * 7)".into(), false).await?;
/// let request = ExecRequest::new(Program::Command, "python3 main.py");
/// println!("{}", sandbox.exec(request).await?.finish().await?.stdout.text());
/// sandbox.destroy().await;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: SandboxId,
    config: BoxConfig,
    created_at: SystemTime,
    state: watch::Receiver<State>,
    orders: mpsc::Sender<(Order, Answer)>,
    /// See [`owner::Owner::doom`].
    doom: CancellationToken,
    ends: Arc<Mutex<Ends>>,
    /// While it is stopped: the VM that serves its files.
    files: Mutex<Option<Files>>,
    /// User that its programs run as; empty for root.
    user: String,
    journals: Journals,
    life: Life,
    network: Option<NetworkControl>,
    open_execs: Arc<Semaphore>,
    transfers: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    ports: Ports,
}

/// What leads into a sandbox that is up.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) client: Option<Client>,
    pub(crate) main: Option<ExecControl>,
    /// What it was launched from, where that was asked for.
    pub(crate) measured: Option<Measured>,
}

/// What a sandbox is from its beginning on.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) id: SandboxId,
    pub(crate) config: BoxConfig,
    pub(crate) created_at: SystemTime,
    pub(crate) journals: Journals,
    pub(crate) life: Life,
    pub(crate) network: Option<NetworkControl>,
    /// See [`owner::Owner::doom`].
    pub(crate) doom: CancellationToken,
    pub(crate) ports: Vec<Claim>,
    pub(crate) led: Led,
    /// User that its programs run as; empty for root.
    pub(crate) user: String,
}

impl Sandbox {
    pub(crate) fn new(
        birth: Birth,
        state: watch::Receiver<State>,
        orders: mpsc::Sender<(Order, Answer)>,
    ) -> Self {
        let Birth { id, config, created_at, journals, life, network, doom, ports, led, user } = birth;
        let ends = Arc::<Mutex<Ends>>::default();
        let ports = Ports::new(ports, Entrance::new(state.clone(), ends.clone()), led);
        Self(Arc::new(Inner {
            id,
            config,
            created_at,
            state,
            orders,
            doom,
            ends,
            files: Mutex::default(),
            user,
            journals,
            life,
            network,
            open_execs: Arc::new(Semaphore::new(MAX_OPEN_EXECS)),
            transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)),
            tunnels: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            ports,
        }))
    }

    /// Watches its state.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.0.state.clone()
    }

    /// Says what leads into it, as often as it is started.
    pub(crate) fn set_ends(&self, ends: Ends) {
        *self.ends() = ends;
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.0.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    pub fn id(&self) -> SandboxId {
        self.0.id
    }

    /// What people know it by.
    pub(crate) fn known_as(&self) -> String {
        match self.name() {
            name if name.is_empty() => self.0.id.short(),
            name => name,
        }
    }

    /// The present name; empty if the sandbox has only its id.
    pub fn name(&self) -> String {
        self.0.life.name()
    }

    pub(crate) fn life(&self) -> &Life {
        &self.0.life
    }

    /// The description that it was created with. Its name may have changed: see [`Sandbox::name`].
    pub fn config(&self) -> &BoxConfig {
        &self.0.config
    }

    /// Its network, if it has one.
    pub fn network(&self) -> Option<&NetworkControl> {
        self.0.network.as_ref()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// What is known of it.
    pub fn info(&self) -> SandboxInfo {
        let timeout = self.0.config.resources.timeout;
        let runs = self.0.life.runs();
        SandboxInfo {
            id: self.0.id,
            state: self.state(),
            created_at: self.0.created_at,
            expires_at: Some(timeout)
                .filter(|timeout| !timeout.is_zero())
                .and_then(|timeout| self.0.created_at.checked_add(timeout)),
            config: BoxConfig { name: self.name(), ..self.0.config.clone() },
            ports: self.ports(),
            started_at: runs.started_at,
            finished_at: runs.finished_at,
            restarts: runs.restarts,
            is_restarting: runs.restarting,
        }
    }

    /// Starts a program.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, Program};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let request = ExecRequest::new(Program::Command, "uname -a");
    /// let result = sandbox.exec(request).await?.finish().await?;
    /// println!("{}", result.stdout.text());
    /// # Ok(()) }
    /// ```
    pub async fn exec(&self, request: ExecRequest) -> Result<Exec, ExecError> {
        let place = self.place()?;
        let started = Exec::start(self.client()?, request).await;
        Ok(Place::explained(Some(&place), started).await?.at(place))
    }

    /// Starts a program to which the caller is attached: its input may go on, and all its output comes.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, StreamEvent, WindowSize};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let terminal = Some(WindowSize::default());
    /// let shell = ExecRequest { terminal, ..ExecRequest::arguments(["bash", "-i"])? };
    /// let mut shell = sandbox.exec_stream(shell).await?;
    /// shell.control().write("exit 3\n".into()).await?;
    /// while let Some(event) = shell.next().await? {
    ///     if let StreamEvent::Exit(exit) = event {
    ///         assert_eq!(exit.exit_code, 3);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn exec_stream(&self, request: ExecRequest) -> Result<ExecStream, ExecError> {
        let place = self.place()?;
        let started = ExecStream::start(self.client()?, request, Role::Other).await;
        Ok(Place::explained(Some(&place), started).await?.at(place))
    }

    fn place(&self) -> Result<Place, ExecError> {
        let permit = self.0.open_execs.clone().try_acquire_owned();
        let permit = permit.map_err(|_| ExecError::TooMany(MAX_OPEN_EXECS))?;
        Ok(Place::new(self.watch(), permit))
    }

    /// Has its VM stand still: it uses no CPU until it is resumed.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.pause().await?;
    /// assert_eq!(sandbox.state().name(), "paused");
    /// sandbox.resume().await?;
    /// # Ok(()) }
    /// ```
    pub async fn pause(&self) -> Result<(), ControlError> {
        Ok(self.order(Order::Pause).await?)
    }

    /// Lets a paused one go on.
    ///
    /// ```no_run
    /// use bouvet_host::State;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// if sandbox.state() == State::Paused {
    ///     sandbox.resume().await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn resume(&self) -> Result<(), ControlError> {
        Ok(self.order(Order::Resume).await?)
    }

    /// Grace period for its main program, by its description: 10 s by default.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.stop(sandbox.stop_grace()).await?;
    /// # Ok(()) }
    /// ```
    pub fn stop_grace(&self) -> Duration {
        self.0.config.stop_timeout_secs.map_or(DEFAULT_STOP_GRACE, Duration::from_secs)
    }

    /// Ends its programs and gives up its VM. The main program is asked by its image's signal, or by that of its
    /// description, and killed when it has not ended within `grace`. If the signal cannot be sent, the program is killed
    /// at once, and that is an error. What it wrote is kept if it is persistent.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.stop(Duration::from_secs(10)).await?;
    /// println!("its exit code was {}", sandbox.wait().await?.exit_code);
    /// # Ok(()) }
    /// ```
    pub async fn stop(&self, grace: Duration) -> Result<(), ControlError> {
        Ok(self.order(Order::Stop(StopOrder { signal: None, grace })).await?)
    }

    /// Makes one that has stopped or failed a VM again, and returns when its main program runs.
    ///
    /// ```no_run
    /// use bouvet_host::State;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// if let State::Stopped(_) | State::Failed(_) = sandbox.state() {
    ///     sandbox.start().await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn start(&self) -> Result<(), ControlError> {
        Ok(self.order(Order::Start).await?)
    }

    async fn order(&self, order: Order) -> Result<(), OrderError> {
        let (answer, answered) = oneshot::channel();
        self.0.orders.send((order, answer)).await.map_err(|_| Refusal::Destroyed)?;
        // An owner that drops it has other things to do: the sandbox ends.
        match answered.await {
            Ok(result) => result,
            Err(_) => {
                self.legal(order.request())?;
                Err(Refusal::Destroyed.into())
            }
        }
    }

    /// Waits until it has stopped, and says how. Fails if it fails or is destroyed instead.
    ///
    /// ```no_run
    /// use bouvet_host::BoxConfig;
    ///
    /// # async fn example(host: &bouvet_host::Host) -> Result<(), Box<dyn std::error::Error>> {
    /// let cmd = vec!["sh".into(), "-c".into(), "exit 3".into()];
    /// let sandbox = host.create(BoxConfig { cmd, ..BoxConfig::default() }).await?;
    /// assert_eq!(sandbox.wait().await?.exit_code, 3);
    /// # Ok(()) }
    /// ```
    pub async fn wait(&self) -> Result<Stop, Refusal> {
        let mut state = self.watch();
        let ended = |state: &State| !state.is_live();
        let state = state.wait_for(ended).await.map_or(State::Destroyed, |state| state.clone());
        match state {
            State::Stopped(stop) => Ok(stop),
            State::Failed(reason) => Err(Refusal::Failed(reason)),
            _ => Err(Refusal::Destroyed),
        }
    }

    /// Reads what its main program has printed.
    ///
    /// ```no_run
    /// use bouvet_host::LogOptions;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut log = sandbox.logs(LogOptions { tail_lines: Some(100), ..LogOptions::default() });
    /// while let Some(record) = log.next().await {
    ///     print!("{}", String::from_utf8_lossy(&record.data));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn logs(&self, options: LogOptions) -> LogReader {
        self.0.journals.main.read(options)
    }

    /// Reads what its sidecar has printed since the host took it in.
    ///
    /// ```no_run
    /// use bouvet_host::LogOptions;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut log = sandbox.sidecar_logs(LogOptions { follow: true, ..LogOptions::default() });
    /// while let Some(record) = log.next().await {
    ///     print!("{}", String::from_utf8_lossy(&record.data));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn sidecar_logs(&self, options: LogOptions) -> LogReader {
        self.0.journals.sidecar.read(options)
    }

    /// Connects to the control port of its sidecar: of vsock if it listens there, else of TCP on the loopback interface.
    ///
    /// ```no_run
    /// use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut control = sandbox.connect_sidecar().await?;
    /// control.write_all(b"stats\n").await?;
    /// control.shutdown().await?;
    /// let mut answer = String::new();
    /// control.read_to_string(&mut answer).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect_sidecar(&self) -> Result<Tunnel, ConnectError> {
        let sidecar = self.0.config.sidecar.as_ref().ok_or(ConnectError::NoSidecar)?;
        let permit = self.0.tunnels.clone().try_acquire_owned();
        let permit = permit.map_err(|_| ConnectError::TooMany(MAX_CONNECTIONS))?;
        match Tunnel::open(self.client()?, sidecar.vsock_port, permit).await {
            Err(ConnectError::Link(fact)) => {
                let reason = post_mortem::reason(self.watch()).await;
                Err(reason.map_or(ConnectError::Link(fact), ConnectError::Refused))
            }
            opened => opened,
        }
    }

    /// A report of what it was launched from, which carries `report_data`, [`MAX_REPORT_DATA_BYTES`] at most. Needs `tee`
    /// in its description.
    pub fn attest(&self, report_data: &[u8]) -> Result<Report, AttestError> {
        if report_data.len() > MAX_REPORT_DATA_BYTES {
            return Err(AttestError::TooMuchData(report_data.len()));
        }
        let tee = &self.0.config.tee;
        if *tee == TeeConfig::None {
            return Err(AttestError::NotMeasured);
        }
        self.legal(Request::Use)?;
        let measured = self.ends().measured.clone().ok_or(Refusal::Starting)?;
        attest::issue(tee, self.0.id.to_string(), &measured, report_data).ok_or(AttestError::NotMeasured)
    }

    /// Attaches to its main program.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let attachment = sandbox.attach()?;
    /// attachment.control.write("help\n".into()).await?;
    /// # Ok(()) }
    /// ```
    pub fn attach(&self) -> Result<Attachment, Refusal> {
        self.legal(Request::Use)?;
        let control = self.ends().main.clone().ok_or(Refusal::NoMain)?;
        Ok(Attachment { output: self.0.journals.main.attach(), control })
    }

    /// Sends its main program a signal. With KILL, TERM or its stop signal, its restart policy no longer applies when it
    /// ends.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.signal("HUP".parse()?).await?;
    /// # Ok(()) }
    /// ```
    pub async fn signal(&self, signal: exec::Signal) -> Result<(), ExecError> {
        // An owner that brings it up obeys only afterwards.
        self.legal(Request::Use)?;
        Ok(self.order(Order::Signal(signal)).await?)
    }

    /// Kills its main program, also while the sandbox stops and gives the program time to end.
    pub(crate) async fn kill_main(&self) {
        let Some(control) = self.ends().main.clone() else { return };
        // One that has ended already needs no signal.
        control.signal(exec::Signal::KILL).await.ok();
    }

    /// What its programs use now.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let before = sandbox.stats().await?;
    /// tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    /// let used_us = sandbox.stats().await?.cpu_us - before.cpu_us;
    /// println!("{} % of one CPU", used_us / 10_000);
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self) -> Result<Stats, ExecError> {
        let mut client = self.client()?;
        let stats = tokio::time::timeout(STATS_DEADLINE, client.stats(v1::StatsRequest {})).await;
        let stats = stats.map_err(|_| ExecError::Deadline(STATS_DEADLINE))??.into_inner();
        Ok(Stats {
            cpu_us: stats.cpu_us,
            memory_bytes: stats.memory_bytes,
            memory_limit_bytes: stats.memory_limit_bytes,
            pids: stats.pids,
            pids_limit: stats.pids_limit,
        })
    }

    /// Mounts directories and files of the host in it, all of `specs` or none, until what this returns is dropped.
    ///
    /// ```no_run
    /// use bouvet_host::{ExecRequest, Program, VolumeSpec};
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// let volumes = sandbox.mount(&[VolumeSpec::parse("/home/me/project:/workspace")?]).await?;
    /// let request = ExecRequest { cwd: "/workspace".into(), ..ExecRequest::new(Program::Command, "make") };
    /// sandbox.exec(request).await?.finish().await?;
    /// drop(volumes);
    /// # Ok(()) }
    /// ```
    pub async fn mount(&self, specs: &[VolumeSpec]) -> Result<Volumes, VolumeError> {
        match Volumes::attach(self.client()?, specs).await {
            Err(VolumeError::Link(fact)) => {
                let reason = post_mortem::reason(self.watch()).await;
                Err(reason.map_or(VolumeError::Link(fact), VolumeError::Refused))
            }
            attached => attached,
        }
    }

    /// Ends the sandbox, and returns when nothing of it is left. To destroy it twice is no error.
    ///
    /// ```no_run
    /// use bouvet_host::State;
    ///
    /// # async fn example(sandbox: &bouvet_host::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// sandbox.destroy().await;
    /// assert_eq!(sandbox.state(), State::Destroyed);
    /// # Ok(()) }
    /// ```
    pub async fn destroy(&self) {
        if state::legal(&self.state(), Request::Destroy).is_err() {
            return;
        }
        self.0.doom.cancel();
        // An error means that it is gone.
        self.0.orders.send((Order::Destroy, oneshot::channel().0)).await.ok();
        let mut state = self.0.state.clone();
        // An error means that the owner is gone, and it does not go before its sandbox.
        state.wait_for(|state| *state == State::Destroyed).await.ok();
    }

    /// Asks the owner to end the sandbox, without waiting.
    pub(crate) fn request_destroy(&self) {
        // Closed: it is gone. Full: it was asked for much, and is asked again by who wants its place.
        if self.0.orders.try_send((Order::Destroy, oneshot::channel().0)).is_ok() {
            self.0.doom.cancel();
        }
    }

    fn legal(&self, request: Request) -> Result<(), Refusal> {
        state::legal_now(&self.state(), request, self.life().runs().restarting)
    }

    fn client(&self) -> Result<Client, Refusal> {
        self.legal(Request::Use)?;
        self.ends().client.clone().ok_or(Refusal::Starting)
    }
}
