//! One run in a context: its turn, its deadline, its output and what it shows.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bouvet_wire::limits::{MAX_RESULTS, MAX_RESULTS_BYTES};
use bouvet_wire::v1::{self, exec_output::Output};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::context::Context;
use super::output::Capture;
use super::relay::Earlier;
use super::talk::{Message, Talk};
use super::{Answer, DRAIN, Executor, feed, process, program, send, tail};
use crate::answers::Answers;

/// What an interrupted cell gets to end, before its context is killed.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);

/// Runs `source` in the context that `start` names, when it is its turn.
pub(super) fn run(
    executor: &Executor,
    start: v1::ExecStart,
    source: &[u8],
    input: Streaming<v1::ExecInput>,
) -> Result<Answers<v1::ExecOutput>, Status> {
    let context = executor.contexts.find(&start.context_id)?;
    if context.program != start.program() {
        let name = context.program.as_str_name();
        return Err(Status::invalid_argument(format!("the context is one of {name}")));
    }
    let serial = executor.serial.fetch_add(1, Ordering::Relaxed);
    let files = program::Files::new(executor.run_dir.join(format!("exec-{serial}")), None);
    let file = files
        .store("cell", source)
        .map_err(|error| Status::internal(format!("could not store the program: {error}")))?;
    let deadline = Instant::now() + Duration::from_millis(start.timeout_ms.into());
    let (answer, answers) = mpsc::channel(8);
    let shown = Vec::new();
    let cell = Cell { context, start, deadline, file, answer, shown, omitted: 0, _files: files };
    tokio::spawn(cell.run(input));
    Ok(ReceiverStream::new(answers))
}

struct Cell {
    context: Arc<Context>,
    start: v1::ExecStart,
    deadline: Instant,
    file: OsString,
    answer: Answer,
    /// The names of the results that were passed on, and their bytes.
    shown: Vec<(String, usize)>,
    omitted: u32,
    /// Removed with its content when the run ends.
    _files: program::Files,
}

/// How a run ended.
enum End {
    Done(u8),
    Died(v1::ContextDeath),
}

impl Cell {
    async fn run(mut self, input: Streaming<v1::ExecInput>) {
        let (context, answer) = (self.context.clone(), self.answer.clone());
        let mut talk = tokio::select! {
            talk = context.talk.lock() => talk,
            () = tokio::time::sleep_until(self.deadline.into()) => {
                let busy = Status::deadline_exceeded("the context was busy all the time");
                // The host may have gone; then nobody is left to tell, here and below.
                answer.send(Err(busy)).await.ok();
                return;
            }
            () = answer.closed() => return,
        };
        let outcome = match context.death() {
            // That nothing was started says that it had died before.
            Some(death) => Ok(exit(v1::ExecExit { context_death: Some(death), ..v1::ExecExit::default() })),
            None => self.converse(&mut talk, input).await,
        };
        answer.send(outcome).await.ok();
    }

    async fn converse(
        &mut self,
        talk: &mut Talk,
        input: Streaming<v1::ExecInput>,
    ) -> Result<v1::ExecOutput, Status> {
        let failed = |error| Status::internal(format!("could not make pipes: {error}"));
        let (streams, ends) = process::streams().map_err(failed)?;
        // Whoever does not listen any more is about to be told why.
        send(&self.answer, Output::Started(v1::ExecStarted { pid: self.context.pid })).await.ok();
        let started = Instant::now();
        let results = self.start.result_limits.unwrap_or_default();
        let earlier = talk.begin(Path::new(&self.file), results, ends).await;
        if earlier.is_err() {
            self.context.kill();
        }
        let [earlier_stdout, earlier_stderr] = earlier.unwrap_or_default();
        let limits = (self.start.head_limit_bytes as usize, self.start.tail_limit_bytes as usize);
        let stdout = Capture::start(streams.stdout, limits, self.answer.clone(), Output::Stdout);
        let stderr = Capture::start(streams.stderr, limits, self.answer.clone(), Output::Stderr);
        let stdin = tokio::spawn(feed(streams.stdin, input));
        let (end, timed_out) = self.watch(talk).await;
        let duration = started.elapsed();
        stdin.abort();
        talk.end().await;
        let (stdout, stderr) = tokio::join!(stdout.finish(DRAIN), stderr.finish(DRAIN));
        let mut exit = v1::ExecExit {
            timed_out,
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            stdout: Some(with_earlier(tail(stdout), earlier_stdout)),
            stderr: Some(with_earlier(tail(stderr), earlier_stderr)),
            omitted_results: self.omitted,
            ..v1::ExecExit::default()
        };
        match end {
            End::Done(code) => exit.exit_code = code.into(),
            End::Died(death) => {
                let signal = i32::try_from(death.signal).unwrap_or_default();
                exit.exit_code = if signal == 0 { death.exit_code } else { 128 + signal };
                exit.signal = death.signal;
                exit.out_of_memory = death.out_of_memory;
                exit.context_death = Some(death);
            }
        }
        Ok(self::exit(exit))
    }

