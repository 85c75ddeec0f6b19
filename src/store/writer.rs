//! The one writer: takes what has queued up, commits it as one transaction, then tells everybody.
//!
//! A write that fails is rolled back alone (savepoint); a commit that fails fails all of its batch, and none of it
//! is in the database then.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use atelier_domain::Timestamp;
use futures::future::BoxFuture;
use sqlx::{Connection as _, SqliteConnection, SqlitePool, pool::PoolConnection};
use tokio::{
    sync::{Notify, broadcast, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Insert, Inserted, JobMessage, Message, StoreError,
    insert::{self, TOGETHER},
    transitions,
};
use crate::failpoint;

/// Writes that one commit takes at most; bounds the time for which others wait.
const BATCH: usize = 256;

/// How long a commit waits for writes that are probably on their way: those who were told of the last commit at the same
/// time are likely to come back at the same time, and a commit costs the same for one as for all of them.
const GATHER: Duration = Duration::from_millis(1);

/// Statements that go ahead of the next write. Not a call of their own where the write can take them along: a call is a
/// trip to the connection's thread and back, and trips cost more than the statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    Nothing,
    /// A transaction whose commit is on the disk when it returns, with a savepoint for its first write.
    OpenSynced,
    /// A transaction whose commit costs no fsync, likewise.
    OpenLazy,
    /// Another savepoint: the write before stands.
    Renew,
}

impl Ahead {
    /// How many there are.
    pub(super) const ALL: usize = 4;

    pub(super) const fn sql(self) -> &'static str {
        match self {
            Self::Nothing => "",
            // The pragma cannot change inside a transaction, and costs nothing where it stays as it is.
            Self::OpenSynced => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE; SAVEPOINT one;",
            Self::OpenLazy => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE; SAVEPOINT one;",
            Self::Renew => "RELEASE one; SAVEPOINT one;",
        }
    }
}

/// What a write works with: the connection inside its transaction, and the events that it causes.
pub(super) struct WriteTx {
    conn: PoolConnection<sqlx::Sqlite>,
    ahead: Ahead,
    messages: Vec<Message>,
    /// A message was put into the webhooks' outbox.
    webhooks: bool,
}

impl WriteTx {
    pub(super) fn conn(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }

    /// What the caller's own call takes along.
    pub(super) fn take_ahead(&mut self) -> Ahead {
        std::mem::replace(&mut self.ahead, Ahead::Nothing)
    }

    /// Records that something happened to a job; watchers hear of it after the commit.
    pub(super) async fn record(&mut self, event: JobMessage) -> Result<(), StoreError> {
        // The database gives the number: `atelier cleanup` may write beside a running daemon.
        let seq = sqlx::query_scalar("INSERT INTO job_events (job_id, created_at) VALUES (?1, ?2) RETURNING seq")
            .bind(event.job_id().to_string())
            .bind(Timestamp::now().0)
            .fetch_one(&mut *self.conn)
            .await?;
        self.recorded(seq, event);
        Ok(())
    }

    /// The webhooks' outbox is looked at after the commit.
    pub(super) fn webhook_waits(&mut self) {
        self.webhooks = true;
    }

    /// As [`Self::record`], for a caller whose own statement has written the event.
    pub(super) fn recorded(&mut self, seq: i64, event: JobMessage) {
        self.messages.push(Message { seq: Some(seq), event });
    }
}

type Op = Box<dyn for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<(), StoreError>> + Send>;

/// Whether the answer to a write is a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// On the disk when `write` returns; survives power loss.
    Synced,
    /// Survives the death of the daemon; after power loss it may not have happened. For what is merely true now, such
    /// as that a job runs: costs no fsync.
    Lazy,
}

enum Work {
    Op(Op),
    /// A job whose rows may be written by the call that writes others', with the place for what became of it.
    Insert(Box<Insert>, Slot<Inserted>),
}

/// Where a write leaves its value, for whoever waits for the commit.
type Slot<T> = Arc<Mutex<Option<T>>>;

fn put<T>(slot: &Slot<T>, value: T) {
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
}

struct Write {
    work: Work,
    durability: Durability,
    done: Done,
}

/// Whoever waits for the commit.
type Done = oneshot::Sender<Result<(), StoreError>>;

enum Command {
    Write(Write),
    Close(oneshot::Sender<()>),
}

#[derive(Clone)]
pub(super) struct Writer {
    commands: mpsc::Sender<Command>,
}