    /// Waits for the end of the cell. When its time is over, or nobody waits for it any more, it is interrupted,
    /// and its context killed if that does not end it.
    async fn watch(&mut self, talk: &mut Talk) -> (End, bool) {
        let (context, answer) = (self.context.clone(), self.answer.clone());
        let (mut until, mut is_interrupted, mut timed_out) = (self.deadline, false, false);
        loop {
            let is_late = tokio::select! {
                message = talk.next() => match message {
                    Some(Message::Done(code)) => return (End::Done(code), timed_out),
                    Some(Message::Result(result)) => {
                        self.show(result, until).await;
                        continue;
                    }
                    Some(Message::Clear) => {
                        self.clear(until).await;
                        continue;
                    }
                    // It is dead, or may as well be.
                    None => {
                        context.kill();
                        return (End::Died(context.died().await), timed_out);
                    }
                },
                death = context.died() => return (End::Died(death), timed_out),
                () = tokio::time::sleep_until(until.into()) => true,
                () = answer.closed(), if !is_interrupted => false,
            };
            timed_out |= is_late;
            if is_interrupted {
                context.kill_stubborn();
                return (End::Died(context.died().await), timed_out);
            }
            context.interrupt();
            (until, is_interrupted) = (Instant::now() + INTERRUPT_GRACE, true);
        }
    }

    /// Passes a result on, within the limits of one run.
    async fn show(&mut self, result: v1::ExecResult, until: Instant) {
        let bytes: usize = result.parts.iter().map(|part| part.data.len()).sum();
        let id = result.id.clone();
        let replaced =
            self.shown.iter().position(|(shown, _)| result.update && !id.is_empty() && *shown == id);
        let others = self.shown.iter().enumerate().filter(|(index, _)| Some(*index) != replaced);
        let (count, taken) =
            others.fold((0, 0), |(count, taken), (_, (_, bytes))| (count + 1, taken + bytes));
        let fits = count < MAX_RESULTS && taken + bytes <= MAX_RESULTS_BYTES;
        // A host that does not read must not hold the deadline up.
        let sending = tokio::time::timeout_at(until.into(), send(&self.answer, Output::Result(result)));
        if !fits || sending.await.is_err() {
            self.omitted = self.omitted.saturating_add(1);
            return;
        }
        match replaced {
            Some(index) => self.shown[index].1 = bytes,
            None => self.shown.push((id, bytes)),
        }
    }

    /// Makes the host forget the results so far.
    async fn clear(&mut self, until: Instant) {
        let clear = Output::ClearResults(v1::ClearResults {});
        if tokio::time::timeout_at(until.into(), send(&self.answer, clear)).await.is_ok() {
            self.shown.clear();
            self.omitted = 0;
        }
    }
}

fn with_earlier(tail: v1::OutputTail, earlier: Earlier) -> v1::OutputTail {
    let Earlier { bytes: earlier_bytes, dropped_bytes: earlier_dropped_bytes } = earlier;
    v1::OutputTail { earlier_bytes, earlier_dropped_bytes, ..tail }
}

fn exit(exit: v1::ExecExit) -> v1::ExecOutput {
    v1::ExecOutput { output: Some(Output::Exit(exit)) }
}