impl Writer {
    pub(super) fn spawn(pool: SqlitePool, messages: broadcast::Sender<Message>, webhooks: Arc<Notify>) -> Self {
        let (commands, receiver) = mpsc::channel(4 * BATCH);
        tokio::spawn(run(pool, messages, webhooks, receiver));
        Self { commands }
    }

    /// Runs `op` inside the next transaction. When this returns `Ok`, the commit is on the disk.
    pub(super) async fn write<T, F>(&self, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        self.write_with(Durability::Synced, op).await
    }

    /// Like [`Self::write`], without the fsync.
    pub(super) async fn write_lazily<T, F>(&self, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        self.write_with(Durability::Lazy, op).await
    }

    async fn write_with<T, F>(&self, durability: Durability, op: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        let slot = Slot::default();
        self.send(Work::Op(op_into(slot.clone(), op)), durability, slot).await
    }

    /// Adds a job that [is plain](Insert::is_plain), together with others that wait to be added. When this returns `Ok`,
    /// the commit is on the disk.
    pub(super) async fn insert(&self, new: Insert) -> Result<Inserted, StoreError> {
        let slot = Slot::default();
        self.send(Work::Insert(Box::new(new), slot.clone()), Durability::Synced, slot).await
    }

    async fn send<T>(&self, work: Work, durability: Durability, slot: Slot<T>) -> Result<T, StoreError> {
        let (done, committed) = oneshot::channel();
        self.commands.send(Command::Write(Write { work, durability, done })).await.map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)??;
        let value = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        value.ok_or(StoreError::Closed)
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.commands.send(Command::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

/// A write that leaves its value in `slot`.
fn op_into<T, F>(slot: Slot<T>, op: F) -> Op
where
    T: Send + 'static,
    F: for<'c> FnOnce(&'c mut WriteTx) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
{
    Box::new(move |tx| {
        Box::pin(async move {
            put(&slot, op(tx).await?);
            Ok(())
        })
    })
}

async fn run(
    pool: SqlitePool,
    broadcast: broadcast::Sender<Message>,
    webhooks: Arc<Notify>,
    mut commands: mpsc::Receiver<Command>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut expected = 1;
    loop {
        batch.clear();
        if commands.recv_many(&mut batch, BATCH).await == 0 {
            break;
        }
        gather(&mut commands, &mut batch, expected).await;
        expected = batch.len();
        let mut closing = None;
        let mut writes = Vec::with_capacity(batch.len());
        for command in batch.drain(..) {
            match command {
                Command::Write(write) => writes.push(write),
                Command::Close(done) => closing = Some(done),
            }
        }
        if !writes.is_empty() {
            commit(&pool, &broadcast, &webhooks, writes).await;
        }
        if let Some(done) = closing {
            pool.close().await;
            let _ = done.send(());
            break;
        }
    }
}

/// Waits a moment for as many commands as came together the last time.
async fn gather(commands: &mut mpsc::Receiver<Command>, batch: &mut Vec<Command>, expected: usize) {
    let deadline = Instant::now() + GATHER;
    while let Some(missing) = expected.checked_sub(batch.len()).filter(|missing| *missing > 0) {
        match timeout_at(deadline, commands.recv_many(batch, missing)).await {
            Ok(received) if received > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Who asked, and what the write itself came to; the commit is still to be seen.
type Answer = (Done, Result<(), StoreError>);

async fn commit(pool: &SqlitePool, broadcast: &broadcast::Sender<Message>, webhooks: &Notify, writes: Vec<Write>) {
    let mut answers = Vec::with_capacity(writes.len());
    let result = transaction(pool, writes, &mut answers).await;
    match result {
        Ok(written) => {
            for message in written.messages {
                let _ = broadcast.send(message);
            }
            if written.webhooks {
                webhooks.notify_one();
            }
            for (done, answer) in answers {
                let _ = done.send(answer);
            }
        }
        Err(error) => {
            tracing::error!(%error, "a transaction failed; none of it was written");
            for (done, answer) in answers {
                let _ = done.send(answer.and(Err(error.clone())));
            }
        }
    }
}

/// What a commit has made true.
struct Written {
    messages: Vec<Message>,
    webhooks: bool,
}

async fn transaction(pool: &SqlitePool, writes: Vec<Write>, answers: &mut Vec<Answer>) -> Result<Written, StoreError> {
    let synced = writes.iter().any(|write| write.durability == Durability::Synced);
    let conn = match pool.acquire().await {
        Ok(conn) => conn,
        Err(error) => {
            answers.extend(writes.into_iter().map(|write| (write.done, Ok(()))));
            return Err(error.into());
        }
    };
    let ahead = if synced { Ahead::OpenSynced } else { Ahead::OpenLazy };
    let mut tx = WriteTx { conn, ahead, messages: Vec::new(), webhooks: false };
    let worked = work(&mut tx, writes.into(), answers).await;
    let committed = match worked.and_then(|()| Ok(failpoint::fails("store.commit").map_err(sqlx::Error::Io)?)) {
        Ok(()) => sqlx::query("COMMIT").execute(tx.conn()).await.map(|_| ()).map_err(StoreError::from),
        Err(error) => Err(error),
    };
    match committed {
        Ok(()) => Ok(Written { messages: tx.messages, webhooks: tx.webhooks }),
        Err(error) => {
            // After a failed commit the connection's state is not worth guessing: roll back and open another.
            let _ = sqlx::query("ROLLBACK").execute(tx.conn()).await;
            let conn = tx.conn.detach();
            let _ = conn.close().await;
            Err(error)
        }
    }
}

/// Does all of the writes inside the transaction. An error means that the transaction itself is lost.
async fn work(tx: &mut WriteTx, mut writes: VecDeque<Write>, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
    let mut lost = None;
    while let Some(Write { work, done, .. }) = writes.pop_front() {
        if lost.is_some() {
            answers.push((done, Ok(())));
            continue;
        }
        let result = match work {
            Work::Op(op) => alone(tx, op, done, answers).await,
            Work::Insert(new, slot) => {
                let mut group = Group { news: vec![*new], waiting: vec![(slot, done)] };
                while group.news.len() < TOGETHER
                    && let Some(next) = writes.pop_front_if(|next| matches!(next.work, Work::Insert(..)))
                {
                    let Write { work: Work::Insert(new, slot), done, .. } = next else { continue };
                    group.news.push(*new);
                    group.waiting.push((slot, done));
                }
                together(tx, group, answers).await
            }
        };
        lost = result.err();
    }
    lost.map_or(Ok(()), Err)
}

/// Runs one write within a savepoint of its own: its error undoes it alone.
async fn alone(tx: &mut WriteTx, op: Op, done: Done, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
    let answer = savepoint(tx, op).await;
    answers.push((done, answer.clone().unwrap_or_else(Err)));
    answer.map(|_| ())
}

/// The outer error means that the transaction itself is lost.
async fn savepoint(tx: &mut WriteTx, op: Op) -> Result<Result<(), StoreError>, StoreError> {
    let before = tx.messages.len();
    let ahead = tx.take_ahead();
    if ahead != Ahead::Nothing {
        sqlx::query(ahead.sql()).execute(tx.conn()).await?;
    }
    let answer = op(tx).await;
    if answer.is_err() {
        tx.messages.truncate(before);
        sqlx::query("ROLLBACK TO one").execute(tx.conn()).await?;
    }
    tx.ahead = Ahead::Renew;
    Ok(answer)
}

/// Jobs whose rows one call writes.
struct Group {
    news: Vec<Insert>,
    waiting: Vec<(Slot<Inserted>, Done)>,
}

/// Adds jobs by one call, and one by one those of which the call says no more than that they were not added.
async fn together(tx: &mut WriteTx, group: Group, answers: &mut Vec<Answer>) -> Result<(), StoreError> {
    let Group { news, waiting } = group;
    let seqs = match insert::rows(tx, &news).await {
        Ok(seqs) => seqs,
        Err(error) => match sqlx::query("ROLLBACK TO one").execute(tx.conn()).await {
            Ok(_) => vec![None; news.len()],
            Err(_) => {
                answers.extend(waiting.into_iter().map(|(_, done)| (done, Ok(()))));
                return Err(error);
            }
        },
    };
    tx.ahead = Ahead::Renew;
    let mut lost = None;
    for ((new, seq), (slot, done)) in news.into_iter().zip(seqs).zip(waiting) {
        if let Some(seq) = seq {
            tx.recorded(seq, JobMessage::Updated(Box::new(new.job.clone())));
            put(&slot, Inserted::New(Box::new(new.job)));
            answers.push((done, Ok(())));
        } else if lost.is_some() {
            answers.push((done, Ok(())));
        } else {
            let op = op_into(slot, move |tx| Box::pin(transitions::insert(tx, new)));
            lost = alone(tx, op, done, answers).await.err();
        }
    }
    lost.map_or(Ok(()), Err)
}
